"""A finding of a scorecard, and the words that findings and messages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NAMES_SHOWN = 3  # examples given in a sentence


@dataclass(frozen=True)
class Finding:
    """One thing found while scoring.

    Parameters
    ----------
    code : str
        Stable name for programs, e.g. ``undefined-tags``.
    sentence : str
        What was found, with its figures.
    remedy : str
        What to do about it.
    """

    code: str
    sentence: str
    remedy: str


def named(items: Sequence[str], total: int | None = None) -> str:
    """The first few of `items` and how many more there are.

    Examples
    --------
    >>> named(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    >>> named(["a"])
    'a'
    """
    shown = ", ".join(items[:NAMES_SHOWN])
    more = (len(items) if total is None else total) - len(items[:NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def count(n: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless it is 1.

    Examples
    --------
    >>> count(1, "tag"), count(1200, "image")
    ('1 tag', '1,200 images')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
