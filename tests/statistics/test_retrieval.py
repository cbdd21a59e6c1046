"""Metrics of a ranking: hand-computed cases, literal definitions, and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from retailtag.statistics.retrieval import ndcg, product_metrics, relevant_ranks


def literal(similarity, relevant):
    """Metrics of a plain sort in which irrelevant candidates win ties."""
    order = sorted(range(len(similarity)), key=lambda i: (-similarity[i], relevant[i]))
    hits = [bool(relevant[i]) for i in order]
    n = sum(hits)
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    return {
        **{f"recall@{k}": float(any(hits[:k])) for k in (1, 5, 10)},
        "mAP@R": sum(p for p, hit in zip(precision[:n], hits[:n], strict=True) if hit) / n,
        "MRR": 1 / (1 + hits.index(True)),
    }


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 30),
    levels=st.integers(1, 30),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_metrics_are_those_of_their_definitions(n, levels, share, seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(levels, size=n).astype(np.float32)  # few levels: many ties
    relevant = rng.random(n) < share
    relevant[rng.integers(n)] = True
    ranks = relevant_ranks(similarity, relevant)
    assert product_metrics(ranks) == pytest.approx(literal(similarity, relevant))
    order = rng.permutation(n)
    assert relevant_ranks(similarity[order], relevant[order]).tolist() == ranks.tolist()


def test_a_case_by_hand():
    # ranking: irrelevant, relevant, relevant, irrelevant, relevant, and R is 3
    similarity = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    relevant = np.array([False, True, True, False, True])
    assert relevant_ranks(similarity, relevant).tolist() == [2, 3, 5]
    assert product_metrics(np.array([2, 3, 5])) == pytest.approx(
        {
            "recall@1": 0,
            "recall@5": 1,
            "recall@10": 1,
            "mAP@R": (1 / 2 + 2 / 3) / 3,
            "MRR": 1 / 2,
        }
    )


def test_what_does_not_count_changes_no_rank():
    similarity = np.array([0.2, 0.9, -np.inf, 0.9, -np.inf])
    relevant = np.array([True, False, False, False, False])
    assert relevant_ranks(similarity, relevant).tolist() == [3]


def test_average_precision_of_all_ranks_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    similarity = rng.permutation(40).astype(float)
    relevant = rng.random(40) < 0.3
    ranks = relevant_ranks(similarity, relevant)
    ours = (np.arange(1, len(ranks) + 1) / ranks).mean()
    theirs = label_ranking_average_precision_score(relevant[None], similarity[None])
    assert ours == pytest.approx(theirs)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 40),
    levels=st.integers(1, 40),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
def test_ndcg_is_that_of_scikit_learn_ties_included(n, levels, k, seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(levels, size=n).astype(np.float32)
    gain = rng.integers(4, size=n) / np.float32(3)
    found = ndcg(similarity, gain, k)
    if not gain.any():
        assert math.isnan(found)
        return
    assert found == pytest.approx(ndcg_score(gain[None], similarity[None], k=k), abs=1e-6)


def test_ndcg_leaves_out_what_does_not_count():
    similarity = np.array([-np.inf, 0.9, 0.5, 0.3])
    gain = np.array([0.0, 0.5, 0.0, 1.0])
    # gains of the ranking 0.5, 0, 1 over those of the best order 1, 0.5
    found = (0.5 + 1 / 2) / (1 + 0.5 / math.log2(3))
    assert ndcg(similarity, gain, 10) == pytest.approx(found)
