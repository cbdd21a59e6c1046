"""Words of the command line made regular before they are parsed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retailtag.settings import FULL_C_GRID


def with_bare_sweep(args: Sequence[str]) -> list[str]:
    """Give a bare ``--sweep-C`` the full grid, so that its value is optional.

    It is bare at the end of the line, before another option, and before what exists or is named
    like a file.

    Examples
    --------
    >>> with_bare_sweep(["probe", "--sweep-C", "shop.csv", "--sweep-C"])
    ['probe', '--sweep-C', '1e-6:1e5:45', 'shop.csv', '--sweep-C', '1e-6:1e5:45']
    >>> with_bare_sweep(["probe", "--sweep-C", "0.1,1", "shop.csv"])
    ['probe', '--sweep-C', '0.1,1', 'shop.csv']
    """
    # The parser knows no option with an optional value: the value is filled in before it runs.
    given: list[str] = []
    for word, following in zip(args, [*args, ""][1:], strict=True):
        given.append(word)
        path = Path(following)
        bare = following[:1] in ("", "-") or path.exists() or path.suffix[1:].isalpha()
        if word == "--sweep-C" and bare:
            given.append(FULL_C_GRID)
    return given
