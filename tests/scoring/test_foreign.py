"""Another tool's scores: CSV, Parquet and NPZ read alike, and every bad cell named."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import parquet

from retailtag.errors import DataError, UsageError
from retailtag.scoring.csvs import FORMULA_STARTS, unquoted
from retailtag.scoring.foreign import (
    check_scale,
    is_foreign,
    read_foreign,
    read_thresholds,
    threshold_logits,
    to_logits,
)
from retailtag.scoring.score import score_predictions

IDS, TAGS = ["i1", "i2", "i3"], ["red", "=blue"]
SCORES = np.array([[0.5, 0.25], [1.0, 0.0], [0.125, 0.75]])


def write(path, ids=IDS, scores=SCORES):
    if path.suffix == ".npz":
        np.savez(path, image_ids=np.array(ids), tags=np.array(TAGS), scores=scores)
    elif path.suffix == ".parquet":
        columns = {tag: scores[:, j] for j, tag in enumerate(TAGS)}
        parquet.write_table(pa.table({**columns, "image_id": ids}), path)
    else:
        comma = "\t" if path.suffix == ".tsv" else ","
        lines = [comma.join(["red", "image_id", "=blue"])]
        lines += [comma.join([str(a), i, str(b)]) for i, (a, b) in zip(ids, scores, strict=True)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a.npz"])
def test_every_format_reads_alike(tmp_path, name):
    found = read_foreign(write(tmp_path / name))
    assert is_foreign(tmp_path / name)
    assert (found.image_ids.tolist(), list(found.tags)) == (IDS, TAGS)
    np.testing.assert_array_equal(found.scores, SCORES)
    assert found.thresholds is None


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.npz"])
def test_bad_rows_are_named_all_at_once(tmp_path, name):
    scores = SCORES.copy()
    scores[1, 1] = np.nan
    first = 2 if name == "a.csv" else 1
    with pytest.raises(DataError) as said:
        read_foreign(write(tmp_path / name, ["i1", "i1", ""], scores))
    text = str(said.value)
    assert "has 3 problems" in text
    assert f"row {first + 1}, column image_id: i1 is in row {first} already" in text
    assert f"row {first + 2}, column image_id: is empty" in text
    assert f"row {first + 1}, column =blue:" in text


def test_text_and_ragged_rows_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image_id,red\ni1,high\n\ni2,\ni3,0.5\n")
    with pytest.raises(DataError, match=r"row 2, column red: 'high'.*\n.*row 4, column red: ''"):
        read_foreign(path)
    path.write_text("image_id,red\ni1,0.5,7\ni2\n")
    with pytest.raises(DataError, match=r"row 2: 3 cells where the header has 2\n.*row 3: 1 cell"):
        read_foreign(path)


def test_only_the_first_ten_problems_are_shown(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image_id,red\n" + "".join(f"i{k},x\n" for k in range(25)))
    with pytest.raises(DataError) as said:
        read_foreign(path)
    assert "has 25 problems" in str(said.value)
    assert str(said.value).count("is not a number") == 10
    assert "and 15 more" in str(said.value)


@pytest.mark.parametrize(
    ("header", "what"),
    [("id,red", "no column image_id"), ("image_id", "no column of a tag"),
     ("image_id,red,red", "column red twice"), ("image_id,red,image_id", "column image_id twice"),
     ("image_id,r\0d", "a NUL character in the name")],
)  # fmt: skip
def test_headers_are_checked(tmp_path, header, what):
    path = tmp_path / "a.csv"
    path.write_text(header + "\n")
    with pytest.raises(DataError, match=what):
        read_foreign(path)


INDEXES = ("", "Unnamed: 0", "Unnamed: 0.1", "index", "__index_level_0__", "level_0")


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet", ".npz"])
def test_an_index_of_pandas_is_left_out_and_named(tmp_path, name, kind):
    path = tmp_path / f"a{kind}"
    if kind == ".npz":
        scores = np.array([[0, 0.5], [1, 0.25]])
        np.savez(path, image_ids=["i1", "i2"], tags=[name, "red"], scores=scores, thresholds=[9, 1])
    elif kind == ".parquet":
        parquet.write_table(
            pa.table({name: [0, 1], "image_id": ["i1", "i2"], "red": [0.5, 0.25]}), path
        )
    else:
        text = f"{name},image_id,red\n0,i1,0.5\n1,i2,0.25\n"
        path.write_text(text if kind == ".csv" else text.replace(",", "\t"))
    found = read_foreign(path)
    assert (found.tags, found.left_out, found.scores.tolist()) == (
        ("red",),
        (name,),
        [[0.5], [0.25]],
    )
    assert found.thresholds is None or found.thresholds.tolist() == [1]
    assert read_foreign(path, {name, "red"}).tags == (name, "red")


def test_columns_that_are_no_tags_are_named_before_any_value(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image_id,split,red,loss\ni1,test,high,0.3\n")
    with pytest.raises(DataError, match=r"not tags of the catalogue \(split, loss\); remove them"):
        read_foreign(path, {"red", "blue"})


def test_other_damage_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_foreign(tmp_path / "none.csv")
    for name in ("a.parquet", "a.npz"):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(DataError, match="cannot be read as"):
            read_foreign(tmp_path / name)
    (tmp_path / "a.csv").write_bytes(b"image_id,red\n\xff,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_foreign(tmp_path / "a.csv")
    parquet.write_table(pa.table({"image_id": ["a"], "red": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column red: holds string"):
        read_foreign(tmp_path / "t.parquet")


def test_npz_arrays_are_checked_and_never_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, image_ids=np.array(["a"]), scores=np.zeros((1, 1)))
    with pytest.raises(DataError, match="lacks the array tags"):
        read_foreign(path)
    np.savez(path, image_ids=np.array(["a"]), tags=np.array(["t"]), scores=np.zeros((2, 1)))
    with pytest.raises(DataError, match=r"scores has shape \(2, 1\) instead of \(1, 1\)"):
        read_foreign(path)
    np.savez(path, image_ids=np.array(["a"], object), tags=np.array(["t"]), scores=np.zeros((1, 1)))
    with pytest.raises(DataError, match="without pickled objects"):
        read_foreign(path)
    arrays = {"image_ids": np.array(["a"]), "tags": np.array(["t"]), "scores": np.zeros((1, 1))}
    np.savez(path, **arrays, thresholds=np.array([0.5]))
    assert read_foreign(path).thresholds.tolist() == [0.5]
    np.savez(path, **arrays, thresholds=np.array([np.nan]))
    with pytest.raises(DataError, match="NaN as the threshold of t"):
        read_foreign(path)


NPZ = {"image_ids": IDS, "tags": TAGS, "scores": SCORES}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": SCORES > 0}, "scores holds Booleans instead of floating-point numbers or int"),
        ({"scores": SCORES * 1j}, "scores holds complex numbers instead"),
        ({"scores": SCORES.astype("M8[s]")}, "scores holds dates instead"),
        ({"scores": SCORES.astype("m8[s]")}, "scores holds time differences instead"),
        ({"scores": SCORES.astype(str)}, "scores holds text instead"),
        ({"scores": SCORES.astype(object)}, "scores holds Python objects instead"),
        ({"scores": SCORES[None]}, r"scores has shape \(1, 3, 2\) instead of \(3, 2\)"),
        ({"scores": SCORES.T}, r"scores has shape \(2, 3\) instead of \(3, 2\)"),
        ({"scores": (SCORES * 8).astype(np.int64) << 52}, "row 1, column red: .* is 2.*53 or larg"),
        ({"scores": SCORES * 1e300}, "row 1, column red: 5.*299 is 2.*53 or larger"),
        ({"scores": SCORES.astype(np.longdouble) * np.longdouble("1e4000")}, "not a number"),
        ({"image_ids": np.array([IDS])}, r"image_ids has shape \(1, 3\) instead of \(any\)"),
        ({"image_ids": np.array([True, False, True])}, "image_ids holds Booleans instead of text"),
        ({"image_ids": np.array([1, np.nan, 2])}, "row 2, column image_id: is empty"),
        ({"image_ids": [b"i1", b"\xff", b"i3"]}, "row 2 of its array image_ids is not text"),
        ({"image_ids": ["i1", "\ud800", "i3"]}, "row 2 of its array image_ids is not text"),
        ({"tags": [1, 2]}, "tags holds integers instead of text or bytes"),
        ({"tags": ["red", "red"]}, "column red twice"),
        ({"thresholds": np.array([[0.5], [0.5]])}, r"thresholds has shape \(2, 1\) instead of"),
        ({"thresholds": np.array([True, False])}, "thresholds holds Booleans instead"),
    ],
)
def test_arrays_of_other_kinds_are_named_with_their_kind(tmp_path, changes, said):
    np.savez(tmp_path / "a.npz", **{**NPZ, **changes})
    with pytest.raises(DataError, match=rf"a\.npz .*{said}|a\.npz [^\n]*\n.*{said}"):
        read_foreign(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["i1", "u2", ">i8", "f2", ">f4", np.longdouble])
def test_numbers_of_any_size_and_byte_order_are_read_right(tmp_path, kind):
    ids = np.array([b"i1", "\u0436".encode(), b"i3"])
    np.savez(tmp_path / "a.npz", image_ids=ids, tags=TAGS, scores=(SCORES * 8).astype(kind))
    found = read_foreign(tmp_path / "a.npz")
    assert found.image_ids.tolist() == ["i1", "\u0436", "i3"]
    np.testing.assert_array_equal(found.scores, SCORES * 8)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("red", pa.array([True]), "column red: holds bool instead of numbers"),
        ("red", pa.array([[0.5]]), "column red: holds list"),
        ("red", pa.array([{"a": 0.5}]), "column red: holds struct"),
        ("red", pa.array([0], pa.timestamp("ns")), "column red: holds timestamp"),
        ("red", pa.array([None]), "column red: holds null"),
        ("red", pa.array([2**53 + 1]), "row 1, column red: 9007199254740992 is 2.*53 or larger"),
        ("red", pa.array([None], pa.float64()), "row 1, column red: an empty or NaN cell"),
        ("image_id", pa.array([b"i1"]), "column image_id: holds binary instead of text"),
        ("image_id", pa.array([["i1"]]), "column image_id: holds list"),
        ("image_id", pa.array([True]), "column image_id: holds bool"),
        ("image_id", pa.array([float("nan")]), "row 1, column image_id: is empty"),
    ],
)
def test_columns_of_parquet_that_hold_no_numbers_or_ids_are_named(tmp_path, column, values, said):
    columns = {"image_id": pa.array(["i1"]), "red": pa.array([0.5]), column: values}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet has 1 problem;.*\n.*{said}"):
        read_foreign(tmp_path / "a.parquet")


def test_categorical_and_whole_ids_and_half_precision_of_parquet_are_read_right(tmp_path):
    scores = pa.array(np.array([0.5, 2], np.float16))
    for ids in (pa.array(["7", "8"]).dictionary_encode(), pa.array([7, 8])):
        parquet.write_table(pa.table({"image_id": ids, "red": scores}), tmp_path / "a.parquet")
        found = read_foreign(tmp_path / "a.parquet")
        assert (found.image_ids.tolist(), found.scores.tolist()) == (["7", "8"], [[0.5], [2]])


@pytest.mark.parametrize("cell", ["0_5", "1e999", "-1e400", "nan", "0x10", "True", "1,5", ""])
def test_cells_that_python_reads_otherwise_than_people_are_refused(tmp_path, cell):
    path = tmp_path / "a.tsv"
    path.write_text(f"image_id\tred\tblue\ni1\t0.5\tinf\ni2\t{cell}\t-0.5\n")
    with pytest.raises(DataError, match=rf"row 3, column red: '{cell}' is not a number"):
        read_foreign(path)


def test_infinity_is_a_score_and_whole_numbers_that_would_be_rounded_are_not(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image_id,red,blue\ni1,inf,-Infinity\ni2,9007199254740991,-0.5\n")
    assert read_foreign(path).scores.tolist() == [[np.inf, -np.inf], [2**53 - 1, -0.5]]
    path.write_text("image_id,red\ni1,9007199254740993\n")
    with pytest.raises(DataError, match=r"'9007199254740993' is 2\*\*53 or larger"):
        read_foreign(path)


def test_predictions_of_retailtag_are_not_foreign(tmp_path, predictions):
    predictions.save(tmp_path / "predictions.npz")
    assert not is_foreign(tmp_path / "predictions.npz")
    assert not is_foreign(tmp_path / "none.npz")


def test_probabilities_outside_the_unit_interval_are_named(tmp_path):
    found = read_foreign(write(tmp_path / "a.csv", scores=SCORES * 4 - 1))
    check_scale(found, "logits")
    with pytest.raises(DataError, match=r"row 3, column red: 3 is not a probability"):
        check_scale(found, "probabilities")
    with pytest.raises(UsageError, match="--scores odds"):
        check_scale(found, "odds")


@given(hnp.arrays(np.float64, 12, elements=st.floats(0, 1)), st.floats(0, 1))
def test_logits_are_finite_and_keep_order_and_decisions(p, threshold):
    z = to_logits(p, "probabilities")
    assert np.isfinite(z).all()
    assert (np.diff(z[np.argsort(p)]) >= 0).all()
    t = threshold_logits(np.array([threshold]), "probabilities")
    assert (z >= t)[p >= threshold].all()
    clearly_under = p < threshold - 1e-6
    assert not (z >= t)[clearly_under & (threshold < 1 - 1e-6)].any()


def test_thresholds_of_tags_never_or_always_given_stay_infinite():
    t = threshold_logits(np.array([np.inf, -np.inf, 0.5]), "probabilities")
    assert t.tolist() == [np.inf, -np.inf, 0.0]
    with pytest.raises(DataError, match=r"outside \[0, 1\]"):
        threshold_logits(np.array([1.5]), "probabilities")


def test_thresholds_of_a_scorecard_read_back_under_any_tag(catalog, predict, tmp_path):
    tags = tuple(f"{start}tag" for start in FORMULA_STARTS)
    catalog = replace(catalog, table=replace(catalog.table, tags=tags))
    values = np.array([0.25, -0.5, 1.0, np.inf, -np.inf, 2.0], np.float32)
    predictions = predict(catalog, tags=tags, thresholds=values)
    score_predictions(predictions, catalog).save(tmp_path)
    found = read_thresholds(tmp_path / "per_tag.csv", tags)
    np.testing.assert_array_equal(found, values)


@given(st.text(max_size=4), st.sampled_from(FORMULA_STARTS))
def test_quoting_a_formula_is_undone(text, start):
    assert unquoted(f"'{start}{text}") == start + text
    assert unquoted(start + text) == start + text


def test_threshold_files_are_checked(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("tag,threshold\nred,0.5\nred,high\n")
    with pytest.raises(DataError, match=r"row 3: tag red is repeated\n.*tag blue is missing"):
        read_thresholds(path, ["red", "blue"])
    path.write_text("tag,threshold\nred,high\n")
    with pytest.raises(DataError, match="row 2, column threshold: 'high'"):
        read_thresholds(path, ["red"])
    path.write_text("tag,cut\n")
    with pytest.raises(DataError, match="columns tag and threshold"):
        read_thresholds(path, ["red"])


def test_a_pointer_in_place_of_scores_is_called_one(tmp_path):
    for name in ("scores.csv", "scores.parquet"):
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer, not a table of scores"):
            read_foreign(tmp_path / name)
