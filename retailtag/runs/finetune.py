"""A run of a fine-tune: last blocks and head retrained, the epoch chosen by validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.factory import load_backbone
from retailtag.context import RunContext
from retailtag.errors import ArtefactError, UsageError
from retailtag.files import parse_json, write_text
from retailtag.finetuning.artefact import Checkpoint
from retailtag.finetuning.checks import check_finetune_settings
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.runs.finetune_start import check_start
from retailtag.runs.finetune_training import FinetuneTraining, backbone_bytes, finetune_inputs
from retailtag.runs.machine import describe_machine
from retailtag.runs.measure import measured
from retailtag.runs.stage import StageRecord, read_record, why_stale, write_record
from retailtag.settings import FinetuneSettings
from retailtag.store import FeatureStore
from retailtag.thresholds.tuning import Tuning

FILES = ("history.jsonl", "predictions.npz")  # besides those of the checkpoint


@dataclass(frozen=True, eq=False)
class FinetuneRun:
    """A finished fine-tune."""

    checkpoint: Checkpoint
    predictions: Predictions  # of the test images that could be read
    history: list[dict[str, Any]]  # one row per epoch; see `FinetuneResult`
    best_epoch: int
    record: StageRecord

    @classmethod
    def load(cls, folder: Path) -> FinetuneRun | None:
        """A finished run from its folder; None if its record cannot be read."""
        record = read_record(folder)
        if record is None:
            return None
        checkpoint = Checkpoint.load(folder)
        return cls(
            checkpoint,
            Predictions.load(folder / "predictions.npz"),
            read_history(folder),
            checkpoint.facts["best_epoch"],
            record,
        )


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Rows of ``history.jsonl``, one per epoch; `ArtefactError` if it is damaged."""
    history = folder / "history.jsonl"
    try:
        return [parse_json(line) for line in history.read_bytes().splitlines()]
    except ValueError as error:
        raise ArtefactError(f"{history} is damaged ({error}); run finetune again.") from error


def run_finetune(
    context: RunContext,
    store: FeatureStore,
    backbone: Backbone,
    probe: Probe,
    out: Path,
    config: FinetuneSettings | None = None,
) -> FinetuneRun:
    """Retrain the last blocks and a head that starts from the probe; predict the test images.

    The head starts from a probe of the same C and scaling as `probe`, fitted on the training images
    without the validation set: `probe` itself has seen the labels of the images that choose the
    epoch.

    `store` holds frozen embeddings of the same backbone, for the start of the head; `backbone` is
    trained in place; `probe`, fitted on this catalogue and this store, gives the strength C of each
    tag and the scaling. `out` is the folder for the files of `Checkpoint.save`,
    ``history.jsonl``, ``predictions.npz``, ``log.jsonl`` and ``stage.json``; until the end also for
    ``resume.pt``, from which the same call continues after a kill.

    Raises
    ------
    DataError
        If there are too few training images for a validation set, the loss diverges, or an
        image that has an embedding cannot be read within the limits given here.
    ArtefactError
        If the store holds no embedding of the training images, or the probe was fitted on
        another catalogue or store.
    """
    check_start(context.catalog, store, probe)
    config = config or FinetuneSettings()
    check_finetune_settings(config)
    Tuning(config.thresholds, config.objective)  # refuses unknown rules before the training
    if config.blocks == "scratch":
        device = str(backbone.device)
        backbone = load_backbone(backbone.id, device=device, random_weights=True, seed=config.seed)
    device = str(backbone.device.type)
    training = FinetuneTraining(context, store, backbone, probe, out, config)
    with measured(device, held=backbone_bytes(backbone)) as cost:
        training.train()
    # A training that continues after a kill costs what it took before the kill too.
    cost.seconds += training.result.earlier_seconds
    facts = {**training.facts(), **context.provenance}
    checkpoint = training.checkpoint(facts)
    if context.ranks.is_first:
        checkpoint.save(out)  # before the predictions: if they fail, the training is not lost
    predictions = training.predictions(facts)
    history = training.result.history

    def write() -> StageRecord:
        predictions.save(out / "predictions.npz")
        write_text(out / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        files = (*checkpoint.files, *FILES)
        return write_record(out, files, training.inputs, cost, machine=describe_machine(device))

    record = context.ranks.from_first(write)
    training.remove_snapshots()
    return FinetuneRun(checkpoint, predictions, history, training.result.best_epoch, record)


def run_seeds(
    context: RunContext,
    store: FeatureStore,
    load: Callable[[], Backbone],
    probe: Probe,
    out: Path,
    config: FinetuneSettings,
    n_seeds: int,
) -> list[FinetuneRun]:
    """The same fine-tune under `n_seeds` seeds from ``config.seed`` on, in folders ``seed-S``.

    `load` loads the backbone again for every seed. A seed that was finished from the same inputs is
    reused. `retailtag compare` treats runs that differ in their seed alone as one model, and counts
    their spread in its uncertainty.
    """
    if n_seeds < 1:
        raise UsageError(f"--seeds {n_seeds} must be at least 1.")
    runs = []
    for seed in range(config.seed, config.seed + n_seeds):
        settings = replace(config, seed=seed)
        folder = out / f"seed-{seed}"
        inputs = finetune_inputs(context.catalog, store, probe, settings)
        why = context.ranks.from_first(partial(why_stale, folder, inputs))
        run = None if why else FinetuneRun.load(folder)
        context.progress.say(f"seed {seed}: " + ("reused" if run else "training"))
        # Training changes the backbone in place: every seed loads its own.
        runs.append(run or run_finetune(context, store, load(), probe, folder, settings))
    return runs
