"""The result of a bake-off: scorecards, costs, comparisons and the command that repeats it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.catalog.table import GroupCutoffs
from retailtag.errors import DataError
from retailtag.scoring.compare import Comparison
from retailtag.scoring.families import NO_FAMILIES, FamilyComparison
from retailtag.scoring.finding import Finding
from retailtag.scoring.scorecard import ScoreCard
from retailtag.scoring.strict_json import named_file, parsed_file, plain
from retailtag.settings import DecideSettings
from retailtag.statistics.timing import ratio

FORMAT = 1
SAME_LATENCY_RATIO = 1.10  # latencies within 10 % count as equal


@dataclass(frozen=True)
class T4Cost:
    """What a pair costs on an NVIDIA T4 in one arithmetic: value, low and high end of each.

    Of a run on a T4 latency and throughput are measured, or merged from one. Otherwise they are
    estimates with their range, and of the network alone: decoding is left to the host.
    """

    latency_ms: tuple[float, ...]  # of one image
    images_per_second: tuple[float, ...]  # in batches of 32
    extract_seconds: tuple[float, ...]  # of the training images
    train_seconds: tuple[float, ...]  # extraction included
    # Time that the same roofline gives for this machine over the time measured, by batch size.
    predicted_here: dict[str, float]
    is_measured: bool = False  # on the T4 that the bake-off ran on
    merged_from: str = ""  # machine, engine and date of a latency that was measured elsewhere


@dataclass(frozen=True)
class PairCost:
    """Costs of a pair on the machine of the bake-off; NaN where not measured."""

    extract_seconds: float  # embedding the training images; 0 for a strategy without a store
    train_seconds: float  # extraction of the training images included for a probe
    # Peak of training, model included: on a CPU above what the process held before, on CUDA what
    # was allocated on the device; see `retailtag.runs.measure`.
    peak_memory_mib: float
    latency_ms_p50: float  # typical for one image, from its bytes to its tags
    latency_ms_p95: float
    images_per_second: float  # in batches
    parameters: int  # of backbone and head
    weights_mib: float
    # The rest is unknown to bake-offs of earlier versions.
    latency_ms_low: float = math.nan  # 95 % interval of the median
    latency_ms_high: float = math.nan
    latency_ms_turns: tuple[float, ...] = ()  # medians of the turns, the same for all of a group
    latency_ms_stages: dict[str, float] = field(default_factory=dict)  # decode, ..., head
    latency_group: int = 0  # pairs timed in turn; one, unless memory is short
    probe_seconds: float = math.nan  # parts of `train_seconds`, beside `extract_seconds`
    finetune_seconds: float = math.nan  # of a fine-tune, which pays for its probe too
    t4: dict[str, T4Cost] = field(default_factory=dict)  # by arithmetic: float32, float16

    def flat(self) -> dict[str, float]:
        """Every figure by its name, one number each; turns and groups are left out."""
        flat: dict[str, float] = {}
        for name, value in asdict(self).items():
            if name == "latency_ms_stages":
                flat |= {f"latency_ms_{stage}": ms for stage, ms in value.items()}
            elif name == "t4":
                flat |= _flat_t4(value)
            elif name not in ("latency_ms_turns", "latency_group"):
                flat[name] = value
        return flat

    def slowed(self, factor: float) -> PairCost:
        """The cost if every timed image had taken `factor` times as long."""
        return replace(
            self,
            latency_ms_p50=factor * self.latency_ms_p50,
            latency_ms_p95=factor * self.latency_ms_p95,
            latency_ms_low=factor * self.latency_ms_low,
            latency_ms_high=factor * self.latency_ms_high,
            latency_ms_turns=tuple(factor * ms for ms in self.latency_ms_turns),
        )

    def is_as_fast_as(self, other: PairCost) -> bool:
        """Whether the latencies are within 10 % of one another, or the timings do not tell.

        Pairs timed in turn are compared turn by turn; others by whether their intervals overlap.
        """
        a, b = self.latency_ms_p50, other.latency_ms_p50
        if not (a > 0 and b > 0):  # not measured: as slow as can be
            return math.isnan(a) and math.isnan(b)
        if max(a, b) <= SAME_LATENCY_RATIO * min(a, b):
            return True
        turns = self.latency_ms_turns, other.latency_ms_turns
        if self.latency_group == other.latency_group and 0 < len(turns[0]) == len(turns[1]):
            compared = ratio(*turns)
            return compared.low <= 1 <= compared.high
        # Bake-offs of earlier versions have no intervals: NaN, of which every comparison is false.
        return (
            self.latency_ms_low <= other.latency_ms_high
            and other.latency_ms_low <= self.latency_ms_high
        )


def _flat_t4(costs: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {
        f"t4_{arithmetic}_{name}{end}": figure
        for arithmetic, cost in costs.items()
        for name, figures in cost.items()
        if isinstance(figures, tuple)
        for end, figure in zip(("", "_low", "_high"), figures, strict=False)
    }


@dataclass(frozen=True)
class PairResult:
    """One (backbone, strategy) pair with its scorecard and costs."""

    backbone: str  # resolved id, e.g. ``timm:resnet50.a1_in1k``
    strategy: str  # ``probe`` or ``finetune``
    scorecard: ScoreCard  # on the held-out split
    cost: PairCost

    @property
    def name(self) -> str:
        """``backbone · strategy``: what comparisons and tables call the pair."""
        return f"{self.backbone} · {self.strategy}"


@dataclass(frozen=True)
class Rule:
    """Budgets and weight of the decision; by default nothing is ruled out, and all tags count.

    Raises `ValueError` if a number is out of range.
    """

    max_latency_ms: float = math.inf  # of one image
    max_train_hours: float = math.inf
    max_memory_gib: float = math.inf  # peak of training
    tail_weight: float = 0.0  # share of tail macro-F1 in the score that ranks, in [0, 1]
    # Of the machine, in any currency: costs are shown in it. It decides nothing, because money
    # grows with the time that is compared anyway.
    price_per_hour: float = math.nan

    def __post_init__(self) -> None:
        limits = (self.max_latency_ms, self.max_train_hours, self.max_memory_gib)
        if not (all(limit > 0 for limit in limits) and 0 <= self.tail_weight <= 1):
            raise ValueError(f"{self} has a number out of range")

    @classmethod
    def of(cls, settings: DecideSettings) -> Rule:
        """The rule that settings ask for: a limit of None is none."""
        given = {f.name: getattr(settings, f.name) for f in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def weighted(self, all_tags: float, tail: float) -> float:
        """Weighted mean of a figure over all tags and over the tail; the first without a tail."""
        if math.isnan(tail) or not self.tail_weight:
            return all_tags
        return (1 - self.tail_weight) * all_tags + self.tail_weight * tail

    def excess(self, cost: PairCost) -> str:
        """Budgets that a cost exceeds, in words; empty if none. An unknown cost exceeds any."""
        found = [
            f"{'unknown' if math.isnan(value) else f'{value:.3g}'} {unit}, over {limit:.3g}"
            for value, limit, unit in (
                (cost.latency_ms_p50, self.max_latency_ms, "ms an image"),
                (cost.train_seconds / 3600, self.max_train_hours, "h of training"),
                (cost.peak_memory_mib / 1024, self.max_memory_gib, "GiB of memory"),
            )
            if math.isfinite(limit) and not value <= limit
        ]
        return " and ".join(found)


@dataclass(frozen=True)
class BakeoffResult:
    """Everything that the decision and the report read.

    `DataError` if a pair appears twice, or the pairs were scored on different splits or tags.
    """

    catalog: dict[str, Any]  # as `describe_catalog` gives it
    pairs: tuple[PairResult, ...]  # all scored on the same images
    comparisons: tuple[Comparison, ...]  # of every two pairs, by their names
    machine: dict[str, Any]  # processor, memory, device, versions; shown as it is
    command: str  # repeats the bake-off
    seed: int
    findings: tuple[Finding, ...] = ()  # on the bake-off as a whole
    rule: Rule = Rule()  # what the decision may spend, and what it weighs
    names: tuple[tuple[str, str], ...] = ()  # (backbone id, short name), where a user gave one
    families: FamilyComparison = NO_FAMILIES  # by training count
    # The pair that the report recommends: a later version may decide otherwise. Empty before the
    # decision, and in files of earlier versions.
    recommended: str = ""

    def __post_init__(self) -> None:
        repeated = [name for name, n in Counter(p.name for p in self.pairs).items() if n > 1]
        if repeated:
            raise DataError(f"The bake-off holds {repeated[0]} twice; keep one of them.")
        if self.recommended and self.recommended not in {p.name for p in self.pairs}:
            raise DataError(
                f"The bake-off recommends {self.recommended}, which is none of its pairs."
            )
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
        """Pairs by macro-F1 in the population (weighted with its tail by the rule), best first.

        Of equals probes first, then by name.
        """
        # a fine-tune that kept its probe equals it and ranks after it
        return tuple(
            sorted(self.pairs, key=lambda p: (-self._rankable(p), p.strategy != "probe", p.name))
        )

    @property
    def cutoffs(self) -> dict[str, int]:
        """Training counts that bound the groups of tags: ``tail`` and ``frequent``."""
        return {**asdict(GroupCutoffs()), **self.catalog.get("cutoffs", {})}

    @property
    def distinct(self) -> tuple[PairResult, ...]:
        """Pairs of the ranking without fine-tunes that kept a probe among them."""
        probed = {p.backbone for p in self.pairs if p.strategy == "probe"}
        return tuple(
            p
            for p in self.ranking
            if not (
                p.strategy != "probe"
                and p.backbone in probed
                and any(f.code == "probe-kept" for f in p.scorecard.findings)
            )
        )

    def score(self, pair: PairResult) -> float:
        """What the pair is ranked by; NaN without a tag."""
        summaries = pair.scorecard.summaries
        return self.rule.weighted(summaries["all"].best_estimate, summaries["tail"].best_estimate)

    def _rankable(self, pair: PairResult) -> float:
        """Score, or -1 where it is undefined: NaN has no order."""
        value = self.score(pair)
        return -1.0 if math.isnan(value) else value

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
        pairs = [{**plain(asdict(p)), "scorecard": p.scorecard.to_json()} for p in self.pairs]
        comparisons = [c.to_json() for c in self.comparisons]
        value = {**plain(asdict(self)), "pairs": pairs, "comparisons": comparisons}
        return {"format": FORMAT, **value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BakeoffResult:
        """Read what `to_json` made; raises as `retailtag.scoring.strict_json.parsed_file` does."""
        return parsed_file(cls, value, "bake-off result", FORMAT, "run `retailtag bakeoff` again")

    @classmethod
    def load(cls, path: Path) -> BakeoffResult:
        """Read ``bakeoff.json``; raises as `from_json` does."""
        return named_file(path, cls.from_json)


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
