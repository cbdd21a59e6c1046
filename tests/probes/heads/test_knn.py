import numpy as np
import reference_heads as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag import neighbours
from retailtag.probes.heads import knn
from retailtag.probes.heads.knn import KnnBank, KnnHead
from retailtag.probes.solver.labels import prior_logit


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    dim=st.integers(2, 8),
    k=st.integers(1, 50),
    unknown=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_vote_is_that_of_the_definition(n, dim, k, unknown, seed):
    rng = np.random.default_rng(seed)
    bank = (rng.standard_normal((n, dim)) + 3).astype(np.float32)
    X = (rng.standard_normal((7, dim)) + 3).astype(np.float32)
    Y = rng.choice(np.array([0, 1, -1] if unknown else [0, 1], np.int8), (n, 4))
    scores = KnnHead((k,)).fit(bank, Y).scores(X, 0)
    if n == 1:  # nothing but the mean: the one image votes, whatever the query
        assert np.isfinite(scores).all()
        return
    expected = reference.knn_log_odds(X, bank, Y, k, knn.TEMPERATURE)
    np.testing.assert_allclose(scores, expected, rtol=2e-3, atol=2e-3)


def test_blocks_change_nothing(world, monkeypatch):
    X, Y = world
    whole = KnnBank.build(X, Y).nearest(X, 20)
    monkeypatch.setattr(neighbours, "ROWS_AT_ONCE", 37)
    monkeypatch.setattr(neighbours, "KEYS_AT_ONCE", 11)
    in_blocks = KnnBank.build(X, Y).nearest(X, 20)
    np.testing.assert_array_equal(whole[0], in_blocks[0])
    np.testing.assert_allclose(whole[1], in_blocks[1], atol=1e-6)
    assert (whole[0][:, 0] == np.arange(len(X))).all()


def test_neighbours_are_searched_once_for_all_counts(world, monkeypatch):
    X, Y = world
    searched = []
    search = KnnBank.nearest

    def counted(self, *args):
        searched.append(1)
        return search(self, *args)

    monkeypatch.setattr(KnnBank, "nearest", counted)
    head = KnnHead()
    fits = head.fit(X[::2], Y[::2])
    blocks = X[1:300:2], X[301::2]
    each = [
        np.concatenate([fits.scores(block, k) for block in blocks])
        for k in range(len(head.candidates))
    ]
    choice = np.arange(Y.shape[1]) % len(head.candidates)
    mixed = np.concatenate([fits.scores(block, choice) for block in blocks])
    assert len(searched) == 2
    for tag, k in enumerate(choice):
        np.testing.assert_allclose(mixed[:, tag], each[k][:, tag], rtol=1e-6)
    fits.scores(X[:5], 0)
    assert len(searched) == 3


def test_labels_nobody_annotated_do_not_vote(world):
    X, Y = world
    silent = Y.copy()
    silent[:, 0] = -1
    scores = KnnHead().fit(X, silent).scores(X[:9], 0)
    np.testing.assert_allclose(scores[:, 0], prior_logit(silent)[0], atol=1e-5)


def test_scores_rank_and_are_finite_for_odd_queries(world):
    X, Y = world
    fits = KnnHead().fit(X[::2], Y[::2])
    scores = fits.scores(X[1::2], 1)[:, 0]
    y = Y[1::2, 0]
    assert scores[y == 1].mean() > scores[y == 0].mean() + 0.5
    odd = np.stack([fits.bank.mean, 1e6 * X[0], np.zeros_like(X[0])])
    assert np.isfinite(fits.scores(odd, 0)).all()
