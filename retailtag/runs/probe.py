"""A probe run: from stored embeddings and labels to a probe, its sweep and its predictions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.imported import ENGINE
from retailtag.catalog.attributes import recorded_attributes
from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.files import write_whole
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.probes.checkpoints import Checkpoints
from retailtag.probes.grid import parse_grid
from retailtag.probes.heads.knn import KnnFits, KnnVote
from retailtag.probes.scaling import parse_scales
from retailtag.probes.solver.fit import make_solver
from retailtag.probes.solver.fits import LinearFits
from retailtag.probes.sweep_findings import grid_findings, status_findings, troubled_tags
from retailtag.runs.checks import (
    changed_since_extract,
    check_fittable,
    check_sweep_fits,
    none_readable,
)
from retailtag.runs.evidence import seen_in_training, threshold_f1
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
    sweep_and_choose,
)
from retailtag.scoring.findings import mixed_threads
from retailtag.scoring.metrics import macro
from retailtag.settings import ProbeSettings
from retailtag.store import NOT_EXTRACTED, EmbeddingSource
from retailtag.store.sources import EXTRACT_AGAIN, changed_sentence
from retailtag.thresholds.platt import shrunken_curves
from retailtag.thresholds.ranking import rank_tags
from retailtag.thresholds.tuning import VERSION, Tuning
from retailtag.tuning_scores import TuningScores
from retailtag.version import __version__

FILES = ("sweep.parquet", "heads.parquet", "predictions.npz")  # besides those of the probe

NO_TEXTS = "head text skipped; only a single image-text model, such as clip, embeds tag names."


def tuning_of(settings: ProbeSettings) -> Tuning:
    """How thresholds are tuned."""
    return Tuning(settings.thresholds, settings.objective, settings.seed)


def wants_text(settings: ProbeSettings) -> bool:
    """Whether the head ``text`` was requested by name, not only by default."""
    return "text" in parse_heads(settings.heads) and settings.heads != ProbeSettings.heads


def check_probe_settings(settings: ProbeSettings) -> None:
    """Raise `UsageError` for a grid, scale, head or threshold rule that cannot be followed."""
    parse_grid(settings.sweep_C)
    tuning_of(settings)
    scales = parse_scales(settings.scale)
    if wants_text(settings) and "standardise" not in scales:
        raise UsageError(
            f"--heads {settings.heads} takes its C from standardised embeddings; add standardise "
            "to --scale, or leave out text."
        )


@dataclass(frozen=True, eq=False)
class ProbeRun:
    """Result of a probe run."""

    probe: Probe
    predictions: Predictions  # of every image outside the training split that has an embedding
    findings: list[tuple[str, str, str]]  # warnings about the sweep: code, sentence, remedy
    n_absent: int  # images of the catalogue that have no embedding and were left out
    record: StageRecord


def probe_inputs(
    catalog: Catalog,
    store: EmbeddingSource,
    settings: ProbeSettings,
    texts: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Everything that the outputs of a probe run depend on; ``texts`` only if they are given."""
    read = {} if texts is None else {"texts": hashlib.sha256(texts.tobytes()).hexdigest()}
    return {
        **read,
        "catalogue": catalog.digest,
        "cutoffs": asdict(catalog.table.cutoffs),
        "exclusive": recorded_attributes(catalog.table),
        "features": store.spec.digest,
        "embeddings": store.digest_for(catalog.image_ids.tolist()),
        "tuning": VERSION,
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

    Finished folds of the sweep are stored in the folder ``sweep`` of `out` until the run is
    complete: after a kill, the same call computes only what is missing and ends in the same bytes.

    `out` is the folder for the files of `Probe.save`, ``sweep.parquet``, ``heads.parquet``,
    ``predictions.npz`` and ``stage.json``; existing files are replaced one by one. `texts`, float32
    (n_tags, dim), are the tag names embedded by `retailtag.runs.embeddings.find_texts`, for the
    head ``text``.

    Raises
    ------
    ArtefactError
        If the store holds no embedding of a training image.
    DataError
        If there are fewer training images than folds, or no tag can be learned.
    """
    settings = settings or ProbeSettings()
    check_probe_settings(settings)
    catalog, device = context.catalog, context.device
    check_fittable(catalog)
    inputs = probe_inputs(catalog, store, settings, texts)
    if wants_text(settings) and texts is None:
        context.progress.say(f"probe {store.spec.backbone}: {NO_TEXTS}")
    with measured(device) as cost:
        train = load_rows(catalog, store, catalog.rows("train"), settings.folds)
        # Every choice below sees training images alone; val and test are only predicted.
        rest = load_rows(catalog, store, catalog.rows("val", "test"), 0)
        checkpoints = _checkpoints(inputs, train, settings, device, out)
        fitted = _fit(context, train, settings, checkpoints, texts)
    facts = {
        **_provenance(context, store, settings),
        "threads": sorted({checkpoints.threads, *checkpoints.seen}),
        **fitted.facts(catalog),
        **seen_in_training(catalog, store, rest.rows, train.rows),
        "threshold_f1": fitted.threshold_f1(catalog, train.rows, tuning_of(settings)),
    }
    probe = fitted.probe(catalog, train.rows, facts)
    predictions = _predict(probe, catalog, rest, train)
    _save(out, probe, predictions, fitted.chosen, catalog.table.group)
    findings = grid_findings(fitted.chosen.sweep, catalog.table.group, settings.choose_C)
    findings += status_findings(fitted.chosen.sweep, facts["unconverged"])
    findings += _changed_sources(catalog, store, [*train.rows.tolist(), *rest.rows.tolist()])
    if mixed := mixed_threads(facts["threads"]):
        findings.append(astuple(mixed))
    # A continued run costs what its interrupted part cost too.
    cost.seconds += fitted.chosen.resumed_seconds
    record = write_record(
        out,
        (*probe.files, *FILES),
        inputs,
        cost,
        facts={"findings": findings, "n_fits": fitted.chosen.n_fits},
        machine=describe_machine(device),
    )
    checkpoints.clear()
    n_used = len(train.rows) + len(rest.rows)
    return ProbeRun(probe, predictions, findings, len(catalog) - n_used, record)


def _save(
    out: Path, probe: Probe, predictions: Predictions, chosen: Chosen, group: NDArray[np.str_]
) -> None:
    """Write all files of a run but its record."""
    probe.save(out)
    predictions.save(out / "predictions.npz")
    _write_table(out / "sweep.parquet", chosen.table)
    _write_table(out / "heads.parquet", head_rows(chosen.heads, probe.tags, group))


def _changed_sources(
    catalog: Catalog, store: EmbeddingSource, rows: list[int]
) -> list[tuple[str, str, str]]:
    """Warning that images have changed since they were embedded, if any has."""
    changed = changed_since_extract(catalog, store, rows)
    if not changed:
        return []
    return [("changed-sources", changed_sentence(changed, catalog.path), EXTRACT_AGAIN)]


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A sweep, the head chosen from it, and that head fitted on all training images."""

    chosen: Chosen
    taken: HeadChoice
    logistic: FittedHead
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    vote: KnnVote | None

    def facts(self, catalog: Catalog) -> dict[str, Any]:
        """What was chosen, its out-of-fold scores, and which fits have not converged."""
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

    def threshold_f1(
        self, catalog: Catalog, rows: NDArray[np.intp], tuning: Tuning
    ) -> dict[str, dict[str, float]]:
        """Optimism of the thresholds, for the scorer; see `retailtag.runs.evidence`."""
        taken = self.taken
        fold = self.chosen.sweep.fold
        return threshold_f1(catalog, rows, taken.scores, taken.tuned.thresholds, tuning, fold)

    def probe(self, catalog: Catalog, rows: NDArray[np.intp], facts: dict[str, Any]) -> Probe:
        """The artefact; `rows` (n_images,) are the training images."""
        fold = self.chosen.sweep.fold
        ranked = rank_tags(self.taken.scores, catalog.table.labels[rows])
        return Probe(
            catalog.table.tags,
            self.weight,
            self.bias,
            self.taken.tuned.thresholds,
            self.chosen.C,
            facts,
            self.chosen.sweep.scale,
            self.taken.head.name,
            self.vote,
            TuningScores(catalog.image_ids[rows], self.taken.scores, fold),
            shrunken_curves(ranked, catalog.table.group),
        )


def _fit(
    context: RunContext,
    train: Features,
    settings: ProbeSettings,
    checkpoints: Checkpoints,
    texts: NDArray[np.float32] | None,
) -> _Fitted:
    """Sweep, choose the head, and fit it again on all training images."""
    table = context.catalog.table
    labels, group = table.labels[train.rows], table.group
    check_sweep_fits(context.catalog, labels, train.X.shape[1], settings)
    solver = make_solver(settings.solver, context.device)
    chosen = sweep_and_choose(
        context, train.rows, train.X, settings, checkpoints=checkpoints, texts=texts
    )
    taken = choose_head(chosen.heads, tuning_of(settings), labels, group, chosen.sweep.fold)
    logistic = fit_at(train.X, labels, chosen.C, solver, chosen.sweep.scale)
    head = _final_head(taken.head, logistic, train.X, labels)
    return _Fitted(chosen, taken, logistic, *head)


def _final_head(
    head: ScoredHead, fitted: FittedHead, X: NDArray[np.float32], labels: NDArray[np.int8]
) -> tuple[NDArray[np.float32], NDArray[np.float32], KnnVote | None]:
    """Weight (n_tags, dim) and bias (n_tags,) of the chosen head, or its vote."""
    weight, bias = fitted.raw()
    vote = None
    refit = head.head.fit(X, labels) if head.head else None
    if isinstance(refit, LinearFits):
        weight, bias = refit.linear(head.index)
    elif isinstance(refit, KnnFits):
        # Neighbours have no weights: the artefact stores an empty matrix and the vote.
        weight = weight[:, :0]
        bias = np.zeros_like(bias)
        vote = refit.at(head.index)
    return weight, bias, vote


def _predict(probe: Probe, catalog: Catalog, rest: Features, train: Features) -> Predictions:
    ids = catalog.image_ids[rest.rows]
    fitted_ids = catalog.image_ids[train.rows]
    logits = probe.logits(rest.X)
    return Predictions(ids, probe.tags, logits, probe.thresholds, fitted_ids, probe.facts)


def _provenance(
    context: RunContext, store: EmbeddingSource, settings: ProbeSettings
) -> dict[str, Any]:
    """Where a probe comes from, without dates and times: equal runs give equal files."""
    return {
        "strategy": "probe",
        "backbone": store.spec.backbone,
        **context.provenance,
        "catalog_digest": context.catalog.digest,
        "exclusive": recorded_attributes(context.catalog.table),
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
    """Embeddings of those of `rows` that have one.

    Raises
    ------
    ArtefactError
        If the store has none of them.
    DataError
        If none of them could be read, or fewer than `at_least` remain.
    """
    view = store.load(catalog.image_ids[rows].tolist())
    if len(rows) and not view.found.any() and NOT_EXTRACTED not in view.absent.values():
        splits = " and ".join(np.unique(catalog.split[rows]).tolist())
        raise DataError(none_readable(catalog, splits, list(view.absent.items())))
    if len(rows) and not view.found.any():
        if store.spec.engine == ENGINE:
            known, ids = list(store.known())[:2], catalog.image_ids[rows].tolist()[:2]
            raise DataError(
                f"{store.path} holds no vector of this catalogue's images: its ids are like "
                f"{', '.join(known)}, and the catalogue's like {', '.join(ids)}; import the "
                "vectors under the catalogue's ids."
            )
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


def check_rows(
    catalog: Catalog, store: EmbeddingSource, rows: NDArray[np.intp], at_least: int
) -> None:
    """Raise what `load_rows` would raise, before anything is written."""
    known = store.known()
    if sum(i in known for i in catalog.image_ids[rows].tolist()) < max(at_least, 1):
        load_rows(catalog, store, rows, at_least)


def _checkpoints(
    inputs: dict[str, Any], train: Features, settings: ProbeSettings, device: str, out: Path
) -> Checkpoints:
    """Where the sweep stores finished paths, under a key of everything that they depend on."""
    import torch

    # Cut-offs, texts and most settings come in after the fits: changing them reuses the sweep.
    later = ("cutoffs", "exclusive", "settings", "texts")
    data = {name: value for name, value in inputs.items() if name not in later}
    data |= {
        "folds": settings.folds,
        "seed": settings.seed,
        "solver": settings.solver,
        "device": device,
        "rows": train.rows.tolist(),
        "version": __version__,
    }
    key = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return Checkpoints(out / "sweep", key, torch.get_num_threads())


def _out_of_fold_summary(
    C: NDArray[np.float64], head: ScoredHead, group: NDArray[np.str_]
) -> dict[str, Any]:
    """Macro-AP and chosen C, over all tags and per group; None for a group without a score."""
    summary: dict[str, Any] = {}
    for name in ("all", *np.unique(group).tolist()):
        members = (group == name) | (name == "all")
        scored = members & np.isfinite(head.ap)
        summary[name] = {
            "macro_ap": macro(head.ap, scored) if scored.any() else None,
            "C": np.unique(C[members]).tolist(),
            "setting": np.unique(head.setting[members]).tolist(),
        }
    return summary


def _write_table(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with write_whole(path) as handle:
        parquet.write_table(pa.table(columns), handle)
