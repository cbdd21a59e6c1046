"""A sweep that does not fit into memory is refused before it begins."""

import numpy as np
import pytest

from retailtag import memory
from retailtag.errors import DataError
from retailtag.runs.checks import CELL_BYTES, check_sweep_fits
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
