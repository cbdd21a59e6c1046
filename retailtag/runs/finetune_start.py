"""What a fine-tune starts from: its images by use, its first head, and its model selector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.folds import stratified_folds
from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.finetuning.head import HeadInit
from retailtag.finetuning.losses import LabelCounts
from retailtag.finetuning.validation import Measured, ModelSelector
from retailtag.probes.artefact import Probe
from retailtag.probes.scaling import Standardiser, is_unit, mean_norm
from retailtag.probes.solver.fit import make_solver
from retailtag.runs.checks import changed_since_extract
from retailtag.runs.evidence import crossed_cells, halves
from retailtag.runs.probe import Features, load_rows
from retailtag.runs.sweep import FittedHead, fit_at
from retailtag.scoring.metrics import average_precision_per_tag, f1_from_counts, tag_counts
from retailtag.settings import AUTO, FinetuneSettings
from retailtag.store import FeatureStore
from retailtag.store.sources import EXTRACT_AGAIN, changed_sentence
from retailtag.thresholds.tuning import Tuning

VALIDATION_SHARE = 0.1  # of the training images, when the catalogue has no val split

Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class FinetuneImages:
    """Training images and validation set with their embeddings, and test rows to predict."""

    train: Features
    val: Features
    test: Rows
    has_own_val: bool  # whether the validation set is the catalogue's own ``val`` split

    @property
    def both_rows(self) -> Rows:
        """Rows of the training and the validation images, in the catalogue's order."""
        return np.sort(np.concatenate([self.train.rows, self.val.rows]))

    @property
    def both(self) -> Features:
        """Training and validation images together, in the catalogue's order."""
        rows = np.concatenate([self.train.rows, self.val.rows])
        X = np.concatenate([self.train.X, self.val.X])
        order = np.argsort(rows)
        return Features(rows[order], X[order])


def split_images(catalog: Catalog, store: FeatureStore, config: FinetuneSettings) -> FinetuneImages:
    """Training, validation and test images of a fine-tune.

    The validation set is the catalogue's ``val`` split; without one it is a tenth of the training
    images, stratified over tags, no product divided.

    Raises
    ------
    DataError
        If there are too few training images for a validation set.
    UsageError
        If a refit is asked for and the catalogue has a ``val`` split of its own.
    """
    train = load_rows(catalog, store, catalog.rows("train"), 2)
    test = load_rows(catalog, store, catalog.rows("test"), 0).rows
    own = catalog.rows("val")
    if len(own):
        if config.refit:
            raise UsageError(
                "--refit trains on a validation set that was held out of the training images, and "
                f"{catalog.path} has a val split of its own; leave --refit out, or call those "
                "images train."
            )
        return FinetuneImages(train, load_rows(catalog, store, own, 1), test, True)
    is_val = _held_out(catalog, train, config.seed)
    return FinetuneImages(
        Features(train.rows[~is_val], train.X[~is_val]),
        Features(train.rows[is_val], train.X[is_val]),
        test,
        False,
    )


def _held_out(catalog: Catalog, train: Features, seed: int) -> NDArray[np.bool_]:
    """Which training images (n_train,) are the validation set."""
    n_val = round(VALIDATION_SHARE * len(train.rows))
    if n_val < 1:
        raise DataError(
            f"{catalog.path} has {len(train.rows)} training images, too few to hold a validation "
            "set out; add images or use the probe."
        )
    fold = stratified_folds(
        catalog.table.labels[train.rows],
        catalog.group[train.rows],
        catalog.image_ids[train.rows],
        [len(train.rows) - n_val, n_val],
        seed,
    ).fold
    return fold == 1


def check_probe(catalog: Catalog, store: FeatureStore, probe: Probe) -> None:
    """Raise `ArtefactError` unless `probe` was fitted on this catalogue and this store.

    Its C belongs to its tags in their order, and was chosen on its training images: images that
    are held out now may have been among them.
    """
    differing = []
    if probe.facts.get("features") != store.spec.digest:
        fitted_on = probe.facts.get("backbone", "another backbone")
        differing.append(f"embeddings ({fitted_on} there, {store.spec.backbone} here)")
    if probe.tags != catalog.table.tags:
        differing.append(f"tags ({len(probe.tags)} there, {len(catalog.table.tags)} here)")
    elif probe.facts.get("catalog_digest") != catalog.digest:
        differing.append("images, labels or splits")
    if differing:
        raise ArtefactError(
            f"The probe was fitted on other {' and other '.join(differing)} than this fine-tune of "
            f"{catalog.path}; run `retailtag probe` again."
        )


def check_start(catalog: Catalog, store: FeatureStore, probe: Probe) -> None:
    """As `check_probe`, and raise `DataError` if images changed since they were embedded."""
    check_probe(catalog, store, probe)
    # Training reads the files: it would stop at the first of these.
    if changed := changed_since_extract(catalog, store, range(len(catalog))):
        raise DataError(f"{changed_sentence(changed, catalog.path)} {EXTRACT_AGAIN}")


def first_head(
    labels: NDArray[np.int8], fitted: Features, probe: Probe, config: FinetuneSettings, device: str
) -> HeadInit:
    """The head to start from: a probe of the images `fitted`, or the prior for ``scratch``.

    `labels` (n_images, n_tags) are those of the whole catalogue; `probe` gives the strength C of
    each tag and the scaling.
    """
    if config.blocks == "scratch":
        return _prior_head(labels[fitted.rows], fitted.X.shape[1])
    solver = make_solver("torch", device)
    return head_start(fitted.X, fit_at(fitted.X, labels[fitted.rows], probe.C, solver, probe.scale))


def _prior_head(labels: NDArray[np.int8], dim: int) -> HeadInit:
    """Zero weights; biases that give each tag its share of the labels (n_images, n_tags)."""
    return HeadInit(
        mean=np.zeros(dim, np.float32),
        scale=np.ones(dim, np.float32),
        weight=np.zeros((labels.shape[1], dim), np.float32),
        bias=LabelCounts.of(labels).log_odds.astype(np.float32),
    )


def head_start(X: NDArray[np.float32], fitted: FittedHead) -> HeadInit:
    """Express a fitted head as one on standardised embeddings, as a fine-tune trains it.

    Exact except for the kinds of scaling that divide every row by its norm, which no linear head
    does: there the rows of X (n_images, dim) are taken to have their mean norm.
    """
    if fitted.scaler.kind == "standardise":
        affine = fitted.scaler.affine
        return HeadInit(affine.mean, affine.scale, fitted.weight, fitted.bias)
    return _on_standardised(X, *fitted.raw(), unit=is_unit(fitted.scaler.kind))


def probe_head(X: NDArray[np.float32], probe: Probe) -> HeadInit:
    """The linear head of `probe` itself, as `head_start` expresses one."""
    return _on_standardised(X, probe.weight, probe.bias, unit=probe.unit)


def _on_standardised(
    X: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    unit: bool,
) -> HeadInit:
    """A head for raw embeddings, or for unit rows of them, as one for standardised ones."""
    if unit:
        # w . x / |x| is about (w / mean |x|) . x
        weight = weight / np.float32(mean_norm(X))
    affine = Standardiser.fit(X)
    return HeadInit(affine.mean, affine.scale, *affine.rescale(weight, bias))


def make_selector(
    catalog: Catalog,
    val: Rows,
    tuning: Tuning,
    choose: str,
    carry: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> ModelSelector:
    """The selector that measures on the validation rows; see `retailtag.finetuning.validation`.

    `carry` gives thresholds (n_tags,) for logits of these rows without their labels; without it,
    thresholds are tuned on one half of the rows and counted on the other.
    """
    labels = catalog.table.labels[val]
    half = halves(catalog, val, tuning.seed)
    if choose == AUTO:
        # Thresholds for a precision give no F1 to compare epochs by.
        choose = "macro-f1" if tuning.goal.precision is None else "macro-ap"

    def measure(logits: NDArray[np.float32]) -> Measured:
        ap = average_precision_per_tag(logits, labels)
        if carry is not None:
            cells = logits >= carry(logits)
        elif half is None:  # a single product cannot be halved: no F1
            return Measured(np.full(len(ap), np.nan), ap)
        else:
            cells = crossed_cells(catalog, val, logits, tuning, half)
        return Measured(f1_from_counts(tag_counts(cells, labels)), ap)

    return ModelSelector(measure, catalog.table.group == "tail", choose)
