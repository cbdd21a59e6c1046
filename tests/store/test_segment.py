"""Segments made by a stranger: digests are right, content is not what a segment may hold."""

from __future__ import annotations

import hashlib
import io
import json

import h5py
import numpy as np
import pytest

from retailtag.errors import ArtefactError, DamagedFile
from retailtag.store.segment import Absent, Segment, encode, read_segment


def sealed(body: bytes, identity: str, version: int = 1, claim: int | None = None) -> bytes:
    """The header as features/README.md describes it, and the body."""
    digest = hashlib.sha256(body).hexdigest()
    header = (
        f"retailtag-feature-shard {version}\nidentity {identity}\n"
        f"body {claim or len(body)}\nsha256 {digest}\n"
    )
    return header.encode().ljust(512, b"\0") + body


def forged(world, tamper) -> bytes:
    """A segment of two rows that `tamper` has changed before the digests were taken."""
    spec, rows = world.spec(), world.rows(2)
    arrays = {
        "embedding": rows.embeddings,
        "image_id": np.array([i.encode() for i in rows.ids], h5py.string_dtype("utf-8", 10)),
        "image_sha256": np.zeros((2, 32), np.uint8),
        "absent": np.frombuffer(b"[]", np.uint8),
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as f:
        for name, array in arrays.items():
            f.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)
        f.attrs["format"] = 1
        f.attrs["identity"] = np.bytes_(spec.digest)
        tamper(f)
        h = hashlib.sha256()
        for name in arrays:
            if isinstance(f.get(name, getlink=True), h5py.HardLink) and _readable(f[name]):
                h.update(f[name][()].tobytes())
        if "data_sha256" not in f.attrs:
            f.attrs["data_sha256"] = np.bytes_(h.hexdigest())
    return sealed(buffer.getvalue()[512:], spec.digest)


def _readable(item) -> bool:
    return isinstance(item, h5py.Dataset) and item.size < 1000 and not item.is_virtual


def replace(name, **dataset):
    def tamper(f):
        del f[name]
        f.create_dataset(name, **dataset)

    return tamper


def external_link(f):
    del f["embedding"]
    f["embedding"] = h5py.ExternalLink("/etc/hostname", "/")


def virtual(f):
    del f["embedding"]
    layout = h5py.VirtualLayout((2, 5), np.float32)
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "embedding", (2, 5))
    f.create_virtual_dataset("embedding", layout)


def soft_link(f):
    f.move("embedding", "hidden")
    f["embedding"] = h5py.SoftLink("/hidden")


WHOLE = {"chunks": (2, 5), "fletcher32": True}
HOSTILE = {
    "external link": (external_link, "link to somewhere else"),
    "soft link": (soft_link, "other datasets"),
    "virtual dataset": (virtual, "not stored in the file itself"),
    "external storage": (
        replace("embedding", shape=(2, 5), dtype="f4", external=[("/etc/hostname", 0, 40)]),
        "not stored in the file itself",
    ),
    "terabytes in kilobytes": (
        replace("embedding", shape=(1 << 38, 5), dtype="f4", chunks=(1024, 5)),
        "shape",
    ),
    "rows that were never written": (
        replace("embedding", shape=(2, 5), dtype="f4", **WHOLE),
        "whole fletcher32 chunks",
    ),
    "no checksum": (
        replace("embedding", data=np.ones((2, 5), "f4"), chunks=(2, 5)),
        "whole fletcher32 chunks",
    ),
    "another filter": (
        replace("embedding", data=np.ones((2, 5), "f4"), **WHOLE, compression="gzip"),
        "whole fletcher32 chunks",
    ),
    "another dtype": (replace("embedding", data=np.ones((2, 5), "f8"), **WHOLE), "float64"),
    "not finite": (replace("embedding", data=np.full((2, 5), np.inf, "f4"), **WHOLE), "not finite"),
    "variable-length ids": (
        replace("image_id", data=["a", "b"], dtype=h5py.string_dtype()),
        "image_id",
    ),
    "too few ids": (
        replace("image_id", data=np.array([b"a"], "S1"), chunks=(1,), fletcher32=True),
        "image_id",
    ),
    "ids that are not text": (
        replace("image_id", data=np.array([b"\xff", b"b"]), chunks=(2,), fletcher32=True),
        "can't decode",
    ),
    "absent not JSON": (
        replace("absent", data=np.zeros(2, np.uint8), chunks=(2,), fletcher32=True),
        "Expecting value",
    ),
    "absent of other types": (
        replace(
            "absent",
            data=np.frombuffer(json.dumps([[1, None, "x"]]).encode(), np.uint8),
            chunks=(14,),
            fletcher32=True,
        ),
        "malformed",
    ),
    "a group": (lambda f: (f.move("absent", "x"), f.create_group("absent")), "other datasets"),
    "an extra dataset": (lambda f: f.create_dataset("label", data=[1]), "other datasets"),
    "an extra attribute": (lambda f: f.attrs.create("note", 1), "other datasets"),
    "a wrong data digest": (
        lambda f: f.attrs.create("data_sha256", np.bytes_("0" * 64)),
        "do not match their checksum",
    ),
    "another identity inside": (
        lambda f: f.attrs.create("identity", np.bytes_("0" * 64)),
        "identity",
    ),
    "a digest that is no digest": (
        lambda f: f.attrs.create("data_sha256", np.zeros(64)),
        "not a digest",
    ),
}


@pytest.mark.parametrize(("tamper", "sentence"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_segment_is_refused_by_name(tmp_path, world, tamper, sentence):
    path = tmp_path / "shard-000000.h5"
    path.write_bytes(forged(world, tamper))
    with pytest.raises(ArtefactError, match=rf"shard-000000\.h5 is damaged.*{sentence}"):
        read_segment(path, world.spec())


def test_the_forgery_itself_is_sound(tmp_path, world):
    path = tmp_path / "shard"
    path.write_bytes(forged(world, lambda f: None))
    segment = read_segment(path, world.spec())
    np.testing.assert_array_equal(segment.embedding, world.rows(2).embeddings)


def test_a_header_that_lies_is_refused(tmp_path, world):
    path, identity = tmp_path / "shard", world.spec().digest
    for content, sentence in (
        (sealed(b"x", identity, version=2), "has format 2"),
        (sealed(b"x", identity, claim=10**15), "more than a segment can have"),
        (sealed(b"not HDF5", identity), "damaged"),
        (b"", "header"),
    ):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=sentence):
            read_segment(path, world.spec())
    with pytest.raises(ArtefactError, match="missing cannot be read") as refusal:
        read_segment(tmp_path / "missing", world.spec())
    assert not isinstance(refusal.value, DamagedFile)  # which the next extract would set aside


@pytest.mark.parametrize(("n", "absent"), [(1, 0), (0, 3), (1300, 2), (4096, 0), (2000, 2096)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_encoded_is_read_back(tmp_path, world, n, absent, dtype):
    spec, rows = world.spec(dtype=dtype), world.rows(n)
    gone = [
        Absent(f"ü-{i}", None if i % 2 else "ab" * 32, "\U0001f4a5" * 999) for i in range(absent)
    ]
    segment = Segment.build(spec, rows.ids, rows.sha256, rows.embeddings, gone)
    path = tmp_path / "shard"
    path.write_bytes(encode(segment, spec))
    back = read_segment(path, spec)
    assert back.image_ids == segment.image_ids
    assert back.absent == segment.absent
    np.testing.assert_array_equal(back.sha256, segment.sha256)
    np.testing.assert_array_equal(back.embedding, rows.embeddings.astype(dtype))
    assert encode(back, spec) == path.read_bytes()
