"""Refuse, before the first stage, a catalogue or settings that a later stage would refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import torch

from retailtag.backbones import resolve_id
from retailtag.backbones.backbone import Blocks, last_blocks
from retailtag.backbones.factory import build_model
from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.errors import DataError, UsageError
from retailtag.probes.solver.fit import make_solver
from retailtag.runs.checks import check_fittable, none_readable
from retailtag.settings import BakeoffSettings
from retailtag.statistics.exclusive import INDEPENDENT, check_assignment


def check_request(
    context: RunContext, settings: BakeoffSettings, fine_tuned: Sequence[str], weights: Set[str]
) -> None:
    """Refuse now what a bake-off would refuse after hours.

    `fine_tuned` are the backbones that are fine-tuned, `weights` those with local weights.

    Raises
    ------
    DataError
        As `check_splits`.
    UsageError
        If there are more folds than training images, more blocks than a backbone has, or no
        attribute with one value for --assign.
    Unavailable
        If the solver's library or device is missing.
    """
    catalog = context.catalog
    check_splits(catalog)
    n, folds = len(catalog.rows("train")), settings.probe.folds
    if folds > n:
        raise UsageError(f"--folds {folds} exceeds the {n:,} training images of {catalog.path}.")
    check_assignment(settings.score.assign or INDEPENDENT, catalog.table.exclusive)
    make_solver(settings.probe.solver, context.device)
    if settings.finetune.trained_blocks != "all":
        for backbone in fine_tuned:
            # Local weights may have another architecture: it is checked when they are loaded.
            if backbone not in weights:
                _check_blocks(backbone, settings.finetune.trained_blocks)


def check_splits(catalog: Catalog) -> None:
    """Raise `DataError` unless some tag can be both learned and scored.

    That takes training and test images, and a tag with a positive among each: without one, every
    average over tags is undefined.
    """
    check_fittable(catalog)
    if not len(catalog.rows("test")):
        raise DataError(
            f"{catalog.path} has no test images; give it a split column, or make one with "
            "retailtag catalog split."
        )
    positive = catalog.table.labels == 1
    shared = positive[catalog.rows("train")].any(axis=0) & positive[catalog.rows("test")].any(
        axis=0
    )
    if not shared.any():
        raise DataError(
            f"{catalog.path} has no tag with a positive in both train and test, so nothing that "
            "is learned can be scored; make new splits with retailtag catalog split."
        )


def check_readable(catalog: Catalog, absent: Mapping[str, str]) -> None:
    """Raise `DataError` if no training or no test image could be read; `absent` says why."""
    for split in ("train", "test"):
        ids = catalog.image_ids[catalog.rows(split)].tolist()
        if all(image_id in absent for image_id in ids):
            raise DataError(none_readable(catalog, split, [(i, absent[i]) for i in ids]))


def _check_blocks(backbone_id: str, blocks: Blocks) -> None:
    """Check --blocks against the architecture alone, without weights."""
    parsed = resolve_id(backbone_id)
    with torch.device("cpu" if parsed.scheme == "demo" else "meta"):
        model = build_model(parsed, random_weights=True)
    last_blocks(str(model.id), model.layout, blocks)
