import numpy as np
import pytest

from retailtag.backbones import load_backbone
from retailtag.probes import scaling
from retailtag.probes.heads.text_prior import (
    TextPriorHead,
    place_among_images,
    prompts,
    text_embeddings,
)
from retailtag.probes.scaling import Standardiser
from retailtag.probes.solver.fit import make_solver
from retailtag.probes.solver.fits import CONVERGED, ProbeFits
from retailtag.probes.solver.labels import prior_logit


def weighted_solver(X, Y, C, advance=lambda n: None, *, sample_weight=None, start=None):
    """Slow solver with a weight per image, by scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    weight = np.ones(len(X)) if sample_weight is None else sample_weight
    fits = ProbeFits.empty(C, Y.shape[1], X.shape[1])
    fits.bias[:] = prior_logit(Y)
    for k, c in enumerate(C):
        for tag in range(Y.shape[1]):
            rows = Y[:, tag] >= 0
            if len(np.unique(Y[rows, tag])) == 2:
                model = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-8, max_iter=500)
                model.fit(X[rows].astype(np.float64), Y[rows, tag], sample_weight=weight[rows])
                fits.weight[k, tag], fits.bias[k, tag] = model.coef_[0], model.intercept_[0]
                fits.status[k, tag] = CONVERGED
    advance(len(C) * Y.shape[1])
    return fits


@pytest.fixture(scope="module")
def joint():
    """Images (400, 10) around the directions of 4 tags, and texts that point the same way.

    The last tag has no positive among the images.
    """
    rng = np.random.default_rng(5)
    directions = rng.standard_normal((4, 10))
    Y = (rng.random((400, 4)) < [0.5, 0.2, 0.01, 0.1]).astype(np.int8)
    X = (Y @ directions + rng.standard_normal((400, 10)) + 5).astype(np.float32)
    text = directions - 7  # the gap between the modalities
    truth = Y.copy()
    Y[:, 3] = 0
    return X, Y, truth, (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)


C = np.array([0.01, 0.1])


def test_zero_weight_is_logistic_regression_without_text(joint):
    X, Y, _, text = joint
    fits = TextPriorHead(text, C, weighted_solver).fit(X, Y)
    scaler = Standardiser.fit(X)
    plain = weighted_solver(scaler.transform(X), Y, C)
    for k in range(len(C)):
        expected = plain.scores(scaler.transform(X), k)
        np.testing.assert_allclose(fits.scores(X, k), expected, atol=1e-3)


def test_text_finds_a_tag_that_no_image_has_shown(joint):
    X, Y, truth, text = joint
    head = TextPriorHead(text, C, weighted_solver)
    fits = head.fit(X, Y)
    unseen = truth[:, 3] == 1
    without, with_text = (
        fits.scores(X, k)[:, 3] for k in (1, head.candidates.index("text=100 C=0.1"))
    )
    assert np.ptp(without) < 1e-6
    assert with_text[unseen].mean() > with_text[~unseen].mean() + 0.5


def test_a_row_counts_as_often_as_its_weight(joint, monkeypatch):
    """Weight 10 equals ten copies of the row, of its own tag alone."""
    X, Y, _, text = joint
    monkeypatch.setattr(scaling, "ROWS_AT_ONCE", 130)
    head = TextPriorHead(text, C[:1], weighted_solver, weights=(10.0,))
    scaler = Standardiser.fit(X)
    rows = place_among_images(text, scaler)
    Z = np.concatenate([scaler.transform(X), np.repeat(rows[1:2], 10, axis=0)])
    y = np.concatenate([Y[:, 1:2], np.ones((10, 1), np.int8)])
    expected = weighted_solver(Z, y, C[:1]).scores(scaler.transform(X), 0)
    np.testing.assert_allclose(head.fit(X, Y).scores(X, 0)[:, 1:2], expected, atol=1e-3)


def test_every_candidate_is_named_and_counted(joint):
    X, Y, _, text = joint
    done = []
    head = TextPriorHead(text, C, weighted_solver)
    fits = head.fit(X, Y, done.append)
    assert len(head.candidates) == len(fits.weight) == 8
    assert head.candidates[0] == "text=0 C=0.01"
    assert head.candidates[-1] == "text=100 C=0.1"
    assert sum(done) == 8 * Y.shape[1]


def test_rows_have_no_gap_and_the_length_of_images(joint):
    X, _, _, text = joint
    scaler = Standardiser.fit(X)
    rows = place_among_images(text, scaler)
    np.testing.assert_allclose((rows * scaler.scale).mean(axis=0), 0, atol=1e-5)
    squared = (scaler.transform(X) ** 2).sum(axis=1).mean()
    assert (rows**2).sum(axis=1).mean() == pytest.approx(squared, rel=1e-4)
    assert (place_among_images(text[:1], scaler) == 0).all()


def test_tags_are_read_as_words():
    assert prompts("colour:off_white") == (
        "a photo of off white",
        "a product photo, colour: off white",
        "off white",
    )
    assert prompts("odd:")[0] == "a photo of odd:"


def test_prompts_are_averaged_as_directions():
    words = [text for tag in ("a", "b") for text in prompts(tag)]
    values = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
    encode = dict(zip(words, values, strict=True))
    got = text_embeddings(("a", "b"), lambda texts: np.stack([encode[t] for t in texts]))
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    expected = unit.reshape(2, 3, 2).mean(axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_demo_text_tower_gives_a_row_per_tag():
    backbone = load_backbone("demo:clip")
    rows = text_embeddings(
        ("article:Sneakers", "article:Dress"), lambda texts: backbone.encode_text(texts).numpy()
    )
    assert rows.shape == (2, backbone.dim)
    np.testing.assert_allclose((rows**2).sum(axis=1), 1, rtol=1e-5)


def test_every_weight_starts_from_the_one_before():
    starts, solved = [], []

    def recorded(X, Y, C, advance=lambda n: None, *, sample_weight=None, start=None):
        starts.append(start)
        solved.append(make_solver()(X, Y, C, advance, sample_weight=sample_weight, start=start))
        return solved[-1]

    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 5)).astype(np.float32)
    Y = (X[:, :2] > 0).astype(np.int8)
    text = rng.standard_normal((2, 5)).astype(np.float32)
    TextPriorHead(text, np.array([0.1, 1.0]), recorded, weights=(0.0, 1.0, 10.0)).fit(X, Y)
    assert starts[0] is None
    for start, before in zip(starts[1:], solved, strict=False):
        np.testing.assert_array_equal(start[0], before.weight[0])
        np.testing.assert_array_equal(start[1], before.bias[0])
