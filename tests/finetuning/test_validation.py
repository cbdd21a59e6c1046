"""The rule that decides which of two states is kept."""

import math

import numpy as np
import pytest

from retailtag.finetuning.validation import Measured, ModelSelector

TAIL = np.array([False, False, True, True, True])


def measured(f1, ap=None):
    f1 = np.array(f1, float)
    return Measured(f1, f1 if ap is None else np.array(ap, float))


def selector(choose="macro-f1"):
    return ModelSelector(lambda logits: measured(logits[0]), TAIL, choose)


def test_figures_are_means_over_tags_that_have_them():
    row = selector().row(
        measured([0.5, 1, 0, math.nan, 0.5], [0.2, 0.4, math.nan, math.nan, math.nan])
    )
    assert row == {
        "criterion": 0.5,
        "macro_f1": 0.5,
        "tail_macro_f1": 0.25,
        "macro_ap": pytest.approx(0.3),
        "tail_macro_ap": None,
    }


def test_without_any_f1_average_precision_decides_and_without_both_nothing_is_better():
    none = [math.nan] * 5
    assert selector().value(measured(none, [0.5] * 5)) == 0.5
    assert selector().value(measured(none, none)) == -1
    assert selector("macro-ap").value(measured([1] * 5, [0.25] * 5)) == 0.25


def test_a_loss_of_the_tail_beyond_its_error_is_not_admitted():
    start = measured([0.5, 0.5, 0.5, 0.5, 0.5])
    noisy = measured([0.9, 0.9, 0.9, 0.5, 0.0])  # mean gain -0.03, error 0.26
    sure = measured([0.9, 0.9, 0.4, 0.4, 0.41])
    assert selector().keeps_tail(noisy, start)
    assert not selector().keeps_tail(sure, start)
    assert selector("macro-f1-free").keeps_tail(sure, start)
    assert selector("macro-ap").keeps_tail(sure, start)
    assert selector().keeps_tail(start, start)


def test_few_tail_tags_decide_by_their_sign():
    nan = math.nan
    start = measured([0.5, 0.5, 0.5, nan, nan])
    assert selector().keeps_tail(measured([0, 0, 0.5, nan, nan]), start)
    assert not selector().keeps_tail(measured([1, 1, 0.4, nan, nan]), start)
    none = measured([0.5, 0.5, nan, nan, nan])
    assert selector().keeps_tail(none, none)


def test_the_start_is_kept_unless_the_best_is_a_standard_error_ahead():
    choose = selector(choose="macro-ap")
    nothing = [math.nan] * 5
    start = measured(nothing, [0.2, 0.3, 0.4, 0.5, 0.5])
    one_gains = measured(nothing, [0.6, 0.3, 0.4, 0.5, 0.5])  # by 0.08, standard error 0.08
    all_gain = measured(nothing, [0.3, 0.4, 0.5, 0.6, 0.6])
    one_more = measured(nothing, [0.3, 0.4, 0.5, 0.6, 0.62])
    assert choose.choose_from([start, one_gains]) == 0
    assert choose.choose_from([start, all_gain, one_gains]) == 1
    assert choose.choose_from([start, one_gains, all_gain, one_more]) == 3
    assert choose.choose_from([start]) == 0
    assert choose.choose_from([measured(nothing), measured(nothing)]) == 0


def test_a_state_that_loses_the_tail_is_not_kept_however_good():
    start, lost = measured([0.5] * 5), measured(np.where(TAIL, 0.45, 0.99))
    assert selector().choose_from([start, lost]) == 0
    assert selector("macro-f1-free").choose_from([start, lost]) == 1
