"""The probe stage: a feature store and labels in; probe, sweep table and predictions out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.files import write_whole
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.probes.checkpoints import SweepCheckpoints
from retailtag.probes.grid import parse_grid
from retailtag.probes.heads.head import LinearFits
from retailtag.probes.heads.knn import KnnFits, KnnVote
from retailtag.probes.scaling import parse_scales
from retailtag.probes.solver.fit import make_solver
from retailtag.probes.sweep_findings import grid_findings, status_findings, troubled_tags
from retailtag.runs.checks import none_readable
from retailtag.runs.evidence import copies_of_fitted, threshold_f1
from retailtag.runs.heads import (
    HeadChoice,
    ScoredHead,
    choose_head,
    head_rows,
    parse_heads,
)
from retailtag.runs.machine import describe_machine
from retailtag.runs.measure import measured
from retailtag.runs.stage import StageRecord, write_record
from retailtag.runs.sweep import (
    Chosen,
    FittedHead,
    fit_at,
    run_checkpoints,
    sweep_and_choose,
)
from retailtag.scoring.metrics import macro
from retailtag.settings import ProbeSettings
from retailtag.store import NOT_EXTRACTED, EmbeddingSource
from retailtag.thresholds.tuning import Tuning

FILES = ("sweep.parquet", "heads.parquet", "predictions.npz")  # beside those of the probe


NO_TEXTS = "head text skipped; only a single image-text model, such as clip, embeds tag names."


def tuning_of(settings: ProbeSettings) -> Tuning:
    """How thresholds are tuned."""
    return Tuning(settings.thresholds, settings.objective, settings.seed)


def wants_text(settings: ProbeSettings) -> bool:
    """Whether the head ``text`` was asked for by name."""
    return "text" in parse_heads(settings.heads) and settings.heads != ProbeSettings.heads


def check_probe_settings(settings: ProbeSettings) -> None:
    """Raise `UsageError` for a grid, scale, head or threshold rule that cannot be followed."""
    parse_grid(settings.sweep_C)
    tuning_of(settings)
    if wants_text(settings) and "standardise" not in parse_scales(settings.scale):
        raise UsageError(
            f"--heads {settings.heads} takes its C from standardised embeddings; add standardise "
            "to --scale, or leave out text."
        )
    parse_scales(settings.scale)


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
    catalog: Catalog,
    store: EmbeddingSource,
    settings: ProbeSettings,
    texts: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Everything that the outputs of a probe run depend on; ``texts`` only where they are given."""
    read = {} if texts is None else {"texts": hashlib.sha256(texts.tobytes()).hexdigest()}
    return {
        **read,
        "catalogue": catalog.digest,
        "cutoffs": asdict(catalog.table.cutoffs),
        "features": store.spec.digest,
        "embeddings": store.digest_for(catalog.image_ids.tolist()),
        "settings": settings.recorded(),
    }


def run_probe(
    context: RunContext,
    store: EmbeddingSource,
    out: Path,
    settings: ProbeSettings | None = None,
    *,
    texts: NDArray[np.float32] | None = None,
) -> ProbeRun:
    """Sweep C out of fold, choose C and thresholds, refit on all training images, predict.

    Finished (fold, C) pairs are stored in the folder ``sweep`` of `out` until the stage is sealed:
    the same call after a kill fits only what is missing.

    Parameters
    ----------
    context : RunContext
    store : EmbeddingSource
        Embeddings of the catalogue's images.
    out : Path
        Folder for the files of `Probe.save`, ``sweep.parquet``, ``heads.parquet``,
        ``predictions.npz`` and ``stage.json``; what stands there is replaced file by file.
    settings : ProbeSettings, optional
    texts : ndarray of float32, shape (n_tags, dim), optional
        What `retailtag.runs.embeddings.find_texts` gives, for the head ``text``.

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
    check_probe_settings(settings)
    catalog, device, progress = context.catalog, context.device, context.progress
    inputs = probe_inputs(catalog, store, settings, texts)
    if wants_text(settings) and texts is None:
        progress.say(f"probe {store.spec.backbone}: {NO_TEXTS}")
    with measured(device) as cost:
        train = load_rows(catalog, store, catalog.rows("train"), settings.folds)
        rest = load_rows(catalog, store, catalog.rows("val", "test"), 0)
        checkpoints = _checkpoints(inputs, train, settings, device, out)
        fitted = _fit(context, train, settings, checkpoints, texts)
    facts = {
        **_provenance(catalog, store, settings, context.provenance),
        **fitted.facts(catalog),
        **_evidence(catalog, store, train, rest, fitted, tuning_of(settings)),
    }
    probe = fitted.probe(catalog, facts)
    predictions = _predict(catalog, probe, train, rest)
    probe.save(out)
    predictions.save(out / "predictions.npz")
    sweep, group = fitted.chosen.sweep, catalog.table.group
    _write_table(out / "sweep.parquet", fitted.chosen.table)
    _write_table(out / "heads.parquet", head_rows(fitted.chosen.heads, probe.tags, group))
    findings = grid_findings(sweep, group, settings.choose_C)
    findings += status_findings(sweep, facts["unconverged"])
    found = {"findings": findings, "n_fits": fitted.chosen.n_fits}
    cost.seconds += fitted.chosen.resumed_seconds
    files, machine = (*probe.files, *FILES), describe_machine(device)
    record = write_record(out, files, inputs, cost, facts=found, machine=machine)
    checkpoints.clear()
    n_absent = len(catalog) - len(train.rows) - len(rest.rows)
    return ProbeRun(probe, predictions, findings, n_absent, record)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A sweep, the head taken of it, and that head on all training images."""

    chosen: Chosen
    taken: HeadChoice
    logistic: FittedHead
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    vote: KnnVote | None

    def facts(self, catalog: Catalog) -> dict[str, Any]:
        """What was chosen, what it earns out of fold, and which fits went wrong."""
        chosen, head = self.chosen, self.taken.head
        status, tags = self.logistic.status, catalog.table.tags
        return {
            "out_of_fold": _out_of_fold_summary(chosen.C, head, catalog.table.group),
            "scale": chosen.sweep.scale,
            "scales": chosen.macro_ap,
            "head": head.name,
            "heads": self.taken.facts,
            "unconverged": troubled_tags(chosen.sweep, chosen.index, status, tags),
            "thresholds": self.taken.tuned.facts,
        }

    def probe(self, catalog: Catalog, facts: dict[str, Any]) -> Probe:
        """The artefact."""
        scale, head, thresholds = self.chosen.sweep.scale, self.taken.head, self.taken.tuned
        made = (self.chosen.C, facts, scale, head.name, self.vote)
        return Probe(catalog.table.tags, self.weight, self.bias, thresholds.thresholds, *made)


def _fit(
    context: RunContext,
    train: Features,
    settings: ProbeSettings,
    checkpoints: SweepCheckpoints,
    texts: NDArray[np.float32] | None,
) -> _Fitted:
    table = context.catalog.table
    labels, group = table.labels[train.rows], table.group
    solver = make_solver(settings.solver, context.device)
    chosen = sweep_and_choose(
        context, train.rows, train.X, settings, checkpoints=checkpoints, texts=texts
    )
    taken = choose_head(chosen.heads, tuning_of(settings), labels, group, chosen.sweep.fold)
    logistic = fit_at(train.X, labels, chosen.C, solver, chosen.sweep.scale)
    head = _final_head(taken.head, logistic, train.X, labels)
    return _Fitted(chosen, taken, logistic, *head)


def _evidence(
    catalog: Catalog,
    store: EmbeddingSource,
    train: Features,
    rest: Features,
    fitted: _Fitted,
    tuning: Tuning,
) -> dict[str, Any]:
    """What the scorer warns by: copies of training images, and optimism of the thresholds."""
    ids, taken = catalog.image_ids, fitted.taken
    scored = (taken.scores, taken.tuned.thresholds, tuning, fitted.chosen.sweep.fold)
    return {
        "copies": copies_of_fitted(store, ids[rest.rows], ids[train.rows]),
        "threshold_f1": threshold_f1(catalog, train.rows, *scored),
    }


def _final_head(
    head: ScoredHead, fitted: FittedHead, X: NDArray[np.float32], labels: NDArray[np.int8]
) -> tuple[NDArray[np.float32], NDArray[np.float32], KnnVote | None]:
    """Weight and bias of the chosen head on all training images, or its vote."""
    (weight, bias), vote = fitted.raw(), None
    refit = head.head.fit(X, labels) if head.head else None
    if isinstance(refit, LinearFits):
        weight, bias = refit.linear(head.index)
    elif isinstance(refit, KnnFits):
        weight, bias = weight[:, :0], np.zeros_like(bias)
        vote = refit.at(head.index)
    return weight, bias, vote


def _predict(catalog: Catalog, probe: Probe, train: Features, rest: Features) -> Predictions:
    return Predictions(
        image_ids=catalog.image_ids[rest.rows],
        tags=probe.tags,
        logits=probe.logits(rest.X),
        thresholds=probe.thresholds,
        fitted_ids=catalog.image_ids[train.rows],
        provenance=probe.facts,
    )


def _provenance(
    catalog: Catalog,
    store: EmbeddingSource,
    settings: ProbeSettings,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Where a probe comes from; no dates or timings, so that equal runs give equal files."""
    return {
        "strategy": "probe",
        "backbone": store.spec.backbone,
        **provenance,
        "catalog_digest": catalog.digest,
        "features": store.spec.digest,
        "stored_as": {"engine": store.spec.engine, "dtype": store.spec.dtype},
        "settings": settings.recorded(),
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


def _checkpoints(
    inputs: dict[str, Any], train: Features, settings: ProbeSettings, device: str, out: Path
) -> SweepCheckpoints:
    """Where the sweep stores its finished strengths; reused for the same inputs only."""
    no_matter = ("cutoffs", "settings", "texts")
    data = {name: value for name, value in inputs.items() if name not in no_matter}
    data |= {
        "grid": parse_grid(settings.sweep_C).tolist(),
        "folds": settings.folds,
        "seed": settings.seed,
        "solver": settings.solver,
        "device": device,
        "rows": train.rows.tolist(),
    }
    return run_checkpoints(out, data)


def _out_of_fold_summary(
    C: NDArray[np.float64], head: ScoredHead, group: NDArray[np.str_]
) -> dict[str, Any]:
    """Macro-AP and chosen C, over all tags and per group; None for a group without a score."""
    ap, setting = head.ap, head.setting
    summary: dict[str, Any] = {}
    for name in ("all", *np.unique(group).tolist()):
        inside = np.isfinite(ap) & ((group == name) | (name == "all"))
        value = macro(ap, inside) if inside.any() else None
        members = (group == name) | (name == "all")
        summary[name] = {
            "macro_ap": value,
            "C": np.unique(C[members]).tolist(),
            "setting": np.unique(setting[members]).tolist(),
        }
    return summary


def _write_table(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with write_whole(path) as handle:
        parquet.write_table(pa.table(columns), handle)
