"""The measure of how close two sets of embeddings are."""

import numpy as np
import pytest

from retailtag.backbones.engines.parity import EXACT, FAST, HALF, centred_cosine


def test_the_centred_cosine_of_known_vectors():
    mean = np.array([10.0, 0.0])
    stored = np.array([[11, 0], [11, 0], [11, 0], [10, 0], [10, 0]], np.float32)
    again = np.array([[12, 0], [10, 1], [9, 0], [10.00001, 0], [10, 1]], np.float32)
    np.testing.assert_allclose(
        centred_cosine(stored, again, mean), [1, 0, -1, 1, 0], rtol=0, atol=1e-6
    )
    assert centred_cosine(stored[:0], again[:0], mean).shape == (0,)


@pytest.mark.parametrize("limit", [EXACT, HALF, FAST])
def test_rounding_alone_never_counts_as_drift_and_more_does(limit):
    """Whatever the mean is to the rest, in the worst direction, across the row."""
    for r in np.geomspace(1, 1e4, 30):
        mean = np.array([r, 0.0])
        stored = np.array([[r, 1.0]])
        rounded = stored + np.array([[0.999 * limit.rounding * np.hypot(r, 1), 0]])
        assert centred_cosine(stored, rounded, mean, limit)[0] >= limit.cosine - 1e-6
        moved = stored + np.array([[2 * limit.rounding / limit.min_centred_norm, 0]])
        judged = np.hypot(r, 1) * limit.min_centred_norm < 2
        assert (centred_cosine(stored, moved, mean, limit)[0] < limit.cosine) == judged
