"""The scorecard: per-tag rows, group summaries, and the files they are written to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from retailtag.errors import DataError
from retailtag.files import write_json, write_text
from retailtag.scoring.csvs import csv_text
from retailtag.scoring.finding import Finding
from retailtag.scoring.ranking import NO_SAMPLES, SampleScores
from retailtag.scoring.strict_json import named_file, parsed_file, plain
from retailtag.statistics.exclusive import INDEPENDENT

FORMAT = 2
REMEDY = "run `retailtag score` on the predictions again"
SCOPES = ("all", "tail", "common", "frequent")
MAX_COUNT = 2**53  # images; up to there a float holds every whole number
LOW_SUPPORT = 10  # positives; with fewer in the scored split one tag's F1 says little


@dataclass(frozen=True)
class TagRow:
    """Scores of one tag; the metrics are NaN without a positive in the scored split."""

    tag: str
    group: str  # ``tail``, ``common`` or ``frequent``, by training images
    train_count: int  # positive images in training
    support: int  # positive images in the scored split
    tp: int  # counts over scored images with a known label
    fp: int
    fn: int
    tn: int
    precision: float  # in [0, 1], like those that follow
    recall: float
    f1: float
    ap: float
    threshold: float  # logit from which the tag is given; infinite: never
    low_support: bool  # fewer than `LOW_SUPPORT` positives in the scored split
    rule: str = "given"  # how the threshold was chosen, if the predictions record it
    f1_low: float = math.nan  # 95 % interval of F1, see `intervals.wilson_f1`
    f1_high: float = math.nan
    f1_oracle: float = math.nan  # at the best threshold in hindsight: a bound, never a score

    def __post_init__(self) -> None:
        counts = (self.tp, self.fp, self.fn, self.tn)
        if not all(0 <= n < MAX_COUNT for n in counts):  # of a damaged file
            raise ValueError(f"a count of tag {self.tag:.60} is out of range")


@dataclass(frozen=True)
class GroupSummary:
    """Means over the tags of one scope with a positive in the scored split; NaN without any."""

    scope: str  # one of `SCOPES`, or a range of the tail such as ``tail 0-9``
    n_tags: int  # tags averaged
    n_undefined: int  # tags left out because they have no positive
    macro_f1: float  # on these images
    macro_f1_low: float  # 95 % interval of `macro_f1_population`
    macro_f1_high: float
    macro_precision: float
    macro_recall: float
    macro_ap: float
    macro_f1_sklearn: float = math.nan  # with 0 for undefined tags, as scikit-learn's default
    macro_f1_oracle: float = math.nan  # at the best thresholds in hindsight: a bound, never a score
    n_never_predicted: int = 0  # averaged tags that no image was given
    # Of the probabilities, pooled over all known cells of the scope's tags, undefined ones included
    brier: float = math.nan
    calibration_error: float = math.nan
    # Estimate for the population, see `intervals.macro_estimate`; NaN in cards of early versions
    macro_f1_population: float = math.nan

    @property
    def best_estimate(self) -> float:
        """Macro-F1 that pairs are ranked by: in the population, else (early cards) as counted."""
        return self.macro_f1 if math.isnan(self.macro_f1_population) else self.macro_f1_population


@dataclass(frozen=True)
class AssignmentRow:
    """Scores of one attribute with one value an image, under one assignment."""

    attribute: str  # empty: all tags, and images of all attributes together
    assignment: str  # one of `retailtag.statistics.exclusive.ASSIGNMENTS`
    n_tags: int  # tags averaged
    macro_f1: float
    macro_precision: float
    macro_recall: float
    n_images: int  # images known to have a value, for every attribute
    right: float  # share of these that were given that value and no other


@dataclass(frozen=True)
class ScoreCard:
    """One model scored on one split; equal inputs give an equal card, byte for byte."""

    model: str  # name to show, ``backbone · strategy``
    split: str
    n_images: int  # scored
    n_products: int
    tags: tuple[TagRow, ...]  # in the catalogue's order
    summaries: dict[str, GroupSummary]  # by scope: those of `SCOPES`, then the ranges of the tail
    micro_f1: float  # F1 of the pooled cells
    macro_f1_sklearn: float  # with 0 for undefined tags, as scikit-learn's default
    samples: SampleScores = NO_SAMPLES  # metrics of each image's tags as a whole
    findings: tuple[Finding, ...] = ()  # in the order they are numbered
    # Hashes and settings of everything that was read; no dates, no timings
    provenance: dict[str, Any] = field(default_factory=dict)
    assignment: str = INDEPENDENT  # by which all other scores of the card were counted
    # Of every attribute with one value an image, under every assignment; empty without any
    assignments: tuple[AssignmentRow, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.n_images < MAX_COUNT:  # of a damaged file
            raise ValueError("the number of images is out of range")

    @property
    def undefined(self) -> tuple[TagRow, ...]:
        """Tags without a positive in the scored split: no F1, only false alarms."""
        return tuple(row for row in self.tags if not row.support)

    @property
    def tags_given(self) -> float:
        """Tags given to an image, on average; like the next three over known labels."""
        return sum(row.tp + row.fp for row in self.tags) / max(self.n_images, 1)

    @property
    def tags_true(self) -> float:
        """Tags that annotators gave to an image, on average."""
        return sum(row.tp + row.fn for row in self.tags) / max(self.n_images, 1)

    @property
    def micro_precision(self) -> float:
        """Share of the given tags that are right; NaN if none was given."""
        given = self.tags_given * self.n_images
        return sum(row.tp for row in self.tags) / given if given else math.nan

    @property
    def micro_recall(self) -> float:
        """Share of the true tags that were given; NaN without any."""
        true = self.tags_true * self.n_images
        return sum(row.tp for row in self.tags) / true if true else math.nan

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary: NaN as null, infinities as ``"inf"`` and ``"-inf"``."""
        return {"format": FORMAT, **plain(asdict(self))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ScoreCard:
        """Read what `to_json` made; raises as `retailtag.scoring.strict_json.parsed_file` does."""
        card = parsed_file(cls, value, "scorecard", FORMAT, REMEDY)
        lacking = [scope for scope in SCOPES if scope not in card.summaries]
        if lacking:
            raise DataError(f"The scorecard has no summary of scope {lacking[0]}; {REMEDY}.")
        return card

    def save(self, folder: Path) -> None:
        """Write the tables as CSV and, last, ``scorecard.json``; each whole or not at all."""
        folder = Path(folder)
        write_text(folder / "per_tag.csv", csv_text(_names(TagRow), self.tags))
        groups = csv_text(_names(GroupSummary), self.summaries.values())
        write_text(folder / "groups.csv", groups)
        columns = ("tag", "group", "train_count", "fp", "tn", "threshold")
        write_text(folder / "undefined_tags.csv", csv_text(columns, self.undefined))
        (folder / "assignments.csv").unlink(missing_ok=True)
        if self.assignments:
            write_text(
                folder / "assignments.csv", csv_text(_names(AssignmentRow), self.assignments)
            )
        write_json(folder / "scorecard.json", self.to_json())

    @classmethod
    def load(cls, path: Path) -> ScoreCard:
        """Read ``scorecard.json`` (or the folder that holds it); raises as `from_json` does."""
        path = Path(path)
        return named_file(path / "scorecard.json" if path.is_dir() else path, cls.from_json)


def _names(row: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(row))
