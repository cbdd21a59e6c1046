"""From images to their comparison with a reference, and to a reference that is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import named
from retailtag.images.loader import Failure
from retailtag.progress import SILENT, Progress
from retailtag.settings import DriftSettings
from retailtag.statistics.drift import DriftResult
from retailtag.tagger.drift.compare import compare
from retailtag.tagger.drift.reference import Reference, model_digest, rounded, rows_kept
from retailtag.tagger.drift.sample import Sample
from retailtag.tagger.drift.sources import Pictures, read_sample
from retailtag.tagger.tagger import Tagger

KEPT = 1000  # images of a reference: each is embedded once more at export


def compared(
    tagger: Tagger,
    reference: Pictures | Reference,
    new: Pictures,
    settings: DriftSettings,
    *,
    workers: int = 0,
    progress: Progress = SILENT,
) -> DriftResult:
    """Comparison of new images with a kept reference, or with images that are read as well.

    Raises
    ------
    DataError
        If no image of a side can be read.
    UsageError
        If a side has too few images.
    """
    notes: list[str] = []

    def read(pictures: Pictures) -> Sample:
        found = read_sample(
            tagger, pictures, settings.sample, settings.seed, workers=workers, progress=progress
        )
        notes.extend(_notes_on(pictures, found))
        return found[0]

    if isinstance(reference, Reference):
        kept, seen = reference.sample, read(new)
        seen = replace(seen, embeddings=rounded(seen.embeddings))
    else:
        kept, seen = read(reference), read(new)
    result = compare(
        kept,
        seen,
        tagger.tags,
        alpha=settings.alpha,
        permutations=settings.permutations,
        seed=settings.seed,
        described=reference.described,
    )
    facts = {
        "model": model_digest(tagger),
        "backbone": "+".join(b.id for b in tagger.backbones),
        "strategy": tagger.strategy,
        "new": new.described,
        "settings": settings.recorded(),
    }
    return replace(result, notes=(*notes, *result.notes), facts=facts)


def _notes_on(
    pictures: Pictures, found: tuple[Sample, list[Failure], NDArray[np.intp]]
) -> list[str]:
    """Sentences on images that were left out when a side was read."""
    _, failures, rows = found
    notes = list(pictures.notes)
    if len(rows) < len(pictures.rows):
        notes.append(
            f"{len(rows):,} of the {len(pictures.rows):,} images of {pictures.described} were "
            "drawn at random; --sample sets how many."
        )
    if failures:
        told = [f"{pictures.names[f.row]} {f.reason}" for f in failures]
        notes.append(
            f"{len(failures):,} images of {pictures.described} could not be read and are left "
            f"out: {named(told, 2)}."
        )
    return notes


def reference_of(
    tagger: Tagger,
    pictures: Pictures,
    *,
    n: int = KEPT,
    seed: int = 0,
    workers: int = 0,
    progress: Progress = SILENT,
) -> Reference:
    """What is kept with a model to compare with later: about `n` held-out images."""
    dim = sum(backbone.dim for backbone in tagger.backbones)
    n = min(n, rows_kept(dim, len(tagger.tags)))  # more would be read for nothing
    sample, _, _ = read_sample(tagger, pictures, n, seed, workers=workers, progress=progress)
    return Reference(sample, tagger.tags, model_digest(tagger), pictures.described)
