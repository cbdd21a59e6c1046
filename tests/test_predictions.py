"""A predictions file reads back equal; whatever else lies under its name is refused plainly."""

import json

import numpy as np
import pytest

from retailtag.errors import ArtefactError, DataError
from retailtag.predictions import Predictions


@pytest.fixture
def saved(tmp_path):
    predictions = Predictions(
        image_ids=np.array(["i", "j"]),
        tags=("a", "b", "c"),
        logits=np.arange(6, dtype=np.float32).reshape(2, 3),
        thresholds=np.zeros(3, np.float32),
        fitted_ids=np.array(["k"]),
        provenance={"seed": 0},
    )
    predictions.save(tmp_path / "p.npz")
    return tmp_path / "p.npz"


def rewrite(path, **changes):
    """Change arrays of the file; None drops one, and a dict `header` updates the header."""
    with np.load(path) as z:
        arrays = {name: z[name] for name in z.files}
    header = json.loads(arrays["header"].tobytes()) | changes.pop("header", {})
    header = {k: v for k, v in header.items() if v is not None}
    arrays |= {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_round_trip(saved):
    back = Predictions.load(saved)
    assert back.tags == ("a", "b", "c")
    assert back.provenance == {"seed": 0}
    assert back.logits.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (back.image_ids.tolist(), back.fitted_ids.tolist()) == (["i", "j"], ["k"])


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"PK\x03\x04junk", b"\x93NUMPY", b"\x80\x04K\x01."]
)
def test_other_files_are_refused_without_the_librarys_advice(saved, content):
    saved.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.npz is damaged or not a predictions file") as caught:
        Predictions.load(saved)
    assert "pickle" not in str(caught.value)


def test_every_truncation_is_refused_by_name(saved):
    whole = saved.read_bytes()
    for end in range(0, len(whole), 97):
        saved.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"p\.npz"):
            Predictions.load(saved)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"header": {"tags": None}}, "header lacks tags"),
        ({"header": {"provenance": None}}, "header lacks provenance"),
        ({"header": {"tags": 3}}, "the tags of its header is a number instead of a list"),
        ({"header": {"tags": ["a", 1, "c"]}}, "the tag 2 of its header is a number instead"),
        ({"header": {"tags": ["a", "b", "a"]}}, "name the tag a twice"),
        ({"header": {"tags": ["a", "b", "\ud800"]}}, "its header is not JSON"),
        ({"header": {"provenance": 3}}, "the provenance of its header is a number instead"),
        ({"header": {"provenance": {"settings": [1]}}}, "settings of its header is a list instead"),
        ({"header": {"provenance": {"notes": "a"}}}, "notes of its header is text instead"),
        ({"header": {"provenance": {"exclusive": [3]}}}, "exclusive of its header is a number"),
        ({"header": {"provenance": {"catalog": {}}}}, "catalog of its header is an object instead"),
        ({"header": {"provenance": {"thresholds": 1.5}}}, "a number instead of text or an object"),
        (
            {"header": {"provenance": {"settings": {"seed": []}}}},
            "settings seed of its header",
        ),
        (
            {"header": {"provenance": {"threshold_f1": {"all": 1}}}},
            "threshold_f1 all of its",
        ),
        ({"header": {"provenance": {"threshold_f1": {"all": {"a": "b"}}}}}, "is text instead of a"),
        ({"header": {"format": "1"}}, "lacks the number of its format"),
        ({"fitted_ids": None}, "lacks the array fitted_ids"),
        ({"fitted_ids": np.array([["k"]])}, r"fitted_ids has shape \(1, 1\) instead of \(any\)"),
        ({"image_ids": np.array([["i"], ["j"]])}, r"image_ids has shape \(2, 1\)"),
        ({"image_ids": np.array([1, 2])}, "image_ids holds integers instead of text"),
        ({"image_ids": np.array(["i", "\ud800"])}, "row 2 of its array image_ids is not text"),
        ({"image_ids": np.array(["i", "i"])}, "name the image i twice"),
        ({"image_ids": np.array([105, 1 << 21], np.uint32).view("<U1")}, "row 2 .* is not text"),
        ({"image_ids": np.array(["i", "j"], object)}, "image_ids holds Python objects instead"),
        ({"thresholds": np.zeros(2, np.float32)}, r"thresholds has shape \(2\) instead of \(3\)"),
        ({"image_ids": np.array(["i", ""])}, "row 2 of its array image_ids is empty"),
        ({"thresholds": np.array([0, np.nan, 0], np.float32)}, r"NaN \(the thresholds\)"),
        ({"logits": np.array([["x"] * 3] * 2)}, "logits holds text instead of floating-point"),
        ({"logits": np.zeros((2, 3), bool)}, "logits holds Booleans"),
        ({"logits": np.zeros((2, 3), np.complex64)}, "logits holds complex numbers"),
        ({"logits": np.zeros((2, 3), "M8[s]")}, "logits holds dates"),
        ({"logits": np.zeros((2, 3), "f4,f4")}, "logits holds records"),
        ({"logits": np.zeros((2, 3))}, "logits holds float64 instead of float32"),
        ({"logits": np.array([[0, 0, 0], [0, np.nan, 0]], np.float32)}, r"NaN \(image j, tag b\)"),
    ],
)
def test_a_lacking_or_wrong_part_names_the_file(saved, changes, said):
    rewrite(saved, **changes)
    with pytest.raises(DataError, match=rf"p\.npz.*{said}"):
        Predictions.load(saved)


def test_other_dtypes_of_the_same_values_are_read_right(saved):
    rewrite(
        saved,
        image_ids=np.array(["i", "\u0436"], ">U3"),
        fitted_ids=np.array([]),
        logits=np.arange(6, dtype=np.float32).reshape(2, 3, order="F"),
    )
    back = Predictions.load(saved)
    assert (back.image_ids.tolist(), back.fitted_ids.dtype.kind) == (["i", "\u0436"], "U")
    assert back.logits.dtype == np.float32
    assert back.logits.tolist() == np.arange(6).reshape(2, 3, order="F").tolist()


def test_another_format_and_no_file(saved):
    rewrite(saved, header={"format": 99})
    with pytest.raises(ArtefactError, match="has format 99"):
        Predictions.load(saved)
    with pytest.raises(DataError, match="does not exist"):
        Predictions.load(saved.with_name("none.npz"))
