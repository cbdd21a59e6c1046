"""Thresholds for other aims than those that a model was fitted with, on the scores that it kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.runs.tune import Model
from retailtag.thresholds.tuning import AUTO, RULES, Tuning

F1 = "f1"
PRECISION = "precision:0.8"
MAX_TAGS = "max-tags:12"
TITLES = {F1: "F1", PRECISION: "precision 0.8", MAX_TAGS: "12 tags an image"}


def other_points(
    model: Model,
    catalog: Catalog,
    rows: NDArray[np.intp],
    fitted: Mapping[str, Any],
    names: Iterable[str] = (PRECISION, MAX_TAGS),
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names, keys of `TITLES`, and thresholds (n_tags,).

    `rows` are as `Model.rows` gives them, `fitted` the facts of the model's own thresholds, whose
    rule is kept where it can be.
    """
    rule = fitted["rule"] if fitted.get("rule") in RULES else AUTO
    capped = bool(fitted.get("capped"))
    most = float(MAX_TAGS.partition(":")[2])
    tunings = {
        F1: Tuning(rule, F1, capped=capped),
        PRECISION: Tuning(AUTO, PRECISION),
        MAX_TAGS: Tuning(rule, F1, max_tags=most, capped=capped),
    }
    for name in names:
        yield name, model.tune(tunings[name], catalog, rows).thresholds
