"""Thresholds tuned again, for another objective, on the scores that a model kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.finetuning.artefact import Checkpoint, load_scores
from retailtag.lock import only_writer
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe, load_out_of_fold
from retailtag.runs.evidence import crossed_cells, f1_of_cells, halves
from retailtag.runs.start_scores import StartScores, carried_from_start
from retailtag.scoring.curves import OperatingPoint, operating_point
from retailtag.thresholds.tuning import AUTO, Tuned, Tuning
from retailtag.tuning_scores import TuningScores

PREDICTIONS = "predictions.npz"
BEFORE, AFTER, CROSS_FIT = "before", "after", "after, cross-fit"


@dataclass(frozen=True, eq=False)
class TuneRun:
    """A model with other thresholds, and what these give on the images that they were tuned on."""

    folder: Path
    tuned: Tuned
    # By `BEFORE`, `AFTER` and, with two products or more, `CROSS_FIT`, where each half of the
    # images is given tags by the thresholds tuned on the other; left out where no label of these
    # images is behind the thresholds
    given: dict[str, OperatingPoint]
    n_images: int
    is_validation: bool  # scores of a validation set, not out-of-fold scores
    n_never: int  # tags with an infinite threshold


@dataclass(frozen=True, eq=False)
class Model:
    """A probe or a fine-tune with the scores that its thresholds are tuned on."""

    model: Probe | Checkpoint
    scores: TuningScores
    predictions: Predictions
    start: TuningScores | None = None  # of a fine-tune; see `retailtag.runs.start_scores`

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Read the folder of a run.

        Raises
        ------
        DataError
            If it holds no model.
        ArtefactError
            If it keeps no scores, or a file is damaged.
        """
        model: Probe | Checkpoint
        start = None
        if (folder / "checkpoint.json").exists():
            model = Checkpoint.load(folder)
            if model.facts.get("is_probe"):
                raise DataError(
                    f"{folder} is a fine-tune that kept its probe; name the folder of the probe."
                )
            scores, start = load_scores(folder)
        elif (folder / "probe.json").exists():
            model = Probe.load(folder)
            scores = load_out_of_fold(folder)
        else:
            raise DataError(f"{folder} holds no probe or fine-tune; name the folder of a run.")
        predictions = Predictions.load(folder / PREDICTIONS)
        if predictions.tags != model.tags:
            raise ArtefactError(
                f"{folder / PREDICTIONS} has other tags than the model beside it; remove this "
                "folder and run the same command again."
            )
        return cls(model, scores, predictions, start)

    def rows(self, catalog: Catalog) -> NDArray[np.intp]:
        """Rows of the scores' images in the catalogue that the model was fitted on."""
        if catalog.digest != self.model.facts["catalog_digest"]:
            raise ArtefactError(
                f"{catalog.path} has changed since the model was fitted; fit it again, or name the "
                "catalogue that it was fitted on with --catalogue."
            )
        return _rows(self.scores, catalog)

    def tune(
        self,
        tuning: Tuning,
        catalog: Catalog,
        rows: NDArray[np.intp],
        fold: NDArray[np.intp] | None = None,
    ) -> Tuned:
        """Thresholds as the run itself would have tuned them; `rows` as `rows` gives them.

        `fold` (n_images,), for a probe, are the folds by which a rule is chosen.
        """
        table, scores = catalog.table, self.scores
        labels = table.labels[rows]
        if not self.follows_start(tuning):
            return tuning.tune(scores.logits, labels, table.group, fold)
        assert self.start is not None
        start = StartScores.of(self.start)
        own = start.tune(tuning, table.labels[_rows(start.train, catalog)], table.group)
        return carried_from_start(start, own, scores.logits, labels, table.group, tuning.max_tags)

    def follows_start(self, tuning: Tuning) -> bool:
        """Whether thresholds come from the start of a fine-tune, and from no label of `scores`."""
        return self.start is not None and tuning.rule == AUTO


def _rows(scores: TuningScores, catalog: Catalog) -> NDArray[np.intp]:
    row = {i: k for k, i in enumerate(catalog.image_ids.tolist())}
    if strange := [i for i in scores.image_ids.tolist() if i not in row]:
        raise ArtefactError(
            f"The kept scores are of images that {catalog.path} lacks ({strange[0]}); fit the "
            "model again."
        )
    return np.array([row[i] for i in scores.image_ids.tolist()], np.intp)


def tuned_on(folder: Path, predictions: Predictions) -> Path:
    """Folder whose scores the thresholds of a model were tuned on: a kept probe has its own."""
    is_probe = predictions.provenance.get("is_probe")
    return folder.with_name("probe") if is_probe else folder


def run_tune(
    folder: Path, tuning: Tuning, out: Path, read: Callable[[Predictions], Catalog]
) -> TuneRun:
    """Tune the thresholds of a model again and write it, with its predictions, into `out`.

    `folder` is that of a probe or a fine-tune; ``read(predictions)`` reads its catalogue, whose
    labels of the training or validation images are what thresholds are tuned on.

    Raises
    ------
    UsageError
        If `out` holds something.
    DataError, ArtefactError
        As `Model.load` and `Model.rows` do.
    """
    check_empty(out)
    found = Model.load(folder)
    catalog = read(found.predictions)
    rows = found.rows(catalog)
    scores, group = found.scores, catalog.table.group
    labels = catalog.table.labels[rows]
    tuned = found.tune(tuning, catalog, rows, scores.fold)
    is_tail = group == "tail"
    cells = {
        BEFORE: scores.logits >= found.model.thresholds,
        AFTER: scores.logits >= tuned.thresholds,
    }
    half = halves(catalog, rows, tuning.seed)
    threshold_f1: dict[str, dict[str, float]] = {}
    if found.follows_start(tuning):
        threshold_f1 = f1_of_cells(catalog, rows, cells[AFTER], cells[AFTER])
    elif half is not None:
        fold = scores.fold if tuning.rule == AUTO else None
        cells[CROSS_FIT] = crossed_cells(catalog, rows, scores.logits, tuning, half, fold)
        threshold_f1 = f1_of_cells(catalog, rows, cells[AFTER], cells[CROSS_FIT])
    facts = {
        **found.model.facts,
        "settings": {
            **found.model.facts.get("settings", {}),
            "objective": tuning.objective,
            "thresholds": tuning.rule,
        },
        "thresholds": tuned.facts,
        "threshold_f1": threshold_f1,
    }
    with only_writer(out):  # which makes the folder: nothing is left of a call that is refused
        check_empty(out)
        _save(found, tuned, facts, out)
    return TuneRun(
        folder=out,
        tuned=tuned,
        given={n: operating_point(n, given, labels, is_tail) for n, given in cells.items()},
        n_images=len(rows),
        is_validation=isinstance(found.model, Checkpoint),
        n_never=int(np.isposinf(tuned.thresholds).sum()),
    )


def check_empty(out: Path) -> None:
    """Raise `UsageError` for a folder that holds something."""
    if out.exists() and not (out.is_dir() and not any(p.name != ".lock" for p in out.iterdir())):
        raise UsageError(f"{out} exists; name a new folder with --out, or remove it.")


def _save(found: Model, tuned: Tuned, facts: dict[str, Any], out: Path) -> None:
    if isinstance(found.model, Checkpoint):
        model: Probe | Checkpoint = replace(
            found.model,
            thresholds=tuned.thresholds,
            facts=facts,
            validation=found.scores,
            start=found.start,
        )
    else:
        model = replace(
            found.model, thresholds=tuned.thresholds, facts=facts, out_of_fold=found.scores
        )
    model.save(out)
    provenance = {**found.predictions.provenance, **facts}
    replace(found.predictions, thresholds=tuned.thresholds, provenance=provenance).save(
        out / PREDICTIONS
    )
