import numpy as np
import reference_heads as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.probes.heads import ridge
from retailtag.probes.heads.ridge import RidgeHead
from retailtag.probes.scaling import Standardiser
from retailtag.statistics.platt import fit_sigmoid


def _on_standardised(fits, k, tag, scaler):
    """Weight and bias of one head, from raw features back to standardised ones."""
    weight, bias = fits.linear(k)
    w = weight[tag].astype(np.float64)
    return w * scaler.scale, bias[tag] + w @ scaler.mean


def _as_log_odds(fits, k, scaler, values, tag, reference_head):
    """Slope and offset between a reference head and ours, and what is left over."""
    w, b = _on_standardised(fits, k, tag, scaler)
    ref_w, ref_b = reference_head
    slope = w @ ref_w / (ref_w @ ref_w)
    return slope, b - slope * ref_b, np.abs(w - slope * ref_w).max() / np.abs(w).max()


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(12, 80),
    dim=st.integers(1, 30),
    unknown=st.sampled_from(["none", "one tag", "each its own", "most of a tag"]),
    strength=st.sampled_from([1e-3, 0.1, 10.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_every_tag_is_the_ridge_of_the_images_it_knows(n, dim, unknown, strength, scale, seed):
    """Also with more features than images, a constant and a doubled feature, any scale.

    Slope and offset of the Platt map are the same for all tags, so that they are read off one tag
    and the other must follow.
    """
    rng = np.random.default_rng(seed)
    X = (scale * (rng.standard_normal((n, dim)) + rng.standard_normal(dim))).astype(np.float32)
    X[:, dim // 2] = X[:, 0]
    Y = (rng.random((n, 3)) < 0.4).astype(np.int8)
    Y[:2], Y[2:4] = 1, 0
    if unknown == "one tag":
        Y[4 : 4 + n // 4, 1] = -1
    if unknown == "each its own":
        Y[4:][rng.random((n - 4, 3)) < 0.3] = -1
    if unknown == "most of a tag":
        Y[6:, 2] = -1
    fits = RidgeHead((strength,)).fit(X, Y)
    scaler = Standardiser.fit(X)
    Z = scaler.transform(X).astype(np.float64)
    maps = []
    for tag in range(3):
        known = Y[:, tag] >= 0
        head = reference.ridge(Z[known], Y[known, tag], strength * known.sum())
        slope, offset, left = _as_log_odds(fits, 0, scaler, Z, tag, head)
        assert left < 1e-3
        maps.append((slope, offset))
    np.testing.assert_allclose(maps, np.broadcast_to(maps[0], (3, 2)), rtol=5e-3, atol=5e-3)


def test_all_strengths_agree_with_one_at_a_time(world):
    X, Y = world
    together = RidgeHead((10.0, 0.1, 1e-3)).fit(X, Y)
    for k, g in enumerate((10.0, 0.1, 1e-3)):
        alone = RidgeHead((g,)).fit(X, Y)
        np.testing.assert_array_equal(together.weight[k], alone.weight[0])
        np.testing.assert_array_equal(together.bias[k], alone.bias[0])


def test_scores_are_the_platt_map_of_values_left_out(world):
    """Of the leave-one-out values, by refitting without each image; not of fitted values."""
    X, Y = (part[::6] for part in world)
    tag, strength = 0, 0.01
    X, y = X[Y[:, tag] >= 0], Y[Y[:, tag] >= 0, tag]
    scaler = Standardiser.fit(X)
    Z = scaler.transform(X).astype(np.float64)
    penalty = strength * len(y)
    slope, offset = fit_sigmoid(reference.ridge_left_out(Z, y, penalty), y)
    w, b = reference.ridge(Z, y, penalty)
    fits = RidgeHead((strength,)).fit(X, y[:, None])
    expected = slope * (Z @ w + b) + offset
    np.testing.assert_allclose(fits.scores(X, 0)[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_weaker_strengths_are_not_surer_of_left_out_images(world):
    """Log loss on new images stays below the prevalence's at every strength."""
    X, Y = world
    train, rest = np.arange(len(X)) % 2 == 0, np.arange(len(X)) % 2 == 1
    head = RidgeHead()
    fits = head.fit(X[train], Y[train])
    known = Y[rest][:, 0] >= 0
    y = Y[rest][known, 0]
    for k in range(len(head.candidates)):
        z = fits.scores(X[rest], k)[known, 0].astype(np.float64)
        assert (np.logaddexp(0, z) - y * z).mean() < np.log(2)


def test_tags_of_one_class_are_constants_on_the_scale_of_the_others(world):
    """Beside the scores of folds that saw both classes they are as those of any clear case."""
    X, Y = world
    scores = RidgeHead((0.1,)).fit(X, Y).scores(X, 0)
    never, always = scores[:, 6], scores[:, 7]
    assert np.ptp(never) < 1e-4
    assert np.ptp(always) < 1e-4
    assert scores[:, :6][Y[:, :6] == 0].min() < never[0] < scores[:, :6][Y[:, :6] == 1].mean()
    assert scores[:, :6][Y[:, :6] == 0].mean() < always[0] < 2 * scores[:, :6].max()


def test_choice_may_differ_by_tag_and_progress_counts_every_fit(world):
    X, Y = world
    done = []
    head = RidgeHead()
    fits = head.fit(X, Y, done.append)
    assert sum(done) == len(head.candidates) * Y.shape[1]
    choice = np.arange(Y.shape[1]) % len(head.candidates)
    mixed = fits.scores(X, choice)
    for tag, k in enumerate(choice):
        np.testing.assert_allclose(mixed[:, tag], fits.scores(X, int(k))[:, tag], rtol=1e-5)
    weight, bias = fits.linear(choice)
    np.testing.assert_array_equal(mixed, X @ weight.T + bias)


def test_ranking_has_signal(world):
    X, Y = world
    scores = RidgeHead((0.1,)).fit(X, Y).scores(X, 0)
    assert scores[Y[:, 0] == 1, 0].mean() > scores[Y[:, 0] == 0, 0].mean() + 0.5


def test_tags_on_the_same_images_share_their_weights(monkeypatch):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((40, 6)).astype(np.float32)
    Y = (rng.random((40, 4)) < 0.3).astype(np.int8)[:, [0, 1, 2, 3, 1, 1, 0]]
    told = []
    shared = RidgeHead((0.1, 10.0)).fit(X, Y, told.append)
    assert shared.weight.shape == (2, 4, 6)
    assert sum(told) == 2 * 7
    every = np.arange(7)
    monkeypatch.setattr(ridge, "distinct_columns", lambda Y: (every, every))
    whole = RidgeHead((0.1, 10.0)).fit(X, Y)
    for choice in (0, 1, np.array([0, 1, 0, 1, 0, 1, 1])):
        np.testing.assert_allclose(
            shared.scores(X, choice), whole.scores(X, choice), rtol=1e-5, atol=1e-6
        )
