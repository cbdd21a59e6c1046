"""The search for neighbours is a plain sort of all similarities."""

from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag import neighbours
from retailtag.neighbours import directions, fill_directions, mean_embedding, nearest, row_blocks


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60),
    n_queries=st.integers(0, 9),
    k=st.integers(1, 70),
    block=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_neighbours_are_the_first_of_a_sort(n, n_queries, k, block, seed):
    rng = np.random.default_rng(seed)
    keys = directions(rng.standard_normal((n, 5)).astype(np.float32), np.zeros(5, np.float32))
    asked = directions(rng.standard_normal((n_queries, 5)).astype(np.float32), np.float32(0))
    with patch.object(neighbours, "KEYS_AT_ONCE", block):
        index, similarity = nearest(keys, (asked[rows] for rows in row_blocks(n_queries)), k)
    expected = np.sort(asked @ keys.T, axis=1)[:, ::-1][:, :k]
    assert index.shape == similarity.shape == (n_queries, min(k, n))
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(asked @ keys.T, index, axis=1), similarity, atol=1e-6
    )
    assert all(len(set(row)) == len(row) for row in index.tolist())


def test_directions_are_centred_and_of_unit_length_in_place_too(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS_AT_ONCE", 3)
    X = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32) + 5
    mean = mean_embedding(X)
    np.testing.assert_allclose(mean, X.mean(axis=0), rtol=1e-6)
    X[2] = mean
    expected = X - mean
    expected[2] = 0
    length = np.linalg.norm(expected, axis=1, keepdims=True)
    expected /= np.where(length > 0, length, 1)
    fill_directions(X, mean, X)
    np.testing.assert_allclose(X, expected, atol=1e-6)
    assert not X[2].any()
