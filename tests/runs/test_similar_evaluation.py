"""The evaluation of similar products: what counts, for whom, with which interval."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import retailtag as rt
from retailtag.catalog.table import GroupCutoffs, TagTable
from retailtag.cli.main import run
from retailtag.errors import EXIT_BAD_DATA, EXIT_USAGE, DataError
from retailtag.progress import SILENT
from retailtag.runs import similar_evaluation
from retailtag.runs.similar import Gallery
from retailtag.runs.similar_evaluation import (
    ALL,
    NO_PRODUCTS,
    TAIL,
    evaluate,
    mean_over_products,
)


class Plane(Gallery):
    """Images that lie on a circle, by angle in degrees."""

    def __init__(self, angles, product, tags, sha256, split):
        n = len(angles)
        names = sorted({tag for one in tags for tag in one})
        labels = np.array([[tag in one for tag in names] for one in tags], np.int8)
        catalog = SimpleNamespace(
            path="shop.csv",
            group=np.array(product),
            split=np.array(split),
            image_ids=np.array([f"i{k}" for k in range(n)]),
            table=TagTable.build(names, labels, np.ones(n, bool)),
        )
        context = SimpleNamespace(catalog=catalog, progress=SILENT)
        super().__init__(context, None, (), np.arange(n), 0)
        self.__dict__["sha256"] = sha256
        radians = np.deg2rad(angles)
        self.__dict__["points"] = np.stack([np.cos(radians), np.sin(radians)], 1)

    def keys(self, *, centred):
        assert centred
        return None, self.points.astype(np.float32)

    def to_json(self):
        return {"images": len(self.rows)}


def plane(**changed):
    given = {
        "angles": [0, 10, 30, 31, 50, 0],
        "product": ["a", "b", "a", "a", "c", "d"],
        "tags": [{"x", "y"}, {"x"}, {"x", "y"}, {"x", "y"}, {"y", "z"}, {"x", "y"}],
        "sha256": ["0", "1", "2", "3", "4", "0"],  # the last is a copy of the first
        "split": ["test", *["train"] * 5],
    }
    return Plane(**{**given, **changed})


def values(made, scope=ALL):
    return {s.metric: s.value for s in made.scores if s.scope == scope}


def test_a_case_by_hand_in_which_the_copy_does_not_count():
    found = values(evaluate(plane(), "test"))
    # Ranking of the first image: b at 10 degrees, its product at 30 and 31, c at 50.
    assert found["recall@1"] == 0
    assert found["recall@5"] == found["recall@10"] == 1
    assert found["MRR"] == 1 / 2
    assert found["mAP@R"] == pytest.approx((1 / 2 + 0) / 2)
    # Without the product: b shares 1 of 2 tags, c 1 of 3; the best order is the same.
    assert found["nDCG@10"] == pytest.approx(1)
    other = values(evaluate(plane(angles=[0, 60, 30, 31, 50, 0]), "test"))
    assert other["recall@1"] == 1
    assert other["nDCG@10"] == pytest.approx(
        (1 / 3 + 1 / 2 / np.log2(3)) / (1 / 2 + 1 / 3 / np.log2(3))
    )


def test_a_copy_in_the_own_product_does_not_count_either():
    made = evaluate(plane(product=["a", "b", "c", "c", "c", "a"]), "test")
    assert not any(score.metric == "recall@1" for score in made.scores)
    assert NO_PRODUCTS in made.notes


def test_files_of_unknown_bytes_are_no_copies():
    made = evaluate(plane(sha256=[""] * 6, product=list("abcdea")), "test")
    assert values(made)["recall@1"] == 1


def test_the_tail_is_of_few_photographs_and_of_tail_tags():
    angles = [0, 10, 20, 30, 40, 50, 60]
    product = list("aaaabbc")
    labels = [{"x"}] * 4 + [{"x", "rare"}, {"x"}, {"x"}]
    split = ["test"] * 7
    gallery = plane(
        angles=angles, product=product, tags=labels, sha256=list("0123456"), split=split
    )
    gallery.context.catalog.table = replace(
        gallery.context.catalog.table, cutoffs=GroupCutoffs(5, 6)
    )
    scores = {(s.metric, s.scope): s for s in evaluate(gallery, "test").scores}
    assert scores["recall@1", ALL].n_queries == 6
    assert scores["recall@1", TAIL].n_queries == 2  # product b; c has no other image
    assert scores["nDCG@10", ALL].n_queries == 7
    assert scores["nDCG@10", TAIL].n_queries == 1
    assert scores["nDCG@10", ALL].n_products == 3


def test_blocks_and_drawn_queries(monkeypatch):
    rng = np.random.default_rng(0)
    n = 60
    gallery = plane(
        angles=rng.uniform(0, 360, n),
        product=[f"p{k // 3}" for k in range(n)],
        tags=[{"xyz"[k % 3]} for k in range(n)],
        sha256=list(map(str, range(n))),
        split=["test"] * n,
    )
    whole = evaluate(gallery, "test")
    monkeypatch.setattr(similar_evaluation, "CELLS_AT_ONCE", 2 * n)
    assert evaluate(gallery, "test").scores == whole.scores
    monkeypatch.setattr(similar_evaluation, "MAX_QUERIES", 10)
    drawn = evaluate(gallery, "test")
    assert drawn.n_queries == 12
    assert drawn.notes == ("Queries are 12 of 60 images, by whole products.",)


def test_nothing_to_find_is_refused():
    alone = plane(product=list("abcdef"), tags=[{t} for t in "uvwxyz"])
    with pytest.raises(DataError, match="nothing to find; name the column of the products"):
        evaluate(alone, "test")
    with pytest.raises(DataError, match="no image of the split val with an embedding"):
        evaluate(plane(), "val")


def test_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    product = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    held = 0
    for _ in range(200):
        # images of a product are found together or not: the truth is 0.9
        easy = rng.beta(4.5, 0.5, 40)
        found = mean_over_products((rng.random(len(product)) < easy[product]) * 1.0, product)
        held += found.low <= 0.9 <= found.high
    assert 180 <= held <= 199


def test_intervals_at_the_ends_are_not_empty():
    every = mean_over_products(np.ones(40), np.repeat(np.arange(20), 2))
    assert every.high == 1
    assert 0.7 < every.low < 0.9  # 20 products, not 40 images
    alone = mean_over_products(np.array([0.5, 0.7]), np.zeros(2))
    assert (alone.low, alone.high) == (0, 1)
    apart = mean_over_products(np.arange(8) / 10, np.arange(8))
    same = mean_over_products(np.repeat(np.arange(8), 5) / 10, np.repeat(np.arange(8), 5))
    assert same.high - same.low == pytest.approx(apart.high - apart.low)


def test_the_command_prints_points_of_80_columns_and_json(
    small_csv, small_store, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    argv = ["similar", str(small_csv), "--backbones", "demo:cnn", "--evaluate"]
    argv += ["--features", str(small_store.path.parent)]
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert "demo:cnn: 18 images of test against 72" in out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"recall@10 .* \d+\.\d, \d+\.\d to \d+\.\d │\n", out)  # on one line
    assert run([*argv, "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert one["split"] == "test"
    metrics = {s["metric"]: s for s in one["scores"] if s["scope"] == "all"}
    assert set(metrics) == {"recall@1", "recall@5", "recall@10", "mAP@R", "MRR", "nDCG@10"}
    # one other photograph: the average precision at 1 is the recall at 1
    assert metrics["mAP@R"]["value"] == metrics["recall@1"]["value"]
    assert run([*argv, "--id", "x"]) == EXIT_USAGE
    assert "--evaluate takes its queries from the catalogue" in capsys.readouterr().err
    assert run([*argv, "--split", "val"]) == EXIT_BAD_DATA


def test_the_outcome_shows_a_table(small, small_store):
    made = rt.evaluate_similar(small, ["demo:cnn"], features=small_store.path.parent)
    assert made.table.column_names[:4] == ["backbone", "relevance", "metric", "scope"]
    assert "Similar products, evaluated" in repr(made)


def test_each_backbone_gets_its_own_weights(small, monkeypatch):
    given = []

    def opened(context, backbone, settings):
        given.append((backbone, context.compute.weights))
        return plane()

    monkeypatch.setattr(Gallery, "open", opened)
    weights = ["demo:cnn=a.safetensors", "demo:dino=b"]
    rt.evaluate_similar(small, "demo:cnn,demo:dino,demo:cnn+demo:dino", weights=weights)
    assert given == [
        ("demo:cnn", ("demo:cnn=a.safetensors",)),
        ("demo:dino", ("demo:dino=b",)),
        ("demo:cnn+demo:dino", tuple(weights)),
    ]
