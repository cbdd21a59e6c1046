"""Fits that exceed the memory are refused before they begin; features go to a scratch file."""

import numpy as np
import pytest

from retailtag import memory
from retailtag.context import RunContext
from retailtag.errors import DataError
from retailtag.runs.checks import CELL_BYTES, check_sweep_fits
from retailtag.runs.probe import run_probe
from retailtag.settings import ProbeSettings


def test_weights_of_every_fold_and_distinct_tag_are_counted(tiny, monkeypatch):
    rng = np.random.default_rng(0)
    labels = (rng.random((20, 6)) < 0.4).astype(np.int8)[:, [0, 1, 2, 3, 4, 5, 0, 0]]
    settings = ProbeSettings(sweep_C="0.1,1,10", folds=4, heads="logistic,knn")
    needed = 4 * (5 * 3) * 6 * 16 + CELL_BYTES * labels.size
    monkeypatch.setattr(memory, "SHARE", 1)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed)
    check_sweep_fits(tiny, labels, 16, settings)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed - 1)
    sentence = "the fits of 8 tags at 3 strengths in 4 folds need about .*--min-images.*--sweep-C"
    with pytest.raises(DataError, match=sentence):
        check_sweep_fits(tiny, labels, 16, settings)


def test_features_larger_than_half_of_the_memory_give_the_same_probe(
    small, small_store, tmp_path, monkeypatch
):
    settings = ProbeSettings(sweep_C="0.01,0.1", folds=2, heads="logistic,ridge,knn")
    ids = ["unknown", *small.image_ids[:9].tolist(), "another", *small.image_ids[9:].tolist()]

    def results(out):
        run = run_probe(RunContext(small), small_store, tmp_path / out, settings)
        return [small_store.load(ids).X, run.predictions.logits, run.probe.thresholds]

    expected = results("memory")
    real, shapes = memory.scratch_rows, []
    monkeypatch.setattr(memory, "MATRIX_SHARE", 0)
    monkeypatch.setattr(
        memory, "scratch_rows", lambda shape, dtype: shapes.append(shape) or real(shape, dtype)
    )
    for found, same in zip(results("disk"), expected, strict=True):
        np.testing.assert_array_equal(found, same)
    assert (len(ids), small_store.spec.dim) in shapes
