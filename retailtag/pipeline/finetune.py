"""The fine-tune stage: last blocks and head retrained, epoch and thresholds from validation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.backbone import Backbone
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.decode import MAX_PIXELS
from retailtag.catalog.split import stratified_folds
from retailtag.errors import ArtefactError, DataError
from retailtag.files import write_text
from retailtag.finetune.artefact import Checkpoint
from retailtag.finetune.head import HeadInit
from retailtag.finetune.pixels import PixelSource
from retailtag.finetune.trainer import FinetuneConfig, FinetuneResult, predict, train
from retailtag.pipeline.evidence import copies_of_fitted, threshold_f1
from retailtag.pipeline.machine import describe_machine
from retailtag.pipeline.measure import measured
from retailtag.pipeline.probe import Features, load_rows
from retailtag.pipeline.stage import StageRecord, write_record
from retailtag.pipeline.sweep import FittedHead, fit_at
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.probes.fit import make_solver
from retailtag.probes.scaling import Standardiser, is_unit, mean_norm
from retailtag.probes.thresholds import Tuned, Tuning
from retailtag.progress import SILENT, Progress
from retailtag.scoring.metrics import average_precision_per_tag, macro
from retailtag.store import FeatureStore

FILES = ("checkpoint.safetensors", "checkpoint.json", "history.jsonl", "predictions.npz")
VALIDATION_SHARE = 0.1  # of the training images, when the catalogue has no val split


@dataclass(frozen=True, eq=False)
class FinetuneRun:
    """What a fine-tune made.

    Parameters
    ----------
    checkpoint : Checkpoint
    predictions : Predictions
        Of the test images that could be read.
    history : list of dict
        One row an epoch; see `FinetuneResult`.
    best_epoch : int
    record : StageRecord
    """

    checkpoint: Checkpoint
    predictions: Predictions
    history: list[dict[str, Any]]
    best_epoch: int
    record: StageRecord


def finetune_inputs(
    catalog: Catalog, store: FeatureStore, probe: Probe, config: FinetuneConfig
) -> dict[str, Any]:
    """Everything that the outputs of a fine-tune depend on."""
    return {
        "catalogue": catalog.digest,
        "cutoffs": asdict(catalog.table.cutoffs),
        "features": store.spec.digest,
        "embeddings": store.digest_for(catalog.image_ids.tolist()),
        "C": probe.C.tolist(),
        "scale": probe.scale,
        "settings": config.to_json(),
    }


def run_finetune(
    catalog: Catalog,
    store: FeatureStore,
    backbone: Backbone,
    probe: Probe,
    out: Path,
    config: FinetuneConfig | None = None,
    *,
    provenance: dict[str, Any] | None = None,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    progress: Progress = SILENT,
) -> FinetuneRun:
    """Retrain the last blocks and a head that starts from the probe; predict the test images.

    The head starts from a probe of the same strengths and scaling as `probe`, fitted on the part
    of the training images that is not used for validation: starting from `probe` itself would
    show the validation labels to the model whose epoch and thresholds they choose.

    Parameters
    ----------
    catalog : Catalog
        With a ``val`` split, that is the validation part; otherwise a tenth of the training
        images, stratified over tags, no product divided.
    store : FeatureStore
        Frozen embeddings of the same backbone, for the start of the head.
    backbone : Backbone
        Trained in place.
    probe : Probe
        Gives the strength C of each tag and the scaling; fitted on this catalogue and this store.
    out : Path
        Folder for ``checkpoint.safetensors``, ``checkpoint.json``, ``history.jsonl``,
        ``predictions.npz`` and ``stage.json``.
    config : FinetuneConfig, optional
    provenance : dict, optional
        Recorded in the predictions: where the catalogue was read from.
    workers : int
        Decoding threads.
    max_pixels : int
        Larger images are refused.
    allow_truncated : bool
        Accept files that end early. Both limits as the images were extracted with.
    progress : Progress

    Returns
    -------
    FinetuneRun

    Raises
    ------
    DataError
        If there are too few training images for a validation part, the loss diverges, or an
        image that has an embedding cannot be read within the limits given here.
    ArtefactError
        If the store holds no embedding of the training images, or the probe was fitted on
        another catalogue or store.
    """
    check_probe(catalog, store, probe)
    config = config or FinetuneConfig()
    tuning = Tuning(config.thresholds, config.objective, config.seed)
    inputs = finetune_inputs(catalog, store, probe, config)
    labels, device = catalog.table.labels, str(backbone.device.type)
    with measured(device, held=backbone_bytes(backbone)) as cost:
        fit, val_rows = _parts(catalog, store, config.seed)
        test_rows = load_rows(catalog, store, catalog.rows("test"), 0).rows
        solver = make_solver("torch", device)
        start = head_start(fit.X, fit_at(fit.X, labels[fit.rows], probe.C, solver, probe.scale))
        rows = np.concatenate([fit.rows, val_rows, test_rows]).tolist()
        pixels = PixelSource(
            catalog,
            backbone,
            rows,
            workers=workers,
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
        )
        result = train(
            backbone, start, pixels, labels, fit.rows, val_rows, _macro_ap, config, progress
        )
        tuned = tuning.tune(result.val_logits, labels[val_rows], catalog.table.group)
    facts = {
        **_facts(catalog, store, config, result),
        **(provenance or {}),
        "n_fit": len(fit.rows),
        **_evidence(catalog, store, _Rows(fit.rows, val_rows, test_rows), result, tuned, tuning),
    }
    checkpoint = _checkpoint(backbone, result, catalog.table.tags, tuned.thresholds, facts)
    checkpoint.save(out)  # hours of training; nothing that follows may lose them
    predictions = Predictions(
        image_ids=catalog.image_ids[test_rows],
        tags=catalog.table.tags,
        logits=predict(backbone, result.head, pixels, test_rows, config.batch_size),
        thresholds=tuned.thresholds,
        fitted_ids=catalog.image_ids[np.sort(np.concatenate([fit.rows, val_rows]))],
        provenance=facts,
    )
    predictions.save(out / "predictions.npz")
    write_text(out / "history.jsonl", _history_lines(result))
    record = write_record(out, FILES, inputs, cost, machine=describe_machine(device))
    return FinetuneRun(checkpoint, predictions, result.history, result.best_epoch, record)


def backbone_bytes(backbone: Backbone) -> int:
    """Memory of a backbone's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in backbone.module.state_dict().values())


def check_probe(catalog: Catalog, store: FeatureStore, probe: Probe) -> None:
    """Raise `ArtefactError` unless `probe` was fitted on this catalogue and this store.

    Its C belongs to its tags in their order, and was chosen on its training images: images that
    are held out now may have been among them.
    """
    differing = []
    if probe.facts.get("features") != store.spec.digest:
        fitted_on = probe.facts.get("backbone", "another backbone")
        differing.append(f"embeddings ({fitted_on} there, {store.spec.backbone} here)")
    if probe.tags != catalog.table.tags:
        differing.append(f"tags ({len(probe.tags)} there, {len(catalog.table.tags)} here)")
    elif probe.facts.get("catalog_digest") != catalog.digest:
        differing.append("images, labels or splits")
    if differing:
        raise ArtefactError(
            f"The probe was fitted on other {' and other '.join(differing)} than this fine-tune of "
            f"{catalog.path}; run `retailtag probe` again."
        )


def _facts(
    catalog: Catalog, store: FeatureStore, config: FinetuneConfig, result: FinetuneResult
) -> dict[str, Any]:
    return {
        "strategy": "finetune",
        "backbone": store.spec.backbone,
        "catalog_digest": catalog.digest,
        "features": store.spec.digest,
        "model": [store.spec.architecture, store.spec.preprocessing],
        "settings": config.to_json(),
        "best_epoch": result.best_epoch,
    }


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of the catalogue that are fitted, that validate, and that are predicted."""

    fit: NDArray[np.intp]
    val: NDArray[np.intp]
    test: NDArray[np.intp]


def _evidence(
    catalog: Catalog,
    store: FeatureStore,
    rows: _Rows,
    result: FinetuneResult,
    tuned: Tuned,
    tuning: Tuning,
) -> dict[str, Any]:
    """What the scorer warns by: copies of images, and how the thresholds do by cross-fit."""
    ids, fitted = catalog.image_ids, np.sort(np.concatenate([rows.fit, rows.val]))
    return {
        "n_val": len(rows.val),
        "copies": copies_of_fitted(store, ids[rows.test], ids[fitted]),
        "thresholds": tuned.facts,
        "threshold_f1": threshold_f1(
            catalog, rows.val, result.val_logits, tuned.thresholds, tuning
        ),
    }


def _checkpoint(
    backbone: Backbone,
    result: FinetuneResult,
    tags: tuple[str, ...],
    thresholds: NDArray[np.float32],
    facts: dict[str, Any],
) -> Checkpoint:
    weight, bias = result.head.folded()
    state = {k: v.detach().cpu() for k, v in backbone.module.state_dict().items()}
    return Checkpoint(backbone.id, state, tags, weight, bias, thresholds, facts)


def _parts(catalog: Catalog, store: FeatureStore, seed: int) -> tuple[Features, NDArray[np.intp]]:
    """Images that are fitted, with their embeddings, and rows of the validation part."""
    train = load_rows(catalog, store, catalog.rows("train"), 2)
    own = catalog.rows("val")
    if len(own):
        return train, load_rows(catalog, store, own, 1).rows
    n_val = round(VALIDATION_SHARE * len(train.rows))
    if n_val < 1:
        raise DataError(
            f"{catalog.path} has {len(train.rows)} training images, too few to hold a validation "
            "part back; add images or use the probe."
        )
    part = stratified_folds(
        catalog.table.labels[train.rows],
        catalog.group[train.rows],
        catalog.image_ids[train.rows],
        [len(train.rows) - n_val, n_val],
        seed,
    ).part
    return Features(train.rows[part == 0], train.X[part == 0]), train.rows[part == 1]


def head_start(X: NDArray[np.float32], fitted: FittedHead) -> HeadInit:
    """Express a fitted head as one on standardised embeddings, as a fine-tune trains it.

    Exact but for the kinds of scaling that divide every row by its norm, which no linear head
    does: there the rows of X (n_images, dim) are taken to have their mean norm.
    """
    if fitted.scaler.kind == "standardise":
        affine = fitted.scaler.affine
        return HeadInit(affine.mean, affine.scale, fitted.weight, fitted.bias)
    weight, bias = fitted.raw()
    if is_unit(fitted.scaler.kind):
        weight = weight / np.float32(mean_norm(X))
    affine = Standardiser.fit(X)
    return HeadInit(affine.mean, affine.scale, *affine.rescale(weight, bias))


def _macro_ap(logits: NDArray[np.float32], labels: NDArray[np.int8]) -> float:
    ap = average_precision_per_tag(logits, labels)
    return macro(ap, np.isfinite(ap))


def _history_lines(result: FinetuneResult) -> str:
    return "".join(json.dumps(row) + "\n" for row in result.history)
