"""Probabilities from scores that were not fitted on: Platt scaling of each tag, shrunk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.calibration import Calibration
from retailtag.thresholds.plug_in import Histogram
from retailtag.thresholds.ranking import RankedTag
from retailtag.thresholds.rules import EQUAL_WEIGHT

SMALLEST_SLOPE = 1e-3  # scores that say nothing keep their order


def shrunken_curves(
    tags: tuple[RankedTag, ...], group: NDArray[np.str_], equal_weight: float = EQUAL_WEIGHT
) -> Calibration:
    r"""Platt scaling of each tag, shrunk to that of its frequency group.

    `equal_weight` is the number of positives of a tag that weigh as much as its group.

    Notes
    -----
    With P positives, slope and offset of a tag are :math:`(P\,own + 20\,group)/(P + 20)`, as its
    threshold is: a rare tag has the curve of its group, a frequent one its own. The group's curve
    is fitted to the pooled cells of all its tags. Among Platt scaling and isotonic regression, for
    all tags, each group or each tag, this has the smallest or nearly the smallest cross-fit log
    loss (results/calibration.csv).
    """
    slope = np.ones(len(tags))
    offset = np.zeros(len(tags))
    for name in np.unique(group):
        members = [k for k in np.flatnonzero(group == name).tolist() if len(tags[k].negated)]
        if not any(tags[k].positives for k in members):
            continue  # no curve can be fitted: the logistic stays
        shared = _platt([tags[k] for k in members])
        for k in members:
            share = 0.0
            own = shared
            if tags[k].positives:
                share = tags[k].positives / (tags[k].positives + equal_weight)
                own = _platt([tags[k]])
            slope[k], offset[k] = share * own + (1 - share) * shared
    return Calibration(slope.astype(np.float32), offset.astype(np.float32))


def _platt(tags: list[RankedTag]) -> NDArray[np.float64]:
    """Slope, above 0, and offset for the pooled cells of tags."""
    slope, offset = Histogram.of(tags).platt()
    return np.array([max(slope, SMALLEST_SLOPE), offset])
