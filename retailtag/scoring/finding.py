"""A finding of a scorecard, and the words that findings and messages share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing found while scoring."""

    code: str  # stable name for programs, e.g. ``undefined-tags``
    sentence: str  # what was found, with its figures
    remedy: str  # what to do about it


def count(n: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless it is 1.

    Examples
    --------
    >>> count(1, "tag"), count(1200, "image")
    ('1 tag', '1,200 images')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
