import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailtag.catalog.table import CUTOFFS, GROUPS, GroupCutoffs
from retailtag.errors import UsageError


@given(st.integers(1, 80), st.lists(st.integers(0, 900), min_size=1, max_size=30))
def test_scopes_part_the_tags_and_bins_part_the_tail(tail, counts):
    cutoffs = GroupCutoffs(tail=tail)
    masks = cutoffs.scopes(np.array(counts))
    assert masks["all"].all()
    assert (sum(masks[g].astype(int) for g in GROUPS) == 1).all()
    bins = [mask for name, mask in masks.items() if name.startswith("tail ")]
    assert len(bins) == len(cutoffs.tail_bins())
    if bins:
        assert np.array_equal(np.sum(bins, axis=0), masks["tail"])


@pytest.mark.parametrize(
    ("tail", "names"),
    [
        (50, ["tail 0-9", "tail 10-19", "tail 20-49"]),
        (20, ["tail 0-9", "tail 10-19"]),
        (11, ["tail 0-9", "tail 10"]),
        (10, []),
    ],
)
def test_bins_end_at_the_cutoff(tail, names):
    assert list(GroupCutoffs(tail=tail).scopes(np.zeros(1, int)))[4:] == names


def test_presets_are_those_of_their_papers():
    count = np.array([10, 11, 19, 20, 49, 50, 100, 101, 499, 500])
    groups = {name: GroupCutoffs.parse(name).group_of(count).tolist() for name in CUTOFFS}
    t, c, f = GROUPS
    assert groups == {
        "retailtag": [t] * 5 + [c] * 4 + [f],
        "lvis": [t] + [c] * 6 + [f] * 3,
        "coco-mlt": [t] * 3 + [c] * 4 + [f] * 3,
    }
    assert GroupCutoffs.parse("retailtag") == GroupCutoffs()


def test_an_unknown_preset_is_refused():
    with pytest.raises(UsageError, match="one of retailtag, lvis"):
        GroupCutoffs.parse("imagenet")
