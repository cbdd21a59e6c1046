"""The result of a bake-off: scorecards, costs, comparisons and the command that repeats it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.errors import ArtefactError, DataError
from retailtag.files import read_json
from retailtag.scoring.compare import Comparison
from retailtag.scoring.finding import Finding
from retailtag.scoring.scorecard import ScoreCard
from retailtag.scoring.strict_json import plain, row_from

FORMAT = 1


@dataclass(frozen=True)
class PairCost:
    """Costs of a pair on the machine of the bake-off; NaN where not measured.

    Parameters
    ----------
    extract_seconds : float
        Embedding the training images; 0 for a strategy that needs no store.
    train_seconds : float
        Training cost, extraction of the training images included for a probe.
    peak_memory_mib : float
        Peak of training, model included: on a CPU above what the process held before, on CUDA
        what was allocated on the device; see `retailtag.runs.measure`.
    latency_ms_p50, latency_ms_p95 : float
        One image, from its bytes to its tags.
    images_per_second : float
        In batches; larger is better.
    parameters : int
        Of backbone and head.
    weights_mib : float
        Size of the weights.
    """

    extract_seconds: float
    train_seconds: float
    peak_memory_mib: float
    latency_ms_p50: float
    latency_ms_p95: float
    images_per_second: float
    parameters: int
    weights_mib: float


@dataclass(frozen=True)
class PairResult:
    """One (backbone, strategy) pair with its scorecard and costs.

    Parameters
    ----------
    backbone : str
        Resolved id, e.g. ``timm:resnet50.a1_in1k``.
    strategy : str
        ``probe`` or ``finetune``.
    scorecard : ScoreCard
        On the held-out split.
    cost : PairCost
    """

    backbone: str
    strategy: str
    scorecard: ScoreCard
    cost: PairCost

    @property
    def name(self) -> str:
        """``backbone · strategy``: what comparisons and tables call the pair."""
        return f"{self.backbone} · {self.strategy}"


@dataclass(frozen=True)
class BakeoffResult:
    """Everything that the decision and the report read.

    Parameters
    ----------
    catalog : dict
        As `describe_catalog` gives it.
    pairs : tuple of PairResult
        All scored on the same images.
    comparisons : tuple of Comparison
        Of every two pairs, by their names.
    machine : dict of str to str, int or float
        Processor, memory, device, versions; shown as it is.
    command : str
        Command line that repeats the bake-off.
    seed : int
        Of everything random.
    findings : tuple of Finding
        On the bake-off as a whole; each scorecard also has its own.

    Raises
    ------
    DataError
        If a pair appears twice, or the pairs were scored on different splits or tags.
    """

    catalog: dict[str, Any]
    pairs: tuple[PairResult, ...]
    comparisons: tuple[Comparison, ...]
    machine: dict[str, Any]
    command: str
    seed: int
    findings: tuple[Finding, ...] = field(default=())

    def __post_init__(self) -> None:
        repeated = [name for name, n in Counter(p.name for p in self.pairs).items() if n > 1]
        if repeated:
            raise DataError(f"The bake-off holds {repeated[0]} twice; keep one of them.")
        scored = {
            (p.scorecard.split, p.scorecard.n_images, tuple(r.tag for r in p.scorecard.tags))
            for p in self.pairs
        }
        if len(scored) > 1:
            raise DataError(
                "The pairs were scored on different splits, images or tags and cannot be ranked; "
                "score all of them on one catalogue and split."
            )

    @property
    def ranking(self) -> tuple[PairResult, ...]:
        """Pairs by macro-F1 over all tags, best first; of equals probes first, then by name."""
        # a fine-tune that kept its probe equals it and ranks after it
        return tuple(
            sorted(self.pairs, key=lambda p: (-_rankable(p), p.strategy != "probe", p.name))
        )

    def pair(self, name: str) -> PairResult:
        """Pair of that name."""
        return next(p for p in self.pairs if p.name == name)

    def comparison(self, a: str, b: str, scope: str) -> Comparison | None:
        """Comparison of `a` minus `b` over a scope; None if it was not made."""
        for c in self.comparisons:
            if c.scope == scope and (c.a, c.b) == (a, b):
                return c
            if c.scope == scope and (c.b, c.a) == (a, b):
                return c.reversed()
        return None

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary."""
        return {
            "format": FORMAT,
            "catalog": plain(self.catalog),
            "pairs": [
                {
                    "backbone": p.backbone,
                    "strategy": p.strategy,
                    "scorecard": p.scorecard.to_json(),
                    "cost": plain(asdict(p.cost)),
                }
                for p in self.pairs
            ],
            "comparisons": [c.to_json() for c in self.comparisons],
            "machine": plain(self.machine),
            "command": self.command,
            "seed": self.seed,
            "findings": [asdict(f) for f in self.findings],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BakeoffResult:
        """Read what `to_json` made.

        Raises
        ------
        ArtefactError
            If it was written by another format.
        DataError
            If it is not the result of a bake-off.
        """
        if not isinstance(value, dict) or "format" not in value:
            raise DataError("This is not the result of a bake-off; run `retailtag bakeoff` again.")
        if value["format"] != FORMAT:
            raise ArtefactError(
                f"The bake-off has format {value['format']}, this version reads {FORMAT}; "
                "run `retailtag bakeoff` again."
            )
        try:
            return cls(
                catalog=value["catalog"],
                pairs=tuple(_pair_from(p) for p in value["pairs"]),
                comparisons=tuple(Comparison.from_json(c) for c in value["comparisons"]),
                machine=value["machine"],
                command=value["command"],
                seed=value["seed"],
                findings=tuple(Finding(**f) for f in value["findings"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"The bake-off's result is damaged ({error!r}); run `retailtag bakeoff` again."
            ) from error

    @classmethod
    def load(cls, path: Path) -> BakeoffResult:
        """Read ``bakeoff.json``; raises as `from_json` does."""
        return cls.from_json(read_json(path))


def _pair_from(value: dict[str, Any]) -> PairResult:
    return PairResult(
        backbone=value["backbone"],
        strategy=value["strategy"],
        scorecard=ScoreCard.from_json(value["scorecard"]),
        cost=row_from(PairCost, value["cost"]),
    )


def _rankable(pair: PairResult) -> float:
    """Macro-F1, or -1 where it is undefined: NaN has no order."""
    value = pair.scorecard.summaries["all"].macro_f1
    return -1.0 if math.isnan(value) else value


def describe_catalog(catalog: Catalog) -> dict[str, Any]:
    """Facts on a catalogue for the report: name, digest, sizes, groups and cut-offs."""
    table = catalog.table
    return {
        "name": catalog.path.name,
        "digest": catalog.digest,
        "images": {split: len(catalog.rows(split)) for split in SPLITS},
        "products": len(set(catalog.group.tolist())),
        "tags": len(table.tags),
        "tags_by_group": dict(Counter(table.group.tolist())),
        "cutoffs": {"tail": table.cutoffs.tail, "frequent": table.cutoffs.frequent},
        "labels_per_image": round(float((table.labels == 1).sum(axis=1).mean()), 3)
        if len(catalog)
        else 0.0,
    }
