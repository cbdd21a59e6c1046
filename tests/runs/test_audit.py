"""The audit of labels: planted faults come first, and rare tags are no faults."""

import csv
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import retailtag as rt
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import TagTable
from retailtag.cli.main import run
from retailtag.demo.drawing import world
from retailtag.errors import UsageError
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.runs.audit import ERROR, GAP, audit, calibrated
from retailtag.runs.tune import Model
from retailtag.tuning_scores import TuningScores

N, TAGS = 400, ("common", "rare", "=odd", "never")


class NoImages:
    def read(self, index):
        raise AssertionError("an audit reads no image")

    def name(self, index):
        return f"images/{index}.jpg"


def make(seed=0):
    """A catalogue of products with two images each, and scores that follow the true labels."""
    rng = np.random.default_rng(seed)
    product = np.repeat(np.arange(N // 2), 2)
    truth = rng.random((N // 2, 4)) < np.array([0.4, 0.03, 0.2, 0])
    truth[:8, 1] = True
    truth = truth[product]
    # scores of a rare tag are low even where it is right
    logits = rng.normal(size=truth.shape) + 6 * truth - np.array([3, 7, 3, 7])
    labels = truth.astype(np.int8)
    wrong = {(20, 0), (30, 2), (2, 1), (100, 0)}  # products whose label is turned
    for p, tag in wrong:
        labels[product == p, tag] ^= 1
    labels[5, 0] = -1
    ids = np.array([f"i{k:03d}" for k in range(N)])
    catalog = Catalog(
        Path("catalogue.csv"), ids, np.full(N, "train"), np.char.add("p", product.astype(str)),
        np.full(N, ""), TagTable.build(TAGS, labels, np.ones(N, bool)), NoImages(),
    )  # fmt: skip
    probe = Probe(
        TAGS, np.zeros((4, 2), np.float32), np.zeros(4, np.float32), np.zeros(4, np.float32),
        np.ones(4), {"catalog_digest": catalog.digest},
        out_of_fold=TuningScores(ids, logits.astype(np.float32), product % 3),
    )  # fmt: skip
    nothing = np.zeros((0, 4), np.float32)
    predictions = Predictions(ids[:0], TAGS, nothing, probe.thresholds, ids, {})
    return catalog, Model(probe, probe.out_of_fold, predictions), truth, wrong


def test_planted_faults_come_first():
    catalog, model, truth, wrong = make()
    found = audit(model, catalog, top=len(wrong))
    assert {(int(s.product[1:]), TAGS.index(s.tag)) for s in found.suspects} == wrong
    assert [s.rank for s in found.suspects] == [1, 2, 3, 4]
    scores = [s.suspicion for s in found.suspects]
    assert scores == sorted(scores, reverse=True)
    for s in found.suspects:
        k = int(s.product[1:])
        assert s.kind == (GAP if truth[2 * k, TAGS.index(s.tag)] else ERROR)
        assert s.n_images == 2
        assert s.image_id in (f"i{2 * k:03d}", f"i{2 * k + 1:03d}")
        assert s.path == f"images/{int(s.image_id[1:])}.jpg"
    assert found.n_products == N // 2
    assert not found.is_validation


def test_right_labels_of_a_rare_tag_are_less_suspicious_than_a_fault():
    """Its positives score below even odds, but far above images in general."""
    catalog, model, truth, wrong = make()
    overlapping = model.scores.logits.copy()
    overlapping[:, 1] = np.random.default_rng(1).normal(size=N) + 2 * truth[:, 1] - 4
    model = replace(model, scores=replace(model.scores, logits=overlapping))
    everything = audit(model, catalog, top=10_000).suspects
    faults = {(p, tag) for p, tag in wrong if tag != 1}
    worst = min(
        s.suspicion for s in everything if (int(s.product[1:]), TAGS.index(s.tag)) in faults
    )
    z = calibrated(overlapping, catalog.table.labels, catalog.table.group)
    assert (z[catalog.table.labels[:, 1] == 1, 1] < 0).mean() > 0.3
    assert max(s.suspicion for s in everything if s.tag == "rare" and s.kind == ERROR) < worst
    assert not any(s.tag == "never" for s in everything)  # no image carries it


def test_every_cell_is_listed_once_and_unknown_ones_are_not():
    catalog, model, _, _ = make()
    everything = audit(model, catalog, top=10_000).suspects
    cells = [(s.product, s.tag, s.kind) for s in everything]
    assert len(set(cells)) == len(cells) == 3 * N // 2
    (half,) = [s for s in everything if (s.product, s.tag) == ("p2", "common")]
    assert half.n_images == 1  # the other image's label is unknown


def test_blocks_of_tags_change_nothing(monkeypatch):
    catalog, model, _, _ = make()
    whole = audit(model, catalog, top=30)
    monkeypatch.setattr("retailtag.runs.audit.TAGS_AT_ONCE", 1)
    assert audit(model, catalog, top=30).suspects == whole.suspects


def test_a_validation_set_is_told_and_no_rows_are_refused():
    catalog, model, _, _ = make()
    scores = replace(model.scores, fold=None)
    assert audit(replace(model, scores=scores), catalog, top=1).is_validation
    with pytest.raises(UsageError, match="--top 0 must be at least 1"):
        audit(model, catalog, top=0)


def test_the_command_writes_a_csv(tmp_path, monkeypatch, capsys):
    catalog, model, _, wrong = make()
    model.model.save(tmp_path / "run")
    model.predictions.save(tmp_path / "run" / "predictions.npz")
    made = rt.audit(tmp_path / "run", top=4, out=tmp_path / "a.csv", catalog=catalog)
    assert made.suspects.num_rows == 4
    with (tmp_path / "a.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert {row["tag"] for row in rows} == {"common", "rare", "'=odd"}  # no formula
    monkeypatch.setattr("retailtag.scoring.files.recorded_catalog", lambda *a: catalog)
    assert run(["audit", str(tmp_path / "run"), "--out", str(tmp_path / "b.csv"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["suspects"][0]["kind"] in (ERROR, GAP)
    assert len(wrong) == 4


@pytest.fixture(scope="module")
def benchmark():
    """The script that measures the audit on the demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield import_module("audit")


def test_the_benchmark_knows_what_was_drawn_and_the_catalogue_differs_by_its_noise(benchmark):
    products = world.sample_products(3, 2000)
    drawn = benchmark.drawn_tags(3, 2000)
    assert len(drawn) == len(products)
    given = [set(p.tags) for p in products]
    pairs = list(zip(given, drawn, strict=True))
    n = sum(map(len, given))
    assert 0.003 < sum(len(g - d) for g, d in pairs) / n < world.NOISE_SWAP
    # second colours are missing too
    assert world.NOISE_DROP < sum(len(d - g) for g, d in pairs) / n < 0.08
    truth = benchmark.Truth({"p": {"red"}})
    faults = [truth.is_fault(kind, "p", tag) for kind in (ERROR, GAP) for tag in ("red", "blue")]
    assert faults == [False, True, True, False]


def test_the_benchmark_counts_the_first_of_each_kind(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "FIRST", 2)
    truth = benchmark.Truth({"p": {"red"}, "q": {"blue"}})
    cells = [(ERROR, "p", "blue"), (GAP, "q", "red"), (GAP, "p", "red"), (ERROR, "q", "blue")]
    found = benchmark.precisions(cells, truth, {"red"})
    assert found["precision_100"] == 0.5
    assert (found["errors_100"], found["gaps_100"], found["tail_100"]) == (0.5, 0.5, 0.5)
    assert (found["faults"], found["at_faults"], found["cells"]) == (2, 0.5, 4)


@pytest.mark.parametrize("name", ["retailtag", "loss", "cleanlab"])
def test_the_rankings_of_the_benchmark_find_what_was_planted(benchmark, name):
    if name == "cleanlab":
        pytest.importorskip("cleanlab")
    catalog, model, _, wrong = make()
    cells = benchmark.RANKINGS[name](model, catalog)
    assert len(set(cells)) == len(cells)
    first = {(int(product[1:]), TAGS.index(tag)) for _, product, tag in cells[:20]}
    assert wrong <= first


def test_the_benchmark_writes_its_rows(benchmark, tmp_path, monkeypatch):
    rows = [{"ranking": "retailtag", "precision_100": 0.9}]
    monkeypatch.setattr(benchmark, "measure", lambda *a: iter(rows))
    benchmark.main(["--images", "10", "--out", str(tmp_path / "audit.csv")])
    with (tmp_path / "audit.csv").open(newline="") as handle:
        assert next(csv.DictReader(handle)) == {"ranking": "retailtag", "precision_100": "0.9"}
