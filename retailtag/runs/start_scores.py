"""Thresholds of a fine-tune, carried over from the head that it starts from.

A validation set is a tenth of the training images: too few to tune hundreds of thresholds on. The
start, a linear head on frozen embeddings, can be fitted in folds and so scores every training
image; its thresholds are tuned on all of them as those of a probe are. They are then moved, each
frequency group by one number, until the fine-tune gives as many tags of the group on the
validation set as the start, fitted without it, gives there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.folds import k_folds
from retailtag.finetuning.head import HeadInit
from retailtag.runs.probe import Features
from retailtag.thresholds.matching import match_counts
from retailtag.thresholds.ranking import rank_tags
from retailtag.thresholds.tuning import Tuned, Tuning, smallest_shift
from retailtag.tuning_scores import NO_FOLDS, TuningScores

MATCHED = "matched"  # the rule, as artefacts record it
N_FOLDS = 5

Logits = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StartScores:
    """Logits of the start, of images that it was not fitted on."""

    train: TuningScores  # out of fold
    val: Logits  # (n_val, n_tags)

    @classmethod
    def fit(
        cls,
        catalog: Catalog,
        train: Features,
        val: Logits,
        fit: Callable[[Features], HeadInit],
        seed: int,
    ) -> StartScores | None:
        """Score `train` by starts that `fit` makes of other folds; None for a single product.

        `val` (n_val, n_tags) are the logits of the start itself on the validation set.
        """
        rows, products = train.rows, catalog.group[train.rows]
        n = min(N_FOLDS, len(np.unique(products)))
        if n < 2:
            return None
        ids = catalog.image_ids[rows]
        fold = k_folds(catalog.table.labels[rows], products, ids, n, seed)
        logits = np.empty((len(rows), len(catalog.table.tags)), np.float32)
        for k in range(n):
            others = Features(rows[fold != k], train.X[fold != k])
            logits[fold == k] = fit(others).logits(train.X[fold == k])
        return cls(TuningScores(ids, logits, fold), val)

    def stored(self, val_ids: NDArray[np.str_]) -> TuningScores:
        """Both in one, the validation set in no fold."""
        train = self.train
        assert train.fold is not None
        return TuningScores(
            np.concatenate([train.image_ids, val_ids]),
            np.concatenate([train.logits, self.val]),
            np.concatenate([train.fold, np.full(len(val_ids), NO_FOLDS)]),
        )

    @classmethod
    def of(cls, stored: TuningScores) -> StartScores:
        """What `stored` gave."""
        assert stored.fold is not None
        inside = stored.fold != NO_FOLDS
        train = TuningScores(stored.image_ids[inside], stored.logits[inside], stored.fold[inside])
        return cls(train, stored.logits[~inside])

    def tune(self, tuning: Tuning, labels: NDArray[np.int8], group: NDArray[np.str_]) -> Tuned:
        """Thresholds of the start; `labels` (n_train, n_tags) are those of its training images."""
        without_limit = replace(tuning, max_tags=None)
        return without_limit.tune(self.train.logits, labels, group, self.train.fold)

    def carried(self, tuned: Tuned, logits: Logits, group: NDArray[np.str_]) -> Logits:
        """Thresholds of the start (`tune`) as those of the model that gave `logits` on `val`."""
        return match_counts(tuned.thresholds, self.val, logits, group)


def carried_from_start(
    start: StartScores,
    tuned: Tuned,
    logits: Logits,
    labels: NDArray[np.int8],
    group: NDArray[np.str_],
    max_tags: float | None = None,
) -> Tuned:
    """Thresholds for the model that gave `logits` on the validation set, whose labels are `labels`.

    `tuned` are those of the start. The labels are read for `max_tags` alone, the most tags an image
    on average: unknown cells do not count.
    """
    thresholds = start.carried(tuned, logits, group)
    shift = 0.0
    if max_tags is not None:
        shift = smallest_shift(rank_tags(logits, labels), thresholds, max_tags)
    moved = (thresholds + np.float32(shift)).astype(np.float32)
    return Tuned(
        moved,
        MATCHED,
        tuned.objective,
        max_tags=max_tags,
        shift=shift,
        capped=tuned.capped,
    )
