"""Words of the command line made regular before they are parsed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from retailtag.settings import FULL_C_GRID

_BARE = {"--sweep-C": FULL_C_GRID, "--ray": "local"}  # options whose value is optional


def with_bare_options(args: Sequence[str]) -> list[str]:
    """Give a bare ``--sweep-C`` the full grid and a bare ``--ray`` this machine.

    They are bare at the end of the line, before another option, and before what exists or is named
    like a file.

    Examples
    --------
    >>> with_bare_options(["probe", "--sweep-C", "shop.csv", "--sweep-C"])
    ['probe', '--sweep-C', '1e-6:1e5:45', 'shop.csv', '--sweep-C', '1e-6:1e5:45']
    >>> with_bare_options(["probe", "--sweep-C", "0.1,1", "shop.csv"])
    ['probe', '--sweep-C', '0.1,1', 'shop.csv']
    >>> with_bare_options(["extract", "--ray", "10.0.0.1:6379", "--ray"])
    ['extract', '--ray', '10.0.0.1:6379', '--ray', 'local']
    """
    # The parser knows no option with an optional value: the value is filled in before it runs.
    given: list[str] = []
    for word, following in zip(args, [*args, ""][1:], strict=True):
        given.append(word)
        if word in _BARE and _is_no_value(following):
            given.append(_BARE[word])
    return given


def _is_no_value(word: str) -> bool:
    """Whether a word is another option, a file that exists, or named like one."""
    # os.path.exists takes any text; Path.exists raises for one longer than a file name may be
    return word[:1] in ("", "-") or os.path.exists(word) or Path(word).suffix[1:].isalpha()  # noqa: PTH110
