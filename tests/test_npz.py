"""Archives that were changed byte by byte, or made to take all memory, are one sentence."""

import io
import random
import struct
import zipfile
from contextlib import suppress

import numpy as np
import pytest

from retailtag import npz
from retailtag.errors import DataError
from retailtag.npz import Form, open_npz

NUMBERS = Form("f", (None, 2))


def header(text, version=b"\1\0"):
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text


def archive(path, body, name="a.npy", **how):
    with zipfile.ZipFile(path, "w", **how) as file:
        file.writestr(name, body)
    return path


def read(path):
    with open_npz(path, "is no good", "write it again") as file:
        return file.read("a", NUMBERS)


def refused(path, said):
    with pytest.raises(DataError, match=rf"{path.name} is no good: .*{said}.*; write it again\.$"):
        read(path)


def numbers(n=3):
    body = io.BytesIO()
    np.save(body, np.arange(2.0 * n).reshape(n, 2))
    return body.getvalue()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 2)}", "as its header"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2)}", "as its header says"),
        (f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**40}, 2)}}", "as its header"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (3, 2)}", "holds Python objects"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (3, 3)}", "instead of .any, 2"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': 3}", "header .* is damaged"),
        ("{'descr': 7, 'fortran_order': False, 'shape': (3, 2)}", "header .* is damaged"),
        ("{'descr': '<q9', 'fortran_order': False, 'shape': (3, 2)}", "header .* is damaged"),
        ("(" * 5000, "header .* is damaged"),
        ("-" * 9000 + "1", "header .* is damaged"),
        ("[" * 60000, "header .* is damaged"),
        ("__import__('os').mkdir('x')", "header .* is damaged"),
        ("", "header .* is damaged"),
    ],
)
@pytest.mark.parametrize("version", [b"\1\0", b"\2\0", b"\3\0", b"\x09\0"])
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, text, said, version):
    body = header(text.encode(), version) + bytes(48)
    said = said if version < b"\3" else "header .* is damaged"
    refused(archive(tmp_path / "x.npz", body), said)


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(npz, "ALWAYS_UNPACKED", 1 << 16)
    zeros = header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (65536, 2)}") + bytes(
        1 << 20
    )
    refused(archive(tmp_path / "x.npz", zeros, compression=kind), "it unpacks to 1,048,")
    found = read(archive(tmp_path / "y.npz", numbers(2000), compression=kind))
    assert found[-1].tolist() == [3998, 3999]


def test_encrypted_repeated_and_lacking_members_are_named(tmp_path):
    path = archive(tmp_path / "x.npz", numbers())
    whole = path.read_bytes()
    locked = bytearray(whole)
    central = whole.index(b"PK\1\2")
    locked[6] |= 1  # the mark of encryption, in the local header and in the directory
    locked[central + 8] |= 1
    path.write_bytes(locked)
    refused(path, r"its member a\.npy is encrypted")
    unknown = bytearray(whole)
    unknown[8] = unknown[central + 10] = 77  # a method of compression that nobody knows
    path.write_bytes(unknown)
    refused(path, "its array a is damaged")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", numbers())
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a.npy", numbers(2))
    refused(path, r"it holds a\.npy twice")
    refused(archive(path, numbers(), name="b.npy"), "it lacks the array a")
    path.write_bytes(numbers())
    refused(path, "it is not a complete zip archive")


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_every_changed_byte_is_refused_or_changes_nothing(tmp_path, kind):
    whole = archive(tmp_path / "x.npz", numbers(), compression=kind).read_bytes()
    expected = read(tmp_path / "x.npz")
    rng = random.Random(kind)
    for k in range(len(whole)):
        changed = bytearray(whole)
        changed[k] ^= rng.randrange(1, 256)
        (tmp_path / "x.npz").write_bytes(changed)
        with suppress(DataError):
            np.testing.assert_array_equal(read(tmp_path / "x.npz"), expected)


def test_no_memory_is_a_sentence(tmp_path, monkeypatch):
    def read_array(*args, **kwargs):
        raise MemoryError

    path = archive(tmp_path / "x.npz", numbers())
    monkeypatch.setattr(npz.npy, "read_array", read_array)
    refused(path, r"its array a \(176 bytes\) does not fit into memory")
