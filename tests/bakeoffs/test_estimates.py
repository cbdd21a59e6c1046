"""Estimates of a plan, against times and bytes that were measured, and how speeds are timed."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from retailtag.backbones import load_backbone
from retailtag.bakeoffs import estimates
from retailtag.bakeoffs import plan as plans
from retailtag.bakeoffs import speed as speeds
from retailtag.bakeoffs.estimates import Estimator
from retailtag.bakeoffs.plan import plan_bakeoff
from retailtag.bakeoffs.speed import Speed, counted, timed
from retailtag.context import RunContext
from retailtag.errors import UnreadableImage
from retailtag.settings import (
    BakeoffSettings,
    ComputeSettings,
    FinetuneSettings,
    ProbeSettings,
    ScoreSettings,
)

MOBILENET = "timm:mobilenetv2_100?size=224"
RATE = 95e9  # operations per second of the one core behind the recorded times
# Of MobileNetV2 at 224 pixels on that core.
TIMED = Speed(0.15, 0.0007, 0.0236, 0.0256, 0.0186, 0.0033, 0.0103, 18_816)
WITHIN = 1.5


def estimator(
    n_train, n_test, *, n_val=0, backbone=MOBILENET, n_tags=250, device="cpu", **sections
):
    """An estimator of a catalogue of so many images, at the recorded speeds."""
    rows = {"train": n_train, "val": n_val, "test": n_test}
    catalog = SimpleNamespace(
        table=SimpleNamespace(tags=("tag",) * n_tags), rows=lambda split: np.arange(rows[split])
    )
    settings = BakeoffSettings(backbones=tuple(backbone.split(",")), **sections)
    strategies = settings.strategies
    request = SimpleNamespace(
        context=SimpleNamespace(catalog=catalog, device=device, workers=1),
        settings=settings,
        strategies_of=lambda b: strategies if "+" not in b else ("probe",),
        fine_tuned=settings.backbones,
    )
    made = Estimator(request, lambda backbone, finetuned: TIMED)
    made.rate = RATE
    return made


# Training and test images, sweep, and seconds, one thread, few other jobs (results/LOG.md).
PROBES = {
    "real, 1,280": ((12_000, 5_000), MOBILENET, "1e-5:10:13", 339.6),
    "demo, 192": ((437, 63), "demo:cnn", "1e-5:10:13", 20.9),
    "demo, 128 and texts": ((437, 63), "demo:clip", "1e-5:10:13", 54.1),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_within_a_factor_of_what_it_took(name):
    (n_train, n_test), backbone, sweep, measured = PROBES[name]
    made = estimator(n_train, n_test, backbone=backbone, probe=ProbeSettings(sweep_C=sweep))
    assert measured / WITHIN < made.probe(backbone).seconds < measured * WITHIN


def test_a_fine_tune_and_its_cache_are_within_a_factor_of_what_they_took():
    """527 and 73 images, two epochs: 34.9 s, of which other jobs took a sixth; 29.9 MB."""
    tuned = FinetuneSettings(epochs=2, augment="none")
    found = estimator(527, 73, n_tags=217, finetune=tuned).finetune(MOBILENET)
    assert 29.3 / WITHIN < found.seconds < 29.3 * WITHIN
    assert found.disk_bytes == pytest.approx(29.94e6, rel=0.05)


def test_bytes_are_those_of_recorded_stages():
    """Per image 5,185 to 5,303 bytes of features; a probe with its neighbours 70.3 MB."""
    made = estimator(12_000, 5_000)
    assert made.extract(MOBILENET, 17_000).disk_bytes == pytest.approx(90.2e6, rel=0.05)
    assert made.probe(MOBILENET).disk_bytes == pytest.approx(70.3e6, rel=0.05)
    assert made.extract(MOBILENET, 0).seconds == 0


@pytest.mark.parametrize(
    ("few", "many"),
    [
        ({"folds": 3}, {"folds": 6}),
        ({"sweep_C": "1e-3:1:4"}, {"sweep_C": "1e-3:1:8"}),
        ({"sweep_C": "1e-3:1:4"}, {"sweep_C": "0.01:0.1:4"}),  # will be widened
        ({"heads": "logistic"}, {"heads": "logistic,ridge"}),
        ({"heads": "logistic"}, {"heads": "logistic,knn"}),
        ({"scale": "standardise"}, {"scale": "standardise,l2"}),
    ],
)
def test_more_work_takes_longer(few, many):
    seconds = [
        estimator(5_000, 500, probe=ProbeSettings(**{"heads": "logistic", **given}))
        .probe(MOBILENET)
        .seconds
        for given in (few, many)
    ]
    assert seconds[0] < 0.99 * seconds[1]


def test_texts_count_only_where_they_are_fitted():
    joint = "demo:clip+demo:cnn"
    made = estimator(4_000, 500, backbone=f"demo:clip,{joint}")
    without = estimator(
        4_000, 500, backbone="demo:clip", probe=ProbeSettings(heads="logistic,ridge,knn")
    )
    assert made.probe("demo:clip").seconds > 1.3 * without.probe("demo:clip").seconds
    assert made.probe(joint).seconds == without.probe(joint).seconds


@pytest.mark.parametrize(
    "changes",
    [{"augment": "light"}, {"mix": "mixup"}, {"cache_gb": 0.001}, {"blocks": "all"}],
)
def test_without_a_cache_every_epoch_runs_the_whole_model(changes):
    made = [
        estimator(2_000, 200, finetune=FinetuneSettings(epochs=5, **{"augment": "none", **c}))
        for c in ({}, changes)
    ]
    kept, again = (each.finetune(MOBILENET) for each in made)
    assert again.seconds > 2 * kept.seconds
    assert kept.disk_bytes - again.disk_bytes == 2_000 * 2 * 18_816


def test_views_and_a_refit_are_stored_and_trained_on():
    def finetune(**changes):
        settings = FinetuneSettings(epochs=2, **{"augment": "none", **changes})
        return estimator(2_000, 200, finetune=settings).finetune(MOBILENET)

    row = 2 * 18_816
    views = finetune(augment="cached:3").disk_bytes - finetune().disk_bytes
    assert views == 2 * 1_800 * row
    assert finetune(refit=True).seconds > 1.4 * finetune().seconds
    assert finetune(cache_dtype="float32").disk_bytes - finetune().disk_bytes == 2_000 * row


def test_a_gpu_decodes_while_it_computes():
    slow = replace(TIMED, decode=0.05)
    made = {d: estimator(1_000, 100, device=d) for d in ("cpu", "cuda")}
    for each in made.values():
        each.measure = lambda backbone, finetuned: slow
    cpu, cuda = (each.extract(MOBILENET, 200).seconds for each in made.values())
    assert cpu - cuda == pytest.approx(1.3 * 200 * slow.forward, rel=1e-6)


def test_components_count_together_and_share_the_decoding():
    joint = "demo:cnn+demo:clip"
    made = estimator(1_000, 100, backbone=joint)
    assert made.speed(joint).forward == 2 * TIMED.forward
    alone = estimator(1_000, 100, backbone="demo:cnn")
    both = sum(made.extract(c, 200).seconds for c in joint.split("+"))
    decode = 1.3 * 200 * TIMED.decode
    assert both == pytest.approx(2 * alone.extract("demo:cnn", 200).seconds - decode - 2.5)


def test_more_pairs_make_a_longer_report():
    one, two = (
        estimator(1_000, 5_000, backbone=b, score=ScoreSettings(replicates=2_000)).report()
        for b in ("demo:cnn", "demo:cnn,demo:clip")
    )
    assert one.seconds < two.seconds
    assert 2 * one.disk_bytes == two.disk_bytes


def ticking():
    """A clock whose every reading is a second later."""
    ticks = count()
    return lambda: float(next(ticks))


def test_a_backbone_is_timed_as_it_will_be_trained(tiny):
    context = RunContext(tiny, compute=ComputeSettings(device="cpu"))
    found = timed(context, FinetuneSettings(), "demo:cnn", True, ticking())
    # A pass of two images takes "a second": no more than two go together.
    per_image = (found.forward, found.trained, found.step, found.frozen)
    assert per_image == (0.5, 0.5, 0.5, 0.5)
    assert (found.load, found.decode, found.single) == (1.0, 1.0, 1.0)
    model = load_backbone("demo:cnn")
    trunk, _ = model.split_at(4)
    pixels = speeds.torch.zeros(1, 3, *model.preprocess.size, dtype=speeds.torch.uint8)
    assert found.activation_values == trunk(pixels).numel()
    only = timed(context, FinetuneSettings(), "demo:cnn", False, ticking())
    assert (only.forward, only.step, only.activation_values) == (0.5, 0.0, 0)


def test_a_model_that_is_trained_whole_has_no_frozen_part(tiny):
    context = RunContext(tiny, compute=ComputeSettings(device="cpu"))
    found = timed(context, FinetuneSettings(blocks="all"), "demo:cnn", True, ticking())
    assert (found.frozen, found.activation_values, found.step) == (0.0, 0, 0.5)


def test_images_that_cannot_be_read_are_not_timed(tiny, monkeypatch):
    def refuse(row):
        raise UnreadableImage("is empty (0 bytes)")

    context = RunContext(tiny, compute=ComputeSettings(device="cpu"))
    monkeypatch.setattr(tiny.images, "read", refuse)
    model = load_backbone("demo:cnn")
    assert speeds.decode_seconds(context, model, ticking()) == speeds.DECODE_SECONDS


def test_the_parts_of_a_counted_speed_make_up_the_whole():
    found = counted("demo:cnn", RATE)
    assert found.frozen + found.trained == pytest.approx(found.forward)
    assert counted("demo:cnn", 2 * RATE).forward == found.forward / 2


def test_backbones_are_timed_once_and_only_for_long_plans(tiny, tmp_path, monkeypatch):
    asked = []

    def fake(context, settings, backbone, finetuned, clock):
        asked.append((backbone, finetuned))
        return TIMED

    monkeypatch.setattr(plans, "timed", fake)
    monkeypatch.setattr(estimates, "matrix_rate", lambda device, clock: RATE)
    settings = BakeoffSettings(
        backbones=("demo:cnn",),
        out=tmp_path / "run",
        compute=ComputeSettings(features=tmp_path / "features", device="cpu"),
        probe=ProbeSettings(sweep_C="0.01", folds=2, heads="logistic"),
        finetune=FinetuneSettings(epochs=1),
    )
    quick = plan_bakeoff(tiny, settings)
    assert asked == []
    monkeypatch.setattr(plans, "WORTH_TIMING", 0.0)
    slow = plan_bakeoff(tiny, settings)
    assert asked == [("demo:cnn", True)]
    assert [(s.name, s.why) for s in slow] == [(s.name, s.why) for s in quick]
    assert [s.seconds for s in slow] != [s.seconds for s in quick]


def test_a_latency_takes_the_turns_of_its_schedule():
    """Ten turns of at most ten calls and 0.3 s, and 13 batches of 32."""
    made = estimator(1_000, 100)
    call = TIMED.single + TIMED.decode + 0.005
    batch = 32 * (TIMED.forward + TIMED.decode)
    expected = TIMED.load + 10 * call + 10 * (call + 0.3) + batch + 12 * batch
    assert made.latency(MOBILENET).seconds == pytest.approx(expected)
