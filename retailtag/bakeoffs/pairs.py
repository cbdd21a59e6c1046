"""A finished (backbone, strategy) pair: its latency, its whole cost, and what the report needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.errors import UnreadableImage
from retailtag.extraction.extract import ExtractSummary
from retailtag.predictions import Predictions
from retailtag.report.results import PairCost
from retailtag.runs.checks import none_readable
from retailtag.runs.stage import StageRecord
from retailtag.scoring.finding import Finding
from retailtag.scoring.strict_json import parsed
from retailtag.store import EmbeddingSource

if TYPE_CHECKING:
    from retailtag.tagger.tagger import Tagger

LATENCY_IMAGES = 110  # test images whose bytes the latency is measured on
BATCH = 32  # images at once, for the throughput


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
        """See `pair_name`."""
        return pair_name(self.backbone, self.strategy)

    @property
    def predictions(self) -> Predictions:
        """Predictions of the held-out images."""
        return Predictions.load(self.folder / "predictions.npz")


def pair_name(backbone: str, strategy: str) -> str:
    """``backbone strategy``."""
    return f"{backbone} {strategy}"


def embedding_seconds(catalog: Catalog, store: EmbeddingSource) -> float:
    """Seconds of embedding the training images: their share of all images of the store."""
    return len(catalog.rows("train")) * store.seconds / max(store.n_rows, 1)


def stages_of(strategy: str) -> tuple[str, ...]:
    """Stages that a pair pays for: a fine-tune starts from what the probe chose."""
    return ("probe", "finetune") if strategy == "finetune" else ("probe",)


def finished_pair(
    catalog: Catalog,
    store: EmbeddingSource,
    strategy: str,
    folder: Path,
    records: Mapping[str, StageRecord],
    latency: StageRecord,
) -> Pair:
    """A pair from the records of its stages, ``probe`` and ``finetune``, and that of latency."""
    embedding, paid = embedding_seconds(catalog, store), stages_of(strategy)
    known = {
        "extract_seconds": embedding,
        "train_seconds": embedding + sum(records[stage].seconds for stage in paid),
        "peak_memory_mib": records[strategy].peak_memory_mib,
        **{f"{stage}_seconds": records[stage].seconds for stage in paid},
    }
    cost = parsed(PairCost, {**latency.facts[pair_name(store.spec.backbone, strategy)], **known})
    stages = {**{stage: records[stage] for stage in paid}, "latency": latency}
    machines = {
        name: "{processor} ({cores} cores, {device})".format_map(record.machine)
        for name, record in stages.items()
        if record.machine
    }
    return Pair(store.spec.backbone, strategy, folder, cost, machines)


def measure_pairs(
    context: RunContext, models: Mapping[str, tuple[Path, Mapping[str, Path]]]
) -> dict[str, dict[str, Any]]:
    """Latency, throughput and size of fitted pairs on test images, keys as in `PairCost`.

    `models` gives the folder and the local weights of each pair by name. All are timed in turn, in
    groups where they do not fit into memory together.
    """
    from retailtag.tagger.latency import together
    from retailtag.tagger.loading import load_fitted

    def loader(folder: Path, weights: Mapping[str, Path]) -> Callable[[], Tagger]:
        return partial(
            load_fitted, folder, weights=weights, device=context.device, **context.limits
        )

    loaders = {name: loader(*model) for name, model in models.items()}
    facts: dict[str, dict[str, Any]] = {}
    groups = together(loaders, lambda tagger: tagger.nbytes, context.device)
    for group, taggers in enumerate(groups):
        images = readable_images(context.catalog, next(iter(taggers.values())).pixels)
        for name, of_pair in _timed(taggers, images).items():
            facts[name] = {**of_pair, "latency_group": group}
    return facts


def _timed(taggers: Mapping[str, Tagger], images: Sequence[bytes]) -> dict[str, dict[str, Any]]:
    """Facts of `measure_pairs` on taggers that are timed in turn."""
    from retailtag.tagger.latency import BATCHES, SINGLE, STAGES, tagging, time_in_turn

    singles = time_in_turn({n: tagging(t, images) for n, t in taggers.items()}, SINGLE)
    batches = time_in_turn({n: tagging(t, images, BATCH) for n, t in taggers.items()}, BATCHES)
    facts = {}
    for name, tagger in taggers.items():
        single = singles[name]
        facts[name] = {
            "latency_ms_p50": 1000 * single.typical().value,
            "latency_ms_low": 1000 * single.typical().low,
            "latency_ms_high": 1000 * single.typical().high,
            "latency_ms_p95": 1000 * single.quantile(0.95).value,
            "latency_ms_turns": [1000 * seconds for seconds in single.medians()],
            "latency_ms_stages": {s: 1000 * single.typical([s]).value for s in STAGES},
            "images_per_second": BATCH / batches[name].typical().value,
            "network_seconds": {
                n: timed[name].typical(["backbone"]).value
                for n, timed in ((1, singles), (BATCH, batches))
            },
            "parameters": tagger.parameters,
            "weights_mib": tagger.nbytes / 2**20,
        }
    return facts


def readable_images(catalog: Catalog, decode: Callable[[bytes], object]) -> list[bytes]:
    """Bytes of the first `LATENCY_IMAGES` test images that `decode` accepts; at least one."""
    rows = catalog.rows("test").tolist()
    reads = ((str(catalog.image_ids[row]), partial(catalog.images.read, row)) for row in rows)
    images, failed = _readable(reads, decode)
    if not images:
        raise UnreadableImage(none_readable(catalog, "test", failed))
    return images


def readable_sample(paths: Sequence[Path], decode: Callable[[bytes], object]) -> list[bytes]:
    """Bytes of the first `LATENCY_IMAGES` files that `decode` accepts; at least one."""

    def read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImage(f"cannot be read: {error.strerror or error}.") from error

    images, failed = _readable(((str(path), partial(read, path)) for path in paths), decode)
    if not images:
        name, why = failed[0] if failed else ("--sample", "names no image.")
        raise UnreadableImage(
            f"None of the {len(paths)} images of --sample is readable; {name} {why}"
        )
    return images


def _readable(
    reads: Iterable[tuple[str, Callable[[], bytes]]], decode: Callable[[bytes], object]
) -> tuple[list[bytes], list[tuple[str, str]]]:
    """Bytes of the first `LATENCY_IMAGES` that are readable, and the others before them."""
    images: list[bytes] = []
    failed: list[tuple[str, str]] = []
    for name, read in reads:
        if len(images) == LATENCY_IMAGES:
            break
        try:
            data = read()
            decode(data)
        except UnreadableImage as error:
            failed.append((name, str(error)))
        else:
            images.append(data)
    return images, failed


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
