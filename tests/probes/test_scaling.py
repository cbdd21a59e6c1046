import numpy as np
import pytest

from retailtag.errors import UsageError
from retailtag.probes import scaling
from retailtag.probes.scaling import SCALES, Scaled, Scaler, Standardiser, parse_scales, unit_rows


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((50, 4)) * [1, 10, 0.1, 0] + [0, 5, 1, 3]).astype(np.float32)


@pytest.mark.parametrize("kind", SCALES)
def test_a_head_on_scaled_features_is_one_on_raw_features_or_unit_rows(X, kind):
    scaler = Scaler.fit(X, kind)
    rng = np.random.default_rng(1)
    W, b = rng.standard_normal((3, 4)).astype(np.float32), np.ones(3, np.float32)
    raw_W, raw_b = scaler.unscale(W, b)
    inputs = unit_rows(X) if kind.startswith("l2") else X
    np.testing.assert_allclose(
        inputs @ raw_W.T + raw_b, scaler.transform(X) @ W.T + b, rtol=1e-4, atol=1e-4
    )


def test_each_kind_does_what_it_says(X):
    Z = Scaler.fit(X, "standardise").transform(X)
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(Z[:, :3].std(axis=0), 1, rtol=1e-5)
    assert (Z[:, 3] == 0).all()
    unit = Scaler.fit(X, "l2").transform(X)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    with pytest.raises(UsageError, match="l2-standardise is unknown"):
        Scaler.fit(X, "l2-standardise")
    np.testing.assert_array_equal(Scaler.fit(X, "none").transform(X), X)


def test_a_row_of_zeros_has_no_direction():
    assert (unit_rows(np.zeros((1, 3), np.float32)) == 0).all()


def test_rescale_undoes_unscale(X):
    scaler = Standardiser.fit(X)
    W, b = np.ones((2, 4), np.float32), np.array([0.5, -3], np.float32)
    back = scaler.rescale(*scaler.unscale(W, b))
    np.testing.assert_allclose(back[0], W, rtol=1e-5)
    np.testing.assert_allclose(back[1], b, rtol=1e-4)


@pytest.mark.parametrize("kind", SCALES)
def test_blocks_of_a_view_give_the_statistics_of_the_rows(X, kind, monkeypatch):
    rows = np.flatnonzero(np.arange(50) % 3)
    whole = Scaler.fit(X[rows], kind)
    monkeypatch.setattr(scaling, "ROWS_AT_ONCE", 7)
    view = Scaler.fit(Scaled(X, rows), kind)
    np.testing.assert_allclose(view.affine.mean, whole.affine.mean, rtol=1e-6)
    np.testing.assert_allclose(view.affine.scale, whole.affine.scale, rtol=1e-6)


def test_a_view_reads_the_rows_it_is_asked_for(X, tmp_path):
    rows, scaler = np.array([4, 2, 9, 11]), Scaler.fit(X)
    np.save(tmp_path / "x.npy", X.astype(np.float16))
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    view = Scaled(stored, rows, scaler)
    assert view.shape == (4, 4)
    assert len(view) == 4
    expected = scaler.transform(X.astype(np.float16).astype(np.float32)[rows])
    np.testing.assert_array_equal(view[1:3], expected[1:3])
    assert view[:].dtype == np.float32
    np.testing.assert_array_equal(Scaled(view)[2:], expected[2:])


@pytest.mark.parametrize("text", ["", "l3", "l2,l2", "standardise,zca"])
def test_bad_lists_of_scalings_are_refused(text):
    with pytest.raises(UsageError, match="--scale"):
        parse_scales(text)
