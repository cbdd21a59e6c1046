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
        ({"header": {"tags": None}}, "lacks 'tags'"),
        ({"header": {"provenance": None}}, "lacks 'provenance'"),
        ({"header": {"tags": 3}}, "is damaged"),
        ({"header": {"provenance": 3}}, "is damaged"),
        ({"fitted_ids": None}, "lacks 'fitted_ids'"),
        ({"thresholds": np.zeros(2, np.float32)}, "one threshold per tag"),
        ({"logits": np.array([["x"] * 3] * 2)}, "is damaged"),
    ],
)
def test_a_lacking_or_wrong_part_names_the_file(saved, changes, said):
    rewrite(saved, **changes)
    with pytest.raises(DataError, match=rf"p\.npz.*{said}"):
        Predictions.load(saved)


def test_another_format_and_no_file(saved):
    rewrite(saved, header={"format": 99})
    with pytest.raises(ArtefactError, match="has format 99"):
        Predictions.load(saved)
    with pytest.raises(DataError, match="does not exist"):
        Predictions.load(saved.with_name("none.npz"))
