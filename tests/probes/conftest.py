"""A small long-tailed world with a linear truth."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def world():
    """X (600, 12), Y (600, 8): frequent to single-positive tags, one empty, one always on."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((600, 12)) * np.arange(1, 13) ** -0.5
    score = X @ rng.standard_normal((12, 8)) + rng.logistic(size=(600, 8))
    Y = np.zeros((600, 8), np.int8)
    for tag, positives in enumerate([300, 120, 40, 12, 3, 1, 0, 600]):
        Y[np.argsort(-score[:, tag])[:positives], tag] = 1
    Y[rng.random(Y.shape) < 0.02] = -1
    Y[:, 6][Y[:, 6] == 1] = 0
    Y[np.argmax(score[:, 5]), 5] = 1
    return X.astype(np.float32), Y
