"""The whole flow on the small world: stages, resumption, repeatability, leakage."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import retailtag as rt
from retailtag.backbones import load_backbone
from retailtag.bakeoffs.plan import plan_bakeoff
from retailtag.bakeoffs.request import pair_folder
from retailtag.bakeoffs.run import run_bakeoff
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.errors import ArtefactError, DataError, StaleFeatures, UsageError
from retailtag.extraction.extract import extract
from retailtag.finetuning.artefact import Checkpoint
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.progress import SILENT
from retailtag.runs.finetune import run_finetune
from retailtag.runs.latency import to_csv
from retailtag.runs.probe import run_probe
from retailtag.settings import (
    BakeoffSettings,
    ComputeSettings,
    FinetuneSettings,
    ProbeSettings,
    ScoreSettings,
)
from retailtag.store import FeatureStore
from retailtag.tagger.latency import Schedule
from retailtag.tagger.loading import load_fitted

QUICK = ProbeSettings(sweep_C="1e-5,1e-4,1e-2", folds=3)
PAIRS = ("demo:cnn", "demo:clip")


def _settings(root, **changes):
    values = {
        "backbones": PAIRS,
        "out": root / "run",
        "compute": ComputeSettings(features=root / "features", device="cpu"),
        "probe": QUICK,
        "finetune": FinetuneSettings(epochs=1, batch_size=32),
        "score": ScoreSettings(replicates=100),
    }
    return BakeoffSettings(**{**values, **changes})


class _Heard:
    """Silent progress that remembers what is said."""

    task = staticmethod(SILENT.task)

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def heard():
    return _Heard()


@pytest.fixture(scope="module", autouse=True)
def _few_images_for_latency():
    with pytest.MonkeyPatch.context() as patch:
        few = Schedule(6, 1, warm_up=1, extra_seconds=0)
        for name in ("SINGLE", "BATCHES"):
            patch.setattr(f"retailtag.tagger.latency.{name}", few)
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory, heard):
    root = tmp_path_factory.mktemp("bakeoff")
    settings = _settings(root)
    return root, run_bakeoff(small, settings, command="retailtag bakeoff ...", progress=heard)


def _announced(lines):
    """(place, stage, reused) of every line that announces a stage."""
    places = [
        re.match(r"(\d+)/(\d+) (.*): (?:running(?: \(.+\))?; about .* left|(reused))$", x)
        for x in lines
    ]
    return [(int(m[1]), int(m[2]), m[3], m[4] is not None) for m in places if m]


def test_every_stage_is_announced_with_its_place(finished, heard):
    _, run = finished
    n = len(run.ran)
    expected = [(i, n, name, False) for i, name in enumerate(run.ran, 1)]
    assert _announced(heard.lines) == expected
    assert "extract demo:clip: running (72 images embedded in the pass" in "\n".join(heard.lines)


def test_every_pair_is_scored_and_one_is_recommended(finished, small):
    root, run = finished
    names = {f"{b} · {s}" for b in PAIRS for s in ("probe", "finetune")}
    assert {pair.name for pair in run.result.pairs} == names
    assert run.decision.winner in names
    assert run.reused == []
    for pair in run.result.pairs:
        cost = pair.cost
        assert cost.train_seconds > cost.extract_seconds > 0
        assert cost.latency_ms_high >= cost.latency_ms_p50 >= cost.latency_ms_low > 0
        assert len(cost.latency_ms_turns) == 6
        assert sum(cost.latency_ms_stages.values()) < 2 * cost.latency_ms_high
        assert cost.t4.keys() == {"float32", "float16"}
        for t4 in cost.t4.values():
            for value, low, high in (t4.latency_ms, t4.images_per_second, t4.train_seconds):
                assert 0 < low <= value <= high
            assert t4.predicted_here.keys() == {"1", "32"}
            assert not t4.is_measured
        assert min(cost.peak_memory_mib, cost.images_per_second, cost.weights_mib) > 0
        folder = pair_folder(root / "run", pair.backbone, pair.strategy)
        assert (folder / "scorecard.json").exists()
        assert pair.scorecard.n_images == len(small.rows("test"))
    page = run.report.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "different models have been scored on the test split" in page
    for part in ("What goes wrong", "data:image/jpeg", "Families and strategies", "precision 0.8"):
        assert part in page
    assert [m.family for m in run.result.families.members] == ["supervised", "image-text"]
    for pair in run.result.comparisons:
        assert 0 < pair.p <= pair.p_holm <= 1


def test_a_second_run_does_nothing(finished, small):
    root, first = finished
    before = {p: p.stat().st_mtime_ns for p in (root / "run").rglob("*") if p.is_file()}
    heard = _Heard()
    again = run_bakeoff(small, _settings(root), progress=heard)
    assert again.ran == []
    assert again.reused == first.ran
    n = len(first.ran)
    reused = [(i, n, name, True) for i, name in enumerate(first.ran, 1)]
    assert [stage for stage in _announced(heard.lines) if stage[3]] == reused
    assert again.decision == first.decision
    assert {p: p.stat().st_mtime_ns for p in (root / "run").rglob("*") if p.is_file()} == before


def test_only_what_is_missing_or_stale_runs(finished, small, tmp_path, quick_bakeoffs):
    shutil.copytree(finished[0], tmp_path / "copy")
    settings = _settings(tmp_path / "copy")
    (pair_folder(settings.out, "demo:clip", "finetune") / "checkpoint.safetensors").write_bytes(
        b"x"
    )
    left = pair_folder(settings.out, "demo:cnn", "probe") / ".groups.csv.0.part"
    left.write_bytes(b"of a killed run")
    ran = run_bakeoff(small, settings).ran
    assert not left.exists()
    assert "finetune demo:clip" in ran
    assert not any("demo:cnn" in name or name.startswith(("extract", "probe")) for name in ran)


def test_latencies_of_a_t4_change_the_report_alone(finished, small, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished[0], root)
    there = tmp_path / "there.csv"
    folder = pair_folder(root / "run", "demo:cnn", "probe")
    row = rt.latency(folder, engines=["eager"], batches="1", out=there, catalog=small).rows[0]
    there.write_text(to_csv([replace(row, machine="Xeon (4 cores), Tesla T4")]))
    run = run_bakeoff(small, _settings(root, merge=(there,)))
    assert run.ran == ["report"]
    costs = {p.name: p.cost.t4["float32"] for p in run.result.pairs}
    assert costs["demo:cnn · probe"].merged_from.startswith("eager-float32, Xeon (4 cores), Tesla")
    assert costs["demo:cnn · probe"].latency_ms[0] == pytest.approx(row.tags_ms_p50, rel=1e-4)
    assert [name for name, cost in costs.items() if cost.merged_from] == ["demo:cnn · probe"]
    assert "Tesla T4" in run.report.read_text(encoding="utf-8")


def test_same_seed_gives_the_same_scorecards(finished, small, tmp_path, quick_bakeoffs):
    run_bakeoff(small, _settings(tmp_path))
    for backbone in PAIRS:
        for strategy in ("probe", "finetune"):
            a, b = (
                pair_folder(root / "run", backbone, strategy) / "scorecard.json"
                for root in (finished[0], tmp_path)
            )
            assert a.read_bytes() == b.read_bytes()


def test_plan_runs_nothing_and_knows_what_is_reused(finished, small, tmp_path):
    fresh = plan_bakeoff(small, _settings(tmp_path))
    assert all(stage.why and stage.seconds > 0 and stage.disk_bytes > 0 for stage in fresh)
    assert list(tmp_path.iterdir()) == []
    assert not any(stage.why for stage in plan_bakeoff(small, _settings(finished[0])))


def test_probe_choices_never_see_the_test_labels(finished, small, tmp_path):
    """Flip every test label: probe, thresholds and chosen C stay the same to the bit."""
    root, _ = finished
    labels = small.table.labels.copy()
    test = small.rows("test")
    labels[test] = np.where(labels[test] >= 0, 1 - labels[test], -1)
    flipped = read_catalog(small.path)
    flipped.table.labels[:] = labels
    store = FeatureStore.find(root / "features", load_backbone("demo:cnn").spec())
    run_probe(RunContext(flipped), store, tmp_path, QUICK)
    a = Probe.load(pair_folder(root / "run", "demo:cnn", "probe"))
    b = Probe.load(tmp_path)
    for name in ("weight", "bias", "thresholds", "C"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_predictions_record_what_they_were_fitted_on(finished, small):
    root, _ = finished
    for strategy in ("probe", "finetune"):
        folder = pair_folder(root / "run", "demo:cnn", strategy)
        predictions = Predictions.load(folder / "predictions.npz")
        train = small.image_ids[small.rows("train")]
        assert set(predictions.fitted_ids.tolist()) == set(train.tolist())
        assert not set(predictions.fitted_ids.tolist()) & set(predictions.image_ids.tolist())


def test_tagger_answers_as_the_predictions_do(finished, small):
    root, _ = finished
    rows = small.rows("test")[:5].tolist()
    for strategy in ("probe", "finetune"):
        folder = pair_folder(root / "run", "demo:clip", strategy)
        predictions = Predictions.load(folder / "predictions.npz")
        place = [predictions.image_ids.tolist().index(small.image_ids[i]) for i in rows]
        tagger = load_fitted(folder)
        logits = tagger.logits([small.images.read(i) for i in rows])
        np.testing.assert_allclose(logits, predictions.logits[place], rtol=1e-3, atol=2e-3)


def test_tagger_refuses_other_weights_and_empty_folders(finished, tmp_path):
    root, _ = finished
    probe = Probe.load(pair_folder(root / "run", "demo:cnn", "probe"))
    replace(probe, facts={**probe.facts, "features": "0" * 64}).save(tmp_path / "probe")
    with pytest.raises(ArtefactError, match="other weights"):
        load_fitted(tmp_path / "probe")
    tuned = Checkpoint.load(pair_folder(root / "run", "demo:cnn", "finetune"))
    model = [fact.replace("bicubic", "nearest") for fact in tuned.facts["model"]]
    replace(tuned, facts={**tuned.facts, "model": model}).save(tmp_path / "tuned")
    with pytest.raises(ArtefactError, match="another architecture or preprocessing"):
        load_fitted(tmp_path / "tuned")
    with pytest.raises(DataError, match="no probe, fine-tune or exported tagger"):
        load_fitted(tmp_path)


def test_unreadable_images_are_said_and_left_out(small_csv, tmp_path, quick_bakeoffs):
    shutil.copytree(small_csv.parent, tmp_path / "shop")
    bad = [f"images/p{product:03d}-1.png" for product in (0, 3)]  # one to train, one to test
    for name in bad:
        (tmp_path / "shop" / name).write_bytes(b"broken")
    catalog = read_catalog(tmp_path / "shop" / "catalogue.csv")
    settings = _settings(tmp_path, backbones=("demo:cnn",), finetune=FinetuneSettings(epochs=0))
    run = run_bakeoff(catalog, settings)
    assert any("2 of 72 images could not be read" in f.sentence for f in run.result.findings)
    card = run.result.pairs[0].scorecard
    assert card.n_images == len(catalog.rows("test")) - 1
    assert any(f.code == "missing-images" for f in card.findings)


def test_finetune_takes_its_start_from_fitted_images_alone(small, finished, tmp_path):
    """Validation labels flipped: epoch 0, the probe, scores the validation set as before."""
    root, _ = finished
    split = small.split.copy()
    split[small.rows("train")[-20:]] = "val"
    with_val = small.with_split(split)
    flipped = read_catalog(small.path).with_split(split)
    val = with_val.rows("val")
    known = flipped.table.labels[val] >= 0
    flipped.table.labels[val] = np.where(known, 1 - flipped.table.labels[val], -1)
    heads = []
    for catalog, name in ((with_val, "a"), (flipped, "b")):
        backbone = load_backbone("demo:cnn")
        store = FeatureStore.find(root / "features", backbone.spec())
        probe = Probe.load(pair_folder(root / "run", "demo:cnn", "probe"))
        probe = replace(probe, facts={**probe.facts, "catalog_digest": catalog.digest})
        config = FinetuneSettings(epochs=0)
        run = run_finetune(RunContext(catalog), store, backbone, probe, tmp_path / name, config)
        heads.append(run.checkpoint.weight)
        assert set(run.predictions.fitted_ids) == set(
            catalog.image_ids[catalog.rows("train", "val")]
        )
    np.testing.assert_array_equal(*heads)


def test_features_of_other_weights_are_refused(finished, small):
    root, _ = finished
    with pytest.raises(StaleFeatures, match="weights_sha256"):
        FeatureStore.find(root / "features", load_backbone("demo:cnn", random_weights=True).spec())


def test_bad_requests_are_named(small, tmp_path):
    for changes, words in (
        ({"backbones": ()}, "--backbones"),
        ({"backbones": ("demo:cnn", "demo:cnn")}, "twice"),
        ({"strategies": ("magic",)}, "--strategies"),
        ({"probe": None}, None),
    ):
        if words:
            with pytest.raises(UsageError, match=words):
                _settings(tmp_path, **changes)
    with pytest.raises(UsageError, match="--folds"):
        ProbeSettings(folds=1)
    no_test = small.with_split(np.full(len(small), "train"))
    with pytest.raises(DataError, match="retailtag catalog split"):
        run_bakeoff(no_test, _settings(tmp_path))
    with pytest.raises(DataError, match="retailtag extract"):
        FeatureStore.find(tmp_path / "none", load_backbone("demo:cnn").spec())


def test_a_relabelled_catalogue_reuses_its_embeddings(finished, small):
    root, _ = finished
    relabelled = read_catalog(small.path)
    relabelled.table.labels[0, 0] ^= 1
    compute = ComputeSettings(device="cpu", features=root / "features")
    summary = extract(RunContext(relabelled, compute=compute), load_backbone("demo:cnn"))
    assert (summary.n_computed, summary.n_reused) == (0, len(small))
