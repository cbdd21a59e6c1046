"""Compare models pair by pair on the same images, so that ties can be told from wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.errors import DataError
from retailtag.predictions import Predictions
from retailtag.scoring.bootstrap import (
    Difference,
    ProductCounts,
    bootstrap_f1,
    difference_of,
    macro_f1,
    macro_replicates,
)
from retailtag.scoring.score import Aligned, align, product_counts
from retailtag.scoring.strict_json import plain, row_from

COMPARED = ("all", "tail")


@dataclass(frozen=True)
class Comparison:
    """Macro-F1 of model `a` minus that of model `b` over the tags of one scope.

    Parameters
    ----------
    a, b : str
        Names of the models.
    scope : str
        ``all`` or ``tail``.
    difference : Difference
        Value, paired 95 % interval and standard error.
    """

    a: str
    b: str
    scope: str
    difference: Difference

    def reversed(self) -> Comparison:
        """The same comparison seen from `b`."""
        d = self.difference
        return Comparison(
            self.b, self.a, self.scope, Difference(-d.value, -d.high, -d.low, d.standard_error)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return {**asdict(self), "difference": plain(asdict(self.difference))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Comparison:
        """Read what `to_json` made."""
        return cls(
            value["a"], value["b"], value["scope"], row_from(Difference, value["difference"])
        )


def compare_predictions(
    models: Mapping[str, Predictions],
    catalog: Catalog,
    *,
    split: str = "test",
    n_bootstrap: int = 1000,
    seed: int = 0,
    allow_missing: bool = False,
) -> tuple[Comparison, ...]:
    """Paired differences of every two models, over all tags and over the tail.

    Parameters
    ----------
    models : mapping of str to Predictions
        By the names that the comparisons will carry.
    catalog, split, n_bootstrap, seed, allow_missing
        As in `retailtag.scoring.score.score_predictions`; with the same `n_bootstrap` and `seed`
        the differences come from the very replicates behind the scorecards' intervals.

    Returns
    -------
    tuple of Comparison
        For each unordered pair in the order given, scope ``all`` then ``tail``; a scope without a
        defined tag is left out.

    Raises
    ------
    ArtefactError
        As in `retailtag.scoring.score.align`.
    DataError
        If the models lack different images.
    """
    aligned = [align(p, catalog, split, allow_missing=allow_missing) for p in models.values()]
    _refuse_unequal(list(models), aligned)
    counts = [product_counts(a, catalog) for a in aligned]
    return compare_counts(
        dict(zip(models, counts, strict=True)), catalog.table.group == "tail", n_bootstrap, seed
    )


def compare_counts(
    models: Mapping[str, ProductCounts], tail: NDArray[np.bool_], n_bootstrap: int, seed: int
) -> tuple[Comparison, ...]:
    """`compare_predictions` on counts already made; `tail` (n_tags,) marks the tail tags."""
    names, counts = list(models), list(models.values())
    if len(names) < 2:
        return ()
    defined = counts[0].positives.sum(axis=0) > 0
    masks = dict(zip(COMPARED, (defined, defined & tail), strict=True))
    replicates = bootstrap_f1(counts, n_replicates=n_bootstrap, seed=seed)
    macros = {s: macro_replicates(replicates, mask) for s, mask in masks.items() if mask.any()}
    values = {s: [macro_f1(c, masks[s]) for c in counts] for s in macros}
    return tuple(
        Comparison(
            names[i],
            names[j],
            scope,
            difference_of(values[scope][i], values[scope][j], macros[scope][i], macros[scope][j]),
        )
        for i, j in combinations(range(len(names)), 2)
        for scope in macros
    )


def _refuse_unequal(names: list[str], aligned: list[Aligned]) -> None:
    for name, other in zip(names[1:], aligned[1:], strict=True):
        if not np.array_equal(other.rows, aligned[0].rows):
            raise DataError(
                f"{names[0]} and {name} have predictions for different images of the split, so "
                "their scores cannot be compared; predict the images that one of them lacks."
            )
