"""The scorecard: per-tag rows, group summaries, and the files they are written to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from retailtag.files import read_json, write_json, write_text
from retailtag.scoring.csvs import csv_text
from retailtag.scoring.finding import Finding
from retailtag.scoring.ranking import NO_SAMPLES, SampleScores
from retailtag.scoring.strict_json import parsed_file, plain

FORMAT = 2
REMEDY = "run `retailtag score` on the predictions again"
SCOPES = ("all", "tail", "common", "frequent")
LOW_SUPPORT = 10  # positives; with fewer in the scored split one tag's F1 says little


@dataclass(frozen=True)
class TagRow:
    """Scores of one tag.

    Parameters
    ----------
    tag : str
        Name.
    group : str
        ``tail``, ``common`` or ``frequent``, by training images.
    train_count, support : int
        Positive images in training and in the scored split.
    tp, fp, fn, tn : int
        Counts over scored images with a known label.
    precision, recall, f1, ap : float
        In [0, 1], larger is better; NaN without a positive in the scored split.
    threshold : float
        Logit from which the tag is given; infinite: never.
    low_support : bool
        Fewer than `LOW_SUPPORT` positives in the scored split.
    rule : str
        How the threshold was chosen, as the predictions record it; ``given`` if they do not.
    f1_low, f1_high : float
        95 % interval of F1 (Wilson's, of the Jaccard index behind it; products are the trials).
    f1_oracle : float
        F1 at the best threshold in hindsight: an upper bound, never a score.
    """

    tag: str
    group: str
    train_count: int
    support: int
    tp: int
    fp: int
    fn: int
    tn: int
    precision: float
    recall: float
    f1: float
    ap: float
    threshold: float
    low_support: bool
    rule: str = "given"
    f1_low: float = math.nan
    f1_high: float = math.nan
    f1_oracle: float = math.nan


@dataclass(frozen=True)
class GroupSummary:
    """Means over the tags of one scope that have a positive in the scored split.

    Parameters
    ----------
    scope : str
        ``all``, ``tail``, ``common``, ``frequent``, or a range of the tail such as ``tail 0-9``.
    n_tags : int
        Tags averaged.
    n_undefined : int
        Tags of the scope left out because they have no positive.
    macro_f1, macro_precision, macro_recall, macro_ap : float
        Means of the per-tag values, in [0, 1]; NaN if `n_tags` is 0.
    macro_f1_low, macro_f1_high : float
        95 % interval of `macro_f1`, see `intervals.macro_interval`.
    macro_f1_sklearn : float
        Mean F1 with 0 for undefined tags: the column that equals scikit-learn's default.
    macro_f1_oracle : float
        Mean F1 at each tag's best threshold in hindsight: an upper bound, never a score.
    n_never_predicted : int
        Averaged tags that no image was given.
    brier, calibration_error : float
        Of the probabilities (logistic of the logits), pooled over all known cells of the scope's
        tags, undefined tags included; smaller is better.
    """

    scope: str
    n_tags: int
    n_undefined: int
    macro_f1: float
    macro_f1_low: float
    macro_f1_high: float
    macro_precision: float
    macro_recall: float
    macro_ap: float
    macro_f1_sklearn: float = math.nan
    macro_f1_oracle: float = math.nan
    n_never_predicted: int = 0
    brier: float = math.nan
    calibration_error: float = math.nan


@dataclass(frozen=True)
class ScoreCard:
    """One model scored on one split; equal inputs give an equal card, byte for byte.

    Parameters
    ----------
    model : str
        Name to show, ``backbone · strategy``.
    split : str
        Split that was scored.
    n_images, n_products : int
        What was scored.
    tags : tuple of TagRow
        One row per tag in the catalogue's order.
    summaries : dict of str to GroupSummary
        By scope: those of `SCOPES`, then the ranges of the tail.
    micro_f1 : float
        F1 of the pooled cells.
    macro_f1_sklearn : float
        Mean F1 with 0 for undefined tags: scikit-learn's default, to reconcile with.
    samples : SampleScores
        Metrics of each image's tags as a whole.
    findings : tuple of Finding
        In the order they are numbered.
    provenance : dict
        Hashes and settings of everything that was read; no dates, no timings.
    """

    model: str
    split: str
    n_images: int
    n_products: int
    tags: tuple[TagRow, ...]
    summaries: dict[str, GroupSummary]
    micro_f1: float
    macro_f1_sklearn: float
    samples: SampleScores = NO_SAMPLES
    findings: tuple[Finding, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def undefined(self) -> tuple[TagRow, ...]:
        """Tags without a positive in the scored split: no F1, only false alarms."""
        return tuple(row for row in self.tags if not row.support)

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary: NaN as null, infinities as ``"inf"`` and ``"-inf"``."""
        return {"format": FORMAT, **plain(asdict(self))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ScoreCard:
        """Read what `to_json` made; raises as `retailtag.scoring.strict_json.parsed_file` does."""
        return parsed_file(cls, value, "scorecard", FORMAT, REMEDY)

    def save(self, folder: Path) -> None:
        """Write ``scorecard.json`` and its tables as CSV, each whole or not at all.

        ``scorecard.json`` is written last: if it exists, so do its tables.
        """
        folder = Path(folder)
        write_text(folder / "per_tag.csv", csv_text(_names(TagRow), self.tags))
        groups = csv_text(_names(GroupSummary), self.summaries.values())
        write_text(folder / "groups.csv", groups)
        columns = ("tag", "group", "train_count", "fp", "tn", "threshold")
        write_text(folder / "undefined_tags.csv", csv_text(columns, self.undefined))
        write_json(folder / "scorecard.json", self.to_json())

    @classmethod
    def load(cls, path: Path) -> ScoreCard:
        """Read ``scorecard.json`` (or the folder that holds it); raises as `from_json` does."""
        path = Path(path)
        return cls.from_json(read_json(path / "scorecard.json" if path.is_dir() else path))


def _names(row: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(row))
