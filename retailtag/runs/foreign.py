"""Predictions from another tool's scores: thresholds are read or tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.errors import DataError, UsageError
from retailtag.files import file_sha256
from retailtag.predictions import Predictions
from retailtag.scoring.aligned import align
from retailtag.scoring.finding import count
from retailtag.scoring.foreign import (
    SCALES,
    ForeignScores,
    check_scale,
    read_foreign,
    read_thresholds,
    threshold_logits,
    to_logits,
)
from retailtag.scoring.foreign_ids import both_sides, match_ids
from retailtag.thresholds.tuning import AUTO, RULES, Tuning


@dataclass(frozen=True)
class Declared:
    """What a user states about another tool's scores, because the file does not say it."""

    scores: str | None  # their scale, ``logits`` or ``probabilities``
    thresholds: Path | None = None  # CSV of tag and threshold, on the same scale
    tune: str | None = None  # rule that tunes thresholds for F1; see `retailtag.thresholds.tuning`
    tune_split: str = "val"
    fitted_split: str = "train"
    map_ids: bool = False  # match ids that differ in leading zeros, .0, suffix or folder


def foreign_predictions(
    path: Path, catalog: Catalog, declared: Declared, scored_split: str
) -> Predictions:
    """Predictions from a table of scores that `retailtag.scoring.foreign.read_foreign` reads.

    They count as fitted on the declared split, and on the tuning split if thresholds were tuned,
    which must not be `scored_split`.

    Raises
    ------
    UsageError
        If the scale is not declared, no thresholds or two kinds of them are given, or the tuning
        split is the scored one.
    DataError
        If the file cannot be used, or its ids differ from the catalogue's in spelling and are not
        to be matched.
    ArtefactError
        If its tags are not the catalogue's, or images to tune on are missing.
    """
    _refuse_unclear(path, declared, scored_split)
    scale = str(declared.scores)
    found = read_foreign(path, set(catalog.table.tags))
    check_scale(found, scale)
    splits = [scored_split, *([declared.tune_split] if declared.tune else [])]
    found, notes = _with_our_ids(found, catalog, splits, declared.map_ids)
    if found.left_out:
        columns = ", ".join(map(repr, found.left_out))
        notes.append(f"An index of pandas was left out of {path.name}: column {columns}.")
    # Tuning sees the labels of its split, so the scorer must treat that split as fitted too.
    fitted = [declared.fitted_split] + ([declared.tune_split] if declared.tune else [])
    undecided = Predictions(
        image_ids=found.image_ids,
        tags=found.tags,
        logits=to_logits(found.scores, scale),
        thresholds=np.zeros(len(found.tags), np.float32),
        fitted_ids=catalog.image_ids[catalog.rows(*fitted)],
    )
    thresholds, rule = _thresholds(found, undecided, catalog, declared)
    return replace(
        undecided,
        thresholds=thresholds,
        provenance={
            "thresholds": rule,
            "notes": notes,
            "file": {"name": path.name, "sha256": file_sha256(path)},
            "declared": {
                **asdict(declared),
                "thresholds": declared.thresholds and declared.thresholds.name,
            },
        },
    )


def _with_our_ids(
    found: ForeignScores, catalog: Catalog, splits: Sequence[str], asked: bool
) -> tuple[ForeignScores, list[str]]:
    """The scores under the catalogue's ids, and a note on those that were matched.

    Ids are matched only if images of `splits` would lack scores. Not `asked` for, a match is
    refused: the ids may be those of other images.
    """
    wanted = catalog.image_ids[catalog.rows(*splits)].tolist()
    theirs = found.image_ids.tolist()
    present = set(theirs)
    lacking = [i for i in wanted if i not in present]
    if not lacking:
        return found, []
    matched = match_ids(theirs, catalog.image_ids.tolist())
    if asked and matched.ambiguous:
        raise DataError(
            f"{found.path}: --map-ids cannot decide: {matched.ambiguous}; write the catalogue's "
            "ids into the file."
        )
    how = f"{count(len(matched.ids), 'id')} of the file, ignoring {matched.ignored}"
    known = set(catalog.image_ids.tolist())
    strange = [i for i in theirs if i not in known] or theirs
    if not asked and (matched.ids or len(lacking) == len(wanted)):
        remedy = f"--map-ids matches {how}" if matched.ids else "write the catalogue's ids into it"
        raise DataError(
            f"{found.path} lacks {len(lacking):,} of the {count(len(wanted), 'image')} of "
            f"{' and '.join(splits)}: {both_sides(strange, lacking)}; {remedy}."
        )
    if not matched.ids:
        return found, []
    ids = np.array([matched.ids.get(i, i) for i in theirs], dtype=np.str_)
    first, own = next(iter(matched.ids.items()))
    note = f"{found.path.name}: --map-ids matched {how}, such as {first} with {own}."
    return replace(found, image_ids=ids), [note]


def _refuse_unclear(path: Path, declared: Declared, scored_split: str) -> None:
    """Raise `UsageError` for a declaration that is incomplete or contradicts itself."""
    if declared.scores is None:
        raise UsageError(
            f"{path} comes from another tool; state the scale of its scores with --scores, one of "
            f"{', '.join(SCALES)}."
        )
    if declared.thresholds is not None and declared.tune is not None:
        raise UsageError("--thresholds and --tune exclude each other; give one of them.")
    for option, split in (("tune", declared.tune_split), ("fitted", declared.fitted_split)):
        if split not in SPLITS:
            raise UsageError(f"--{option}-split {split} is unknown; use one of {SPLITS}.")
    if declared.tune is not None and declared.tune not in (AUTO, *RULES):
        known = ", ".join((AUTO, *RULES))
        raise UsageError(f"--tune {declared.tune} is unknown; use one of {known}.")
    if declared.tune is not None and declared.tune_split == scored_split:
        raise UsageError(
            f"--tune-split {scored_split} is the split that is scored, so the thresholds would be "
            "chosen on the labels they are judged by; tune on another split."
        )


def _thresholds(
    found: ForeignScores, undecided: Predictions, catalog: Catalog, declared: Declared
) -> tuple[NDArray[np.float32], str]:
    """Threshold of each of the file's tags, as a logit, and the rule that chose them."""
    scale = str(declared.scores)
    if declared.thresholds is not None:
        return threshold_logits(read_thresholds(declared.thresholds, found.tags), scale), "given"
    if declared.tune is None:
        if found.thresholds is None:
            raise UsageError(
                f"{found.path} has no thresholds; give them with --thresholds FILE, or tune them "
                "with --tune RULE on a split that is not scored."
            )
        return threshold_logits(found.thresholds, scale), "given"
    if not len(catalog.rows(declared.tune_split)):
        raise UsageError(
            f"{catalog.path} has no image in its {declared.tune_split} split to tune thresholds "
            "on; choose another --tune-split."
        )
    # Only images with a score and a label count; the rest of the file is not tuned on.
    seen = align(undecided, catalog, declared.tune_split)
    tuned = Tuning(declared.tune).tune(seen.logits, seen.labels, catalog.table.group)
    # The file may have its tags in another order than the catalogue, which the rule follows.
    by_tag = dict(zip(catalog.table.tags, tuned.thresholds.tolist(), strict=True))
    return np.array([by_tag[tag] for tag in found.tags], np.float32), tuned.rule
