"""The report counts what is there and names what is odd."""

import json

import numpy as np
import pytest
from PIL import Image

from retailtag.catalog.check import check_catalog
from retailtag.catalog.products import NO_PRODUCTS
from retailtag.catalog.readers import read_catalog


@pytest.fixture
def odd_shop(shop, manifest, picture):
    images = shop / "images"
    (images / "4.jpg").write_bytes((images / "0.jpg").read_bytes())
    (images / "5.jpg").write_bytes(b"<html>not found</html>")
    (images / "6.jpg").write_bytes((images / "1.jpg").read_bytes())
    Image.new("RGB", (64, 64), (9, 9, 9)).save(images / "7.png")
    Image.new("RGB", (8, 8)).save(images / "8.png")
    return read_catalog(
        manifest(
            "path,tags,split,group",
            "images/0.jpg,all|red,train,p",
            "images/1.jpg,all|Red,train,q",
            "images/2.jpg,all|a|b|c|d|e|f|g|h|i|j|k,train,r",
            "images/3.jpg,all|red,test,r",
            "images/4.jpg,all|red,test,s",
            "images/5.jpg,all|red,test,t",
            "images/6.jpg,all,train,q",
            "images/7.png,all|red,train,u",
            "images/8.png,all|red,train,v",
        )
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_counts_and_oddities(odd_shop, workers):
    report = check_catalog(odd_shop, workers=workers)
    assert report.splits == {"train": 6, "test": 3}
    assert report.n_images == 9
    assert report.groups == {"tail": 14, "common": 0, "frequent": 0}
    assert report.tags_per_image["max"] == 12
    assert [(u.image_id, u.reason) for u in report.unreadable] == [
        ("images/5", "is a web page, not an image; fetch it again")
    ]
    assert [d.image_ids for d in report.duplicates_across] == [("images/0", "images/4")]
    assert report.duplicates_across[0].same_labels
    assert report.duplicates_within == 1
    assert "Red" in report.without_positive["test"]
    assert report.without_positive["train"] == ()
    reasons = {(s.image_id, s.reason.split("(")[0].strip()) for s in report.suspicious}
    assert ("images/7", "is blank") in reasons
    assert ("images/8", "is tiny") in reasons
    assert any(i == "images/2" and "12 tags" in r for i, r in reasons)
    assert any("which is in train and test" in r for _, r in reasons)
    assert any(i == "images/1" and "not the tags of images/6" in r for i, r in reasons)
    assert "tags Red, red differ only in case or spacing" in report.tag_notes
    assert any("all is on every image" in n for n in report.tag_notes)


def test_the_report_is_json_and_independent_of_workers(odd_shop):
    one, many = (check_catalog(odd_shop, workers=n).to_json() for n in (1, 4))
    assert json.loads(json.dumps(one)) == json.loads(json.dumps(many))
    assert one["images"] == 9


def test_pixels_count_not_containers(shop, manifest):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(shop / "images" / "a.png")
    Image.fromarray(pixels).save(shop / "images" / "a.bmp")
    path = manifest("image_id,path,tags,split", "a,images/a.png,x,train", "b,images/a.bmp,x,test")
    assert len(check_catalog(read_catalog(path)).duplicates_across) == 1


def test_large_images_count_as_unreadable(shop, manifest):
    path = manifest("path,tags", "images/0.jpg,x")
    report = check_catalog(read_catalog(path), max_pixels=100)
    assert "above the limit" in report.unreadable[0].reason


def photographs(n_products, n_views, rng):
    """Records of products with views that do not look alike, tags of the product on each view."""
    records = []
    for product in range(n_products):
        tags = [f"t{k}" for k in rng.choice(30, 5, replace=False)]
        for view in range(n_views):
            pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
            name = f"p{product:03d}{'abc'[view]}"
            records.append({"image": Image.fromarray(pixels), "image_id": name, "tags": tags})
    return records


def test_without_products_the_check_warns_and_says_what_suggests_them():
    records = photographs(20, 3, np.random.default_rng(0))
    warning = check_catalog(read_catalog(records), workers=1).missing_products
    # Noise never looks alike, so nearest neighbours have other tags and nothing suggests products.
    assert warning == NO_PRODUCTS
    for i, record in enumerate(records):
        record["image_id"] = f"p{i // 3}_{i % 3}"
    warning = check_catalog(read_catalog(records), workers=1).missing_products
    assert "60 ids have 20 beginnings" in warning
    assert "--group-by 'id:(.+)[_-]'" in warning
    for record in records:
        record["title"] = f"thing {record['image_id'][:3]}"
    assert "--group-by title" in check_catalog(read_catalog(records), workers=1).missing_products
    for record in records:
        record["group"] = record["title"]
    assert check_catalog(read_catalog(records), workers=1).missing_products == ""


def test_copies_of_another_size_are_near_duplicates(shop, manifest):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (8, 8, 1), np.uint8)
    small = Image.fromarray(np.tile(grey, 3))
    small.resize((64, 64), Image.Resampling.NEAREST).save(shop / "images" / "a.png")
    small.resize((160, 160), Image.Resampling.NEAREST).save(shop / "images" / "b.jpg", quality=90)
    path = manifest(
        "path,tags,split",
        "images/a.png,x,train",
        "images/b.jpg,x,test",
        "images/0.jpg,x,test",
    )
    report = check_catalog(read_catalog(path))
    assert [d.image_ids for d in report.near_across] == [("images/a", "images/b")]
    assert (report.duplicates_across, report.near_within) == ((), 0)


def test_tags_that_may_be_something_else_are_noted(manifest):
    path = manifest(
        "path,tags,pattern",
        "images/0.jpg,red|blue,None",
        'images/1.jpg,"red, blue|shirt",Striped',
    )
    report = check_catalog(read_catalog(path, attributes=["pattern"]))
    assert any("tag pattern:None may stand for an empty cell" in n for n in report.tag_notes)
    assert any("tag red, blue consists of other tags" in n for n in report.tag_notes)
