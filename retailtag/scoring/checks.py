"""Figures behind the findings that need cells, and not only the finished scorecard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import GROUPS, NEGATIVE, POSITIVE, UNKNOWN
from retailtag.predictions import Predictions
from retailtag.scoring import findings as found
from retailtag.scoring.aligned import Aligned
from retailtag.scoring.finding import Finding


def cell_findings(
    predictions: Predictions, catalog: Catalog, aligned: Aligned, split: str
) -> list[Finding]:
    """Findings about the scored cells, in the order they are numbered."""
    table, n = catalog.table, len(aligned.rows)
    maybe = [
        found.duplicated_images(*copies(predictions, catalog, aligned.rows), n, split),
        found.non_finite_scores(table.tags, aligned.logits),
        found.constant_scores(table.tags, aligned.logits),
        *_optimism(predictions.provenance),
        found.probe_kept(predictions.provenance.get("is_probe")),
        *_prevalence(catalog, aligned),
    ]
    return [f for f in maybe if f is not None]


def copies(
    predictions: Predictions, catalog: Catalog, rows: NDArray[np.intp]
) -> tuple[list[tuple[str, str]], str]:
    """Scored images that were fitted under another id, and how that was seen.

    By the bytes of the images where the predictions record it (``copies``: scored id to fitted
    id, from the hashes in the feature store), else by the names of their files.
    """
    recorded = predictions.provenance.get("copies")
    scored = catalog.image_ids[rows].tolist()
    if isinstance(recorded, dict):
        return [(i, str(recorded[i])) for i in scored if i in recorded], "their bytes"
    fitted = np.flatnonzero(np.isin(catalog.image_ids, predictions.fitted_ids)).tolist()
    names = {catalog.images.name(k): str(catalog.image_ids[k]) for k in fitted}
    files = [(i, catalog.images.name(k)) for i, k in zip(scored, rows.tolist(), strict=True)]
    return [(i, names[file]) for i, file in files if file in names], "the names of their files"


def expected_given(catalog: Catalog, labels: NDArray[np.int8]) -> NDArray[np.float64] | None:
    """Tags expected among `labels` (n_images, n_tags) at training prevalence, (n_tags,).

    None where the catalogue's training images are not those that its training counts come from.
    """
    train = catalog.table.labels[catalog.rows("train")]
    known = (train != UNKNOWN).sum(axis=0)
    if not np.array_equal((train == POSITIVE).sum(axis=0), catalog.table.train_count):
        return None
    rate = catalog.table.train_count / np.maximum(known, 1)
    expected: NDArray[np.float64] = rate * (labels != UNKNOWN).sum(axis=0)
    return expected


def _optimism(provenance: dict[str, Any]) -> Iterator[Finding | None]:
    """From what the fitting stage recorded, by scope: F1 in sample and cross-fit."""
    recorded = provenance.get("threshold_f1")
    for scope, values in recorded.items() if isinstance(recorded, dict) else ():
        pair = values.get("in_sample"), values.get("cross_fit")
        if None not in pair:
            yield found.threshold_optimism(scope, *pair)


def _prevalence(catalog: Catalog, aligned: Aligned) -> Iterator[Finding | None]:
    expected = expected_given(catalog, aligned.labels)
    if expected is None:
        return
    labels = aligned.labels
    given = (aligned.predicted & ((labels == POSITIVE) | (labels == NEGATIVE))).sum(axis=0)
    for group in GROUPS:
        tags = catalog.table.group == group
        yield found.prevalence_off(group, int(given[tags].sum()), float(expected[tags].sum()))
