"""What a threshold is tuned for: F-beta, or a precision that must be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError

Floats = NDArray[np.float64]
MIN_BETA = 1e-3  # F-beta is precision itself below, and recall above its inverse


@dataclass(frozen=True)
class Objective:
    """F-beta to maximise, or the precision that the lowest threshold must reach.

    Raises
    ------
    UsageError
        If a value is out of range.
    """

    beta: float = 1.0  # weight of recall against precision, `MIN_BETA` to its inverse; 1 is F1
    precision: float | None = None  # least precision, in (0, 1]; `beta` is then ignored

    def __post_init__(self) -> None:
        if not MIN_BETA <= self.beta <= 1 / MIN_BETA:
            raise UsageError(
                f"--objective fbeta:{self.beta:g} is out of range; give {MIN_BETA:g} to "
                f"{1 / MIN_BETA:g}, such as 2."
            )
        if self.precision is not None and not 0 < self.precision <= 1:
            raise UsageError(
                f"--objective precision:{self.precision:g} is out of range; give a fraction above "
                "0 and at most 1, such as 0.9."
            )

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Objective from ``f1``, ``fbeta:B`` or ``precision:P``; `UsageError` for other text.

        Examples
        --------
        >>> Objective.parse("fbeta:2").beta
        2.0
        >>> Objective.parse("precision:0.9").precision
        0.9
        """
        kind, colon, number = text.partition(":")
        if text == "f1":
            return cls()
        try:
            value = float(number) if colon else math.nan
        except ValueError:
            value = math.nan
        if kind not in ("fbeta", "precision") or math.isnan(value):
            raise UsageError(
                f"--objective {text} is unknown; use f1, fbeta:B such as fbeta:2, or precision:P "
                "such as precision:0.9."
            )
        return cls(beta=value) if kind == "fbeta" else cls(precision=value)

    @property
    def beta2(self) -> float:
        """Square of beta."""
        return self.beta**2

    def f(self, tp: NDArray[np.generic], given: NDArray[np.generic], positives: object) -> Floats:
        r"""F-beta from marginal counts, which may be weighted or expected.

        .. math:: F_\beta = \frac{(1+\beta^2)\,TP}{k + \beta^2 P}

        with k the images given the tag and P those that carry it; 0 where both are 0.

        References
        ----------
        van Rijsbergen, Information Retrieval, 2nd ed. 1979, ch. 7.

        Examples
        --------
        >>> Objective().f(np.array([2]), np.array([3]), np.array([3])).round(3).tolist()
        [0.667]
        """
        total = np.asarray(given, np.float64) + self.beta2 * np.asarray(positives, np.float64)
        top = (1 + self.beta2) * np.asarray(tp, np.float64)
        top, total = np.broadcast_arrays(top, total)
        return np.divide(top, total, out=np.zeros(top.shape), where=total > 0)
