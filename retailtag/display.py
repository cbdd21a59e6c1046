"""How results show themselves: as aligned text, and as HTML tables in a notebook."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `retailtag score` prints no tables of these and starts without pyarrow
    import pyarrow as pa

# What a terminal obeys instead of showing: C0 and C1 with DEL, the controls of bidirectional text
# (Unicode's property Bidi_Control), line and paragraph separators; and halves of surrogate pairs,
# which no stream encodes.
_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

MAX_ROWS = 20  # rows of a table that are shown; the table itself has all


@dataclass(frozen=True)
class View:
    """One table as it is shown, with a title above and sentences below."""

    title: str
    table: pa.Table
    notes: tuple[str, ...] = ()


class Displayed:
    """Base of results: they print as text and show as HTML what `views` gives."""

    def views(self) -> Iterable[View]:
        """Tables to show, in order."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n\n".join(_text(view) for view in self.views())

    def _repr_html_(self) -> str:
        """Tables for a notebook; ids, tags and paths are escaped."""
        return "".join(_html(view) for view in self.views())


def table_of(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Table of rows with equal keys; one without columns if there are no rows."""
    import pyarrow as pa

    return pa.Table.from_pylist([dict(row) for row in rows])


def printable(text: str, keep: str = "\n") -> str:
    r"""Text for a terminal, on which escapes stand for control characters but those of `keep`.

    Examples
    --------
    >>> print(printable("a\x1b[31m\tb\u202ec\n[red]"))
    a\x1b[31m\tb\u202ec
    [red]
    """

    def escaped(found: re.Match[str]) -> str:
        return found[0] if found[0] in keep else ascii(found[0])[1:-1]

    return _UNSHOWN.sub(escaped, text)


def shown(value: Any) -> str:
    """A cell as people read it: four figures of a float, a dash for nothing.

    Examples
    --------
    >>> [shown(v) for v in (0.45678, 12345, None, float("nan"), ["a", "b"])]
    ['0.4568', '12,345', '–', '–', 'a, b']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return printable(text, keep="")


def _cells(table: pa.Table) -> tuple[list[list[str]], str]:
    """The rows that are shown, as text, and a line about the others."""
    first = table.slice(0, MAX_ROWS)
    rows = [[shown(value) for value in row.values()] for row in first.to_pylist()]
    hidden = table.num_rows - len(rows)
    return rows, f"and {hidden:,} more rows" if hidden else ""


def _is_figure(field: pa.Field) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(field.type) or pa.types.is_floating(field.type)


def _text(view: View) -> str:
    rows, more = _cells(view.table)
    lines = [view.title]
    if rows:
        lines_of_cells = [list(map(shown, view.table.column_names)), *rows]
        widths = [max(map(len, column)) for column in zip(*lines_of_cells, strict=True)]
        right = [_is_figure(field) for field in view.table.schema]
        for cells in lines_of_cells:
            aligned = [
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(cells, widths, right, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
    return printable("\n".join([*lines, *filter(None, [more]), *view.notes]))


def _html(view: View) -> str:
    rows, more = _cells(view.table)
    aligns = ["right" if _is_figure(field) else "left" for field in view.table.schema]

    def line(cells: list[str], tag: str) -> str:
        pairs = zip(cells, aligns, strict=True)
        inner = (f"<{tag} style='text-align:{a}'>{html.escape(c)}</{tag}>" for c, a in pairs)
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    head = line(list(map(shown, view.table.column_names)), "th") if rows else ""
    sentences = map(printable, (*filter(None, [more]), *view.notes))
    notes = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
    title = html.escape(printable(view.title))
    title = f"<caption style='text-align:left'><b>{title}</b></caption>"
    return f"<table>{title}<thead>{head}</thead><tbody>{body}</tbody></table>{notes}"
