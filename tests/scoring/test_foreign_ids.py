"""Ids that differ in spelling alone are matched one to one, or not at all."""

import pytest

from retailtag.scoring.foreign_ids import match_ids

OURS = ["000012", "000013", "000112"]


@pytest.mark.parametrize(
    ("theirs", "ignored"),
    [
        (["12", "13"], "suffix, leading zeros and .0"),
        (["12.0", "13.0"], "suffix, leading zeros and .0"),
        (["000012.jpg", "000013.JPEG"], "the suffix"),
        (["images/000/000012.jpg", "images/000/000013.jpg"], "folder"),
        (["C:\\\\shop\\\\12.png", "C:\\\\shop\\\\13.png"], "folder"),
    ],
)
def test_each_difference_is_seen_through(theirs, ignored):
    found = match_ids([*theirs, "000112", "new"], OURS)
    assert found.ids == dict(zip(theirs, OURS, strict=False))
    assert ignored in found.ignored


def test_paths_of_the_catalogue_are_matched_with_names():
    found = match_ids(["a.jpg", "b"], ["images/a", "images/b"])
    assert found.ids == {"a.jpg": "images/a", "b": "images/b"}


@pytest.mark.parametrize(
    ("theirs", "ours", "doubt"),
    [
        (["7"], ["07", "007"], "7 could be 07 or 007"),
        (["7", "07"], ["007"], "7 and 07 could both be 007"),
        (["007", "7"], ["007"], "007 and 7 could both be 007"),
        (["x.jpg"], ["a/x", "b/x"], "x.jpg could be a/x or b/x"),
    ],
)
def test_a_doubt_matches_nothing(theirs, ours, doubt):
    found = match_ids(theirs, ours)
    assert (found.ids, found.ambiguous) == ({}, doubt)


def test_a_weaker_form_is_enough_where_a_stronger_is_in_doubt():
    assert match_ids(["a/x.jpg"], ["a/x", "b/x"]).ids == {"a/x.jpg": "a/x"}


def test_nothing_alike_is_no_doubt():
    found = match_ids(["p", "q"], OURS)
    assert (found.ids, found.ambiguous) == ({}, "")
