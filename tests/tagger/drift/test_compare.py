"""The comparison: silent without drift, loud with it, and its remedy follows from what moved."""

from dataclasses import replace

import numpy as np
import pytest

from retailtag.errors import UsageError
from retailtag.statistics.drift import FAMILIES
from retailtag.tagger.drift.compare import compare

TAGS = tuple(f"tag {k}" for k in range(12))


@pytest.fixture(scope="module")
def against(draw):
    reference = draw(120, 0, prefix="old")

    def run(*, n_groups=60, permutations=499, seed=1, **shift):
        return compare(reference, draw(n_groups, seed, **shift), TAGS, permutations=permutations)

    return run


def test_without_drift_nothing_is_to_do(against):
    result = against()
    assert not result.has_drifted
    assert [r.action for r in result.remedies] == ["none"]
    assert not result.moved_tags
    assert not result.moved_properties
    assert result.embeddings.separation.low <= 0.5 <= result.embeddings.separation.high
    assert result.p == min(f.p_adjusted for f in result.families)
    assert (result.n_new, result.n_new_groups) == (120, 60)


def test_the_rate_of_false_alarms_is_kept(draw):
    """Of 24 comparisons without drift 1.2 are alarms on average, 6 or more once in 500 tries."""
    alarms = [
        compare(
            draw(30, 2 * k, prefix="old"), draw(15, 2 * k + 1), TAGS, permutations=99, seed=k
        ).has_drifted
        for k in range(24)
    ]
    assert sum(alarms) <= 5


def test_images_that_count_as_independent_raise_false_alarms(draw):
    """Two photographs of a product that are equal: without groups the tests see twice the data."""
    alarms = 0
    for k in range(8):
        pair = [draw(40, 100 + 2 * k + side, prefix=f"s{side}") for side in (0, 1)]
        alone = []
        for sample in pair:
            copies = np.repeat(np.arange(0, len(sample), 2), 4)
            several = sample.take(copies)
            names = np.arange(len(copies)).astype(str)
            alone.append(replace(several, group=np.char.add(several.names, names), names=names))
        alarms += compare(*alone, TAGS, permutations=99, seed=k).has_drifted
    assert alarms >= 4


@pytest.mark.parametrize(
    ("shift", "family", "action"),
    [
        ({"shift": 0.5}, "embeddings", "refit"),
        ({"novel": 0.15}, "novelty", "finetune"),
        ({"rate": 0.1}, "tags", "thresholds"),
        ({"sharpness": -2.0}, "properties", "input"),
        ({"brightness": 2.0}, "properties", "input"),
    ],
)
def test_each_shift_is_found_in_its_family_and_named_with_its_remedy(
    against, shift, family, action
):
    result = against(**shift)
    assert result.drifted(family)
    assert result.p <= 0.02
    assert result.remedies[0].action == action


def test_a_prior_shift_moves_the_embeddings_but_not_within_the_tag(against):
    result = against(rate=0.05, n_groups=120)
    assert result.tags[0].tag == "tag 0"
    assert result.tags[0].difference.high < 0
    assert result.drifted("embeddings")
    assert result.embeddings.p_within_tags > 0.05
    (remedy,) = result.remedies
    rate = result.tags[0].new.value
    assert f"{int(np.ceil(20 / rate)):,} labelled" in remedy.do  # the only tag that moved


def test_the_most_novel_images_come_first(against):
    result = against(novel=0.1)
    first = result.novelty.order[:10]
    assert all(place < 12 for place in first)  # the products that were moved
    assert max(result.novelty.p[place] for place in first) < 0.05
    assert result.novelty.share.low > 0.05


def test_the_same_seed_gives_the_same_result(against):
    first, second = against(shift=0.3), against(shift=0.3)
    assert first.to_json() == second.to_json()
    assert [f.name for f in first.families] == list(FAMILIES)


def test_unknown_products_on_one_side_leave_one_image_of_each_on_the_other(draw):
    reference, new = draw(60, 0, prefix="old"), draw(40, 1)
    single = replace(new.one_per_group(), group=new.one_per_group().names)
    result = compare(reference, single, TAGS, permutations=99)
    assert result.n_reference == result.n_reference_groups == 60
    assert "one image of each product of the reference" in result.notes[0]
    both = compare(replace(reference.one_per_group()), single, TAGS, permutations=99)
    assert "Products are unknown" in both.notes[0]


def test_images_of_the_reference_among_the_new_ones_are_counted(draw):
    reference, new = draw(30, 0, prefix="old"), draw(30, 1)
    reference = replace(reference, digests=np.arange(60, dtype=np.uint64))
    new = replace(new, digests=np.arange(50, 110, dtype=np.uint64))
    result = compare(reference, new, TAGS, permutations=99)
    assert any("10 of the new images are also in the reference" in note for note in result.notes)


def test_too_few_images_are_refused(draw):
    with pytest.raises(UsageError, match="at least 6 products on either side, and the new"):
        compare(draw(30, 0, prefix="old"), draw(5, 1), TAGS, permutations=99)


def test_another_file_type_is_a_fault_of_the_input(draw):
    new = draw(60, 1)
    other = replace(new, kinds=np.where(np.arange(120) < 60, "PNG", "JPEG"))
    result = compare(draw(120, 0, prefix="old"), other, TAGS, permutations=199)
    assert result.kinds == {"JPEG": (1.0, 0.5), "PNG": (0.0, 0.5)}
    assert "JPEG 100 to 50 %" in result.remedies[0].because


def test_other_light_beside_moved_tags_is_named_after_them(against):
    result = against(rate=0.05, n_groups=120, brightness=2.0)
    actions = [r.action for r in result.remedies]
    assert actions == ["thresholds", "input"]
    assert "check light and exposure" in result.remedies[1].do
    assert "If the pictures are to stay like this" in result.remedies[1].do
    of_file = against(rate=0.05, n_groups=120, brightness=2.0, jpeg_quality=-2.0)
    (remedy,) = of_file.remedies
    assert remedy.action == "input"
    assert "brightness median" in remedy.because
    assert "jpeg quality median" in remedy.because
