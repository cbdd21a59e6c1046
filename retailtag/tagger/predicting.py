"""Which tags an image is given, with their probabilities, and which of them are uncertain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.statistics.exclusive import EXACTLY_ONE, INDEPENDENT, assign, attribute_columns
from retailtag.tagger.tagger import Tagger

# A tag is uncertain while the odds of its probability are within this factor of the odds at which
# it would be decided otherwise: at a threshold of 0.5 between 0.40 and 0.60, at 0.1 between 0.07
# and 0.14. A fixed distance would call every absent rare tag uncertain, because their thresholds
# are low.
UNCERTAIN_ODDS = 1.5
_LEAST = 1e-12  # probability; below and above 1 less it the odds say nothing any more


class Given(NamedTuple):
    """Tags of one image, the likeliest first, and those that could as well be decided otherwise."""

    tags: tuple[str, ...]
    probabilities: tuple[float, ...]  # of `tags`
    uncertain: tuple[str, ...]  # given or not, the closest first
    doubts: tuple[float, ...]  # probabilities of `uncertain`


@dataclass(frozen=True)
class Choice:
    """Which tags an image is given, instead of those at or above their thresholds.

    `min_probability`: those at least as probable, whatever their thresholds. `top_k`: the most
    probable ones, whatever their thresholds; with both, of these the probable enough. Neither: by
    the thresholds. Of an attribute with one value, the `Tagger`'s assignment decides in any case:
    at most one tag, the one that it would choose.
    """

    top_k: int | None = None
    min_probability: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"--top-k {self.top_k} is out of range; use at least 1.")
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise UsageError(
                f"--min-probability {self.min_probability:g} is out of range; use 0 to 1."
            )

    @property
    def by_thresholds(self) -> bool:
        """Whether the thresholds decide."""
        return self.top_k is None and self.min_probability is None

    def given(self, tagger: Tagger, logits: NDArray[np.float32]) -> Iterator[Given]:
        """Yield the tags of each image of these logits (n_images, n_tags)."""
        probability = tagger.probabilities(logits)
        cells = self._cells(tagger, logits, probability)
        distance = self._distance(tagger, probability)
        for p, own, far in zip(probability, cells, distance, strict=True):
            order = np.argsort(-p, kind="stable")
            chosen = order[own[order]][: self.top_k]
            close = np.argsort(far, kind="stable")
            close = close[far[close] <= math.log(UNCERTAIN_ODDS)]
            yield Given(
                tuple(tagger.tags[j] for j in chosen),
                tuple(p[chosen].tolist()),
                tuple(tagger.tags[j] for j in close),
                tuple(p[close].tolist()),
            )

    def _cells(
        self, tagger: Tagger, logits: NDArray[np.float32], probability: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Tags to choose from, (n_images, n_tags)."""
        how = (tagger.thresholds, tagger.tags, tagger.exclusive)
        if self.by_thresholds:
            return assign(logits, *how, tagger.assignment)
        cells: NDArray[np.bool_] = probability >= (self.min_probability or 0.0)
        if tagger.assignment == INDEPENDENT:
            return cells
        winners = assign(logits, *how, EXACTLY_ONE)
        for attribute in tagger.exclusive:
            columns = attribute_columns(tagger.tags, attribute)
            own = winners[:, columns]
            cells[:, columns] = own if tagger.assignment == EXACTLY_ONE else own & cells[:, columns]
        return cells

    def _distance(self, tagger: Tagger, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far the log odds of each tag are from where it is decided, (n_images, n_tags)."""
        decided = np.full(len(tagger.tags), self.min_probability or 0.0)
        if self.min_probability is None:
            decided = tagger.probabilities(tagger.thresholds[None])[0]
        far = np.abs(_log_odds(probability) - _log_odds(decided))
        # A threshold of inf, and probabilities of 0 and 1, are never crossed.
        return np.where((decided > _LEAST) & (decided < 1 - _LEAST), far, math.inf)


def _log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probability, _LEAST, 1 - _LEAST)
    odds: NDArray[np.float64] = np.log(p / (1 - p))
    return odds
