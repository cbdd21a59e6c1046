"""`retailtag catalog check` and `split`, as a user runs them."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from retailtag.catalog.readers import read_catalog
from retailtag.cli.catalog import app
from retailtag.errors import EXIT_BAD_DATA, DataError, UsageError
from retailtag.store import FeatureSpec, FeatureStore

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


def test_check_takes_several_places_columns_and_roots(run, shop):
    for k, name in enumerate(("low, or so", "high")):
        (shop / name).mkdir()
        for i in range(20 * k, 20 * k + 20):
            (shop / f"{i}.png").rename(shop / name / f"{i}.png")
    text = (shop / "catalogue.csv").read_text().replace("path,tags", "where,words")
    (shop / "catalogue.csv").write_text(text.replace("\n7.png", f'\n"{shop}/low, or so/7.png"'))
    images = ["--images", shop / "low, or so", "--images", shop / "high", "--allow-root", shop]
    columns = ["--path-column", "where", "--tags-column", "words"]
    result = run("check", shop, *images, *columns)
    assert result.exit_code == 0
    assert "40 (40 train)" in result.stdout
    result = run("split", shop, "--out", shop / "s.csv", "--test", 8, *images, *columns)
    told = " ".join(shlex.quote(str(part)) for part in images)
    assert f"read it with {told}" in " ".join(result.stdout.split())
    assert len(read_catalog(shop / "s.csv", images=images[1:4:2], allow_root=shop)) == 40


def test_notes_of_reading_are_shown(run, tmp_path):
    for name in ("train/hat", "test/hat", "docs"):
        (tmp_path / name).mkdir(parents=True)
    for split, shade in (("train", 0), ("test", 200)):
        Image.new("RGB", (40, 40), (shade, 9, 9)).save(tmp_path / split / "hat" / "0.png")
    assert "folders left out: docs" in " ".join(run("check", tmp_path).stdout.split())
    report = json.loads(run("check", tmp_path, "--json").stdout)
    assert report["notes"] == [f"{tmp_path}: folders left out: docs (no images in them)."]


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


def names_of(catalog):
    """Products by image id."""
    return dict(zip(catalog.image_ids.tolist(), catalog.group.tolist(), strict=True))


def test_split_by_columns_and_patterns(run, shop):
    lines = (shop / "catalogue.csv").read_text().splitlines()
    brands = ["brand,style", *(f"b{i % 4},{i % 5 or ''}" for i in range(40))]
    text = "\n".join(f"{line},{brand}" for line, brand in zip(lines, brands, strict=True))
    (shop / "catalogue.csv").write_text(text)
    out = shop / "s.csv"
    run("split", shop, "--out", out, "--test", 8, "--group-by", "brand,style", "--force")
    assert names_of(read_catalog(out))["6"] == names_of(read_catalog(out))["26"] == "b2|1"
    run("split", shop, "--out", out, "--test", 8, "--group-by", r"path:(.)[.]png", "--force")
    assert names_of(read_catalog(out))["21"] == "1"
    run("split", shop, "--out", out, "--test", 8, "--group-by", "id:^.", "--force")
    assert names_of(read_catalog(out))["21"] == "2"
    before = out.read_bytes()
    for what, words in (
        ("id:(", "regular expression"),
        ("id:x", "40 of 40"),
        ("size", "no column"),
    ):
        with pytest.raises((UsageError, DataError), match=words):
            run("split", shop, "--out", out, "--test", 8, "--group-by", what, "--force")
    assert out.read_bytes() == before


def test_split_by_similar_writes_a_table_and_a_contact_sheet(run, shop):
    lines = (shop / "catalogue.csv").read_text().splitlines()
    (shop / "catalogue.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in lines))
    assert "--group-column" in run("split", shop, "--out", shop / "a.csv", "--test", 8).stdout
    Image.fromarray(np.asarray(Image.open(shop / "0.png")) | 1).save(shop / "1.png")
    result = run("split", shop, "--out", shop / "s.csv", "--test", 8, "--group-by", "similar")
    assert "39 products, the largest of 2 images" in result.stdout
    assert "in 1 cluster, by their looks alone" in result.stdout
    assert names_of(read_catalog(shop / "s.csv"))["1"] == "0"
    rows = (shop / "s.similar.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:]] == [["0", "0", "0"], ["0", "0", "1"]]
    page = (shop / "s.similar.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    (shop / "s.csv").unlink()
    with pytest.raises(UsageError, match=r"s\.similar\.csv exists"):
        run("split", shop, "--out", shop / "s.csv", "--test", 8, "--group-by", "similar")
    assert not (shop / "s.csv").exists()


def test_split_compares_the_embeddings_of_a_store(run, shop):
    ids = [str(i) for i in range(40)]
    X = RNG.standard_normal((40, 6)).astype(np.float32)
    X[30:] = X[:10]
    spec = FeatureSpec("demo:cnn", "ab" * 32, "{}", "avg", 6, "{}")
    store = FeatureStore.create_or_open(shop / "features", spec)
    store.append(ids[:39], ["0" * 64] * 39, X[:39])
    out = shop / "s.csv"
    how = ("--group-by", "similar", "--features")
    result = run("split", shop, "--out", out, "--test", 8, *how, shop / "features")
    assert "1 images could not be compared" in result.stdout
    with pytest.raises(UsageError, match="leave it out"):
        run("split", shop, "--out", out, "--test", 8, "--features", shop / "features")
    with pytest.raises((UsageError, DataError), match="not a feature store"):
        run("split", shop, "--out", out, "--test", 8, *how, shop)


def test_split_gives_folds_and_seeds(run, shop):
    result = run("split", shop, "--out", shop / "s.csv", "--folds", 4, "--json")
    made = json.loads(result.stdout)["splits"]
    assert [one["fold"] for one in made] == [1, 2, 3, 4]
    tests = [set(read_catalog(one["out"]).rows("test").tolist()) for one in made]
    assert sorted(row for rows in tests for row in rows) == list(range(40))
    assert made[0]["out"].endswith("s-fold1.csv")
    run("split", shop, "--out", shop / "s.csv", "--test", 8, "--seeds", "0,1")
    one, other = (read_catalog(shop / f"s-seed{seed}.csv") for seed in (0, 1))
    assert (one.split != other.split).any()
    for args, words in (((), "--folds"), (("--test", 8, "--folds", 4), "--folds alone")):
        with pytest.raises(UsageError, match=words):
            run("split", shop, "--out", shop / "t.csv", *args)
    with pytest.raises(UsageError, match=r"s-fold1\.csv exists"):
        run("split", shop, "--out", shop / "s.csv", "--folds", 4)


def test_split_prints_one_line_for_all_tags_of_a_kind(run, shop):
    lines = (shop / "catalogue.csv").read_text().splitlines()
    lines[1] = "0.png,all|one|two|three|four,p0"
    (shop / "catalogue.csv").write_text("\n".join(lines))
    words = " ".join(run("split", shop, "--out", shop / "s.csv", "--test", 8).stdout.split())
    assert "4 tags have a single product and are in train alone (four, one, three and 1 more)" in (
        words
    )


def test_split_refuses_an_empty_split(run, shop):
    lines = [line.rsplit(",", 1)[0] for line in (shop / "catalogue.csv").read_text().splitlines()]
    groups = ["group", *["big"] * 35, *["small"] * 5]
    text = "\n".join(f"{line},{group}" for line, group in zip(lines, groups, strict=True))
    (shop / "catalogue.csv").write_text(text)
    with pytest.raises(UsageError, match=r"test would be empty: .* the largest of 35 images"):
        run("split", shop, "--out", shop / "s.csv", "--test", 2)
    assert not (shop / "s.csv").exists()


def test_force_overwrites_the_input(run, shop):
    run("split", shop, "--out", shop / "catalogue.csv", "--test", "8", "--force")
    assert len(read_catalog(shop).rows("test")) == 8
