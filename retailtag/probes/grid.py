"""Grids of inverse L2 strengths C: what an option means, and how a grid is widened."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.settings import ProbeSettings

LIMITS = (1e-8, 1e7)  # a widened grid stays within
RANGE = (1e-12, 1e12)  # of any strength; beyond, float32 loses either the loss or the penalty
MAX_VALUES = 1000  # of a grid, each of which is a fit for every tag and fold
VALUES_ADDED = 3  # at a time, when a grid is widened
MIN_LOG_RATIO = 1e-9  # of two neighbours; a million times the rounding of float64


def parse_grid(text: str) -> NDArray[np.float64]:
    """Strengths, ascending, from ``START:STOP:N`` (logarithmic) or a comma-separated list.

    Raises
    ------
    UsageError
        If the text is neither, a value is out of `RANGE`, or there are over `MAX_VALUES`.

    Examples
    --------
    >>> parse_grid("0.01:100:3").tolist()
    [0.01, 1.0, 100.0]
    >>> parse_grid("1,0.1").tolist()
    [0.1, 1.0]
    """
    try:
        if ":" in text:
            start, stop, n = text.split(":")
            stated, n_values = [float(start), float(stop)], int(n)
        else:
            stated = [float(value) for value in text.split(",")]
            n_values = len(stated)
    except ValueError:
        raise UsageError(
            f"--sweep-C {text} is not a grid of strengths; write START:STOP:N such as "
            f"{ProbeSettings.sweep_C}, or a comma-separated list."
        ) from None
    # Before the grid is made: the numbers may ask for more memory than there is.
    low, high = RANGE
    if not (0 < n_values <= MAX_VALUES and all(low <= C <= high for C in stated)):
        raise UsageError(
            f"--sweep-C {text} is out of range; give 1 to {MAX_VALUES:,} strengths of {low:g} to "
            f"{high:g}."
        )
    is_range = ":" in text
    return np.unique(np.geomspace(stated[0], stated[1], n_values) if is_range else stated)


def beyond(C: NDArray[np.float64], *, above: bool) -> NDArray[np.float64]:
    """Values next to an end of an ascending grid, in its own ratio, ascending.

    At most `VALUES_ADDED`, within `LIMITS`; none for a grid of one value, which has no ratio.

    Examples
    --------
    >>> beyond(np.array([0.1, 1.0]), above=True).round().tolist()
    [10.0, 100.0, 1000.0]
    >>> beyond(np.array([1e-8, 1.0]), above=False).tolist()
    []
    """
    if len(C) < 2:
        return np.zeros(0)
    end, inner = (C[-1], C[-2]) if above else (C[0], C[1])
    ratio = end / inner
    # two values that rounding hardly tells apart have no ratio to go on with either
    if abs(np.log(ratio)) < MIN_LOG_RATIO:
        return np.zeros(0)
    values = end * ratio ** np.arange(1, VALUES_ADDED + 1)
    slack = 1e-9  # rounding of the powers must not cut a value at the limit itself
    low = LIMITS[0] * (1 - slack)
    high = LIMITS[1] * (1 + slack)
    return np.sort(values[(values >= low) & (values <= high)])
