"""Write the demo catalogue: streamed, by several processes, complete or not at all."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from retailtag.demo.drawing.draw import draw_product
from retailtag.demo.drawing.look import Look
from retailtag.demo.drawing.photo import photograph
from retailtag.demo.drawing.taxonomy import TAGS
from retailtag.demo.drawing.world import Product, sample_product, sample_products, split_products
from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.files import read_json, temporary_beside

GENERATOR = "2"
QUALITY = 88
TEST_SHARE = 1 / 8
MAX_TEST = 5000
MIN_IMAGES = 150  # fewer products share too many tags to hold out an eighth of them
TAIL, FREQUENT = 50, 500
_CHUNK = 24  # products to one task: about half a second of drawing
_RECORD = "demo.json"


@dataclass(frozen=True)
class DemoSummary:
    """What a demo catalogue holds.

    Parameters
    ----------
    catalogue : Path
        Its ``catalogue.csv``.
    n_images, n_products, n_tags : int
        Photographs, products, and tags of the taxonomy.
    n_train, n_test : int
        Photographs of the two splits.
    n_tail, n_common, n_frequent : int
        Tags with under 50, 50 to 499, and 500 or more training photographs.
    n_absent : int
        Tags of the taxonomy without any training photograph; they count as tail.
    reused : bool
        Whether an existing catalogue was reused instead of drawing one.
    """

    catalogue: Path
    n_images: int
    n_products: int
    n_tags: int
    n_train: int
    n_test: int
    n_tail: int
    n_common: int
    n_frequent: int
    n_absent: int
    reused: bool = False


def write_demo_catalogue(
    out: Path,
    n_images: int = 4000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DemoSummary:
    """Draw a retail catalogue into a folder.

    Parameters
    ----------
    out : Path
        Folder to create, with ``catalogue.csv``, ``taxonomy.csv`` and ``images/``.
    n_images : int
        Photographs to take, at least `MIN_IMAGES`.
    seed : int
        Seed of the world, 0 or more.
    workers : int, optional
        Processes that draw, by default one per CPU core. The files do not depend on it.
    progress : callable, optional
        Called with the number of photographs newly written.

    Returns
    -------
    DemoSummary
        Counts; ``reused`` if `out` already holds this catalogue.

    Raises
    ------
    UsageError
        If `out` holds something else, or a number is out of range.

    Notes
    -----
    Everything is written to a temporary sibling folder, which is renamed when it is complete.
    """
    out = Path(out)
    if n_images < MIN_IMAGES or seed < 0:
        raise UsageError(
            f"--n-images {n_images} --seed {seed}: a demo catalogue has at least {MIN_IMAGES} "
            "images and a seed of 0 or more."
        )
    asked: dict[str, object] = {"generator": GENERATOR, "n_images": n_images, "seed": seed}
    found = _found(out, asked)
    if found:
        return found
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_beside(out, "partial")
    partial.mkdir()
    try:
        summary = _write(partial, n_images, seed, workers or os.cpu_count() or 1, progress)
        counts = asdict(summary) | {"catalogue": "catalogue.csv"}
        (partial / _RECORD).write_text(json.dumps(asked | {"summary": counts}, indent=1))
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(out)  # a full disk names no file
        raise
    return _summary_at(out, counts, reused=False)


def _found(out: Path, asked: dict[str, object]) -> DemoSummary | None:
    """The catalogue that `out` already holds; None if it is empty or missing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    record_path = out / _RECORD
    if not record_path.is_file():
        raise UsageError(
            f"{out} holds something other than a demo catalogue; name another folder or empty it"
        )
    try:
        record = read_json(record_path)
        found = _summary_at(out, record.pop("summary"), reused=True)
    except (DataError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(
            f"{record_path} is damaged; remove {out} and draw the catalogue again."
        ) from error
    if record != asked:
        made = ", ".join(f"{key} {value}" for key, value in record.items())
        raise UsageError(
            f"{out} holds another demo catalogue ({made}); name another folder or remove this one"
        )
    return found


def _summary_at(out: Path, counts: dict[str, object], reused: bool) -> DemoSummary:
    fields = counts | {"catalogue": out / "catalogue.csv", "reused": reused}
    return DemoSummary(**fields)  # type: ignore[arg-type]


def _write(
    folder: Path, n_images: int, seed: int, workers: int, progress: Callable[[int], None] | None
) -> DemoSummary:
    products = sample_products(seed, n_images)
    held_out = split_products(products, seed, min(round(n_images * TEST_SHARE), MAX_TEST))
    firsts = np.cumsum([0, *(product.n_photos for product in products)])
    for subfolder in sorted({image_id(row)[:3] for row in range(n_images)}):
        (folder / "images" / subfolder).mkdir(parents=True)
    jobs = [
        (folder, seed, [(p.index, int(first), p.n_photos) for p, first in rows])
        for rows in _chunks(list(zip(products, firsts[:-1], strict=True)))
    ]
    for written in _drawn(jobs, workers):
        if progress:
            progress(written)
    _write_rows(folder / "catalogue.csv", products, held_out, firsts)
    return _write_taxonomy(folder, products, held_out)


def image_id(row: int) -> str:
    """Identity of the image at a row of the catalogue; a thousand rows share three digits."""
    return f"{row:06d}"


def _chunks(rows: list[tuple[Product, np.int64]]) -> Iterator[list[tuple[Product, np.int64]]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


_Job = tuple[Path, int, list[tuple[int, int, int]]]


def _drawn(jobs: Sequence[_Job], workers: int) -> Iterator[int]:
    """Photographs written by each job, in any number of processes."""
    if workers <= 1 or len(jobs) == 1:
        yield from map(_draw_job, jobs)
        return
    # With fork a caller's script needs no ``if __name__`` guard; it is safe here because the
    # children run only NumPy and Pillow.
    method = "fork" if sys.platform.startswith("linux") else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        yield from pool.map(_draw_job, jobs)


def _draw_job(job: _Job) -> int:
    folder, seed, rows = job
    for index, first, n_photos in rows:
        look = sample_product(seed, index).look
        for shot, picture in enumerate(photographs(look, seed, index, n_photos)):
            name = image_id(first + shot)
            picture.save(folder / "images" / name[:3] / f"{name}.jpg", quality=QUALITY)
    return sum(n_photos for *_, n_photos in rows)


def photographs(look: Look, seed: int, index: int, n_photos: int) -> Iterator:
    """Draw one product and take its photographs.

    Parameters
    ----------
    look : Look
        The product.
    seed, index : int
        Seed of the world and position of the product: they seed the drawing.
    n_photos : int
        How many.

    Yields
    ------
    PIL image, RGB, 96 x 128
    """
    rng = np.random.default_rng([seed, index, 1])
    drawing = draw_product(look, rng)
    for _ in range(n_photos):
        yield photograph(drawing, rng)


def _write_rows(
    path: Path, products: Sequence[Product], held_out: np.ndarray, firsts: np.ndarray
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", "path", "tags", "split", "group", "title"])
        for product, test, first in zip(products, held_out, firsts[:-1], strict=True):
            for row in range(first, first + product.n_photos):
                name = image_id(int(row))
                where = f"images/{name[:3]}/{name}.jpg"
                tags = "|".join(product.tags)
                split = "test" if test else "train"
                writer.writerow([name, where, tags, split, f"p{product.index:06d}", product.title])


def _write_taxonomy(folder: Path, products: Sequence[Product], held_out: np.ndarray) -> DemoSummary:
    counts = tag_counts(products, ~held_out)
    test_counts = tag_counts(products, held_out)
    with (folder / "taxonomy.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tag", "train_count", "test_count"])
        writer.writerows((tag, counts[tag], test_counts[tag]) for tag in TAGS)
    train = np.array([counts[tag] for tag in TAGS])
    n_photos = np.array([product.n_photos for product in products])
    return DemoSummary(
        catalogue=folder / "catalogue.csv",
        n_images=int(n_photos.sum()),
        n_products=len(products),
        n_tags=len(TAGS),
        n_train=int(n_photos[~held_out].sum()),
        n_test=int(n_photos[held_out].sum()),
        n_tail=int((train < TAIL).sum()),
        n_common=int(((train >= TAIL) & (train < FREQUENT)).sum()),
        n_frequent=int((train >= FREQUENT).sum()),
        n_absent=int((train == 0).sum()),
    )


def tag_counts(products: Sequence[Product], chosen: np.ndarray) -> Counter[str]:
    """Photographs with each tag among the chosen products.

    Parameters
    ----------
    products : sequence of Product
        All the products.
    chosen : ndarray of bool, shape (n_products,)
        Which of them count.

    Returns
    -------
    Counter
        From tag to photographs; tags that none shows count 0.
    """
    counts: Counter[str] = Counter()
    for product, counted in zip(products, chosen, strict=True):
        if counted:
            counts.update(dict.fromkeys(product.tags, product.n_photos))
    return counts
