"""What at most one or exactly one value an attribute costs and gains."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE, UNKNOWN
from retailtag.scoring.aligned import Aligned
from retailtag.scoring.metrics import (
    TagCounts,
    f1_from_counts,
    macro,
    precision_from_counts,
    recall_from_counts,
    tag_counts,
)
from retailtag.scoring.scorecard import AssignmentRow
from retailtag.statistics.exclusive import ASSIGNMENTS, assign, attribute_columns


def assignment_rows(aligned: Aligned, tags: tuple[str, ...]) -> tuple[AssignmentRow, ...]:
    """All tags, then every attribute, under every assignment; empty without an attribute."""
    columns = {name: attribute_columns(tags, name) for name in aligned.exclusive}
    columns = {name: own for name, own in columns.items() if len(own)}
    rows: dict[str, list[AssignmentRow]] = {name: [] for name in ("", *columns)}
    for assignment in ASSIGNMENTS if columns else ():
        given = assign(aligned.logits, aligned.thresholds, tags, columns, assignment)
        right = {name: right_alone(given, aligned.labels, own) for name, own in columns.items()}
        right[""] = np.concatenate(list(right.values()))
        for name, several in rows.items():
            own = columns.get(name, np.arange(len(tags)))
            counts = tag_counts(given[:, own], aligned.labels[:, own])
            several.append(_row(name, assignment, counts, right[name]))
    return tuple(row for several in rows.values() for row in several)


def right_alone(
    given: NDArray[np.bool_], labels: NDArray[np.int8], columns: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Of the images known to have a value, whether they were given it alone; (n_with_value,)."""
    known = labels[:, columns] != UNKNOWN
    present = labels[:, columns] == POSITIVE
    equal = ((given[:, columns] & known) == present).all(axis=1)
    return equal[present.any(axis=1)]


def _row(
    attribute: str, assignment: str, counts: TagCounts, right: NDArray[np.bool_]
) -> AssignmentRow:
    return AssignmentRow(
        attribute=attribute,
        assignment=assignment,
        n_tags=int((counts.positives > 0).sum()),
        macro_f1=macro(f1_from_counts(counts)),
        macro_precision=macro(precision_from_counts(counts)),
        macro_recall=macro(recall_from_counts(counts)),
        n_images=len(right),
        right=float(right.mean()) if len(right) else math.nan,
    )
