"""A fitted model as one folder, checked against the model that it was made from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.factory import licence
from retailtag.backbones.ids import resolve_id
from retailtag.catalog.catalog import Catalog
from retailtag.errors import ArtefactError, DataError, RetailtagError, UsageError
from retailtag.files import sync_folder, temporary_beside, write_text
from retailtag.predictions import Predictions
from retailtag.progress import SILENT, Progress
from retailtag.runs.calibrate import calibrate, errors_on
from retailtag.runs.export_onnx import OnnxRequest, export_onnx, readable
from retailtag.runs.latency import model_digest
from retailtag.runs.machine import VERSIONS
from retailtag.runs.model_card import CARD, Card, card_text
from retailtag.runs.operating_points import TITLES, other_points
from retailtag.runs.tune import PREDICTIONS, Model, check_empty, tuned_on
from retailtag.scoring.aligned import Aligned, align
from retailtag.scoring.curves import OperatingPoint, operating_point
from retailtag.scoring.files import ReadCatalog, recorded_catalog
from retailtag.scoring.score import predictions_digest
from retailtag.scoring.scorecard import ScoreCard
from retailtag.scoring.strict_json import plain
from retailtag.statistics.exclusive import assign
from retailtag.tagger.drift.comparison import reference_of
from retailtag.tagger.drift.reference import FILE as REFERENCE
from retailtag.tagger.drift.sources import HELD_OUT, Pictures
from retailtag.tagger.exported import HEADER, Exported, write_exported
from retailtag.tagger.loading import load_fitted
from retailtag.tagger.onnx.folder import OnnxExport
from retailtag.tagger.onnx.graph import check_extra
from retailtag.tagger.tagger import Tagger, point_name
from retailtag.version import __version__

CHECKED_IMAGES = 64  # test images that the exported tagger must tag as the model does
ROUNDING = 1e-4  # of logits, by engines and devices that do not repeat their own bits
# Facts of a model that say how it came about; paths and image ids stay behind.
KEPT_FACTS = (
    *("backbone", "strategy", "catalog_digest", "features", "stored_as", "settings"),
    *("thresholds", "threshold_f1", "best_epoch", "is_probe"),
)


@dataclass(frozen=True)
class Check:
    """How the exported tagger compares with the model on test images."""

    n_images: int
    n_tags: int  # that both give
    largest: float  # difference of a logit between the two
    # Of the run's own predictions of these images: largest difference of a logit, and cells that
    # are given by one alone
    largest_predicted: float
    n_other_tags: int


@dataclass(frozen=True, eq=False)
class ExportRun:
    """An exported folder, and what was found on the way."""

    folder: Path
    tagger: Tagger  # as loaded from the folder; of an ONNX model, what it was made from
    files: dict[str, int]  # bytes by name
    check: Check | None  # None where the catalogue's images are not here
    calibration: dict[str, Any]  # as in the header; empty where nothing could be calibrated
    points: tuple[OperatingPoint, ...]  # on the test split
    notes: tuple[str, ...]  # what is left out, and why
    onnx: OnnxExport | None = None  # what was measured of an ONNX model

    @property
    def checked(self) -> str:
        """What the check found, for people; empty without one."""
        if self.onnx is not None:
            return " ".join(self.onnx.sentences)
        return _sentence(self.check) if self.check else ""


@dataclass(eq=False)
class _Source:
    """The model's folder with whatever of its run and catalogue is at hand."""

    folder: Path
    tagger: Tagger
    predictions: Predictions | None = None
    catalog: Catalog | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def aligned(self) -> Aligned | None:
        """Predictions and labels of the test split, if both are here."""
        if self.predictions is None or self.catalog is None:
            return None
        if not len(self.catalog.rows("test")):
            return None
        return align(self.predictions, self.catalog, "test", allow_missing=True)


def run_export(
    folder: Path,
    tagger: Tagger,
    out: Path,
    read: ReadCatalog,
    *,
    catalog: Path | None = None,
    graph: OnnxRequest | None = None,
    weights: Sequence[str] = (),
    seed: int = 0,
    workers: int = 0,
    progress: Progress = SILENT,
) -> ExportRun:
    """Write the model of `folder`, loaded as `tagger`, into the new folder `out`, whole or not.

    Parameters
    ----------
    read, catalog
        As for `retailtag.scoring.files.recorded_catalog`. Without the catalogue the folder has
        neither calibration nor further operating points, and is not compared with the model.
    graph : OnnxRequest, optional
        Write an ONNX model instead of a folder that retailtag loads.
    weights : sequence of str
        Ids of backbones whose weights are local files.
    seed : int
        Divides a validation set for the errors of the calibration.
    workers : int
        Processes that decode the held-out images of the drift reference.

    Raises
    ------
    UsageError
        If `out` holds something, or the catalogue that is named cannot be read.
    ArtefactError
        If the written folder does not give what the model gives.
    """
    check_empty(out)
    if graph is not None:
        check_extra(f"--format {graph.settings.format}")
    source = _source(folder, tagger, read, catalog)
    whole, calibration, points = _completed(source, seed)
    licences = tuple(_licence(b.id, b.id in weights) for b in whole.backbones)
    provenance = _provenance(source)
    onnx = None
    with _appearing(out) as place:
        if graph is None:
            write_exported(place, whole, Exported(calibration, provenance, licences))
            device = whole.backbones[0].device.type
            whole = load_fitted(place, device=device, progress=progress)
            check = _checked(source, whole)
            _keep_reference(source, whole, place, workers, progress)
        else:
            onnx = export_onnx(whole, place, graph, source.catalog, progress)
            check = None
        card = Card(
            tagger=whole,
            scorecard=_scorecard(source),
            catalog=source.catalog,
            calibration=calibration,
            points=points,
            licences=licences,
            provenance=provenance,
            checked=_sentence(check) if check else "",
            # the reasons name paths of this machine, which stay behind
            notes=tuple(f"{note.partition(': ')[0].rstrip('.')}." for note in source.notes),
            guide=onnx.guide if onnx else "",
        )
        write_text(place / CARD, card_text(card))
        paths = sorted(path for path in place.rglob("*") if path.is_file())
        files = {path.relative_to(place).as_posix(): path.stat().st_size for path in paths}
    return ExportRun(out, whole, files, check, calibration, points, tuple(source.notes), onnx)


def _source(folder: Path, tagger: Tagger, read: ReadCatalog, catalog: Path | None) -> _Source:
    """The run's predictions and catalogue, or notes on what is not here."""
    if (folder / HEADER).exists():
        raise UsageError(f"{folder} is an exported tagger already; copy it, or name its run.")
    source = _Source(folder, tagger)
    try:
        source.predictions = Predictions.load(folder / PREDICTIONS)
    except DataError as error:
        source.notes.append(_alone(tagger, error))
        return source
    try:
        source.catalog = recorded_catalog(folder, source.predictions, read, catalog)
    except RetailtagError as error:
        if catalog is not None:
            raise
        source.notes.append(_alone(tagger, error))
    return source


_CALIBRATED = ("not calibrated", "the error of its calibration not measured")


def _alone(tagger: Tagger, error: Exception) -> str:
    return f"Not compared with its run, {_CALIBRATED[tagger.calibration is not None]}: {error}"


def _completed(
    source: _Source, seed: int
) -> tuple[Tagger, dict[str, Any], tuple[OperatingPoint, ...]]:
    """The tagger with calibration and operating points, their errors, and what the points give."""
    tagger, catalog = source.tagger, source.catalog
    facts = {name: value for name, value in tagger.head.facts.items() if name in KEPT_FACTS}
    fitted = point_name(facts)
    points = {fitted: tagger.thresholds}
    calibration: dict[str, Any] = {}
    curves = tagger.calibration  # of a model of an earlier version, None
    aligned = source.aligned
    if catalog is not None and source.predictions is not None:
        try:
            model = Model.load(tuned_on(source.folder, source.predictions))
            rows = model.rows(catalog)
        except RetailtagError as error:
            source.notes.append(f"With one operating point, {_CALIBRATED[bool(curves)]}: {error}")
        else:
            others = [name for name in TITLES if name != fitted]
            own = facts.get("thresholds") or {}
            points |= dict(other_points(model, catalog, rows, own, others))
            found = calibrate(model, catalog, rows, seed)
            curves, calibration = curves or found.curves, found.facts
            if aligned is not None:
                group = catalog.table.group
                errors = errors_on(curves, aligned.logits, aligned.labels, group)
                calibration = {**calibration, "test": errors}
    whole = replace(
        tagger,
        head=replace(tagger.head, facts=facts),
        operating_points=points,
        calibration=curves,
    )
    given = () if aligned is None or catalog is None else _given(points, aligned, catalog, tagger)
    return whole, plain(calibration), tuple(given)


def _given(
    points: dict[str, NDArray[np.float32]], aligned: Aligned, catalog: Catalog, tagger: Tagger
) -> Iterator[OperatingPoint]:
    """What each operating point gives on the test split."""
    table = catalog.table
    column = {tag: j for j, tag in enumerate(tagger.tags)}
    order = [column[tag] for tag in table.tags]
    for name, thresholds in points.items():
        cells = assign(
            aligned.logits, thresholds[order], table.tags, tagger.exclusive, tagger.assignment
        )
        yield operating_point(name, cells, aligned.labels, table.group == "tail")


def _licence(backbone: str, is_local: bool) -> str:
    """What is known about the licence of a backbone's weights."""
    stated = licence(resolve_id(backbone))
    if is_local:
        published = f" (those published under this id: {stated})" if stated else ""
        return f"unknown, weights of a local file: check at their source{published}"
    return stated or "unknown: check at the source"


def _provenance(source: _Source) -> dict[str, Any]:
    """Digests of what the model came from, and versions."""
    facts = source.tagger.head.facts
    digests = {
        "retailtag": __version__,
        "code_sha256": _code_sha256(),
        "libraries": {name: version(name) for name in VERSIONS},
        "model_sha256": model_digest(source.folder),
        "catalog_digest": facts.get("catalog_digest"),
        "features_digest": facts.get("features"),
        "predictions_digest": source.predictions and predictions_digest(source.predictions),
    }
    return {name: value for name, value in digests.items() if value}


def _code_sha256() -> str:
    """SHA-256 over the names and texts of the package's modules."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _scorecard(source: _Source) -> ScoreCard | None:
    """The run's scorecard of the test split, if it is of these predictions."""
    if source.predictions is None:
        return None
    digest = predictions_digest(source.predictions)
    for folder in (source.folder, source.folder / "predictions.test"):
        if (folder / "scorecard.json").exists():
            card = ScoreCard.load(folder)
            of = card.provenance.get("predictions", {})
            if isinstance(of, dict) and of.get("digest") == digest and card.split == "test":
                return card
    source.notes.append(
        f"Without scores: {source.folder} holds no scorecard of its predictions; run retailtag "
        f"score {source.folder} and export again."
    )
    return None


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name if the block succeeds, and is removed otherwise."""
    place = temporary_beside(out, "part")
    place.mkdir(parents=True)
    try:
        yield place
        try:
            place.rename(out)  # over an empty folder too, never over one that holds something
        except OSError as error:
            check_empty(out)
            raise UsageError(f"{out} cannot be written: {error.strerror}.") from error
        sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _checked(source: _Source, loaded: Tagger) -> Check | None:
    """Compare the two taggers on test images; None where none can be read."""
    original = source.tagger
    images = list(_readable(source, original))
    if not images:
        if source.catalog is not None:
            source.notes.append(
                "Not compared with its run: no image of the test split is readable."
            )
        return None
    data = [image for _, image in images]
    expected, found = original.logits(data), loaded.logits(data)
    cells = partial(
        assign, tags=original.tags, exclusive=original.exclusive, assignment=original.assignment
    )
    given = cells(expected, original.thresholds)
    largest = float(np.abs(expected - found).max())
    if largest > ROUNDING or not np.array_equal(given, cells(found, loaded.thresholds)):
        raise ArtefactError(
            f"The exported tagger does not give what {source.folder} gives: on {len(data)} test "
            f"images its logits differ by up to {largest:.3g}; nothing was written. Run the export "
            "again, with --device cpu if it ran on another device."
        )
    assert source.predictions is not None
    row = {image: k for k, image in enumerate(source.predictions.image_ids.tolist())}
    known = [k for k, (image, _) in enumerate(images) if image in row]
    stored = source.predictions.logits[[row[images[k][0]] for k in known]]
    other = cells(stored, source.predictions.thresholds) != given[known]
    difference = np.abs(stored - expected[known]).max(initial=0.0)
    return Check(len(data), int(given.sum()), largest, float(difference), int(other.sum()))


def _keep_reference(
    source: _Source, loaded: Tagger, place: Path, workers: int, progress: Progress
) -> None:
    """Write the held-out images that `retailtag drift` compares with, if they are here."""
    catalog = source.catalog
    if catalog is None or not len(catalog.rows(*HELD_OUT)):
        if catalog is not None:
            source.notes.append("Without a drift reference: the catalogue has no held-out images.")
        return
    try:
        kept = reference_of(loaded, Pictures.of_split(catalog), workers=workers, progress=progress)
    except DataError as error:
        source.notes.append(f"Without a drift reference: {error}")
    else:
        kept.save(place / REFERENCE)


def _readable(source: _Source, tagger: Tagger) -> Iterator[tuple[str, bytes]]:
    """Ids and bytes of the first test images that can be decoded."""
    catalog = source.catalog
    if catalog is None:
        return
    rows = catalog.rows("test").tolist()
    for row, data in islice(readable(catalog, rows, tagger.pixels), CHECKED_IMAGES):
        yield str(catalog.image_ids[row]), data


def _sentence(check: Check) -> str:
    """What a check found, for people."""
    same = "to the last bit" if not check.largest else f"within {check.largest:.2g}"
    others = (
        "the tags of the run's predictions are the same"
        if not check.n_other_tags
        else f"the run's predictions differ in {check.n_other_tags:,} tags"
    )
    return (
        f"On {check.n_images} test images its logits equal those of the model {same}, and so do "
        f"all {check.n_tags:,} tags given; {others} (logits within {check.largest_predicted:.2g})."
    )
