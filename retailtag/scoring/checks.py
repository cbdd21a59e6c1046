"""Findings that need single cells or images in addition to the finished scorecard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import GROUPS, POSITIVE, UNKNOWN
from retailtag.predictions import Predictions
from retailtag.scoring import findings as found
from retailtag.scoring.aligned import Aligned
from retailtag.scoring.finding import Finding
from retailtag.scoring.metrics import f1_from_counts, macro, tag_counts


def cell_findings(
    predictions: Predictions, catalog: Catalog, aligned: Aligned, split: str
) -> list[Finding]:
    """Findings about the scored cells, in the order they are numbered."""
    table = catalog.table
    twins, seen_by = copies(predictions, catalog, aligned.rows)
    maybe = [
        found.duplicated_images(twins, seen_by, len(aligned.rows), split),
        _similar(predictions, catalog, aligned, split),
        found.non_finite_scores(table.tags, aligned.logits),
        found.constant_scores(table.tags, aligned.logits),
        *_optimism(predictions.provenance),
        found.probe_kept(predictions.provenance.get("is_probe")),
        *_prevalence(catalog, aligned),
        found.changed_sources(
            _changed(predictions.provenance, catalog, aligned), len(aligned.rows), split
        ),
    ]
    return [f for f in maybe if f is not None]


def _changed(provenance: dict[str, Any], catalog: Catalog, aligned: Aligned) -> list[str]:
    """Ids of scored images that changed since they were embedded, if the features are here."""
    folder, *identity = (provenance.get(k) for k in ("features_folder", "backbone", "features"))
    if not isinstance(folder, str) or not Path(folder).is_dir():
        return []
    # imported here: HDF5 is loaded only where there are features
    from retailtag.images.loader import hash_images
    from retailtag.store.sources import changed_images, find_source

    source = find_source(Path(folder), *map(str, identity))
    if source is None:
        return []
    hashed = partial(hash_images, catalog.images, workers=2)
    rows, ids = aligned.rows.tolist(), catalog.image_ids.tolist()
    return changed_images(source, ids, rows, catalog.images, hashed)


def copies(
    predictions: Predictions, catalog: Catalog, rows: NDArray[np.intp]
) -> tuple[list[tuple[str, str]], str]:
    """Scored images that are training images under another id, and how that was found.

    Found by the bytes of the images where the predictions record it (``copies``: scored id to
    training id, from the hashes in the feature store), else by their file names.
    """
    recorded = predictions.provenance.get("copies")
    scored = catalog.image_ids[rows].tolist()
    if isinstance(recorded, dict):
        return [(i, str(recorded[i])) for i in scored if i in recorded], "their bytes"
    fitted = np.flatnonzero(np.isin(catalog.image_ids, predictions.fitted_ids)).tolist()
    names = {catalog.images.name(k): str(catalog.image_ids[k]) for k in fitted}
    files = [(i, catalog.images.name(k)) for i, k in zip(scored, rows.tolist(), strict=True)]
    return [(i, names[file]) for i, file in files if file in names], "the names of their files"


def _similar(
    predictions: Predictions, catalog: Catalog, aligned: Aligned, split: str
) -> Finding | None:
    """Macro-F1 with and without a similar training image, where the predictions record these.

    Both are means over the same tags, those with a positive on either side.
    """
    recorded = predictions.provenance.get("similar")
    if not isinstance(recorded, dict) or not recorded:
        return None
    scored = catalog.image_ids[aligned.rows].tolist()
    last = predictions.provenance.get("similar_up_to")  # of many images a sample was compared
    compared = np.flatnonzero([last is None or sampling_key(i) <= last for i in scored])
    if not len(compared):
        return None
    ids = [scored[place] for place in compared.tolist()]
    near = np.array([i in recorded for i in ids])
    on_near, on_others = (
        f1_from_counts(tag_counts(aligned.predicted[side], aligned.labels[side]))
        for side in (compared[near], compared[~near])
    )
    both = np.isfinite(on_near) & np.isfinite(on_others)
    tellable = both.any() and (~near).mean() >= found.MIN_SHARE_OTHERS
    scores = (macro(on_near, both), macro(on_others, both)) if tellable else None
    pairs = [f"{i} ~ {recorded[i]}" for i in ids if i in recorded]
    return found.similar_images(pairs, len(ids), scores, int(both.sum()), split, len(scored))


def sampling_key(image_id: str) -> str:
    """What images are sampled by, smallest first: an order that ids alone decide."""
    return hashlib.sha256(image_id.encode()).hexdigest()


def expected_given(catalog: Catalog, labels: NDArray[np.int8]) -> NDArray[np.float64] | None:
    """Tags expected among `labels` (n_images, n_tags) at training prevalence, (n_tags,).

    None if the catalogue's training counts come from other images than its training split.
    """
    train = catalog.table.labels[catalog.rows("train")]
    known = (train != UNKNOWN).sum(axis=0)
    if not np.array_equal((train == POSITIVE).sum(axis=0), catalog.table.train_count):
        return None
    rate = catalog.table.train_count / np.maximum(known, 1)
    expected: NDArray[np.float64] = rate * (labels != UNKNOWN).sum(axis=0)
    return expected


def _optimism(provenance: dict[str, Any]) -> Iterator[Finding | None]:
    """By scope, from the in-sample and cross-fit F1 that the run recorded."""
    recorded = provenance.get("threshold_f1")
    for scope, values in recorded.items() if isinstance(recorded, dict) else ():
        in_sample = values.get("in_sample")
        cross_fit = values.get("cross_fit")
        if in_sample is not None and cross_fit is not None:
            yield found.threshold_optimism(scope, in_sample, cross_fit)


def _prevalence(catalog: Catalog, aligned: Aligned) -> Iterator[Finding | None]:
    expected = expected_given(catalog, aligned.labels)
    if expected is None:
        return
    given = (aligned.predicted & (aligned.labels != UNKNOWN)).sum(axis=0)
    for group in GROUPS:
        tags = catalog.table.group == group
        yield found.prevalence_off(group, int(given[tags].sum()), float(expected[tags].sum()))
