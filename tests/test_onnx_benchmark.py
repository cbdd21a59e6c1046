"""The benchmark of ONNX exports: a row has parity, loss, sizes and speeds of a small model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from retailtag.backbones.backbone import Backbone, LoadedModel
from retailtag.backbones.ids import resolve_id
from retailtag.backbones.preprocess import Preprocess
from retailtag.probes.artefact import Probe
from retailtag.tagger.latency import Schedule
from retailtag.tagger.tagger import Tagger


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import onnx_export

    return onnx_export


def test_a_row_is_complete_and_consistent(bench, small):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    rule = Preprocess((16, 16), "squash")
    backbone = Backbone(LoadedModel(resolve_id("timm:x"), net.eval(), None, rule, {}, "vector"))
    tags = small.table.tags
    weight = np.random.default_rng(0).normal(size=(len(tags), backbone.dim)).astype(np.float32)
    blank = np.zeros(len(tags), np.float32)
    tagger = Tagger((backbone,), Probe(tags, weight, blank, blank, np.ones(len(tags))), "probe")
    row = bench.measured("x", tagger, small, Schedule(6, 1, warm_up=1, extra_seconds=0))
    assert row["other_cells"] == 0
    assert float(row["largest_logit"]) < 1e-3
    assert row["test_images"] == row["compared_images"] == len(small.rows("test"))
    assert row["largest_pixel"] <= 2
    assert 0 < row["macro_f1_float32"] < 1
    assert 0 <= row["int8_other_cells"] < 0.2
    for name in ("weights_mib", "onnx_mib", "int8_mib"):
        assert row[name] >= 0
    assert all(row[f"{name}_ms"] > 0 for name in bench.RUNTIMES)
