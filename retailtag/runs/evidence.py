"""What a fitted model records for the scorer's findings: copies, similar images, optimism."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.folds import k_folds
from retailtag.catalog.similar import Look, similar_in
from retailtag.scoring.checks import sampling_key
from retailtag.scoring.metrics import f1_from_counts, macro, tag_counts
from retailtag.store import EmbeddingSource
from retailtag.store.segment import UNKNOWN_BYTES
from retailtag.thresholds.ranking import keep_images, rank_tags
from retailtag.thresholds.tuning import AUTO, Tuning

MAX_COMPARED = 10_000  # images looked for among those in training: more would tell no more


def seen_in_training(
    catalog: Catalog,
    store: EmbeddingSource,
    rows: NDArray[np.intp],
    fitted_rows: NDArray[np.intp],
) -> dict[str, Any]:
    """Images of `rows` that training images equal (``copies``) or look like (``similar``).

    Of more than `MAX_COMPARED` images those are looked for whose `sampling_key` is smallest, up to
    ``similar_up_to``: comparing all would grow with the square of their number.
    """
    ids = catalog.image_ids
    seen: dict[str, Any] = {"copies": copies_of_fitted(store, ids[rows], ids[fitted_rows])}
    if len(rows) > MAX_COMPARED:
        keys = np.array([sampling_key(i) for i in ids[rows].tolist()])
        last = np.sort(keys)[MAX_COMPARED - 1]
        rows = rows[keys <= last]
        seen["similar_up_to"] = str(last)
    return {**seen, "similar": similar_to_fitted(catalog, store, rows, fitted_rows)}


def copies_of_fitted(
    store: EmbeddingSource, image_ids: NDArray[np.str_], fitted_ids: NDArray[np.str_]
) -> dict[str, str]:
    """Images whose bytes equal those of a training image of another id: id to that id."""
    hashes = store.known()
    # reversed: of several training images with the same bytes, the first one is named.
    fitted = {hashes[i]: i for i in reversed(fitted_ids.tolist()) if i in hashes}
    fitted.pop(UNKNOWN_BYTES, None)
    found = {i: fitted.get(hashes[i]) for i in image_ids.tolist() if i in hashes}
    return {i: twin for i, twin in found.items() if twin is not None and twin != i}


def similar_to_fitted(
    catalog: Catalog,
    store: EmbeddingSource,
    rows: NDArray[np.intp],
    fitted_rows: NDArray[np.intp],
) -> dict[str, str]:
    """Images that look like photographs of a product in training: id to the closest such image.

    `rows` and `fitted_rows` are disjoint row numbers, ascending; what counts as similar says
    `retailtag.catalog.similar`.
    """
    both = np.sort(np.concatenate([rows, fitted_rows]))
    view = store.load(catalog.image_ids[both])
    if not view.found.any():
        return {}
    look = Look.of_embeddings(view.X, view.found)
    place = np.searchsorted(both, rows)
    fitted_place = np.searchsorted(both, fitted_rows)
    found = similar_in(look, catalog.table.labels[both], place, fitted_place)
    ids = catalog.image_ids[both]
    return {str(ids[i]): str(ids[j]) for i, j in sorted(found.items())}


def threshold_f1(
    catalog: Catalog,
    rows: NDArray[np.intp],
    logits: NDArray[np.float32],
    thresholds: NDArray[np.float32],
    tuning: Tuning,
    fold: NDArray[np.intp] | None = None,
) -> dict[str, dict[str, float]]:
    """Macro-F1 of tuned thresholds in sample (on the scores they were tuned on) and cross-fit.

    `rows` (n_images,) are the images of the scores, training images or a validation set, and
    `logits`, float32 (n_images, n_tags), their out-of-fold or validation scores. `thresholds`
    (n_tags,) were tuned by `tuning` on all of them; `fold` (n_images,) are the folds by which it
    chose its rule, if it did. `tuning.seed` also divides the images into halves.

    Gives, by scope (``all``, ``tail``), ``in_sample`` and ``cross_fit`` macro-F1, whatever the
    objective. Cross-fit: the images are halved, no product divided, and each half is given tags by
    the thresholds tuned on the other. A scope without a positive is left out; empty for a single
    product, which cannot be halved.
    """
    half = halves(catalog, rows, tuning.seed)
    if half is None:
        return {}
    # Where the rule is chosen, each half chooses its own by the same folds. C (or the epoch) is not
    # cross-fit: it was chosen on all of these images.
    fold = fold if tuning.rule == AUTO else None
    crossed = crossed_cells(catalog, rows, logits, tuning, half, fold)
    return f1_of_cells(catalog, rows, logits >= thresholds, crossed)


def f1_of_cells(
    catalog: Catalog,
    rows: NDArray[np.intp],
    in_sample: NDArray[np.bool_],
    crossed: NDArray[np.bool_],
) -> dict[str, dict[str, float]]:
    """What `threshold_f1` gives, from the tags given (n_images, n_tags) in sample and cross-fit."""
    labels = catalog.table.labels[rows]
    group = catalog.table.group
    # In sample, each threshold fits its own noise: the difference of the two is the optimism.
    given: dict[str, Any] = {"in_sample": in_sample, "cross_fit": crossed}
    f1 = {name: f1_from_counts(tag_counts(cells, labels)) for name, cells in given.items()}
    scopes = {"all": np.ones(len(group), bool), "tail": group == "tail"}
    return {
        scope: {name: macro(values, inside) for name, values in f1.items()}
        for scope, tags in scopes.items()
        if (inside := tags & np.isfinite(f1["in_sample"])).any()
    }


def halves(catalog: Catalog, rows: NDArray[np.intp], seed: int) -> NDArray[np.int64] | None:
    """Half (n_images,) of each image, 0 or 1, no product divided; None for a single product."""
    if len(np.unique(catalog.group[rows])) < 2:
        return None
    labels = catalog.table.labels[rows]
    return k_folds(labels, catalog.group[rows], catalog.image_ids[rows], 2, seed)


def crossed_cells(
    catalog: Catalog,
    rows: NDArray[np.intp],
    logits: NDArray[np.float32],
    tuning: Tuning,
    half: NDArray[np.int64],
    fold: NDArray[np.intp] | None = None,
) -> NDArray[np.bool_]:
    """Tags given (n_images, n_tags) to each half by the thresholds tuned on the other."""
    group = catalog.table.group
    tags = rank_tags(logits, catalog.table.labels[rows])  # sorted once, for both halves
    crossed = np.zeros(logits.shape, bool)
    for side in (0, 1):
        other = half != side
        tuned = tuning.tune_ranked(keep_images(tags, other), group, fold)
        crossed[~other] = logits[~other] >= tuned.thresholds
    return crossed
