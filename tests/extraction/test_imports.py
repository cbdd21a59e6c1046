"""Imported embeddings: read or refused in a sentence, stored, probed and scored as any other."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import retailtag as rt
from retailtag.catalog.readers import read_catalog
from retailtag.cli.main import run
from retailtag.context import RunContext
from retailtag.errors import DataError, UsageError
from retailtag.extraction.garbage import plan_collection
from retailtag.extraction.imports import import_embeddings, read_embeddings
from retailtag.extraction.verify import Sample, verify
from retailtag.runs.embeddings import find_embeddings, find_texts
from retailtag.settings import ComputeSettings
from retailtag.store import FeatureStore, list_stores

IDS = ("a", "b", "c")
X = np.arange(12, dtype=np.float32).reshape(3, 4)


def imported(root, vectors=X, ids=IDS, name="clip-l", catalog=None):
    return import_embeddings(root, read_embeddings(vectors, ids), name, catalog)


def write_ids(path, ids=IDS):
    path.write_text("\n".join(ids) + "\n\n")
    return path


def write_parquet(path, vectors=X, ids=IDS, name="image_id", **more):
    columns = {"vector": [list(map(float, row)) for row in vectors], **more}
    parquet.write_table(pa.table({name: ids, **columns} if ids else columns), path)
    return path


@pytest.mark.parametrize("kind", ["array", "npy", "parquet", "parquet and ids"])
def test_every_form_is_stored_alike(tmp_path, kind):
    if kind == "array":
        given = (X, IDS)
    elif kind == "npy":
        np.save(tmp_path / "v.npy", X.astype(np.float64))
        given = (tmp_path / "v.npy", write_ids(tmp_path / "ids.txt"))
    elif kind == "parquet":
        given = (write_parquet(tmp_path / "v.parquet"),)
    else:
        given = (write_parquet(tmp_path / "v.parquet", ids=None), write_ids(tmp_path / "ids.txt"))
    made = import_embeddings(tmp_path / "features", read_embeddings(*given), "clip-l")
    assert (made.backbone, made.n_added) == ("own:clip-l", 3)
    np.testing.assert_array_equal(made.store.load(["c", "a"]).X, X[[2, 0]])
    assert made.store.spec == imported(tmp_path / "other").store.spec


def test_half_precision_stays_and_blocks_are_joined(tmp_path):
    many = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float16)
    made = imported(tmp_path, many, [str(i) for i in range(5000)])
    assert made.store.spec.dtype == "float16"
    assert len(made.store.segment_paths()) == 2
    np.testing.assert_array_equal(made.store.load(["4999", "0"]).X, many[[4999, 0]])


def bad(**changes):
    return lambda tmp_path: imported(tmp_path, **changes)


def from_file(write, ids=IDS, column=None):
    """Read what `write` makes of a path."""

    def read(tmp_path):
        path = write(tmp_path)
        return read_embeddings(path, ids and write_ids(tmp_path / "ids.txt", ids), column)

    return read


def saved(array, **how):
    def write(tmp_path):
        np.save(tmp_path / "v.npy", array, **how)
        return tmp_path / "v.npy"

    return write


def text(tmp_path):
    (tmp_path / "v.npy").write_text("version https://git-lfs")
    return tmp_path / "v.npy"


SECOND_MISSING = X.copy()
SECOND_MISSING[1, 2] = np.nan


@pytest.mark.parametrize(
    ("attempt", "sentence"),
    [
        (bad(ids=("a", "b")), "The array has 3 vectors and ids 2 ids; give one id per vector"),
        (bad(ids=("a", "b", "a")), r"ids names 1 ids more than once \(a in rows 1, 3\)"),
        (bad(ids=("a", "", "c")), "ids has no id in row 2"),
        (bad(vectors=SECOND_MISSING), r"NaN or infinite .* in 1 of 3 vectors, .* row 2 \(b\)"),
        (bad(vectors=X.astype(np.float64) + 1e300), r"infinite values \(as float32\) in 3 of 3"),
        (bad(vectors=X.astype(int)), "holds int64 values; save embeddings as float32"),
        (bad(vectors=X[0]), r"has shape \(4,\); save one row per image"),
        (bad(vectors=X[:, :0]), r"has shape \(3, 0\)"),
        (bad(name="../clip"), "--name ../clip cannot be part of an id"),
        (from_file(saved(X), ids=None), r"v\.npy names no images; give their ids with --ids"),
        (from_file(text), r"v\.npy is not a plain array of numbers"),
        (from_file(saved(X.astype(object), allow_pickle=True)), "not a plain array"),
        (from_file(lambda p: p / "no.npy"), r"no\.npy cannot be read: No such file"),
        (
            from_file(lambda p: write_parquet(p / "v.parquet", name="sku"), ids=None),
            r"v\.parquet has no column image_id or id; give the ids with --ids",
        ),
        (
            from_file(lambda p: write_parquet(p / "v.parquet", text=[[1.0]] * 3)),
            r"several columns of vectors \(its columns of lists are vector, text\); name one",
        ),
        (
            from_file(lambda p: write_parquet(p / "v.parquet"), column="image"),
            r"no column of vectors image \(its columns of lists are vector\)",
        ),
        (
            from_file(lambda p: write_parquet(p / "v.parquet", [[1, 2], [3], [4, 5]])),
            r"column vector: row 2 has 1 values where the first has 2",
        ),
    ],
)
def test_every_mismatch_is_one_sentence_and_leaves_nothing(tmp_path, attempt, sentence):
    with pytest.raises((DataError, UsageError), match=sentence) as said:
        attempt(tmp_path)
    assert "\n" not in str(said.value)
    assert not list(tmp_path.glob("*/spec.json"))


def test_a_name_is_taken_once_and_the_same_vectors_are_there_already(tmp_path):
    first = imported(tmp_path)
    again = imported(tmp_path)
    assert (again.store.path, again.n_added) == (first.store.path, 0)
    with pytest.raises(UsageError, match=r"other vectors under the name clip-l \(3 of 4 values\)"):
        imported(tmp_path, X + 1)
    imported(tmp_path, X + 1, name="clip-l2")
    assert len(list_stores(tmp_path)) == 2


def test_an_interrupted_import_is_continued(tmp_path, monkeypatch):
    many, ids = np.ones((5000, 2), np.float32), [str(i) for i in range(5000)]
    append, calls = FeatureStore.append, []

    def breaks(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return append(self, *args)

    monkeypatch.setattr(FeatureStore, "append", breaks)
    with pytest.raises(KeyboardInterrupt):
        imported(tmp_path, many, ids)
    monkeypatch.undo()
    assert imported(tmp_path, many, ids).n_added == 5000 - 4096
    assert list_stores(tmp_path)[0].n_rows == 5000


@pytest.fixture(scope="module")
def vectors(tiny, tmp_path_factory):
    """Vectors of the small world that know its tags, except of one training image."""
    rng = np.random.default_rng(0)
    labels = (tiny.table.labels == 1).astype(np.float32)
    made = labels @ rng.standard_normal((labels.shape[1], 6)).astype(np.float32)
    made += 0.1 * rng.standard_normal(made.shape).astype(np.float32)
    return made[1:], tiny.image_ids[1:].tolist()


def test_a_catalogue_is_compared(tiny, vectors, tmp_path):
    made, ids = vectors
    found = imported(tmp_path, made, [*ids[:-1], "elsewhere"], catalog=tiny)
    assert found.not_in_catalogue == ("elsewhere",)
    assert found.without_vector == (tiny.image_ids[0], ids[-1])
    with pytest.raises(DataError, match=r"None of the 139 ids of ids is in .*like x0, x1 and 137"):
        imported(tmp_path, made, [f"x{i}" for i in range(139)], name="b", catalog=tiny)


def test_probed_and_scored_as_any_other(tiny_csv, tiny, vectors, tmp_path, monkeypatch, capsys):
    made, ids = vectors
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", made)
    write_ids(tmp_path / "ids.txt", ids)
    words = ["features", "import", "v.npy", "--ids", "ids.txt", "--name", "clip-l", "--json"]
    assert run([*words, "--catalogue", str(tiny_csv)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["backbone"], told["n_added"], told["dim"]) == ("own:clip-l", 139, 6)
    assert len(told["without_vector"]) == 1
    probe = rt.probe(tiny_csv, "own:clip-l", sweep_C="1", folds=2, heads="logistic", device="cpu")
    assert probe.run.n_absent == 1
    short = ["--sweep-C", "1", "--folds", "2", "--heads", "logistic", "--device", "cpu"]
    assert run(["probe", str(tiny_csv), "--backbones", "own:clip-l", *short]) == 0
    assert f"1 images of {tiny_csv} have no embedding" in capsys.readouterr().out
    card = rt.score(probe, replicates=100).scorecards[0]
    assert card.model == "own:clip-l · probe"
    assert card.summaries["all"].macro_f1 > 0.5
    assert not [f for f in card.findings if f.code == "duplicated-images"]
    for verb in ("extract", "finetune", "bakeoff"):
        assert run([verb, str(tiny_csv), "--backbones", "own:clip-l", "--quiet"]) == 2
        assert "own:clip-l names imported embeddings" in capsys.readouterr().err
    assert run(["predict", str(probe.folder), "v.npy", "--quiet"]) == 2
    assert "own:clip-l names imported embeddings" in capsys.readouterr().err
    assert run(["features", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stores"][0]["backbone"] == "own:clip-l"


@pytest.mark.parametrize("with_bytes", [True, False])
def test_unknown_bytes_are_no_bytes(tiny, tiny_store, vectors, tmp_path, with_bytes):
    """Without a catalogue the hashes are unknown: no copies, no waste, and joined all the same."""
    made, ids = vectors
    store = imported(tmp_path, made, ids, catalog=tiny if with_bytes else None).store
    context = RunContext(tiny, compute=ComputeSettings(device="cpu", features=tmp_path))
    assert find_embeddings(context, "own:clip-l").spec == store.spec
    assert find_texts("logistic,text", "own:clip-l", tiny.table.tags) is None
    assert not plan_collection(tmp_path, [tiny])
    verdict = verify(store.path, Sample(context, 5))
    assert (verdict.verdict, verdict.n_sampled) == ("sound", 0)
    (tmp_path / tiny_store.path.name).symlink_to(tiny_store.path)
    joint = find_embeddings(context, "demo:cnn+own:clip-l")
    assert joint.n_rows == 139
    assert set(joint.known().values()) == set(list(tiny_store.known().values())[1:])


def test_other_ids_and_a_missing_import_are_named(tiny, tiny_csv, tmp_path):
    context = RunContext(tiny, compute=ComputeSettings(device="cpu", features=tmp_path))
    with pytest.raises(DataError, match="import them with retailtag features import"):
        find_embeddings(context, "own:clip-l")
    imported(tmp_path)
    with pytest.raises(DataError, match=r"its ids are like a, b.*the catalogue's like"):
        rt.probe(tiny_csv, "own:clip-l", features=tmp_path, out=tmp_path / "out", folds=2)
    assert not (tmp_path / "out").exists()


def test_the_call_gives_what_the_command_does(tiny_csv, vectors, tmp_path):
    made, ids = vectors
    found = rt.import_features(
        made, ids, name="clip-l", catalog=read_catalog(tiny_csv), features=tmp_path
    )
    assert found.store.n_rows == 139
    assert found.to_json()["not_in_catalogue"] == []


HEADERS = {
    "nested": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'(' * 4000}{')' * 4000},)}}",
    "signs": f"{'-' * 9000}1",
    "beyond an integer": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 20},)}}",
    "digits": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 5000},)}}",
    "digits as type": f"{{'descr': '{'9' * 5000}', 'fortran_order': False, 'shape': (2,)}}",
    "below 0": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
    "large": "{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000, 4)}",
    "no text": "{'descr': 5, 'fortran_order': False, 'shape': (2, 2)}",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_header_of_an_array_is_one_sentence(tmp_path, kind):
    header = HEADERS[kind].encode() + b"\n"
    data = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64)
    (tmp_path / "v.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"v\.npy is not a plain array of numbers"):
        read_embeddings(tmp_path / "v.npy", IDS)


def test_odd_columns_of_parquet_are_refused_by_name_if_they_are_used(tmp_path):
    odd = {"more": pa.array([2**62] * 3, pa.timestamp("us")), "raw": pa.array([b"x"] * 3)}
    read = read_embeddings(write_parquet(tmp_path / "v.parquet", **odd))
    np.testing.assert_array_equal(read.X, X)
    for ids in ([b"a", b"b", b"c"], odd["more"]):
        with pytest.raises(DataError, match=r"v\.parquet: column image_id "):
            read_embeddings(write_parquet(tmp_path / "v.parquet", ids=ids))
    table = parquet.read_table(write_parquet(tmp_path / "v.parquet", other=["x", "y", "z"]))
    table = table.rename_columns(["image_id", "vector", "image_id"])
    parquet.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(DataError, match=r"v\.parquet has several columns image_id"):
        read_embeddings(tmp_path / "v.parquet")
