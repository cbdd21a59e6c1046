"""CSV whose cells a spreadsheet never runs as formulas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(value: Any) -> str:
    """One cell as text: numbers plain, NaN empty, text that looks like a formula quoted.

    A text cell that begins with ``= + - @``, a tab or a carriage return gets a leading single
    quote, so that a tag named ``=HYPERLINK(...)`` stays a name. Numbers are never quoted.

    References
    ----------
    OWASP, "CSV Injection".

    Examples
    --------
    >>> [safe_cell(v) for v in ("=1+1", "red", -1.5, float("nan"), True, 3)]
    ["'=1+1", 'red', '-1.5', '', 'true', '3']
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA_STARTS) else text


def unquoted(text: str) -> str:
    """Text as it was before `safe_cell` quoted it, so that tables of retailtag can be read back.

    Examples
    --------
    >>> [unquoted(t) for t in ("'=1+1", "red", "'70s")]
    ['=1+1', 'red', "'70s"]
    """
    return text[1:] if text.startswith(tuple(f"'{s}" for s in FORMULA_STARTS)) else text


def csv_text(columns: Sequence[str], rows: Iterable[object]) -> str:
    """Table with a header; each row is an object that has an attribute per column.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> print(csv_text(["tag", "f1"], [SimpleNamespace(tag="@home", f1=0.5)]), end="")
    tag,f1
    '@home,0.5
    """
    lines = [columns, *([safe_cell(getattr(row, c)) for c in columns] for row in rows)]
    return "".join(",".join(map(quoted, line)) + "\n" for line in lines)


def quoted(cell: str) -> str:
    """Cell in double quotes where RFC 4180 asks for them."""
    # csv.writer does not quote a carriage return if lines end in \n; readers break the row there
    doubled = cell.replace('"', '""')
    return f'"{doubled}"' if any(c in cell for c in ',"\r\n') else cell
