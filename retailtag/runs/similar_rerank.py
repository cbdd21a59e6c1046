"""The first products found, in the order of their tags or of another backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import POSITIVE
from retailtag.errors import UsageError
from retailtag.runs.similar import TEXT, Found, Gallery, Query

CANDIDATES = 100  # products that are ordered anew
BY_TAGS = "tags"


def check_rerank(rerank: str | None, *, has_others: bool) -> None:
    """Raise `UsageError` for tags where queries have none: images from anywhere, and texts."""
    if rerank == BY_TAGS and has_others:
        raise UsageError(
            "--rerank tags needs queries whose tags are known; use --id or --product, or name a "
            "backbone to re-rank by."
        )


def by_tags(catalog: Catalog, found: Sequence[Found], top: int) -> list[Found]:
    """The `top` products by tags in common over tags of either (Jaccard), then by similarity."""
    ordered = []
    for one in found:
        rows = [hit.row for hit in one.hits]
        has = catalog.table.labels[rows] == POSITIVE
        shared = (has & one.query.tags).sum(axis=1)
        either = (has | one.query.tags).sum(axis=1)
        ordered.append(_ordered(one, (shared / np.maximum(either, 1)).tolist(), top))
    return ordered


def by_backbone(
    gallery: Gallery, queries: Sequence[Query], found: Sequence[Found], top: int
) -> list[Found]:
    """The `top` products by the similarity of another gallery's embeddings.

    `queries` are those of `found`, embedded for that gallery.
    """
    ordered: dict[int, Found] = {}
    for centred in (True, False):
        own = [i for i, query in enumerate(queries) if (query.kind != TEXT) == centred]
        if not own:
            continue
        space, keys = gallery.keys(centred=centred)
        place = {row: i for i, row in enumerate(gallery.rows.tolist())}
        for i in own:
            direction = queries[i].direction(space)
            places = [place.get(hit.row) for hit in found[i].hits]
            scores = [None if p is None else float(keys[p] @ direction) for p in places]
            ordered[i] = _ordered(found[i], scores, top)
    return [ordered[i] for i in range(len(found))]


def _ordered(one: Found, scores: Sequence[float | None], top: int) -> Found:
    """The hits by falling score, those without one last; equal ones keep their order."""
    key = [-np.inf if score is None else score for score in scores]
    order = np.argsort(-np.array(key), kind="stable")[:top].tolist()
    hits = [
        replace(one.hits[place], rank=rank, reranked=scores[place])
        for rank, place in enumerate(order, start=1)
    ]
    return replace(one, hits=tuple(hits))
