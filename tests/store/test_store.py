from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retailtag.errors import ArtefactError, DataError, StaleFeatures, Unavailable
from retailtag.store import NOT_EXTRACTED, Absent, FeatureSpec, FeatureStore, list_stores
from retailtag.store.maintenance import prune

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def store(tmp_path, world):
    """Two segments of three rows and one absent image."""
    store = FeatureStore.create_or_open(tmp_path, world.spec())
    first, second = world.rows(3, 0, "a"), world.rows(3, 1, "b")
    store.append(first.ids, first.sha256, first.embeddings)
    gone = Absent("gone", "cd" * 32, "is empty (0 bytes)")
    store.append(second.ids, second.sha256, second.embeddings, [gone])
    return store


def test_identity_is_on_disk_before_any_row_and_names_the_folder(tmp_path, world):
    spec = world.spec(backbone="open_clip:ViT-B-32/laion2b")
    store = FeatureStore.create_or_open(tmp_path, spec)
    assert store.path.name == f"open_clip-ViT-B-32-laion2b-{spec.digest[:12]}"
    assert [p.name for p in store.path.iterdir()] == ["spec.json"]
    assert FeatureStore.open(store.path, spec).spec == spec


def test_rows_come_back_in_the_order_asked(store, world):
    ids = ["b-0002", "a-0000", "gone", "never", "b-0000"]
    view = FeatureStore.open(store.path).load(np.array(ids))
    first, second = world.rows(3, 0, "a"), world.rows(3, 1, "b")
    expected = [second.embeddings[2], first.embeddings[0], second.embeddings[0]]
    np.testing.assert_array_equal(view.X, np.stack(expected))
    assert view.X.dtype == np.float32
    assert view.found.tolist() == [True, True, False, False, True]
    assert view.absent == {"gone": "is empty (0 bytes)", "never": NOT_EXTRACTED}


def test_known_gives_the_hash_of_every_row(store, world):
    first, second = world.rows(3, 0, "a"), world.rows(3, 1, "b")
    expected = dict(zip(first.ids + second.ids, first.sha256 + second.sha256, strict=True))
    assert FeatureStore.open(store.path).known() == expected
    assert store.n_rows == 6
    assert store.nbytes == sum(p.stat().st_size for p in store.path.glob("*.h5"))


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12))
def test_the_latest_entry_of_an_image_counts(tmp_path_factory, world, history):
    store = FeatureStore.create_or_open(tmp_path_factory.mktemp("s"), world.spec())
    truth: dict[str, float | None] = {}
    for step, (image, readable) in enumerate(history):
        image_id = f"é{image}"
        if readable:
            store.append([image_id], [f"{step:064x}"], np.full((1, 5), step, np.float32))
        else:
            store.append([], [], np.empty((0, 5), np.float32), [Absent(image_id, None, "no file")])
        truth[image_id] = step if readable else None
    for reader in (store, FeatureStore.open(store.path)):
        view = reader.load(list(truth))
        assert view.found.tolist() == [value is not None for value in truth.values()]
        assert view.X[:, 0].tolist() == [v for v in truth.values() if v is not None]
        assert set(reader.known()) == {i for i, v in truth.items() if v is not None}
        assert set(reader.absent()) == set(view.absent)
    before = store.load(list(truth)).digest
    prune(store)
    assert FeatureStore.open(store.path).digest_for(list(truth)) == before
    assert len(list(store.path.glob("*.h5"))) == len(truth)


def test_digest_depends_on_ids_order_presence_and_values_not_on_segments(tmp_path, world):
    rows = world.rows(4)
    whole = FeatureStore.create_or_open(tmp_path / "a", world.spec())
    whole.append(rows.ids, rows.sha256, rows.embeddings)
    halves = FeatureStore.create_or_open(tmp_path / "b", world.spec())
    for half in (slice(2, 4), slice(0, 2)):
        halves.append(rows.ids[half], rows.sha256[half], rows.embeddings[half])
    digest = whole.digest_for(rows.ids)
    assert halves.digest_for(rows.ids) == digest
    others = {whole.digest_for(rows.ids[::-1]), whole.digest_for([*rows.ids, "x"])}
    halves.append(rows.ids[:1], rows.sha256[:1], rows.embeddings[:1] + 1)
    assert digest not in others | {halves.digest_for(rows.ids)}


def test_half_precision_is_stored_as_asked_and_read_as_float32(tmp_path, world):
    rows = world.rows(3)
    store = FeatureStore.create_or_open(tmp_path, world.spec(dtype="float16"))
    store.append(rows.ids, rows.sha256, rows.embeddings)
    X = store.load(rows.ids).X
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, rows.embeddings.astype(np.float16).astype(np.float32))
    with pytest.raises(DataError, match=r"image-0000 is not finite as float16.*--dtype float32"):
        store.append(rows.ids, rows.sha256, rows.embeddings * 1e6)


def test_a_stale_store_is_refused_with_both_values(store, world, tmp_path):
    asked = world.spec(preprocessing='{"antialias":false,"size":[64,64]}', weights_sha256="cd" * 32)
    with pytest.raises(StaleFeatures) as refusal:
        FeatureStore.open(store.path, asked)
    message = str(refusal.value)
    assert "preprocessing.antialias: stored True, asked False" in message
    assert "weights_sha256: stored 'abab" in message
    assert "size" not in message
    assert "Run extract" in message
    with pytest.raises(StaleFeatures, match="antialias"):
        FeatureStore.find(tmp_path, asked)
    assert FeatureStore.find(tmp_path, world.spec()).path == store.path
    with pytest.raises(DataError, match="holds no features of demo:dino"):
        FeatureStore.find(tmp_path, world.spec(backbone="demo:dino"))
    assert [s.path for s in list_stores(tmp_path)] == [store.path]


def test_every_field_is_part_of_the_identity(world):
    base = world.spec()
    for name, value in base.to_json().items():
        other = world.spec(**{name: value + 1 if name == "dim" else f"{value}x"})
        assert other.digest != base.digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not the identity"),
        ('{"format": 2, "digest": "", "spec": {}}', "has format 2"),
        ('{"format": 1, "digest": "", "spec": {}}', "needs exactly the fields"),
    ],
)
def test_a_damaged_identity_is_refused(store, text, sentence):
    (store.path / "spec.json").write_text(text)
    with pytest.raises((DataError, ArtefactError), match=sentence):
        FeatureStore.open(store.path)


def test_an_edited_identity_is_refused(store):
    file = store.path / "spec.json"
    file.write_text(file.read_text().replace('"avg"', '"cls"'))
    with pytest.raises(ArtefactError, match="edited or damaged"):
        FeatureStore.open(store.path)


def test_segments_without_an_identity_are_never_adopted(store, tmp_path, world):
    (store.path / "spec.json").unlink()
    with pytest.raises(DataError, match=r"no spec\.json"):
        FeatureStore.create_or_open(tmp_path, world.spec())
    with pytest.raises(DataError, match="is not a feature store"):
        FeatureStore.open(store.path)


@quick
@given(st.data())
def test_any_flipped_bit_is_refused_by_name(store, data):
    segment = store.path / "shard-000001.h5"
    whole = segment.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    segment.write_bytes(damaged)
    try:
        with pytest.raises(ArtefactError, match=r"shard-000001\.h5"):
            FeatureStore.open(store.path).load(["a-0000"])
    finally:
        segment.write_bytes(whole)


@quick
@given(st.integers(0, 20_000))
def test_any_truncation_or_extension_is_refused_on_opening(store, size):
    segment = store.path / "shard-000000.h5"
    whole = segment.read_bytes()
    if size == len(whole):
        return
    segment.write_bytes(whole[:size].ljust(size, b"\0"))
    try:
        with pytest.raises(ArtefactError, match=r"shard-000000\.h5 is damaged.*run extract again"):
            FeatureStore.open(store.path)
    finally:
        segment.write_bytes(whole)


def test_deleting_a_damaged_segment_loses_its_rows_alone(store):
    (store.path / "shard-000000.h5").unlink()
    again = FeatureStore.open(store.path)
    assert set(again.known()) == {"b-0000", "b-0001", "b-0002"}
    assert again.append(["a-0000"], ["ef" * 32], np.ones((1, 5), np.float32)) == "shard-000002.h5"


def test_a_segment_of_another_identity_is_refused(store, tmp_path, world):
    other = FeatureStore.create_or_open(tmp_path / "other", world.spec(output="cls"))
    other.append(["x"], ["00" * 32], np.ones((1, 5), np.float32))
    (store.path / "shard-000002.h5").write_bytes((other.path / "shard-000000.h5").read_bytes())
    with pytest.raises(StaleFeatures, match=r"shard-000002\.h5"):
        FeatureStore.open(store.path)


def test_leftovers_of_a_killed_writer_are_ignored_and_then_removed(store, world):
    whole = (store.path / "shard-000001.h5").read_bytes()
    for size in (0, 100, len(whole)):
        leftover = store.path / f".shard-000002.h5.{size}.part"
        leftover.write_bytes(whole[:size])
    again = FeatureStore.open(store.path)
    assert again.n_rows == 6
    rows = world.rows(2, 2, "c")
    again.append(rows.ids, rows.sha256, rows.embeddings)
    assert not list(store.path.glob(".*.part"))
    assert FeatureStore.open(store.path).n_rows == 8


@pytest.mark.parametrize("call", ["fsync", "write", "replace"])
def test_a_full_disk_keeps_what_stood_and_says_so(store, world, monkeypatch, call):
    rows = world.rows(2, 2, "c")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        elif call == "replace":
            patch.setattr(Path, "replace", full)
        else:
            patch.setattr(os, "fdopen", lambda *a, **k: _FullFile(os.open(os.devnull, os.O_RDONLY)))
        with pytest.raises(Unavailable, match="No space left"):
            store.append(rows.ids, rows.sha256, rows.embeddings)
    again = FeatureStore.open(store.path)
    assert again.n_rows == 6
    again.append(rows.ids, rows.sha256, rows.embeddings)
    assert FeatureStore.open(store.path).n_rows == 8


class _FullFile:
    """A binary file on a full disk."""

    def __init__(self, fd):
        self._fd = fd

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self._fd)

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_second_writer_is_refused_and_reading_goes_on(store, world):
    rows = world.rows(1, 5, "z")
    second = FeatureStore.open(store.path)
    with store.writing():
        with pytest.raises(Unavailable, match=rf"by another process \(pid {os.getpid()}\)"):
            second.append(rows.ids, rows.sha256, rows.embeddings)
        assert second.n_rows == 6
        store.append(rows.ids, rows.sha256, rows.embeddings)
    second.append(["y"], rows.sha256, rows.embeddings)
    assert sorted(p.name for p in store.path.glob("*.h5"))[-1] == "shard-000003.h5"


def test_the_lock_of_a_killed_writer_is_free(store):
    code = (
        "import sys, os, signal; from retailtag.store import FeatureStore\n"
        "with FeatureStore.open(sys.argv[1]).writing():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(Unavailable, match=rf"pid {child.pid}\b"), store.writing():
            pass
        child.kill()
        child.wait()
        with store.writing():
            pass


def test_rows_that_cannot_be_stored_write_nothing(store, world):
    one = np.ones((1, 5), np.float32)
    sha256 = "00" * 32
    bad = [
        ((["x", "x"], [sha256] * 2, np.ones((2, 5), np.float32)), "twice"),
        ((["x"], [sha256], one, [Absent("x", None, "gone")]), "twice"),
        ((["x"], [sha256], np.ones((1, 4), np.float32)), "do not make rows"),
        ((["x"], [], one), "do not make rows"),
        ((["x"], ["00"], one), "64 hexadecimal digits"),
        ((["x"], ["zz" * 32], one), "64 hexadecimal digits"),
        (([], [], np.empty((0, 5), np.float32)), "1 to 4096 images"),
        ((["a\0"], [sha256], one), "without NUL"),
        ((["\ud800"], [sha256], one), "not Unicode"),
        ((["x" * 1025], [sha256], one), "1024 bytes"),
        ((["x"], [sha256], one * np.nan), "check the backbone's weights"),
    ]
    for arguments, sentence in bad:
        with pytest.raises(DataError, match=sentence):
            store.append(*arguments)
    assert len(list(store.path.iterdir())) == 4  # spec.json, lock, two segments


def test_an_impossible_identity_is_refused(tmp_path, world):
    for changes, sentence in (({"dtype": "int8"}, "float32 or float16"), ({"dim": 0}, "dim 0")):
        with pytest.raises(DataError, match=sentence):
            FeatureStore.create_or_open(tmp_path, world.spec(**changes))
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="asked for twice"):
        FeatureStore.create_or_open(tmp_path, world.spec()).load(["a", "a"])


def test_a_folder_that_cannot_be_written_is_named(tmp_path, world):
    (tmp_path / "features").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="could not be written"):
        FeatureStore.create_or_open(tmp_path / "features", world.spec())


def test_plain_h5py_reads_a_segment(store, world):
    with h5py.File(store.path / "shard-000001.h5", "r") as f:
        ids = f["image_id"].asstr()[:].tolist()
        X = f["embedding"][:]
        assert f["image_sha256"].shape == (3, 32)
        assert f.attrs["identity"].decode() == world.spec().digest
        assert all(f[name].fletcher32 for name in f)
    rows = world.rows(3, 1, "b")
    assert ids == rows.ids
    np.testing.assert_array_equal(X, rows.embeddings)


def test_seconds_survive_torn_journal_lines_and_forget_deleted_segments(store):
    assert store.seconds == 0.0
    for segment, seconds in (("shard-000000.h5", 1.0), ("shard-000001.h5", 2.0)):
        store.journal.append({"kind": "shard", "shard": segment, "seconds": seconds})
    with (store.path / "journal.jsonl").open("ab") as handle:
        handle.write(b'{"kind": "shard", "shard": "shard-0000')
    store.journal.append({"kind": "shard", "shard": "shard-000001.h5", "seconds": 4.0})
    assert store.seconds == 5.0
    assert len(store.journal.entries()) == 3
    (store.path / "shard-000000.h5").unlink()
    assert FeatureStore.open(store.path).seconds == 4.0


GOLDEN = Path(__file__).parents[1] / "golden" / "features-v1"


def test_the_golden_store_reads_as_it_was_written():
    (path,) = GOLDEN.iterdir()
    store = FeatureStore.open(path)
    truth = np.load(GOLDEN.parent / "features-v1.npz")
    view = store.load(truth["image_ids"])
    np.testing.assert_array_equal(view.X, truth["X"])
    np.testing.assert_array_equal(view.found, truth["found"])
    assert view.absent == {"robe-été": "is empty (0 bytes)"}
    assert view.digest == str(truth["digest"])
    assert store.spec.digest == str(truth["identity"])
    assert isinstance(store.spec, FeatureSpec)


def test_a_damaged_store_hides_no_other(store, tmp_path, world):
    broken = FeatureStore.create_or_open(tmp_path, world.spec(output="cls"))
    (broken.path / "spec.json").write_text("{")
    assert [s.path for s in list_stores(tmp_path)] == [store.path]


def test_the_five_lines_of_the_contract_read_a_store(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "features" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].rstrip()
    assert sum(bool(line) for line in code.splitlines()) == 5
    (path,) = GOLDEN.iterdir()
    code = code.replace("features/demo-cnn-0123456789ab", path.as_posix())
    found: list[tuple[list[str], list[float]]] = []
    exec(
        f"{code}\n        keep(ids.tolist(), X[:, 0].tolist())",
        {"keep": lambda *a: found.append(a)},
    )
    assert found == [(["shirt", "shoe", "鞄"], [0.0, 0.375, 0.75]), (["shoe"], [1.125])]
