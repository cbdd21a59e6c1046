import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailtag.errors import UsageError
from retailtag.probes.grid import LIMITS, beyond, parse_grid
from retailtag.settings import FULL_C_GRID


@pytest.mark.parametrize("text", ["", "a", "1:2", "0:1:3", "-1,2", "1:10:0", "1:2:3:4", "inf"])
def test_grids_that_are_none(text):
    with pytest.raises(UsageError, match="--sweep-C"):
        parse_grid(text)


def test_the_full_grid_has_45_strengths():
    full = parse_grid(FULL_C_GRID)
    assert len(full) == 45
    np.testing.assert_allclose(full[[0, -1]], [1e-6, 1e5])


@given(
    st.lists(st.floats(1e-8, 1e7), min_size=2, max_size=6, unique=True),
    st.booleans(),
)
def test_a_wider_grid_goes_on_in_its_ratio_within_the_limits(values, above):
    C = np.sort(values)
    new = beyond(C, above=above)
    assert len(new) <= 3
    assert (np.diff(new) > 0).all()
    if len(new):
        assert LIMITS[0] * 0.999 <= new[0]
        assert new[-1] <= LIMITS[1] * 1.001
        wider = np.log(np.concatenate([C, new]) if above else np.concatenate([new, C]))
        steps = np.diff(wider)
        ends, inner = (steps[-len(new) :], steps[-len(new) - 1])
        if not above:
            ends, inner = steps[: len(new)], steps[len(new)]
        np.testing.assert_allclose(ends, inner, rtol=1e-6, atol=1e-12)


def test_a_limit_itself_is_reached():
    np.testing.assert_allclose(beyond(parse_grid("1:1e4:5"), above=True), [1e5, 1e6, 1e7])
    assert len(beyond(np.array([1.0]), above=True)) == 0
    assert len(beyond(np.array([1.0, np.nextafter(1.0, 2.0)]), above=True)) == 0
