"""Stores listed, made smaller and joined, and stopped before every rename and deletion."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retailtag.errors import ArtefactError, DataError, StaleFeatures, Unavailable, UsageError
from retailtag.store import Absent, FeatureStore
from retailtag.store.inventory import describe, find_named, store_folders, survey
from retailtag.store.maintenance import collect, delete_store, find_waste, merge

quick = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# (image, version of its bytes, whether it could be read); every entry is a block of its own or
# goes with the one before it
HISTORY = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans(), st.booleans()),
    min_size=1,
    max_size=12,
)


def row(image, version):
    return np.full(5, 10 * image + version, np.float32)


def sha256(image, version):
    return f"{10 * image + version:064x}"


def write_history(root, spec, history):
    """A store whose blocks follow `history`; returns it."""
    store = FeatureStore.create_or_open(root, spec)
    blocks: list[list] = []
    for image, version, readable, joined in history:
        if not (joined and blocks and all(image != other[0] for other in blocks[-1])):
            blocks.append([])
        blocks[-1].append((image, version, readable))
    for block in blocks:
        rows = [(i, v) for i, v, readable in block if readable]
        store.append(
            [f"é{i}" for i, _ in rows],
            [sha256(i, v) for i, v in rows],
            np.stack([row(i, v) for i, v in rows]) if rows else np.empty((0, 5), np.float32),
            [Absent(f"é{i}", sha256(i, v), "is empty") for i, v, readable in block if not readable],
        )
    return store


def contents(path):
    """Hash and embedding of every image that a store serves, and its absent images."""
    store = FeatureStore.open(path)
    known = store.known()
    view = store.load(sorted(known))
    assert view.found.all()
    rows = dict(zip(view.image_ids.tolist(), view.X.tolist(), strict=True))
    return {i: (known[i], rows[i]) for i in known}, store.absent()


class Stop(BaseException):
    """The process ends here."""


def stopped_before(monkeypatch, n, work):
    """Do `work` until its n-th rename or deletion, from which on nothing works; True if reached."""
    count = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count > n:
                raise Stop
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            work()
        except Stop:
            return True
    return False


# gc


@quick
@given(HISTORY, st.sets(st.integers(0, 5)), st.booleans())
def test_what_is_used_stays_and_nothing_else(tmp_path_factory, world, history, used, by_bytes):
    store = write_history(tmp_path_factory.mktemp("s"), world.spec(), history)
    images = {f"é{i}" for i in used}

    def is_used(image_id, sha):
        return image_id in images and not (by_bytes and int(sha, 16) % 10 == 2)

    rows, absent = contents(store.path)
    n_entries = len(history)
    waste = find_waste(store, is_used)
    assert contents(store.path) == (rows, absent)  # looking changes nothing
    kept = {i: e for i, e in rows.items() if is_used(i, e[0])}
    gone = {i: e for i, e in absent.items() if is_used(i, e.sha256)}
    assert waste.n_unused == len(rows) + len(absent) - len(kept) - len(gone)
    assert waste.n_superseded == n_entries - len(rows) - len(absent)
    segments = {p.name: p.read_bytes() for p in store.segment_paths()}
    freed = collect(store, is_used)
    assert contents(store.path) == (kept, gone)
    assert freed == sum(map(len, segments.values())) - FeatureStore.open(store.path).nbytes
    assert not find_waste(store, is_used)
    if not waste:
        assert {p.name: p.read_bytes() for p in store.segment_paths()} == segments


def test_a_collection_stopped_anywhere_loses_nothing_and_is_continued(tmp_path, world, monkeypatch):
    history = [
        (0, 0, True, False), (1, 0, True, True), (2, 0, True, True), (5, 0, True, True),
        (4, 1, True, False),
        (1, 1, True, False), (3, 0, False, True),
        (2, 1, True, False), (0, 0, True, True), (4, 0, True, True),
    ]  # fmt: skip

    def used(image_id, sha=None):
        return image_id in {"é0", "é1", "é3", "é5"}

    for n in range(100):
        store = write_history(tmp_path / str(n), world.spec(), history)
        rows, absent = contents(store.path)
        kept = {i: e for i, e in rows.items() if used(i)}
        reached = stopped_before(monkeypatch, n, lambda store=store: collect(store, used))
        served, still_absent = contents(store.path)
        assert kept.items() <= served.items() <= rows.items()  # never an older version
        assert still_absent == absent
        if not reached:
            break
        again = FeatureStore.open(store.path)
        collect(again, used)
        assert contents(store.path) == (kept, absent)
        assert not list(store.path.glob(".*.part"))
    assert n == 5  # two segments rewritten, three deleted
    assert served == kept


def test_leftovers_are_counted_and_removed(tmp_path, world):
    store = write_history(tmp_path, world.spec(), [(0, 0, True, False)])
    (store.path / ".spec.json.x.part").write_bytes(b"12345")
    (store.path / ".shard-000001.h5.x.part").write_bytes(b"123")
    (store.path / "shard-000001.h5.damaged").write_bytes(b"1234")
    waste = find_waste(store, lambda i, sha: True)
    assert (waste.n_leftovers, waste.n_bytes, waste.n_unused) == (3, 12, 0)
    assert collect(store, lambda i, sha: True) == 12
    assert not [*store.path.glob(".*.part"), *store.path.glob("*.damaged")]


def test_the_seconds_of_what_stays_stay(tmp_path, world):
    history = [(i, 0, True, True) for i in range(4)]
    store = write_history(tmp_path, world.spec(), history)
    run = {"versions": {"torch": "2"}}
    entry = {"kind": "shard", "shard": "shard-000000.h5", "seconds": 8.0, "run": run}
    store.journal.append(entry)
    collect(store, lambda i, sha: i == "é2")
    assert store.seconds == 2.0
    assert describe(store)["versions"] == {"torch": ["2"]}


def test_a_damaged_store_is_left_alone(tmp_path, world):
    store = write_history(tmp_path, world.spec(), [(0, 0, True, False), (1, 0, True, False)])
    last = store.path / "shard-000001.h5"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=r"shard-000001\.h5"):
        collect(store, lambda i, sha: False)
    assert len(store.segment_paths()) == 2


def test_a_collection_needs_the_lock(tmp_path, world):
    store = write_history(tmp_path, world.spec(), [(0, 0, True, False)])
    other = FeatureStore.open(store.path)
    with other.writing(), pytest.raises(Unavailable, match="by another process"):
        collect(store, lambda i, sha: False)
    assert store.n_rows == 1


def test_a_whole_store_goes_and_what_is_not_ours_stays(tmp_path, world, monkeypatch):
    for n in range(100):
        store = write_history(tmp_path, world.spec(), [(i, 0, True, False) for i in range(2)])
        reached = stopped_before(monkeypatch, n, lambda store=store: delete_store(store))
        if not reached:
            break
        if (store.path / "spec.json").exists():
            FeatureStore.open(store.path)  # opens at every point
        else:
            assert not store.segment_paths()  # so that extract may make it again
    assert n > 4
    assert not store.path.exists()
    store = write_history(tmp_path, world.spec(), [(0, 0, True, False)])
    (store.path / "notes.txt").write_text("mine")
    delete_store(store)
    assert [p.name for p in store.path.iterdir()] == ["notes.txt"]


# merge


@quick
@given(st.lists(HISTORY, min_size=1, max_size=3), HISTORY)
def test_a_merged_store_serves_what_its_parts_serve(tmp_path_factory, world, histories, first):
    """Bytes follow from the id here, so that no two parts can disagree."""
    root = tmp_path_factory.mktemp("m")
    of_one_version = [[(i, 0, r, j) for i, _, r, j in h] for h in [first, *histories]]
    target = write_history(root / "out", world.spec(), of_one_version[0])
    parts = [
        write_history(root / str(k), world.spec(), h) for k, h in enumerate(of_one_version[1:])
    ]
    before = {p: p.read_bytes() for part in parts for p in part.path.iterdir()}
    served = [contents(path) for path in [target.path, *(part.path for part in parts)]]
    merged = merge(root / "out", [part.path for part in parts])
    rows, absent = contents(target.path)
    union = {i: e for part_rows, _ in served for i, e in part_rows.items()}
    assert rows == union
    assert set(absent) == {i for _, gone in served for i in gone} - set(union)
    held = served[0][0].keys() | served[0][1].keys()
    mended = (union.keys() - served[0][0].keys()) & held
    assert merged.n_added == len((rows.keys() | absent.keys()) - held) + len(mended)
    assert {p: p.read_bytes() for part in parts for p in part.path.iterdir()} == before
    segments = {p.name: p.read_bytes() for p in merged.store.segment_paths()}
    again = merge(root / "out", [part.path for part in parts])
    assert again.n_added == 0
    assert {p.name: p.read_bytes() for p in again.store.segment_paths()} == segments


def test_a_merge_stopped_anywhere_is_continued_and_ends_the_same(tmp_path, world, monkeypatch):
    first = write_history(tmp_path / "1", world.spec(), [(0, 0, True, False), (1, 0, True, False)])
    second = write_history(
        tmp_path / "2", world.spec(), [(2, 0, True, False), (3, 0, False, True), (1, 0, True, True)]
    )
    paths = [first.path, second.path]
    whole = merge(tmp_path / "whole", paths)
    segments = {p.name: p.read_bytes() for p in whole.store.segment_paths()}
    for n in range(100):
        out = tmp_path / f"out-{n}"
        reached = stopped_before(monkeypatch, n, lambda out=out: merge(out, paths))
        if not reached:
            break
        if (folder := out / whole.store.path.name).joinpath("spec.json").exists():
            assert contents(folder)[0].items() <= contents(whole.store.path)[0].items()
        again = merge(out, paths)
        assert {p.name: p.read_bytes() for p in again.store.segment_paths()} == segments
    assert n == 4  # identity and three segments


def test_other_bytes_of_one_image_are_refused_before_anything_is_made(tmp_path, world):
    first = write_history(tmp_path / "1", world.spec(), [(0, 0, True, False)])
    for k, (version, readable) in enumerate(((1, True), (2, False))):
        other = write_history(tmp_path / f"2{k}", world.spec(), [(0, version, readable, False)])
        with pytest.raises(ArtefactError, match=r"Image é0 has other bytes in .*run extract again"):
            merge(tmp_path / "out", [first.path, other.path])
        assert not (tmp_path / "out").exists()
        with pytest.raises(ArtefactError, match="Image é0 has other bytes"):
            merge(first.path.parent, [other.path])
        assert len(first.segment_paths()) == 1


def test_an_embedding_goes_before_an_absence_without_bytes(tmp_path, world):
    first = FeatureStore.create_or_open(tmp_path / "1", world.spec())
    nothing = np.empty((0, 5), np.float32)
    first.append([], [], nothing, [Absent("é0", None, "no such file")])
    second = write_history(tmp_path / "2", world.spec(), [(0, 0, True, False)])
    for order in ([first.path, second.path], [second.path, first.path]):
        out = tmp_path / f"out-{order[0].parent.name}"
        merged = merge(out, order)
        assert (merged.store.n_rows, merged.store.absent()) == (1, {})
        assert len(merged.store.segment_paths()) == 1


def test_stores_of_another_identity_are_refused_with_both_values(tmp_path, world):
    first = write_history(tmp_path / "1", world.spec(), [(0, 0, True, False)])
    other = world.spec(output="cls", preprocessing='{"antialias":false,"size":[64,64]}')
    second = write_history(tmp_path / "2", other, [(1, 0, True, False)])
    with pytest.raises(StaleFeatures) as refusal:
        merge(tmp_path / "out", [first.path, second.path])
    message = str(refusal.value)
    assert f"output: {first.path} 'avg', {second.path} 'cls'" in message
    assert f"preprocessing.antialias: {first.path} True, {second.path} False" in message
    assert "size" not in message
    assert "Merge stores of one identity" in message


def test_a_folder_of_stores_stands_for_them_and_one_of_none_is_refused(tmp_path, world):
    for k in range(2):
        write_history(tmp_path / f"shard-{k + 1}-of-2", world.spec(), [(k, 0, True, False)])
    merged = merge(tmp_path / "out", [tmp_path / "shard-1-of-2", tmp_path / "shard-2-of-2"])
    assert (merged.n_added, merged.n_present) == (2, 0)
    assert merge(tmp_path / "out", [merged.store.path]).n_present == 0  # itself
    with pytest.raises(DataError, match="is not a feature store"):
        merge(tmp_path / "out", [tmp_path])


def test_a_damaged_part_is_refused_by_name(tmp_path, world):
    part = write_history(tmp_path / "1", world.spec(), [(0, 0, True, False)])
    segment = part.segment_paths()[0]
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"shard-000000\.h5 is damaged"):
        merge(tmp_path / "out", [part.path])
    assert not (tmp_path / "out").exists()


def test_merged_seconds_are_the_parts(tmp_path, world):
    parts = [write_history(tmp_path / str(k), world.spec(), [(k, 0, True, False)]) for k in (1, 2)]
    for seconds, part in enumerate(parts, 1):
        entry = {"kind": "shard", "shard": "shard-000000.h5", "seconds": float(seconds)}
        part.journal.append(entry)
    assert merge(tmp_path / "out", [part.path for part in parts]).store.seconds == 3.0


# ls, show, names


@pytest.fixture
def shelf(tmp_path, world):
    """Two whole stores of one backbone, one of another, damaged ones, a part, and a stranger."""
    one = write_history(tmp_path, world.spec(), [(0, 0, True, False), (0, 1, True, False)])
    write_history(tmp_path, world.spec(output="cls"), [(0, 0, True, False), (1, 0, False, True)])
    write_history(tmp_path, world.spec(backbone="demo:dino"), [(0, 0, True, False)])
    bad = write_history(tmp_path, world.spec(backbone="demo:bad"), [(0, 0, True, False)])
    segment = bad.segment_paths()[0]
    segment.write_bytes(segment.read_bytes()[:-1] + b"!")
    lost = write_history(tmp_path, world.spec(backbone="demo:lost"), [(0, 0, True, False)])
    (lost.path / "spec.json").unlink()
    write_history(tmp_path / "part-2-of-3", world.spec(backbone="demo:part"), [(0, 0, True, False)])
    (tmp_path / "holiday").mkdir()
    (tmp_path / "README.md").write_text("a file is no folder")
    os.utime(one.segment_paths()[0], (0, 0))
    os.utime(one.segment_paths()[1], (86400, 86400))
    return tmp_path


def test_every_folder_is_listed_with_its_state(shelf, world):
    found = {facts.name: facts for facts in survey(shelf)}
    assert len(found) == 7
    whole = found[f"demo-cnn-{world.spec().digest[:12]}"]
    assert (whole.state, whole.n_segments, whole.n_rows, whole.n_absent) == ("whole", 2, 1, 0)
    assert whole.last_written == "1970-01-02T00:00:00+00:00"
    assert whole.n_bytes == sum(p.stat().st_size for p in whole.path.glob("*.h5"))
    assert whole.to_json()["identity"] == world.spec().digest
    half = found[f"demo-cnn-{world.spec(output='cls').digest[:12]}"]
    assert (half.n_rows, half.n_absent) == (1, 1)
    bad = found[f"demo-bad-{world.spec(backbone='demo:bad').digest[:12]}"]
    assert (bad.state, bad.n_rows, bad.n_segments) == ("damaged", None, 1)
    assert "shard-000000.h5 is damaged" in bad.problem
    assert bad.spec == world.spec(backbone="demo:bad")
    lost = next(facts for name, facts in found.items() if name.startswith("demo-lost"))
    assert (lost.state, lost.spec) == ("damaged", None)
    assert found["holiday"].state == "foreign"
    assert any(name.startswith("part-2-of-3/demo-part") for name in found)
    assert len(store_folders(shelf)) == 6
    with pytest.raises(DataError, match="is not a folder"):
        survey(shelf / "nowhere")


def test_a_store_is_named_by_folder_backbone_or_digest(shelf, world):
    dino = world.spec(backbone="demo:dino")
    folder = f"demo-dino-{dino.digest[:12]}"
    for name in (folder, "demo:dino", dino.digest, dino.digest[:9].upper()):
        assert find_named(shelf, name).name == folder
    assert find_named(shelf, "demo:part").parent.name == "part-2-of-3"
    with pytest.raises(UsageError, match=r"demo:cnn means 2 stores.*demo-cnn-.*demo-cnn-"):
        find_named(shelf, "demo:cnn")
    for name in ("demo:clip", "", "zz"):
        with pytest.raises(UsageError, match=r"has no store.*demo-dino-.*features ls"):
            find_named(shelf, name)


def test_a_description_says_the_whole_identity(shelf, world):
    store = FeatureStore.open(find_named(shelf, world.spec(output="cls").digest))
    store.journal.append({"kind": "shard", "shard": "shard-000000.h5", "seconds": 2.5})
    facts = describe(store)
    assert facts["spec"]["preprocessing.antialias"] is True
    assert facts["spec"]["output"] == "cls"
    assert (facts["seconds"], facts["versions"], facts["rows"]) == (2.5, {}, 1)
    (segment,) = facts["segment_files"]
    assert (segment["name"], segment["rows"], segment["absent"]) == ("shard-000000.h5", 1, 1)
    assert segment["seconds"] == 2.5


def test_nothing_of_a_shelf_is_changed_by_looking(shelf, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "shelf"
    shutil.copytree(shelf, copy)
    survey(shelf)
    files = {p.relative_to(shelf): p.read_bytes() for p in shelf.rglob("*") if p.is_file()}
    assert files == {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
