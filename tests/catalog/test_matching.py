"""Ids in another form than the catalogue's are matched only where nothing is left open."""

from types import SimpleNamespace

import numpy as np
import pytest

from retailtag.catalog.matching import match_ids


def catalog(*ids):
    return SimpleNamespace(image_ids=np.array(ids))


@pytest.mark.parametrize(
    ("given", "known", "form"),
    [
        (("a.jpg", "b.JPEG"), ("a", "b"), "without their suffix"),
        (("a", "b"), ("a.png", "b.png"), "without their suffix"),
        (("images/0/a.jpg", r"images\0\b.jpg"), ("a", "b"), "by their file names"),
        (("12", "13"), ("000012", "000013"), "as whole numbers"),
        (("12.0", "0.0"), ("000012", "000000"), "as whole numbers"),
        (("x/12.jpg", "x/13.jpg"), ("000012", "000013"), "by the numbers in their file names"),
    ],
)
def test_each_form_is_found(given, known, form):
    match = match_ids(given, catalog(*known, "other"))
    assert match.form == form
    assert [match.ids[name] for name in given] == list(known)


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (("1", "2"), ("01", "001", "2")),  # two of the catalogue's fall together
        (("1", "01"), ("001", "2")),  # two of the given
        (("1", "7"), ("01", "02")),  # one is left over
        (("a.jpg",), ("0/a.png", "1/a.png", "b")),  # which of the two?
        (("a1", "a2"), ("b1", "b2")),
    ],
)
def test_what_is_ambiguous_or_left_over_is_not_matched(given, known):
    assert match_ids(given, catalog(*known)) is None


def test_the_stage_of_least_change_is_taken():
    assert match_ids(["1.jpg"], catalog("1", "x/2")).form == "without their suffix"
