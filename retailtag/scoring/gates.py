"""Gates: conditions on a scorecard that a script can test, such as ``tail_macro_f1>=0.30``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retailtag.errors import UsageError
from retailtag.scoring.scorecard import ScoreCard

SCOPES = ("all", "tail", "common", "frequent")
METRICS = ("macro_f1", "macro_precision", "macro_recall", "macro_ap", "macro_f1_population")
NAMES = (
    *(m if scope == "all" else f"{scope}_{m}" for scope in SCOPES for m in METRICS),
    *("micro_f1", "micro_precision", "micro_recall"),
)
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
_GATE = re.compile(r"\s*(\w+)\s*(>=|<=|>|<)\s*([^\s<>=]+)\s*")


@dataclass(frozen=True)
class Gate:
    """A condition on one figure of a scorecard."""

    name: str  # of the figure, such as one of `NAMES`
    op: str  # one of `COMPARE`
    bound: float  # a fraction

    def __str__(self) -> str:
        return f"{self.name}{self.op}{self.bound:g}"

    def value(self, card: ScoreCard) -> float:
        """The figure on a card; NaN where it is undefined."""
        if self.name.startswith("micro_"):
            return float(getattr(card, self.name))
        scope = next((s for s in SCOPES if self.name.startswith(f"{s}_")), "all")
        summary = card.summaries[scope]
        return float(getattr(summary, self.name.removeprefix(f"{scope}_")))

    def is_met(self, card: ScoreCard) -> bool:
        """Whether the card meets it; an undefined figure never does."""
        return self.allows(self.value(card))

    def allows(self, value: float) -> bool:
        """Whether a figure meets it; an undefined one never does."""
        return not math.isnan(value) and COMPARE[self.op](value, self.bound)


def parse_gate(
    text: str, names: Sequence[str] = NAMES, example: str = "tail_macro_f1>=0.30"
) -> Gate:
    """Read ``NAME OP FRACTION``; `UsageError` if it is not one or names none of the figures.

    Examples
    --------
    >>> parse_gate("tail_macro_f1 >= 0.30")
    Gate(name='tail_macro_f1', op='>=', bound=0.3)
    """
    match = _GATE.fullmatch(text)
    name, op, bound = match.groups() if match else ("", "", "")
    try:
        gate = Gate(name, op, float(bound))
    except ValueError:
        gate = None
    if gate is None or name not in names or not 0 <= gate.bound <= 1:
        raise UsageError(
            f'--gate "{text}" is not a gate; write NAME OP FRACTION such as "{example}", '
            f"with one of {', '.join(COMPARE)} and one of {', '.join(names)}."
        )
    return gate


def unmet_gates(gates: Sequence[Gate], cards: Sequence[ScoreCard]) -> list[str]:
    """One sentence for each gate that a card does not meet."""
    return [
        f"{card.model} does not meet {gate}: {_figure(gate, card)} on the {card.split} split."
        for card in cards
        for gate in gates
        if not gate.is_met(card)
    ]


def _figure(gate: Gate, card: ScoreCard) -> str:
    value = gate.value(card)
    if math.isnan(value):
        return f"{gate.name} is undefined (no tag with a positive)"
    return f"{gate.name} is {value:.4g}"
