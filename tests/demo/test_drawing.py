import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from retailtag.cli.main import app
from retailtag.demo.drawing import DemoSummary, contact_sheet, write_demo_catalogue
from retailtag.demo.drawing.articles import ARTICLES
from retailtag.demo.drawing.draw import draw_product
from retailtag.demo.drawing.look import Look
from retailtag.demo.drawing.source import CODE_SIZES, sample_source
from retailtag.demo.drawing.taxonomy import FACETS, TAGS, zipf
from retailtag.demo.drawing.words import BRANDS, PATTERNS
from retailtag.demo.drawing.world import Product, sample_product, sample_products, split_products
from retailtag.demo.drawing.write import MIN_IMAGES, TEST_SHARE, tag_counts
from retailtag.errors import ArtefactError, UsageError

N_IMAGES = MIN_IMAGES


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> DemoSummary:
    return write_demo_catalogue(
        tmp_path_factory.mktemp("demo") / "shop", N_IMAGES, seed=3, workers=1
    )


@pytest.fixture(scope="module")
def big_world() -> tuple[list[Product], np.ndarray]:
    products = sample_products(0, 40_000)
    return products, split_products(products, 0, 5000)


def rows_of(summary: DemoSummary) -> list[dict[str, str]]:
    with summary.catalogue.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_taxonomy_has_250_distinct_tags():
    assert len(TAGS) == len(set(TAGS)) == 250
    assert not any("|" in tag for tag in TAGS)


def test_zipf_sums_to_one_and_falls():
    p = zipf(30, 2.0, 1.5)
    assert p.sum() == pytest.approx(1)
    assert (np.diff(p) < 0).all()


def test_rows_name_images_of_the_promised_size(demo):
    rows = rows_of(demo)
    assert len(rows) == len({row["image_id"] for row in rows}) == demo.n_images == N_IMAGES
    for row in rows[::10]:
        with Image.open(demo.catalogue.parent / row["path"]) as picture:
            assert (picture.size, picture.format) == ((96, 128), "JPEG")
    assert {tag for row in rows for tag in row["tags"].split("|")} <= set(TAGS)
    assert all(row["title"] for row in rows)


def test_no_product_is_in_both_splits(demo):
    sides: dict[str, set[str]] = {}
    for row in rows_of(demo):
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert {split for found in sides.values() for split in found} == {"train", "test"}
    assert demo.n_test == pytest.approx(N_IMAGES / 8, abs=9)


def test_taxonomy_file_counts_what_the_catalogue_says(demo):
    counted = {"train": Counter(), "test": Counter()}
    for row in rows_of(demo):
        counted[row["split"]].update(row["tags"].split("|"))
    with (demo.catalogue.parent / "taxonomy.csv").open(newline="", encoding="utf-8") as file:
        written = {row["tag"]: row for row in csv.DictReader(file)}
    assert list(written) == list(TAGS)
    for tag, row in written.items():
        assert int(row["train_count"]) == counted["train"][tag]
        assert int(row["test_count"]) == counted["test"][tag]
    assert demo.n_tail + demo.n_common + demo.n_frequent == 250


def test_files_depend_on_the_seed_and_not_on_the_workers(demo, tmp_path):
    again = write_demo_catalogue(tmp_path / "two", N_IMAGES, seed=3, workers=2)
    other = write_demo_catalogue(tmp_path / "other", N_IMAGES, seed=4, workers=1)
    assert contents(demo.catalogue.parent) == contents(again.catalogue.parent)
    assert demo.catalogue.read_bytes() != other.catalogue.read_bytes()


def test_a_complete_catalogue_is_reused(demo):
    before = demo.catalogue.stat().st_mtime_ns
    found = write_demo_catalogue(demo.catalogue.parent, N_IMAGES, seed=3)
    assert found.reused
    assert found.catalogue.stat().st_mtime_ns == before
    assert (found.n_tail, found.n_products) == (demo.n_tail, demo.n_products)


def test_another_catalogue_in_the_folder_is_refused(demo):
    with pytest.raises(UsageError, match="another demo catalogue"):
        write_demo_catalogue(demo.catalogue.parent, N_IMAGES + 1, seed=3)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="something other"):
        write_demo_catalogue(tmp_path, N_IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(written: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_catalogue(tmp_path / "shop", N_IMAGES, workers=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_adds_up_and_an_empty_folder_will_do(tmp_path):
    steps: list[int] = []
    write_demo_catalogue(tmp_path, N_IMAGES, workers=1, progress=steps.append)
    assert sum(steps) == N_IMAGES


def test_the_fewest_images_still_fill_a_test_split():
    wanted = round(MIN_IMAGES * TEST_SHARE)
    for seed in range(30):
        products = sample_products(seed, MIN_IMAGES)
        held_out = split_products(products, seed, wanted)
        n_test = sum(p.n_photos for p, test in zip(products, held_out, strict=True) if test)
        assert n_test >= 0.8 * wanted


def test_fewer_images_are_refused_with_the_number_that_help_names(tmp_path):
    with pytest.raises(UsageError, match=f"at least {MIN_IMAGES} images"):
        write_demo_catalogue(tmp_path / "shop", MIN_IMAGES - 1)
    help_ = CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200"}).stdout
    assert f"Images to draw, at least {MIN_IMAGES}." in help_


def test_about_a_third_of_the_tags_are_tail_at_40_000_images(big_world):
    products, held_out = big_world
    counts = tag_counts(products, ~held_out)
    train = np.array([counts[tag] for tag in TAGS])
    assert 0.28 <= (train < 50).mean() <= 0.40
    assert (train > 0).all()


def test_every_tag_has_held_out_images_at_40_000_images(big_world):
    products, held_out = big_world
    counts = tag_counts(products, held_out)
    assert all(counts[tag] > 0 for tag in TAGS)
    assert sum(p.n_photos for p in products) == 40_000


def test_a_split_leaves_every_tag_a_training_product():
    products = sample_products(5, 600)
    held_out = split_products(products, 5, 75)
    seen = tag_counts(products, np.ones(len(products), dtype=bool))
    left = tag_counts(products, ~held_out)
    assert all(left[tag] > 0 for tag in seen)


def test_tags_go_together():
    products = sample_products(1, 8000)

    def share(tag: str, among: list[Product]) -> float:
        return sum(tag in product.tags for product in among) / len(among)

    jeans = [product for product in products if "article:Jeans" in product.tags]
    assert share("material:Denim", jeans) > 0.9 > 4 * share("material:Denim", products)
    assert share("master:Bottoms", jeans) > 0.9
    girls = [product for product in products if "gender:Girls" in product.tags]
    assert share("colour:Pink", girls) > 2 * share("colour:Pink", products)


def test_labels_are_a_little_noisy():
    seen = [sample_product(2, index) for index in range(1500)]
    forgotten = sum(not any(tag.startswith("master:") for tag in p.tags) for p in seen)
    assert 0.005 < forgotten / len(seen) < 0.06


@pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.name)
def test_every_article_is_drawn_inside_the_picture(article):
    look = Look(
        family=article.family,
        shape=dict(article.shape),
        colours=((200, 60, 60), (40, 40, 120), (240, 220, 80)),
        pattern="Floral",
        material=article.materials[0],
        neck=article.necks[0] if article.necks else "",
        sleeve=article.sleeves[0] if article.sleeves else "",
        scale=9.0,
        mark=3,
        details=article.details[:2],
    )
    alpha = np.asarray(draw_product(look, np.random.default_rng(0)).flat)[:, :, 3]
    assert 0.03 < (alpha > 128).mean() < 0.75


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"summary": {"n": 1}}', '{"summary": 3}'])
def test_a_damaged_record_says_so(tmp_path, text):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"demo\.json is damaged; remove"):
        write_demo_catalogue(tmp_path, N_IMAGES, seed=3, workers=1)


@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_every_pattern_shows(pattern):
    product = next(
        p for p in (sample_product(0, i) for i in range(200)) if p.look.family == "upper"
    )
    plain, printed = (
        Look(
            **{
                **vars(product.look),
                "pattern": name,
                "colours": ((200, 40, 40), (40, 40, 200), (240, 240, 60)),
            }
        )
        for name in ("Plain", pattern)
    )
    pictures = [
        np.asarray(draw_product(look, np.random.default_rng(0)).flat, float)[:, :, :3]
        for look in (plain, printed)
    ]
    assert np.abs(pictures[0] - pictures[1]).mean() > 2


def test_source_labels_never_hold_the_demos_tags():
    values = [*FACETS["article"], *PATTERNS, *BRANDS]
    named = re.compile(r"\b(" + "|".join(re.escape(v.lower()) for v in values) + r")\b")
    for index in range(600):
        product = sample_source(9, index)
        for caption in product.captions:
            assert ":" not in caption
            assert not named.search(caption.lower()), caption
        assert all(0 <= c < n for c, n in zip(product.codes, CODE_SIZES.values(), strict=True))
        assert product.look.mark == -1 or product.look.mark >= len(BRANDS)


def test_source_products_do_not_repeat():
    assert sample_source(9, 4) == sample_source(9, 4)
    assert sample_source(9, 4).captions != sample_source(9, 5).captions


def test_the_contact_sheet_shows_one_photograph_per_product(demo):
    sheet = contact_sheet(demo.catalogue.parent, columns=6, rows=2)
    assert sheet.size == (6 * 100 + 4, 2 * 132 + 4)
    assert np.asarray(sheet).std() > 10
