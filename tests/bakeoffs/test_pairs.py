"""Pairs: decode limits in every stage, images that went bad, costs from several machines."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retailtag.backbones import load_backbone
from retailtag.bakeoffs.pairs import Pair, machine_findings, readable_images
from retailtag.bakeoffs.request import pair_folder
from retailtag.bakeoffs.run import run_bakeoff
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.errors import DataError, UnreadableImage
from retailtag.extraction.extract import extract
from retailtag.files import read_json, write_json
from retailtag.images.decode import decode_image
from retailtag.report.results import PairCost
from retailtag.runs.finetune import run_finetune
from retailtag.runs.probe import load_rows, run_probe
from retailtag.settings import (
    BakeoffSettings,
    ComputeSettings,
    FinetuneSettings,
    ProbeSettings,
    ReadingSettings,
    ScoreSettings,
)
from retailtag.tagger.loading import load_fitted

QUICK = ProbeSettings(sweep_C="0.01", folds=2, heads="logistic")


def _settings(root, **changes):
    values = {
        "backbones": ("demo:cnn",),
        "out": root / "run",
        "compute": ComputeSettings(features=root / "features", device="cpu"),
        "probe": QUICK,
        "finetune": FinetuneSettings(epochs=0),
        "score": ScoreSettings(replicates=100),
    }
    return BakeoffSettings(**{**values, **changes})


def _cut_off(path):
    """Replace a picture by a JPEG that ends early; the name stays."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-500])


@pytest.fixture
def cut_off(small_csv, tmp_path):
    """The small world with the first training and the first test image cut off."""
    shutil.copytree(small_csv.parent, tmp_path / "shop")
    for name in ("p000-0", "p003-0"):
        _cut_off(tmp_path / "shop" / "images" / f"{name}.png")
    return read_catalog(tmp_path / "shop" / small_csv.name)


def test_truncated_images_pass_every_stage_or_none(cut_off, tmp_path, quick_bakeoffs):
    run = run_bakeoff(cut_off, _settings(tmp_path, reading=ReadingSettings(allow_truncated=True)))
    assert all(p.scorecard.n_images == len(cut_off.rows("test")) for p in run.result.pairs)
    # without the option their embeddings, which lie in a store of their own, are not used
    strict = _settings(tmp_path, out=tmp_path / "strict")
    run = run_bakeoff(cut_off, strict)
    assert all(p.scorecard.n_images == len(cut_off.rows("test")) - 1 for p in run.result.pairs)


def test_latency_passes_over_what_cannot_be_read(cut_off):
    n = len(cut_off.rows("test"))
    assert len(readable_images(cut_off, partial(decode_image, allow_truncated=True))) == n
    assert len(readable_images(cut_off, decode_image)) == n - 1
    with pytest.raises(UnreadableImage, match=r"None of the \d+ test images.*limit of 10"):
        readable_images(cut_off, partial(decode_image, max_pixels=10))


def test_limits_reach_the_fine_tune_and_the_tagger(small, small_store, tmp_path):
    probe = run_probe(RunContext(small), small_store, tmp_path / "probe", QUICK).probe
    backbone, out = load_backbone("demo:cnn"), tmp_path / "tuned"
    context = RunContext(small, ReadingSettings(max_pixels=10))
    with pytest.raises(UnreadableImage, match="--max-pixels"):
        run_finetune(context, small_store, backbone, probe, out, FinetuneSettings(epochs=0))
    image = small.images.read(0)
    with pytest.raises(UnreadableImage, match="limit of 10"):
        load_fitted(tmp_path / "probe", max_pixels=10).logits([image])
    assert load_fitted(tmp_path / "probe").logits([image]).shape == (1, len(small.table.tags))


def test_a_split_of_broken_images_is_bad_data_not_a_missing_extraction(small_csv, tmp_path):
    shutil.copytree(small_csv.parent, tmp_path / "shop")
    catalog = read_catalog(tmp_path / "shop" / small_csv.name)
    for row in catalog.rows("test").tolist():
        Path(catalog.images.name(row)).write_bytes(b"")
    settings = _settings(tmp_path, strategies=("probe",))
    with pytest.raises(DataError, match=r"None of the 18 test images.*is empty") as caught:
        run_bakeoff(catalog, settings)
    assert caught.value.exit_code == 3
    compute = ComputeSettings(device="cpu", features=tmp_path / "features")
    store = extract(RunContext(catalog, compute=compute), load_backbone("demo:cnn")).store
    with pytest.raises(DataError, match="None of the 18 test images"):
        load_rows(catalog, store, catalog.rows("test"), 0)


def test_stages_record_their_machine_and_a_moved_run_says_so(small, tmp_path, quick_bakeoffs):
    settings = _settings(tmp_path, strategies=("probe",))
    first = run_bakeoff(small, settings)
    assert not any(f.code == "several-machines" for f in first.result.findings)
    path = pair_folder(settings.out, "demo:cnn", "probe") / "stage.json"
    record = read_json(path)
    assert record["machine"]["device"] == "cpu"
    del record["sha256"]  # as of an earlier version, so that it is not taken for altered
    write_json(path, {**record, "machine": {**record["machine"], "processor": "Old 486"}})
    again = run_bakeoff(small, settings)
    assert again.ran == ["report"]
    (found,) = [f for f in again.result.findings if f.code == "several-machines"]
    assert "on Old 486" in found.sentence
    assert "probe of demo:cnn probe" in found.sentence


def test_one_machine_is_no_finding():
    cost = PairCost(1, 2, 3, 4, 5, 6, 7, 8)
    pair = Pair("demo:cnn", "probe", Path(), cost, {"probe": "A", "latency": "A"})
    unsaid = replace(pair, backbone="demo:dino", machines={})
    assert machine_findings([pair, unsaid]) == []
    (found,) = machine_findings([pair, replace(unsaid, machines={"latency": "B"})])
    assert "on A: probe of demo:cnn probe, latency of demo:cnn probe; on B: latency of" in (
        found.sentence
    )
