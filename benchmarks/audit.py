"""Precision of the label audit on the demo, whose faulty labels are known.

    python benchmarks/audit.py [--images 4000] [--seed 0] [--backbones demo:cnn] [--out audit.csv]

The demo catalogue is drawn for this run. Its tags are noisy: about 2 % are forgotten, 1.2 % are
replaced by another value of their attribute, and a second colour is named half of the time. An
audited label is right about a fault if the tag that it doubts was not drawn (``error``) or that it
misses was drawn (``gap``). A probe of each backbone keeps its out-of-fold scores, and three
rankings of the (product, tag) cells are compared on them:

* ``retailtag``: what `retailtag audit` lists;
* ``loss``: by the calibrated probability of the label alone, as cross-entropy would;
* ``cleanlab``: mean over a product's images of cleanlab's label quality (normalised margin,
  probabilities adjusted by confident learning), tag by tag; where cleanlab is installed.

`precision_100` is the share of real faults among the first 100, `errors_100` and `gaps_100` the
same among the first 100 of a kind, `tail_100` among the first 100 of tail tags. `at_faults` is the
precision at as many labels as there are faults, `faults` of `cells` in the training images.
Appends to ``results/audit.csv``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from record import append, stamp

from retailtag.backbones import load_backbone
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.demo.drawing import world, write_demo_catalogue
from retailtag.extraction.extract import extract
from retailtag.runs.audit import ERROR, GAP, audit, calibrated
from retailtag.runs.probe import run_probe
from retailtag.runs.tune import Model
from retailtag.settings import ComputeSettings, ProbeSettings

FIRST = 100
Floats = NDArray[np.float64]


def drawn_tags(seed: int, n_images: int) -> list[set[str]]:
    """Everything that each product shows, in the order of the products."""
    drafts: list[Any] = []
    noisy = world._noisy_tags

    def keep(rng: np.random.Generator, draft: Any) -> tuple[str, ...]:
        drafts.append(draft)
        return noisy(rng, draft)

    with mock.patch.object(world, "_noisy_tags", keep):
        world.sample_products(seed, n_images)
    return [
        {f"{facet}:{value}" for facet, value in draft.values.items() if value}
        | {f"detail:{detail}" for detail in draft.details}
        | ({f"colour:{draft.second_colour}"} if draft.second_colour else set())
        for draft in drafts
    ]


@dataclass(frozen=True, eq=False)
class Truth:
    """Faulty labels of the audited products."""

    drawn: dict[str, set[str]]  # by product

    @classmethod
    def of(cls, catalog: Catalog, drawn: Sequence[set[str]]) -> Truth:
        """The products of the catalogue come in the order in which they were drawn."""
        products = list(dict.fromkeys(catalog.group.tolist()))
        return cls(dict(zip(products, drawn, strict=True)))

    def is_fault(self, kind: str, product: str, tag: str) -> bool:
        """Whether an audited label is really wrong."""
        return (tag in self.drawn[product]) == (kind == GAP)


Cell = tuple[str, str, str]  # kind, product, tag


def ours(model: Model, catalog: Catalog) -> list[Cell]:
    """Cells as `retailtag audit` ranks them, all of them."""
    found = audit(model, catalog, top=len(catalog) * len(catalog.table.tags))
    return [(s.kind, s.product, s.tag) for s in found.suspects]


def by_loss(model: Model, catalog: Catalog) -> list[Cell]:
    """Cells by the probability of their label alone, the least likely first."""
    rows = model.rows(catalog)
    labels = catalog.table.labels[rows]
    z = calibrated(model.scores.logits, labels, catalog.table.group)
    return _ranked(np.where(labels == 1, -z, z).astype(np.float64), labels, catalog, rows)


def by_cleanlab(model: Model, catalog: Catalog) -> list[Cell]:
    """Cells by cleanlab's label quality, tag by tag, the worst first."""
    from cleanlab.rank import get_label_quality_scores

    rows = model.rows(catalog)
    labels = catalog.table.labels[rows]
    z = calibrated(model.scores.logits, labels, catalog.table.group)
    suspicion = np.full(labels.shape, -np.inf)
    for tag in range(labels.shape[1]):
        known = np.flatnonzero(labels[:, tag] >= 0)
        own = labels[known, tag]
        if own.min(initial=1) == own.max(initial=0):
            continue
        p = 1 / (1 + np.exp(-z[known, tag].astype(np.float64)))
        quality = get_label_quality_scores(
            own, np.stack([1 - p, p], axis=1), method="normalized_margin", adjust_pred_probs=True
        )
        suspicion[known, tag] = -quality
    return _ranked(suspicion, labels, catalog, rows)


def _ranked(
    suspicion: Floats, labels: NDArray[np.int8], catalog: Catalog, rows: NDArray[np.intp]
) -> list[Cell]:
    """Cells by the mean of their images' suspicion, the highest first."""
    products, product = np.unique(catalog.group[rows], return_inverse=True)
    tags, n_tags = catalog.table.tags, len(catalog.table.tags)
    found: list[tuple[float, Cell]] = []
    for value, kind in ((1, ERROR), (0, GAP)):
        image, tag = np.nonzero((labels == value) & np.isfinite(suspicion))
        cell = product[image] * n_tags + tag
        n = np.bincount(cell, minlength=len(products) * n_tags)
        total = np.bincount(cell, suspicion[image, tag], minlength=len(n))
        for at in np.flatnonzero(n).tolist():
            place = (kind, str(products[at // n_tags]), tags[at % n_tags])
            found.append((total[at] / n[at], place))
    return [place for _, place in sorted(found, key=lambda item: -item[0])]


RANKINGS: dict[str, Callable[[Model, Catalog], list[Cell]]] = {
    "retailtag": ours,
    "loss": by_loss,
    "cleanlab": by_cleanlab,
}


def precisions(cells: Sequence[Cell], truth: Truth, tail: set[str]) -> dict[str, float | int]:
    """Figures of one ranking."""
    fault = np.array([truth.is_fault(*cell) for cell in cells])
    kind = np.array([cell[0] for cell in cells])
    is_tail = np.array([cell[2] in tail for cell in cells])

    def first(inside: NDArray[np.bool_]) -> float:
        return round(float(fault[inside][:FIRST].mean()), 3)

    n = int(fault.sum())
    return {
        "precision_100": first(np.ones(len(cells), bool)),
        "errors_100": first(kind == ERROR),
        "gaps_100": first(kind == GAP),
        "tail_100": first(is_tail),
        "at_faults": round(float(fault[:n].mean()), 3),
        "faults": n,
        "cells": len(cells),
    }


def measure(folder: Path, n_images: int, seed: int, backbone: str) -> Iterator[dict[str, Any]]:
    """A row per ranking, on a probe of one backbone."""
    summary = write_demo_catalogue(folder / "catalogue", n_images, seed)
    catalog = read_catalog(summary.catalogue)
    truth = Truth.of(catalog, drawn_tags(seed, n_images))
    context = RunContext(catalog, compute=ComputeSettings(features=folder / "features"))
    store = extract(context, load_backbone(backbone)).store
    out = folder / backbone.replace(":", "-")
    run_probe(context, store, out, ProbeSettings(heads="logistic"))
    model = Model.load(out)
    tail = {t for t, g in zip(catalog.table.tags, catalog.table.group, strict=True) if g == "tail"}
    for name, rank in RANKINGS.items():
        try:
            cells = rank(model, catalog)
        except ImportError:
            continue
        head = {"images": n_images, "seed": seed, "backbone": backbone, "ranking": name}
        yield {**stamp(), **head, **precisions(cells, truth, tail)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbones", default="demo:cnn")
    parser.add_argument("--out", default="audit.csv")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for backbone in given.backbones.split(","):
            append(given.out, list(measure(Path(folder), given.images, given.seed, backbone)))


if __name__ == "__main__":
    main()
