"""Which epoch and which interpolation is kept, decided on the validation set.

The criterion is the mean over tags of F1 or average precision on the validation set. F1 needs
thresholds that owe nothing to the labels they are counted on: those of the start, moved to give as
many tags (see `retailtag.runs.start_scores`), or those tuned on the other half of the set.

====================  ============================================================================
``--choose-epoch``    keeps the state with the largest
====================  ============================================================================
``macro-f1``          macro-F1, among the states whose tail macro-F1 is at most one standard error
                      below that of the start
``macro-f1-free``     macro-F1
``macro-ap``          macro average precision
``auto``              ``macro-f1``, or ``macro-ap`` where thresholds aim at a precision
====================  ============================================================================

Of equal epochs the earlier one is kept. The best epoch, and what lies between it and the start (the
probe on frozen blocks), must be more than one standard error ahead of the start to replace it: a
validation set is small, and the probe has been fitted and given thresholds on many times as many
images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.statistics.one_standard_error import one_standard_error

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measured:
    """Scores (n_tags,) on the validation set; NaN for a tag without a positive."""

    f1: Floats
    ap: Floats  # average precision


# logits (n_val, n_tags) of the validation set to scores
Measure = Callable[[NDArray[np.float32]], Measured]


@dataclass(frozen=True, eq=False)
class ModelSelector:
    """Measures states of a training and decides which of two is kept."""

    measure: Measure
    is_tail: NDArray[np.bool_]  # (n_tags,)
    choose: str = "macro-f1"  # or macro-f1-free, macro-ap

    def row(self, measured: Measured) -> dict[str, float | None]:
        """Figures of a state for the history, and its ``criterion``; None where undefined."""
        figures = {
            "criterion": self.value(measured),
            "macro_f1": _mean(measured.f1),
            "tail_macro_f1": _mean(measured.f1[self.is_tail]),
            "macro_ap": _mean(measured.ap),
            "tail_macro_ap": _mean(measured.ap[self.is_tail]),
        }
        return {name: value if math.isfinite(value) else None for name, value in figures.items()}

    def scores(self, measured: Measured) -> Floats:
        """What the criterion is the mean of, (n_tags,): AP where no tag has an F1."""
        by_f1 = self.choose != "macro-ap" and np.isfinite(measured.f1).any()
        return measured.f1 if by_f1 else measured.ap

    def value(self, measured: Measured) -> float:
        """The criterion; -1 where it is not defined."""
        value = _mean(self.scores(measured))
        return value if math.isfinite(value) else -1.0

    def choose_from(self, candidates: Sequence[Measured]) -> int:
        """Which of the start, the first, and states further from it is kept.

        The best of those that keep the tail, or the start where validation cannot tell the two.
        """
        start = candidates[0]
        allowed = [k for k, m in enumerate(candidates) if not k or self.keeps_tail(m, start)]
        choice = one_standard_error(np.array([self.scores(candidates[k]) for k in allowed]))
        return 0 if choice is None or choice.chosen == 0 else allowed[choice.best]

    def keeps_tail(self, measured: Measured, start: Measured) -> bool:
        """Whether a state is no worse than the start on the tail, as far as validation can tell."""
        if self.choose != "macro-f1":
            return True
        gain = (measured.f1 - start.f1)[self.is_tail]
        gain = gain[np.isfinite(gain)]
        if len(gain) < 2:  # no standard error
            return len(gain) == 0 or bool(gain[0] >= 0)
        # Mean of the paired differences against its standard error, s/√n over tail tags: with a
        # few positives per rare tag, a plain "not lower" would be decided by chance.
        return bool(gain.mean() >= -gain.std(ddof=1) / math.sqrt(len(gain)))


def _mean(values: Floats) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan
