"""Score predictions against a catalogue, after checking that the two belong together."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.catalog.table import POSITIVE
from retailtag.errors import DataError, SplitOverlap, UsageError, named
from retailtag.predictions import Predictions
from retailtag.scoring import findings as found
from retailtag.scoring.aligned import Aligned, align, product_counts
from retailtag.scoring.assignments import assignment_rows
from retailtag.scoring.checks import cell_findings
from retailtag.scoring.finding import Finding, count
from retailtag.scoring.metrics import micro_f1, tag_counts
from retailtag.scoring.ranking import sample_scores
from retailtag.scoring.scorecard import ScoreCard
from retailtag.scoring.summaries import group_summaries, measure, tag_rows, threshold_rules
from retailtag.statistics.exclusive import INDEPENDENT
from retailtag.version import __version__


def model_name(provenance: dict[str, Any], fallback: str = "predictions") -> str:
    """Name of a model, ``backbone · strategy``, from the provenance of its predictions.

    Examples
    --------
    >>> model_name({"backbone": "timm:resnet50", "strategy": "probe"})
    'timm:resnet50 · probe'
    >>> model_name({}, "mine")
    'mine'
    """
    words = [str(provenance[key]) for key in ("backbone", "strategy") if provenance.get(key)]
    return " · ".join(words) or fallback


def score_predictions(
    predictions: Predictions,
    catalog: Catalog,
    *,
    split: str = "test",
    allow_missing: bool = False,
    name: str | None = None,
    assignment: str = INDEPENDENT,
) -> ScoreCard:
    """Scorecard of one model on one split.

    The predictions' order does not matter, and their images outside the split take no part. With
    `allow_missing`, images that have no prediction (unreadable ones) are left out and reported in a
    finding. `name` is shown on the card; by default it comes from the predictions' provenance.
    `assignment`, one of `retailtag.statistics.exclusive.ASSIGNMENTS`, says which tags of an
    attribute with one value an image are given; the card has the scores of all three.

    Raises `SplitOverlap` if the model was fitted on an image of the split, `ArtefactError` if the
    predictions lack images of the split or have other tags than the catalogue, and `UsageError` if
    the split is unknown or empty, or a assignment concerns no attribute, and `DataError` if no
    scored image has a tag.
    """
    refuse_overlap(predictions, catalog, split)
    aligned = align(predictions, catalog, split, allow_missing=allow_missing, assignment=assignment)
    if not (aligned.labels == POSITIVE).any():
        raise DataError(
            f"None of the {len(aligned.rows):,} scored images in the {split} split of "
            f"{catalog.path} has a tag, so there is nothing to score; score another split, or make "
            "new ones with retailtag catalog split."
        )
    counts = tag_counts(aligned.predicted, aligned.labels)
    products = product_counts(aligned, catalog)
    table = catalog.table
    measured = measure(aligned, counts, products, table)
    rules = threshold_rules(predictions.provenance, table.group)
    summaries = group_summaries(measured)
    card = ScoreCard(
        model=name or model_name(predictions.provenance),
        split=split,
        n_images=len(aligned.rows),
        n_products=len(products.products),
        tags=tag_rows(measured, table, aligned.thresholds, rules),
        summaries=summaries,
        micro_f1=micro_f1(counts),
        macro_f1_sklearn=summaries["all"].macro_f1_sklearn,
        samples=sample_scores(aligned.logits, aligned.predicted, aligned.labels),
        provenance=_provenance(predictions, catalog),
        assignment=assignment,
        assignments=assignment_rows(aligned, table.tags),
    )
    return replace(card, findings=tuple(_findings(card, predictions, catalog, aligned)))


def refuse_overlap(predictions: Predictions, catalog: Catalog, split: str) -> None:
    """Raise `SplitOverlap` if a fitted image is in the split; see `score_predictions`."""
    if split not in SPLITS:
        raise UsageError(f"Split {split!r} is unknown; use one of {', '.join(SPLITS)}.")
    scored = catalog.image_ids[catalog.rows(split)]
    if not len(scored):
        raise UsageError(f"{catalog.path} has no image in its {split} split; choose another.")
    both = np.intersect1d(predictions.fitted_ids, scored)
    if len(both):
        raise SplitOverlap(
            f"The model was fitted on {count(len(both), 'image')} of the {split} split "
            f"({named(both.tolist())}), so its score would be too high; fit without "
            "them or score another split."
        )


def _provenance(predictions: Predictions, catalog: Catalog) -> dict[str, Any]:
    cutoffs = catalog.table.cutoffs
    return {
        "retailtag": __version__,
        "catalogue": {"name": catalog.path.name, "digest": catalog.digest},
        "predictions": {"digest": predictions_digest(predictions), **predictions.provenance},
        "cutoffs": {"tail": cutoffs.tail, "frequent": cutoffs.frequent},
    }


def predictions_digest(predictions: Predictions) -> str:
    """SHA-256 over ids, tags, logits, thresholds and fitted ids, hexadecimal."""
    h = hashlib.sha256()
    for names in (predictions.image_ids, np.array(predictions.tags), predictions.fitted_ids):
        # separators that no id holds: ("a", "bc") and ("ab", "c") must differ
        h.update("\x1f".join(names.tolist()).encode() + b"\x1e")
    for numbers in (predictions.logits, predictions.thresholds):
        h.update(np.ascontiguousarray(numbers, np.float32).tobytes())
    return h.hexdigest()


def _findings(
    card: ScoreCard, predictions: Predictions, catalog: Catalog, aligned: Aligned
) -> list[Finding]:
    fitted = catalog.group[np.isin(catalog.image_ids, predictions.fitted_ids)]
    shared = np.intersect1d(fitted, catalog.group[aligned.rows])
    maybe = [
        found.missing_images(aligned.missing, card.split),
        found.catalogue_changed(predictions.provenance.get("catalog_digest"), catalog.digest),
        found.shared_products(shared, card.n_products, card.split),
        found.mixed_threads(predictions.provenance.get("threads")),
    ]
    cells = cell_findings(predictions, catalog, aligned, card.split)
    read = found.reading_findings(predictions.provenance.get("notes", ()))
    return read + [f for f in maybe if f is not None] + cells + found.card_findings(card)
