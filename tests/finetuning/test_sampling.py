import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_sampling import repeat_factors

from retailtag.errors import UsageError
from retailtag.finetuning.sampling import RepeatFactor, Sampler, epoch_order, parse_sampler

LABELS = arrays(
    np.int8, st.tuples(st.integers(1, 12), st.integers(1, 5)), elements=st.sampled_from([-1, 0, 1])
)


@given(labels=LABELS, t=st.floats(0.01, 1))
@settings(deadline=None)
def test_factors_equal_the_formula(labels, t):
    got = RepeatFactor(t).factors(labels)
    np.testing.assert_allclose(got, repeat_factors(labels.tolist(), t), rtol=1e-12)


def _long_tailed():
    """1,000 images: tag 0 on half, tag 1 on 10, tag 2 on one that carries tag 0 too."""
    labels = np.zeros((1000, 4), np.int8)
    labels[:500, 0] = 1
    labels[500:510, 1] = 1
    labels[0, 2] = 1
    return labels


def test_an_image_repeats_by_its_rarest_tag():
    factors = RepeatFactor(0.04).factors(_long_tailed())
    assert factors[0] == pytest.approx(math.sqrt(40))
    assert factors[500:510] == pytest.approx(2.0)
    assert (np.delete(factors, [0, *range(500, 510)]) == 1).all()


def test_counts_are_the_factors_rounded_at_random():
    factors = RepeatFactor(0.04).factors(_long_tailed())
    counts = np.array([np.bincount(epoch_order(factors, 0, epoch)) for epoch in range(1, 401)])
    assert set(np.unique(counts[:, 0])) == {6, 7}
    assert counts[:, 0].mean() == pytest.approx(math.sqrt(40), abs=0.1)
    assert (counts[:, 500:510] == 2).all()
    assert (counts[:, 900] == 1).all()


def test_an_epoch_holds_every_image_in_an_order_of_its_own():
    factors = RepeatFactor(0.04).factors(_long_tailed())
    orders = [epoch_order(factors, 7, epoch) for epoch in (1, 2)]
    for order in orders:
        assert set(order) == set(range(1000))
        assert (np.diff(order) < 0).any()
    assert orders[0][:50].tolist() != orders[1][:50].tolist()


def test_orders_are_a_function_of_seed_and_epoch():
    factors = RepeatFactor(0.04).factors(_long_tailed())
    first = epoch_order(factors, 3, 5)
    epoch_order(factors, 3, 1)
    np.testing.assert_array_equal(epoch_order(factors, 3, 5), first)
    assert epoch_order(factors, 4, 5).tolist() != first.tolist()


def test_shuffling_shows_every_image_once():
    factors = Sampler().factors(_long_tailed())
    order = epoch_order(factors, 0, 1)
    assert sorted(order) == list(range(1000))
    assert order.tolist() != list(range(1000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("balanced", "--sampler balanced is unknown; choose one of shuffle, repeat"),
        ("repeat:t=0", "t=0 is out of range"),
        ("shuffle:t=1", "shuffle takes no settings"),
    ],
)
def test_bad_text_is_refused_with_its_remedy(text, message):
    with pytest.raises(UsageError, match=message):
        parse_sampler(text)
