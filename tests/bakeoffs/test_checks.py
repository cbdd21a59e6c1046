"""Whatever a bake-off would refuse after hours is refused before its first stage."""

from dataclasses import replace

import numpy as np
import pytest

from retailtag.bakeoffs.checks import check_readable
from retailtag.bakeoffs.plan import plan_bakeoff
from retailtag.bakeoffs.run import run_bakeoff
from retailtag.catalog.readers import read_catalog
from retailtag.errors import DataError, UsageError
from retailtag.runs.probe import check_probe_settings
from retailtag.settings import (
    BakeoffSettings,
    ComputeSettings,
    FinetuneSettings,
    ProbeSettings,
    ScoreSettings,
    build,
)


def _settings(root, **changes):
    values = {
        "backbones": ("demo:cnn",),
        "out": root / "run",
        "compute": ComputeSettings(features=root / "features", device="cpu"),
    }
    return BakeoffSettings(**{**values, **changes})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ProbeSettings(choose_C="foo"), "--choose-C foo.*per-group"),
        (lambda: check_probe_settings(ProbeSettings(thresholds="foo")), "--thresholds foo.*shrunk"),
        (lambda: ProbeSettings(solver="foo"), "--solver foo.*torch"),
        (lambda: ProbeSettings(seed=-1), "--seed -1"),
        (lambda: FinetuneSettings(seed=2**32), "--seed 4294967296"),
        (lambda: FinetuneSettings(lr=float("inf")), "--lr"),
        (lambda: FinetuneSettings(head_lr=float("nan")), "--head-lr"),
    ],
)
def test_settings_name_the_option_at_once(make, words):
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategies": ("probe", "probe")}, "--strategies has an entry twice"),
        ({"extract.dtype": "float64"}, "--dtype float64"),
        ({"extract.batch_size": 100_000}, "--batch-size 100000"),
        ({"compute.workers": -1}, "--workers -1"),
        ({"score.seed": -1}, "--seed -1"),
    ],
)
def test_settings_that_cannot_be_used_are_not_made(changes, words):
    with pytest.raises(UsageError, match=words):
        build(changes)


@pytest.mark.parametrize("door", [run_bakeoff, plan_bakeoff])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"probe": ProbeSettings(folds=1000)}, "--folds 1000 exceeds the 106"),
        ({"finetune": FinetuneSettings(blocks=99)}, "demo:cnn has 8 blocks; --blocks 99"),
        ({"score": ScoreSettings(assign="exactly-one")}, "--assign exactly-one .* --one-of"),
    ],
)
def test_folds_and_blocks_are_judged_before_any_stage(tiny, tmp_path, door, changes, words):
    with pytest.raises(UsageError, match=words):
        door(tiny, _settings(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def _with_labels(tiny, change):
    catalog = read_catalog(tiny.path)
    change(catalog, catalog.table.labels)
    return catalog


def _only_test(catalog, labels):
    labels[catalog.rows("train")] = 0


def _only_train(catalog, labels):
    labels[catalog.rows("test")] = 0


def _unlabelled(catalog, labels):
    labels[:] = -1


@pytest.mark.parametrize("door", [run_bakeoff, plan_bakeoff])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_unlabelled, "no image with a tag"),
        (_only_test, "nothing to fit"),
        (_only_train, "both train and test"),
    ],
)
def test_labels_that_cannot_be_scored_are_refused(tiny, tmp_path, door, change, words):
    with pytest.raises(DataError, match=words):
        door(_with_labels(tiny, change), _settings(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_a_readable_image_is_named_with_reasons(tiny, split):
    ids = tiny.image_ids[tiny.rows(split)].tolist()
    absent = dict.fromkeys(ids, "is empty (0 bytes)")
    with pytest.raises(DataError, match=rf"None of the {len(ids)} {split} images.*is empty"):
        check_readable(tiny, absent)
    absent.popitem()
    check_readable(tiny, absent)


def test_a_probe_needs_no_blocks(tiny, tmp_path):
    """--blocks is nobody's business where nothing is fine-tuned."""
    settings = _settings(
        tmp_path, strategies=("probe",), finetune=replace(FinetuneSettings(), blocks=99)
    )
    assert plan_bakeoff(tiny, settings)
    assert np.all([stage.why for stage in plan_bakeoff(tiny, settings)])
