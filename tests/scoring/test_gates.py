import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailtag.errors import UsageError
from retailtag.scoring.gates import COMPARE, NAMES, Gate, parse_gate, unmet_gates
from retailtag.scoring.score import score_predictions


@pytest.fixture
def card(catalog, predictions):
    return score_predictions(predictions, catalog)


@given(st.sampled_from(NAMES), st.sampled_from(list(COMPARE)), st.floats(0, 1))
def test_every_gate_reads_back(name, op, bound):
    assert parse_gate(f" {name} {op}{bound!r}") == Gate(name, op, bound)


@pytest.mark.parametrize(
    "text",
    ["", "macro_f1", "macro_f1==0.3", "macro_f1=>0.3", "f1>=0.3", "macro_f1>=x", "macro_f1>=nan",
     "macro_f1>=0.3>=0.2", "tail macro_f1>=0.3"],
)  # fmt: skip
def test_malformed_gates_are_refused_with_the_names(text):
    with pytest.raises(UsageError, match=r"is not a gate; .*tail_macro_ap.*micro_f1"):
        parse_gate(text)


def test_values_are_those_of_the_card(card):
    assert parse_gate("macro_f1>0").value(card) == card.summaries["all"].macro_f1
    assert parse_gate("tail_macro_ap>0").value(card) == card.summaries["tail"].macro_ap
    assert parse_gate("micro_f1>0").value(card) == card.micro_f1
    estimate = card.summaries["tail"].macro_f1_population
    assert parse_gate("tail_macro_f1_population>0").value(card) == estimate
    tp = sum(row.tp for row in card.tags)
    given_tags = sum(row.tp + row.fp for row in card.tags)
    assert parse_gate("micro_precision>0").value(card) == pytest.approx(tp / given_tags)
    assert card.tags_given == pytest.approx(given_tags / card.n_images)
    for name in NAMES:
        assert isinstance(Gate(name, ">", 0.0).value(card), float)


def test_bounds_are_inclusive_only_where_written_so(card):
    card = replace(card, micro_f1=0.5)
    met = {op: Gate("micro_f1", op, 0.5).is_met(card) for op in COMPARE}
    assert met == {">=": True, ">": False, "<=": True, "<": False}


def test_an_undefined_figure_meets_no_gate(card):
    card = replace(card, micro_f1=math.nan)
    assert not any(Gate("micro_f1", op, 0.5).is_met(card) for op in COMPARE)
    (sentence,) = unmet_gates([Gate("micro_f1", "<", 2.0)], [card])
    assert "undefined" in sentence


def test_each_unmet_gate_of_each_card_has_its_sentence(card):
    gates = [Gate("micro_f1", ">", 1.0), Gate("micro_f1", ">", 0.0), Gate("macro_f1", "<", 0.0)]
    said = unmet_gates(gates, [card, replace(card, model="other")])
    assert len(said) == 4
    assert said[0] == (
        f"{card.model} does not meet micro_f1>1: micro_f1 is {card.micro_f1:.4g} on the test split."
    )
