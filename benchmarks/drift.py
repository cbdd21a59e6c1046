"""Rate of false alarms of `retailtag drift`, and its power against known shifts, on the demo.

    python benchmarks/drift.py

A probe of `demo:cnn` is fitted on a demo catalogue without one article type. Two pools of further
products are photographed, neither of which took part in it: references and new images are drawn
from the first without replacement, so that nothing has drifted, or new images from the second
after a shift: every background a green cloth, a Gaussian blur of 1 pixel, a tenth of the products
of the article type that the model has never seen, or JPEG quality 20 instead of 88. Each row of
``results/drift.csv`` is the share of comparisons that raise an alarm at 0.05, as a whole and by
family, for one shift and batch size. Rows with ``products`` "ignored" count every image as
independent, which is what a test without groups does. ``--tiny`` draws little and records nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image, ImageFilter
from record import append, stamp

import retailtag as rt
from retailtag.demo.drawing import photo
from retailtag.demo.drawing.world import Product, sample_product
from retailtag.demo.drawing.write import photographs, write_demo_catalogue
from retailtag.statistics.drift import FAMILIES, DriftResult
from retailtag.tagger.drift.compare import compare
from retailtag.tagger.drift.effects import wilson
from retailtag.tagger.drift.sample import Sample, drawn_rows
from retailtag.tagger.drift.sources import Pictures, read_sample
from retailtag.tagger.tagger import Tagger

UNSEEN = "article:Sneakers"
NOVEL_SHARE = 0.1
SEED = 7  # of the world of the pools
# Products from here on are sampled freely: earlier ones are made to show rare tags.
FIRST = 1_000_000
QUALITY = 88  # as the demo's files
NONE = "none"
ALPHA = 0.05

Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Kind:
    """How the images of a batch are made."""

    name: str
    change: Change = lambda image: image
    quality: int = QUALITY
    green: bool = False
    unseen: float = 0.0  # share of the products that are of the unseen type


KINDS = (
    Kind(NONE),
    Kind("background", green=True),
    Kind("blur", change=lambda image: image.filter(ImageFilter.GaussianBlur(1))),
    Kind("article", unseen=NOVEL_SHARE),
    Kind("jpeg20", quality=20),
)


def products(n_images: int, first: int, unseen: bool) -> Iterator[Product]:
    """Products with `n_images` photographs at least, all or none of the unseen type."""
    index = first
    while n_images > 0:
        product = sample_product(SEED, index)
        index += 1
        if (UNSEEN in product.tags) == unseen:
            n_images -= product.n_photos
            yield product


def _green(rng: np.random.Generator) -> Image.Image:
    """A green cloth, a little uneven."""
    colour = np.array((92, 150, 96), np.float32) + rng.normal(0, 6, 3)
    return photo._image(
        np.broadcast_to(colour, (photo.HEIGHT, photo.WIDTH, 3)) + photo._mottle(rng, 4, 8)
    )


def records(kind: Kind, found: Iterator[Product]) -> Iterator[dict[str, Any]]:
    """Rows of a catalogue with the bytes of the images."""
    background = _green if kind.green else photo._background
    with mock.patch.object(photo, "_background", background):
        for product in found:
            shots = photographs(product.look, SEED, product.index, product.n_photos)
            for shot, image in enumerate(shots):
                buffer = io.BytesIO()
                kind.change(image).save(buffer, "JPEG", quality=kind.quality)
                yield {
                    "image": buffer.getvalue(),
                    "image_id": f"{product.index}-{shot}",
                    "group": f"p{product.index}",
                    "tags": list(product.tags),
                }


def pool(tagger: Tagger, kind: Kind, n_images: int, first: int) -> Sample:
    """What the model sees of one pool."""
    rows = list(records(kind, products(n_images, first, unseen=False)))
    if kind.unseen:
        share = kind.unseen / (1 - kind.unseen)
        rows += records(kind, products(round(share * n_images), first, unseen=True))
    pictures = Pictures.of_catalog(rt.Catalog.from_table(rows))
    return read_sample(tagger, pictures, len(rows), 0)[0]


def fitted(folder: Path, n_images: int) -> Tagger:
    """A probe of demo:cnn that has never seen the unseen type."""
    path = write_demo_catalogue(folder / "demo", n_images, workers=1).catalogue
    catalog = rt.read_catalog(path)
    column = catalog.table.tags.index(UNSEEN)
    seen = catalog.table.labels[:, column] != 1
    kept = path.with_name("seen.csv")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line for line, own in zip(lines[1:], seen, strict=True) if own]
    kept.write_text("\n".join([lines[0], *rows]), encoding="utf-8")
    options = {"features": folder / "features", "device": "cpu"}
    rt.extract(kept, "demo:cnn", workers=0, **options)
    made = rt.probe(
        kept, "demo:cnn", out=folder / "probe", heads="logistic", sweep_C="0.01,0.1", folds=3,
        **options,
    )  # fmt: skip
    return made.tagger


def drawn(
    reference: Sample, new: Sample, sizes: tuple[int, int], seed: int
) -> tuple[Sample, Sample]:
    """A reference and a batch of whole products, disjoint where both come from one pool."""
    first = reference.take(drawn_rows(reference.group, sizes[0], seed))
    left = np.flatnonzero(~np.isin(new.group, first.group))
    rest = new.take(left)
    return first, rest.take(drawn_rows(rest.group, sizes[1], seed + 1))


def ungrouped(sample: Sample) -> Sample:
    """The same images, each a product of its own."""
    return replace(sample, group=sample.names)


def row_of(results: list[DriftResult]) -> dict[str, Any]:
    """Rates of alarms and typical effects of one shift and size."""
    alarms = np.mean([r.has_drifted for r in results])
    low, high = wilson(np.array([alarms]), np.array([float(len(results))]))
    actions = Counter(r.remedies[0].action for r in results if r.has_drifted)
    return {
        "comparisons": len(results),
        "alarms": round(float(alarms), 4),
        "alarms_low": round(float(low[0]), 4),
        "alarms_high": round(float(high[0]), 4),
        **{name: round(float(np.mean([r.drifted(name) for r in results])), 4) for name in FAMILIES},
        "separation": round(float(np.median([r.embeddings.separation.value for r in results])), 4),
        "novel_share": round(float(np.median([r.novelty.share.value for r in results])), 4),
        "moved_tags": round(float(np.mean([len(r.moved_tags) for r in results])), 2),
        "first_remedy": actions.most_common(1)[0][0] if actions else "",
    }


def table(tagger: Tagger, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each shift, batch size and way of counting products."""
    base = pool(tagger, KINDS[0], args.pool, FIRST)
    for kind in KINDS:
        new = base if kind.name == NONE else pool(tagger, kind, args.pool, 2 * FIRST)
        ways = (("grouped", lambda s: s), ("ignored", ungrouped))
        for way, seen_as in ways if kind.name == NONE else ways[:1]:
            for size in args.batches:
                results = []
                is_null = kind.name == NONE and way == "grouped"
                for k in range(args.null if is_null else args.power):
                    a, b = drawn(base, new, (args.reference, size), seed=2 * k)
                    made = compare(
                        seen_as(a), seen_as(b), tagger.tags, alpha=ALPHA,
                        permutations=args.permutations, seed=k,
                    )  # fmt: skip
                    results.append(made)
                yield {
                    "shift": kind.name,
                    "batch": size,
                    "reference": args.reference,
                    "products": way,
                    "permutations": args.permutations,
                    **row_of(results),
                }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=int, default=1000, help="images of a reference")
    parser.add_argument("--pool", type=int, default=3000, help="images of a pool")
    parser.add_argument("--train", type=int, default=2000, help="images of the fitted catalogue")
    parser.add_argument("--null", type=int, default=400, help="comparisons without drift")
    parser.add_argument("--power", type=int, default=50, help="comparisons of each shift")
    parser.add_argument("--permutations", type=int, default=199)
    parser.add_argument("--batches", type=lambda text: [int(b) for b in text.split(",")],
                        default=[50, 200, 1000])  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="toy size; record nothing")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    if args.tiny:
        args.reference, args.pool, args.train = 60, 160, 150
        args.null, args.power, args.permutations, args.batches = 2, 1, 99, [40]
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in table(fitted(Path(folder), args.train), args):
            rows.append(row)
            if not args.json:
                print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    if args.json:
        print(json.dumps(rows))
    if not args.tiny:
        append("drift.csv", [{**stamp(), **row} for row in rows])


if __name__ == "__main__":
    main()
