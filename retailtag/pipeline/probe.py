"""The probe stage: a feature store and labels in; probe, sweep table and predictions out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.split import k_folds
from retailtag.errors import ArtefactError, DataError, UsageError, check_seed
from retailtag.files import write_whole
from retailtag.pipeline.checks import none_readable
from retailtag.pipeline.evidence import copies_of_fitted, threshold_f1
from retailtag.pipeline.machine import describe_machine
from retailtag.pipeline.measure import measured
from retailtag.pipeline.stage import StageRecord, write_record
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.probes.fit import SOLVERS, make_solver
from retailtag.probes.scaling import Standardiser
from retailtag.probes.sweep import (
    CHOICES,
    DEFAULT_GRID,
    OutOfFold,
    choose_C,
    parse_grid,
    sweep_findings,
    sweep_out_of_fold,
    sweep_rows,
)
from retailtag.probes.thresholds import Tuning
from retailtag.progress import SILENT, Progress
from retailtag.scoring.metrics import average_precision_per_tag, macro
from retailtag.store import NOT_EXTRACTED, EmbeddingSource

FILES = ("probe.safetensors", "probe.json", "sweep.parquet", "predictions.npz")


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a probe run; all are recorded and make a finished run current or stale.

    Parameters
    ----------
    grid : str
        ``START:STOP:N`` or a list; see `retailtag.probes.sweep.parse_grid`.
    folds : int
        Folds of the out-of-fold scores, at least 2.
    choose : str
        How C is chosen: ``per-group`` or ``global``.
    thresholds : str
        Threshold rule, or ``auto``; see `retailtag.probes.thresholds.Tuning`.
    solver : str
        ``torch``, ``cuml`` or ``sklearn``.
    seed : int
        Of the folds and of bagged thresholds.
    objective : str
        What thresholds are tuned for: ``f1``, ``fbeta:B`` or ``precision:P``.
    """

    grid: str = DEFAULT_GRID
    folds: int = 5
    choose: str = "per-group"
    thresholds: str = "auto"
    solver: str = "torch"
    seed: int = 0
    objective: str = "f1"

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UsageError(f"--folds {self.folds} is too few; use at least 2.")
        parse_grid(self.grid)
        for option, value, known in (
            ("--choose-C", self.choose, CHOICES),
            ("--solver", self.solver, SOLVERS),
        ):
            if value not in known:
                raise UsageError(f"{option} {value} is unknown; use one of {', '.join(known)}.")
        check_seed(self.seed)
        _ = self.tuning  # refuses an unknown rule or objective

    @property
    def tuning(self) -> Tuning:
        """How thresholds are tuned."""
        return Tuning(self.thresholds, self.objective, self.seed)


@dataclass(frozen=True, eq=False)
class ProbeRun:
    """What a probe run made.

    Parameters
    ----------
    probe : Probe
    predictions : Predictions
        Of every image outside the training split that has an embedding.
    findings : list of (code, sentence, remedy)
    n_absent : int
        Images of the catalogue that have no embedding and took no part.
    record : StageRecord
    """

    probe: Probe
    predictions: Predictions
    findings: list[tuple[str, str, str]]
    n_absent: int
    record: StageRecord


def probe_inputs(
    catalog: Catalog, store: EmbeddingSource, settings: ProbeSettings
) -> dict[str, Any]:
    """Everything that the outputs of a probe run depend on."""
    return {
        "catalogue": catalog.digest,
        "cutoffs": asdict(catalog.table.cutoffs),
        "features": store.spec.digest,
        "embeddings": store.digest_for(catalog.image_ids.tolist()),
        "settings": asdict(settings),
    }


def run_probe(
    catalog: Catalog,
    store: EmbeddingSource,
    out: Path,
    settings: ProbeSettings | None = None,
    *,
    provenance: dict[str, Any] | None = None,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> ProbeRun:
    """Sweep C out of fold, choose C and thresholds, refit on all training images, predict.

    Parameters
    ----------
    catalog : Catalog
    store : EmbeddingSource
        Embeddings of the catalogue's images.
    out : Path
        Folder for ``probe.safetensors``, ``probe.json``, ``sweep.parquet``, ``predictions.npz``
        and ``stage.json``; what stands there is replaced file by file.
    settings : ProbeSettings, optional
    provenance : dict, optional
        Recorded in the predictions: where the catalogue was read from.
    device : str
        ``cpu`` or ``cuda``.
    progress : Progress

    Returns
    -------
    ProbeRun

    Raises
    ------
    ArtefactError
        If the store holds no embedding of a training image.
    DataError
        If there are fewer training images than folds.
    """
    settings = settings or ProbeSettings()
    inputs = probe_inputs(catalog, store, settings)
    with measured(device) as cost:
        train = load_rows(catalog, store, catalog.rows("train"), settings.folds)
        rest = load_rows(catalog, store, catalog.rows("val", "test"), 0)
        sweep, choice = _sweep(catalog, train, settings, device, progress)
        labels, group = catalog.table.labels[train.rows], catalog.table.group
        scores = sweep.logits(choice)
        tuned = settings.tuning.tune(scores, labels, group, sweep.fold)
        weight, bias = fit_at(train.X, labels, sweep.C[choice], settings.solver, device)
    facts = {
        **_provenance(catalog, store, settings, provenance),
        "out_of_fold": _out_of_fold_summary(sweep, choice, group),
        "copies": copies_of_fitted(
            store, catalog.image_ids[rest.rows], catalog.image_ids[train.rows]
        ),
        "thresholds": tuned.facts,
        "threshold_f1": threshold_f1(
            catalog, train.rows, scores, tuned.thresholds, settings.tuning, sweep.fold
        ),
    }
    probe = Probe(catalog.table.tags, weight, bias, tuned.thresholds, sweep.C[choice], facts)
    predictions = Predictions(
        image_ids=catalog.image_ids[rest.rows],
        tags=probe.tags,
        logits=probe.logits(rest.X),
        thresholds=tuned.thresholds,
        fitted_ids=catalog.image_ids[train.rows],
        provenance=facts,
    )
    probe.save(out)
    predictions.save(out / "predictions.npz")
    _write_table(out / "sweep.parquet", sweep_rows(sweep, catalog.table.tags, group))
    findings = sweep_findings(sweep, choice, group)
    found = {"findings": findings, "n_fits": int(sweep.ap.size * len(sweep.fits))}
    record = write_record(out, FILES, inputs, cost, facts=found, machine=describe_machine(device))
    n_absent = len(catalog) - len(train.rows) - len(rest.rows)
    return ProbeRun(probe, predictions, findings, n_absent, record)


def _provenance(
    catalog: Catalog,
    store: EmbeddingSource,
    settings: ProbeSettings,
    provenance: dict[str, Any] | None,
) -> dict[str, Any]:
    """Where a probe comes from; no dates or timings, so that equal runs give equal files."""
    return {
        "strategy": "probe",
        "backbone": store.spec.backbone,
        **(provenance or {}),
        "catalog_digest": catalog.digest,
        "features": store.spec.digest,
        "stored_as": {"engine": store.spec.engine, "dtype": store.spec.dtype},
        "settings": asdict(settings),
    }


@dataclass(frozen=True, eq=False)
class Features:
    """Rows of a catalogue that have an embedding: rows (n,) and X float32 (n, dim)."""

    rows: NDArray[np.intp]
    X: NDArray[np.float32]


def load_rows(
    catalog: Catalog, store: EmbeddingSource, rows: NDArray[np.intp], at_least: int
) -> Features:
    """Embeddings of `rows`, without the images that have none.

    Raises
    ------
    ArtefactError
        If rows were asked for and the store has none of them.
    DataError
        If none of them could be read, or fewer than `at_least` are left.
    """
    view = store.load(catalog.image_ids[rows].tolist())
    if len(rows) and not view.found.any() and NOT_EXTRACTED not in view.absent.values():
        splits = " and ".join(np.unique(catalog.split[rows]).tolist())
        raise DataError(none_readable(catalog, splits, list(view.absent.items())))
    if len(rows) and not view.found.any():
        raise ArtefactError(
            f"{store.path} holds no embedding of this catalogue's images; run retailtag extract "
            f"with --backbone {store.spec.backbone} first."
        )
    if int(view.found.sum()) < at_least:
        raise DataError(
            f"{catalog.path} has {int(view.found.sum())} usable training images for {at_least} "
            "folds; use fewer --folds or more images."
        )
    return Features(rows[view.found], view.X)


def fit_at(
    X: NDArray[np.float32], Y: NDArray[np.int8], C: NDArray[np.float64], solver: str, device: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Head on raw embeddings with strength C (n_tags,) of each tag: weight, bias."""
    scaler = Standardiser.fit(X)
    weight, bias = fit_standardised(scaler.transform(X), Y, C, solver, device)
    return scaler.unscale(weight, bias)


def fit_standardised(
    Z: NDArray[np.float32], Y: NDArray[np.int8], C: NDArray[np.float64], solver: str, device: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Head on standardised embeddings with strength C (n_tags,) of each tag: weight, bias."""
    grid, index = np.unique(C, return_inverse=True)
    fits = make_solver(solver, device)(Z, Y, grid)
    tag = np.arange(Y.shape[1])
    return fits.weight[index, tag], fits.bias[index, tag]


def _sweep(
    catalog: Catalog, train: Features, settings: ProbeSettings, device: str, progress: Progress
) -> tuple[OutOfFold, NDArray[np.intp]]:
    labels = catalog.table.labels[train.rows]
    fold = k_folds(
        labels,
        catalog.group[train.rows],
        catalog.image_ids[train.rows],
        settings.folds,
        settings.seed,
    )
    sweep = sweep_out_of_fold(
        train.X,
        labels,
        fold,
        parse_grid(settings.grid),
        make_solver(settings.solver, device),
        average_precision_per_tag,
        progress,
    )
    return sweep, choose_C(sweep.ap, catalog.table.group, settings.choose)


def _out_of_fold_summary(
    sweep: OutOfFold, choice: NDArray[np.intp], group: NDArray[np.str_]
) -> dict[str, Any]:
    """Macro-AP and chosen C, over all tags and per group; None for a group without a score."""
    ap = sweep.ap[choice, np.arange(len(choice))]
    summary: dict[str, Any] = {}
    for name in ("all", *np.unique(group).tolist()):
        inside = np.isfinite(ap) & ((group == name) | (name == "all"))
        value = macro(ap, inside) if inside.any() else None
        members = choice if name == "all" else choice[group == name]
        summary[name] = {"macro_ap": value, "C": np.unique(sweep.C[members]).tolist()}
    return summary


def _write_table(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with write_whole(path) as handle:
        parquet.write_table(pa.table(columns), handle)
