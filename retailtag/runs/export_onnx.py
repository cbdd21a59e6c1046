"""A fitted model as an ONNX export, compared and quantised on images of its catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.errors import UnreadableImage, UsageError
from retailtag.progress import SILENT, Progress
from retailtag.scoring.metrics import f1_from_counts, macro, tag_counts
from retailtag.settings import ExportSettings
from retailtag.tagger.onnx.folder import CALIBRATION_IMAGES, Int8, OnnxExport, write_onnx
from retailtag.tagger.onnx.parity import IMAGES, given_by
from retailtag.tagger.tagger import Tagger

TRITON_MODEL = "tagger"  # name of the model in Triton's repository


@dataclass(frozen=True)
class OnnxRequest:
    """What an ONNX export writes, and on which files of images it is compared."""

    settings: ExportSettings
    sample: tuple[Path, ...] = ()  # empty: images of the catalogue's test split


def export_onnx(
    tagger: Tagger,
    folder: Path,
    request: OnnxRequest,
    catalog: Catalog | None = None,
    progress: Progress = SILENT,
) -> OnnxExport:
    """Write a tagger as an ONNX model, or a repository of Triton, into an empty folder.

    Raises
    ------
    UsageError
        If there is no readable image, or int8 is asked for without the catalogue's images.
    Mismatch, Unavailable, DataError
        As `retailtag.tagger.onnx.folder.write_onnx` does.
    """
    settings = request.settings
    if settings.int8 and (catalog is None or not _spread(catalog, "train", 1)):
        raise UsageError(
            "--int8 needs the catalogue's training images, and its test images to measure the "
            "loss; name it with --catalogue."
        )
    images = dict(islice(_compared(tagger, catalog, request.sample), IMAGES))
    if not images:
        raise UsageError(
            f"--format {settings.format} compares the model with PyTorch on images, and no image "
            "of the test split is readable; name some with --sample."
        )
    return write_onnx(
        tagger,
        folder,
        images,
        with_preprocessing=settings.with_preprocessing,
        int8=_int8(tagger, catalog) if settings.int8 and catalog is not None else None,
        repository=TRITON_MODEL if settings.format == "triton" else "",
        progress=progress,
    )


def readable(
    catalog: Catalog, rows: Iterable[int], check: Callable[[bytes], object]
) -> Iterator[tuple[int, bytes]]:
    """Rows and bytes of the images that `check` accepts."""
    for row in rows:
        try:
            data = catalog.images.read(row)
            check(data)
        except UnreadableImage:
            continue
        yield row, data


def _spread(catalog: Catalog, split: str, n: int) -> list[int]:
    """About `n` rows of a split or all, evenly spread: catalogues are sorted by kinds of things."""
    rows = catalog.rows(split)
    steps = np.linspace(0, max(len(rows) - 1, 0), min(n, len(rows)))
    return [int(row) for row in rows[steps.round().astype(np.intp)]]


def _compared(
    tagger: Tagger, catalog: Catalog | None, sample: Sequence[Path]
) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of images to compare."""
    if sample:
        for path in sample:
            tagger.pixels(path)  # a file that was named and cannot be read is an error
            yield str(path), path.read_bytes()
    elif catalog is not None:
        for row, data in readable(catalog, _spread(catalog, "test", IMAGES), tagger.pixels):
            yield str(catalog.image_ids[row]), data


def _int8(tagger: Tagger, catalog: Catalog) -> Int8:
    """Training images for the ranges, and macro-F1 on the test split."""
    rows: list[int] = []  # of the test images that were read
    table = catalog.table
    column = {tag: j for j, tag in enumerate(tagger.tags)}
    order = [column[tag] for tag in table.tags]

    def test() -> Iterator[bytes]:
        for row, data in readable(catalog, catalog.rows("test").tolist(), tagger.pixels):
            rows.append(row)
            yield data

    def scores(logits: NDArray[np.float32]) -> dict[str, float]:
        counts = tag_counts(given_by(tagger, logits)[:, order], table.labels[rows])
        f1 = f1_from_counts(counts)
        masks = {"macro_f1": counts.positives > 0}
        masks["tail_macro_f1"] = masks["macro_f1"] & (table.group == "tail")
        return {name: macro(f1, mask) for name, mask in masks.items() if mask.any()}

    train = readable(catalog, _spread(catalog, "train", CALIBRATION_IMAGES), tagger.pixels)
    return Int8((data for _, data in train), test(), scores)
