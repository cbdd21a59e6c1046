"""Sentences about catalogues that a run cannot use."""

from __future__ import annotations

from retailtag.catalog.catalog import Catalog

MAX_NAMED_IMAGES = 3  # unreadable images listed in the sentence


def none_readable(catalog: Catalog, split: str, reasons: list[tuple[str, str]]) -> str:
    """Sentence for a split without a single readable image, with the first reasons."""
    some = "; ".join(f"{image_id} {reason}" for image_id, reason in reasons[:MAX_NAMED_IMAGES])
    more = (
        f"; and {len(reasons) - MAX_NAMED_IMAGES:,} more" if len(reasons) > MAX_NAMED_IMAGES else ""
    )
    return (
        f"None of the {len(reasons):,} {split} images of {catalog.path} could be read "
        f"({some}{more}); repair them, or raise the limit that they exceed."
    )
