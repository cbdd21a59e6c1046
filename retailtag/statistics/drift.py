"""What a comparison of new images with a reference found, as plain values.

The comparison is made in `retailtag.tagger.drift`; the report and the terminal show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FIGURES = ("p", "separation", "novel_share")  # of a comparison, for gates
FAMILIES = ("embeddings", "novelty", "confidences", "tags", "properties")
# Superiority of 0.5 is none. From 0.1 on either side a shift is called large: for two normal
# distributions of equal spread that is a third of their standard deviation.
LARGE = 0.1


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Family:
    """One of `FAMILIES`: the tests of one kind of figures, combined."""

    name: str
    p: float  # by permutation, adjusted for the figures in the family
    p_adjusted: float  # and for the number of families
    has_drifted: bool  # whether `p_adjusted` is at most the rate of false alarms


@dataclass(frozen=True)
class Shift:
    """The distribution of one figure per image, in the reference and among the new images."""

    name: str
    n_reference: int  # images that have the figure
    n_new: int
    reference: tuple[float, float, float]  # quantiles 0.1, 0.5 and 0.9
    new: tuple[float, float, float]
    # P(a new image has more than one of the reference), ties counted half; 0.5: no shift
    superiority: Estimate
    distance: float  # of Kolmogorov and Smirnov: largest gap of the distribution functions
    p_adjusted: float  # by permutation, adjusted for the figures in the family
    edges: tuple[float, ...] = ()  # of the bins of both histograms, whose ends take the outliers
    reference_bins: tuple[float, ...] = ()  # share of the images in each bin
    new_bins: tuple[float, ...] = ()

    @property
    def is_large(self) -> bool:
        """Whether superiority is at least `LARGE` away from 0.5."""
        return abs(self.superiority.value - 0.5) >= LARGE


@dataclass(frozen=True)
class TagShift:
    """How often a tag is given, in the reference and among the new images."""

    tag: str
    reference: Estimate
    new: Estimate
    difference: Estimate
    p_adjusted: float  # by permutation, adjusted for the number of tags


@dataclass(frozen=True)
class Embeddings:
    """How the embeddings moved."""

    mmd2: float  # unbiased squared maximum mean discrepancy; may be negative
    bandwidth: float  # of the Gaussian kernel: the median distance of standardised embeddings
    # P(the witness function ranks a new image above one of the reference); 0.5: no shift
    separation: Estimate
    p_within_tags: float  # with labels permuted among images of the same moved tags


@dataclass(frozen=True)
class Novelty:
    """How far new images lie from the reference."""

    level: float  # share of the reference that is called novel
    share: Estimate  # of the new images that are novel at this level
    order: tuple[int, ...]  # new images, the most novel first
    p: tuple[float, ...]  # of each new image: share of the reference that lies as far out


@dataclass(frozen=True)
class Remedy:
    """What to do, and the figures that say so."""

    action: str  # input, thresholds, refit, finetune or none
    because: str
    do: str


@dataclass(frozen=True)
class DriftResult:
    """Comparison of new images with a reference, under one rate of false alarms."""

    n_reference: int
    n_new: int
    n_reference_groups: int  # units of the permutation
    n_new_groups: int
    alpha: float
    permutations: int
    p: float  # of the whole report
    families: tuple[Family, ...]
    embeddings: Embeddings
    novelty: Novelty
    confidences: tuple[Shift, ...]
    properties: tuple[Shift, ...]
    kinds: Mapping[str, tuple[float, float]]  # share of each file type, reference and new
    kinds_p: float  # adjusted for the properties
    tags: tuple[TagShift, ...]  # the smallest p first
    names: tuple[str, ...]  # of the new images
    reference: str  # what it is, in words
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_drifted(self) -> bool:
        """Whether the whole report is an alarm."""
        return self.p <= self.alpha

    @property
    def figures(self) -> dict[str, float]:
        """`FIGURES`: p of the whole report, separation of the embeddings, share of novel images."""
        separation, share = self.embeddings.separation.value, self.novelty.share.value
        return {"p": self.p, "separation": separation, "novel_share": share}

    def drifted(self, family: str) -> bool:
        """Whether one of `FAMILIES` has drifted."""
        return next(f.has_drifted for f in self.families if f.name == family)

    @property
    def moved_tags(self) -> tuple[TagShift, ...]:
        """Tags whose rate has moved, if the rates as a family have."""
        return tuple(t for t in self.tags if self.drifted("tags") and t.p_adjusted <= self.alpha)

    @property
    def moved_properties(self) -> tuple[Shift, ...]:
        """Properties that have moved, if they as a family have."""
        moved = self.drifted("properties")
        return tuple(s for s in self.properties if moved and s.p_adjusted <= self.alpha)

    def to_json(self) -> dict[str, Any]:
        """Plain values; figures that are undefined are None."""
        whole = {**asdict(self), "has_drifted": self.has_drifted}
        found: dict[str, Any] = _plain(whole)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
