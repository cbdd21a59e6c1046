"""Attributes with one value an image: found, declared, recorded; refused where they have two."""

import numpy as np
import pytest

from retailtag.catalog.check import check_catalog
from retailtag.catalog.readers import read_catalog, write_catalogue
from retailtag.errors import DataError, UsageError

ROWS = (
    "path,tags,gender,colour",
    "images/0.jpg,season:Summer|new,Men,red|blue",
    "images/1.jpg,season:Winter,Women,red",
    "images/2.jpg,-,-,",
    "images/3.jpg,season:Summer,,blue",
)


def test_attributes_of_which_no_image_has_two_values_are_found(manifest):
    catalog = read_catalog(manifest(*ROWS), attributes=["gender", "colour"])
    assert catalog.table.exclusive == ("gender",)
    assert catalog.with_split(np.full(4, "val")).table.exclusive == ("gender",)
    assert read_catalog(manifest(*ROWS)).table.exclusive == ()


def test_declared_attributes_replace_those_found(manifest):
    catalog = read_catalog(manifest(*ROWS), attributes=["gender"], one_of=["season"])
    assert catalog.table.exclusive == ("season",)


def test_a_written_manifest_records_them(manifest, shop):
    catalog = read_catalog(manifest(*ROWS), attributes=["gender"], one_of=["season", "gender"])
    write_catalogue(catalog, shop / "copy.csv")
    copy = read_catalog(shop / "copy.csv")
    assert copy.table.exclusive == ("gender", "season")
    assert copy.digest == catalog.digest
    # found and recorded ones add up, and a manifest without any has no such column
    write_catalogue(read_catalog(manifest(*ROWS)), shop / "plain.csv")
    assert "one_of" not in (shop / "plain.csv").read_text(encoding="utf-8")
    rows = [ROWS[0] + ",one_of", *(row + ",season" for row in ROWS[1:])]
    assert read_catalog(manifest(*rows), attributes=["gender"]).table.exclusive == (
        "gender",
        "season",
    )


def test_tags_without_a_prefix_are_an_attribute_too(manifest):
    rows = ("path,tags", "images/0.jpg,shoe|new:yes", "images/1.jpg,shirt")
    assert read_catalog(manifest(*rows), one_of=["tags"]).table.exclusive == ("tags",)
    assert any(
        "--one-of tags" in note
        for note in check_catalog(read_catalog(manifest(*rows)), workers=1).tag_notes
    )
    with pytest.raises(DataError, match="names tags, but 1 of 3 images"):
        read_catalog(manifest(*rows, "images/2.jpg,shoe|shirt"), one_of=["tags"])


def test_images_with_two_values_are_counted_and_named(manifest):
    rows = [*ROWS[:-1], "images/3.jpg,new,Men,red|blue"]
    sentence = (
        r"--one-of names colour, but 2 of 4 images of .* have several of its values "
        r"\(row 2: colour:blue, colour:red; row 5: colour:blue, colour:red\); .* leave colour out"
    )
    with pytest.raises(DataError, match=sentence):
        read_catalog(manifest(*rows), attributes=["colour"], one_of=["colour"])


def test_an_attribute_without_tags_is_refused_with_those_there_are(manifest):
    with pytest.raises(UsageError, match=r"--one-of names gender.*its tags are season"):
        read_catalog(manifest(*ROWS), one_of=["gender"])
    rows = [ROWS[0] + ",one_of", *(row + ",shape" for row in ROWS[1:])]
    with pytest.raises(DataError, match="column one_of names shape"):
        read_catalog(manifest(*rows))


def test_rows_that_record_different_attributes_are_refused(manifest):
    rows = [ROWS[0] + ",one_of", *(f"{row},{'season' * (i < 2)}" for i, row in enumerate(ROWS[1:]))]
    with pytest.raises(DataError, match="column one_of differs between rows 2 and 4"):
        read_catalog(manifest(*rows))


def test_check_reports_and_suggests_them(manifest):
    report = check_catalog(read_catalog(manifest(*ROWS), attributes=["gender"]), workers=1)
    assert report.exclusive == ("gender",)
    assert any("no image has two values of season" in note for note in report.tag_notes)
