"""A finished (backbone, strategy) pair: its latency, its whole cost, and what the report needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.errors import UnreadableImage
from retailtag.extraction.extract import ExtractSummary
from retailtag.predictions import Predictions
from retailtag.report.results import PairCost
from retailtag.runs.checks import none_readable
from retailtag.runs.stage import StageRecord
from retailtag.scoring.finding import Finding
from retailtag.store import EmbeddingSource

LATENCY_IMAGES = 110  # test images whose bytes the latency is measured on


@dataclass(frozen=True, eq=False)
class Pair:
    """One finished pair: its folder and its cost."""

    backbone: str
    strategy: str
    folder: Path
    cost: PairCost
    machines: dict[str, str]  # by stage of the cost: where it was measured, if that was recorded

    @property
    def name(self) -> str:
        """``backbone strategy``."""
        return f"{self.backbone} {self.strategy}"

    @property
    def predictions(self) -> Predictions:
        """Predictions of the held-out images."""
        return Predictions.load(self.folder / "predictions.npz")


def finished_pair(
    catalog: Catalog,
    store: EmbeddingSource,
    strategy: str,
    folder: Path,
    records: Mapping[str, StageRecord],
    latency: StageRecord,
) -> Pair:
    """A pair from the records of its stages, ``probe`` and ``finetune``, and of its latency."""
    # A store may hold other catalogues' images too: the training images pay for their share.
    embedding = len(catalog.rows("train")) * store.seconds / max(store.n_rows, 1)
    # A fine-tune starts from the probe's choice of C, so its cost includes the probe.
    paid = ("probe", "finetune") if strategy == "finetune" else ("probe",)
    cost = PairCost(
        extract_seconds=embedding,
        train_seconds=embedding + sum(records[stage].seconds for stage in paid),
        peak_memory_mib=records[strategy].peak_memory_mib,
        **latency.facts,
    )
    stages = {**{stage: records[stage] for stage in paid}, "latency": latency}
    machines = {
        name: "{processor} ({cores} cores, {device})".format_map(record.machine)
        for name, record in stages.items()
        if record.machine
    }
    return Pair(store.spec.backbone, strategy, folder, cost, machines)


def measure_pair(context: RunContext, folder: Path, weights: Mapping[str, Path]) -> dict[str, Any]:
    """Latency, throughput and size of a fitted pair, on test images; keys as in `PairCost`."""
    from retailtag.tagger.latency import measure_latency
    from retailtag.tagger.tagger import Tagger

    tagger = Tagger.load(folder, weights=weights, device=context.device, **context.limits)
    images = readable_images(context.catalog, tagger.pixels)
    latency = measure_latency(tagger, images)
    return {
        "latency_ms_p50": latency.p50_ms,
        "latency_ms_p95": latency.p95_ms,
        "images_per_second": latency.images_per_second,
        "parameters": tagger.parameters,
        "weights_mib": tagger.nbytes / 2**20,
    }


def readable_images(catalog: Catalog, decode: Callable[[bytes], object]) -> list[bytes]:
    """Bytes of the first `LATENCY_IMAGES` test images that `decode` accepts; at least one."""
    images: list[bytes] = []
    failed: list[tuple[str, str]] = []
    for row in catalog.rows("test").tolist():
        if len(images) == LATENCY_IMAGES:
            break
        try:
            data = catalog.images.read(row)
            decode(data)
        except UnreadableImage as error:
            failed.append((str(catalog.image_ids[row]), str(error)))
        else:
            images.append(data)
    if not images:
        raise UnreadableImage(none_readable(catalog, "test", failed))
    return images


def absent_finding(summary: ExtractSummary, n_images: int) -> Finding:
    """Finding that some of a catalogue's `n_images` have no embedding."""
    examples = ", ".join(list(summary.absent)[:3])
    return Finding(
        "unreadable-images",
        f"{len(summary.absent)} of {n_images:,} images could not be read ({examples}) and were "
        f"left out for {summary.store.spec.backbone}.",
        "See retailtag catalog check for the reason of each; repair or remove them.",
    )


def machine_findings(pairs: Sequence[Pair]) -> list[Finding]:
    """Which costs were measured on which machine, if there was more than one."""
    by_machine: dict[str, list[str]] = {}
    for pair in pairs:
        for stage, machine in pair.machines.items():
            by_machine.setdefault(machine, []).append(f"{stage} of {pair.name}")
    if len(by_machine) < 2:
        return []
    where = "; ".join(f"on {m}: {', '.join(stages)}" for m, stages in sorted(by_machine.items()))
    return [
        Finding(
            "several-machines",
            f"The costs were measured on {len(by_machine)} machines and cannot be compared across "
            f"them ({where}).",
            "Run the bake-off in a new folder on one machine to compare costs.",
        )
    ]
