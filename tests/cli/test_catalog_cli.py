"""`retailtag catalog check` and `split`, as a user runs them."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from retailtag.catalog.readers import read_catalog
from retailtag.cli.catalog import app
from retailtag.errors import EXIT_BAD_DATA, UsageError

RNG = np.random.default_rng(0)


@pytest.fixture
def run():
    def invoke(*args):
        return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)

    return invoke


@pytest.fixture
def shop(tmp_path):
    """Forty images of thirty products with three tags."""
    lines = ["path,tags,group"]
    for i in range(40):
        pixels = RNG.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        tags = "|".join(
            t for t, keep in (("all", True), ("some", i % 3 == 0), ("[rare]", i > 36)) if keep
        )
        lines.append(f"{i}.png,{tags},p{i % 30}")
    (tmp_path / "catalogue.csv").write_text("\n".join(lines))
    return tmp_path


def test_check_prints_the_facts(run, shop):
    result = run("check", shop)
    assert result.exit_code == 0
    assert "40 (40 train) of 30 products" in result.stdout
    assert "3 (3 tail, 0 common, 0 frequent)" in result.stdout
    assert "█" in result.stdout
    assert "all is on every image" in result.stdout


def test_check_json_is_one_object(run, shop):
    result = run("check", shop, "--json")
    report = json.loads(result.stdout)
    assert report["images"] == 40
    assert [t["tag"] for t in report["tags"]] == ["[rare]", "all", "some"]


def test_check_names_unreadable_images_and_ends_with_bad_data(run, shop):
    (shop / "7.png").write_bytes(b"")
    result = run("check", shop, "--json")
    assert result.exit_code == EXIT_BAD_DATA
    (found,) = json.loads(result.stdout)["unreadable"]
    assert found["place"].endswith("7.png")
    assert found["reason"] == "is empty (0 bytes); fetch it again"


def test_split_writes_a_catalogue_of_exact_sizes(run, shop):
    out = shop / "split.csv"
    result = run("split", shop, "--out", out, "--test", "0.2", "--val", "4")
    assert "28 train, 4 val, 8 test" in " ".join(result.stdout.split())
    catalog = read_catalog(out)
    assert [len(catalog.rows(s)) for s in ("train", "val", "test")] == [28, 4, 8]
    assert catalog.table.tags == ("[rare]", "all", "some")
    assert np.array_equal(catalog.table.labels, read_catalog(shop).table.labels)


def test_split_ignores_the_split_that_is_there(run, shop):
    lines = (shop / "catalogue.csv").read_text().splitlines()
    words = ["split", "", "holdout", *["train"] * 38]
    text = "\n".join(f"{line},{word}" for line, word in zip(lines, words, strict=True))
    (shop / "catalogue.csv").write_text(text)
    assert run("split", shop, "--out", shop / "s.csv", "--test", 8).exit_code == 0
    assert len(read_catalog(shop / "s.csv").rows("test")) == 8


def test_split_tells_where_the_images_stay(run, shop, tmp_path):
    out = tmp_path / "elsewhere" / "split.csv"
    result = run("split", shop, "--out", out, "--test", 8)
    assert "--images" in result.stdout
    assert len(read_catalog(out, images=shop)) == 40


def test_split_json_tells_what_was_not_satisfied(run, shop):
    lines = (shop / "catalogue.csv").read_text().splitlines()
    lines[1] = "0.png,all|only,p0"
    (shop / "catalogue.csv").write_text("\n".join(lines))
    result = run("split", shop, "--out", shop / "s.csv", "--test", 8, "--json")
    told = json.loads(result.stdout)
    assert told["sizes"] == {"train": 32, "val": 0, "test": 8}
    assert told["unsatisfied"] == ["tag 'only' has a single product, so it is in train alone"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--out", "catalogue.csv", "--test", "8"], "--force"),
        (["--out", "x.parquet", "--test", "8"], "as CSV"),
        (["--out", "x.csv", "--test", "many"], "--test many"),
        (["--out", "x.csv", "--test", "40"], "leave some to train on"),
    ],
)
def test_split_refuses(run, shop, args, words):
    args[1] = str(shop / args[1])
    before = (shop / "catalogue.csv").read_bytes()
    with pytest.raises(UsageError, match=words):
        run("split", shop, *args)
    assert (shop / "catalogue.csv").read_bytes() == before


def test_force_overwrites_the_input(run, shop):
    run("split", shop, "--out", shop / "catalogue.csv", "--test", "8", "--force")
    assert len(read_catalog(shop).rows("test")) == 8
