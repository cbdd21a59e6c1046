"""The scanner of tar headers agrees with tarfile, and answers everything else with one sentence."""

import gzip
import io
import random
import tarfile
from pathlib import PurePosixPath

import pytest

from retailtag.errors import DataError
from retailtag.images.tar import plain_tar, scan_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
KINDS = (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE)
KINDS += (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)


def archive(seed, format):
    """A tar of members of all kinds, with short, long and strange names."""
    rng = random.Random(seed)
    out = io.BytesIO()
    common = {"comment": "made up"} if format == tarfile.PAX_FORMAT and seed % 2 else None
    with tarfile.open(fileobj=out, mode="w", format=format, pax_headers=common) as tar:
        for i in range(12):
            longest = 90 if format == tarfile.USTAR_FORMAT else 300
            parts = ["d" * rng.randint(1, longest // 3) for _ in range(rng.randint(0, 2))]
            letter = rng.choice("aé漢 ")
            info = tarfile.TarInfo("/".join([*parts, f"{letter * rng.randint(1, 20)}{i % 9}.jpg"]))
            info.type = rng.choice(KINDS)
            info.linkname = "x" * rng.choice((0, 3, 99 if format == tarfile.USTAR_FORMAT else 200))
            info.mtime = rng.choice((0, 1.5, 1e9)) if format == tarfile.PAX_FORMAT else 0
            data = rng.randbytes(rng.choice((0, 1, 511, 512, 513)))
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def by_tarfile(data):
    spans, refused = {}, set()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            name = str(PurePosixPath(info.name))
            spans.pop(name, None)
            refused.discard(name)
            if info.isreg():
                spans[name] = (info.offset_data, info.size)
            elif not info.isdir():
                refused.add(name)
    return spans, refused


@pytest.fixture
def scan(tmp_path):
    """Members of an archive of these bytes."""
    made = iter(range(10_000))

    def scan(data):
        path = tmp_path / f"{next(made)}.tar"
        path.write_bytes(data)
        return scan_tar(path)

    return scan


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(8))
def test_members_are_those_of_tarfile(scan, format, seed):
    data = archive(seed, FORMATS[format])
    members = scan(data)
    assert (members.spans, set(members.refused)) == by_tarfile(data)


def block(name=b"a.jpg", kind=b"0", size=b"00000000001\0", rest=b""):
    """A header block with a right checksum."""
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size
    fields += b"00000000000\0" + b" " * 8 + kind + bytes(100) + b"ustar\x0000"
    fields = (fields.ljust(386, b"\0") + rest).ljust(512, b"\0")[:512]
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def long_name(text, kind=b"L"):
    return block(b"././@LongLink", kind, b"%011o\0" % len(text)) + text.ljust(512, b"\0")


def pax(text, kind=b"x"):
    size = b"%011o\0" % len(text)
    return block(b"pax", kind, size) + text + bytes(-len(text) % 512)


def record(key, value):
    body = b" %s=%s\n" % (key, value)
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


MEMBER = block() + b"x".ljust(512, b"\0")
END = bytes(1024)
SPARSE = block(b"s", b"S", rest=b"0" * 96 + b"\1")  # its map goes on in the next block
HOSTILE = {
    "chained pax headers": (pax(record(b"path", b"b")) * 3000 + MEMBER, "over 16 extended"),
    "chained long names": (long_name(b"b") * 3000 + MEMBER, "over 16 extended headers"),
    "chained global headers": (pax(b"", b"g") * 3000 + MEMBER, "over 16 extended headers"),
    "a pax header of digits": (pax(b"1" * 200_000) + MEMBER, "pax header at byte 0 is malformed"),
    "a pax length of digits": (pax(b"9" * 18 + b" a=b\n") + MEMBER, "header at byte 0 is malf"),
    "a pax length of 0": (pax(b"0 a=b\n") + MEMBER, "pax header at byte 0 is malformed"),
    "a pax record without end": (pax(b"6 a=bc") + MEMBER, "pax header at byte 0 is malformed"),
    "a pax size of 9s": (pax(record(b"size", b"9" * 500)) + MEMBER, "size of 'a.jpg' in the pax"),
    "a pax size below 0": (pax(record(b"size", b"-1")) + MEMBER, "size of 'a.jpg' in the pax"),
    "a pax size beyond": (
        pax(record(b"size", b"9" * 19)) + MEMBER,
        "it ends inside 'a.jpg', whose header at byte 1,024 says 9,999,999,999,999,999,999 bytes",
    ),
    "a large pax header": (block(kind=b"x", size=b"77777777777\0") + MEMBER, "8,589,934,591 bytes"),
    "a large octal size": (block(size=b"77777777777\0") + END, "says 8,589,934,591 bytes"),
    "a large binary size": (block(size=b"\x80" + b"\xff" * 11) + END, "it ends inside 'a.jpg'"),
    "a size below 0": (block(size=b"\xff" * 12) + END, "size of 'a.jpg' .* at byte 0 is no number"),
    "a size of letters": (MEMBER + block(size=b"999999999xyz"), "at byte 1,024 is no number"),
    "a sparse map without end": (SPARSE + (bytes(504) + b"\1" + bytes(7)) * 20, "map of a sparse"),
    "a damaged header": (MEMBER + b"y" * 512 + MEMBER, "its header at byte 1,024 is damaged"),
    "half a header": (MEMBER + MEMBER[:100], "it ends inside a header at byte 1,024"),
    "half a member": (MEMBER + block(size=b"00000001000\0") + b"x", "it ends inside 'a.jpg'"),
    "nothing after a name": (long_name(b"b") + END, "no member follows the extended header"),
    "nothing after pax": (pax(record(b"mtime", b"1.5")) + END, "no member follows the extended"),
    "nothing": (b"", "it is empty"),
    "text": (b"no tar at all", "it ends inside a header at byte 0"),
    "a block of text": (b"no tar at all".ljust(512), "its first 512 bytes are no header"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_one_sentence_with_their_place(scan, kind):
    data, fault = HOSTILE[kind]
    with pytest.raises(DataError, match=rf"\.tar cannot be read as a tar archive: .*{fault}") as e:
        scan(data)
    assert str(e.value).endswith("; fetch or pack it again.")
    assert len(str(e.value)) < 400


def test_sparse_members_are_refused_and_those_behind_them_found(scan):
    path, sparse = record(b"path", b"b"), record(b"GNU.sparse.map", b"no,numbers")
    more = bytes(504) + b"\1" + bytes(7) + bytes(512)  # two further blocks of the map
    members = scan(pax(path + sparse) + MEMBER + SPARSE + more + bytes(512) + MEMBER + END)
    assert members.refused == dict.fromkeys("bs", "is no plain file inside the archive")
    assert members.spans == {"a.jpg": (512 * 9, 1)}


def test_names_that_are_no_utf8_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAILTAG_CACHE", str(tmp_path))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(block(b"\xff.jpg") + bytes(512) + END))
    for _ in range(2):  # unpacked, then from the index beside it
        assert plain_tar(tmp_path / "x.tar.gz")[1].spans == {"\udcff.jpg": (512, 1)}


def test_any_changed_byte_gives_members_or_one_sentence(scan):
    rng = random.Random(0)
    n_refused = 0
    for seed in range(100):
        data = bytearray(archive(seed % 3, list(FORMATS.values())[seed % 3]))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice((0, 255, 48, rng.randrange(256)))
        try:
            scan(bytes(data))
        except DataError:
            n_refused += 1
    assert 10 < n_refused < 90
