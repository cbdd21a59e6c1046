"""What goes wrong: pictures by tag, and the tags that are taken for each other."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.gallery import Picture, TagPictures
from retailtag.report.report import Report
from retailtag.scoring.confusion import ConfusedPair


@dataclass(frozen=True)
class TagView:
    """One tag with its kinds of pictures, each with its heading."""

    tag: TagPictures
    kinds: tuple[tuple[str, tuple[Picture, ...]], ...]


@dataclass(frozen=True)
class GalleryView:
    """Tags with pictures, and confused pairs; either may be empty."""

    tags: tuple[TagView, ...]
    n_left_out: int
    confused: tuple[ConfusedPair, ...]


def gallery(report: Report) -> GalleryView | None:
    """Pictures and confusions of the recommended pair; None without either."""
    found = report.gallery
    if found is None and not report.confused:
        return None
    tags = [
        TagView(
            tag,
            (("Hits", tag.hits), ("Misses", tag.misses), ("False alarms", tag.false_alarms)),
        )
        for tag in (found.tags if found else ())
    ]
    return GalleryView(tuple(tags), found.n_left_out if found else 0, report.confused)
