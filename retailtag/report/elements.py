"""Pieces of HTML that the sections of the report share; data is escaped by `esc`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def esc(value: object) -> str:
    """Text for element content and quoted attributes.

    Examples
    --------
    >>> esc('<script> & "quotes"')
    '&lt;script&gt; &amp; &quot;quotes&quot;'
    """
    return escape(str(value), quote=True)


def breakable(name: str) -> str:
    """Escaped id that may break after an underscore."""
    return esc(name).replace("_", "_<wbr>")


def html_table(
    head: Sequence[str],
    rows: Iterable[str],
    caption: str,
    *,
    attributes: str = "",
    sortable: bool = False,
) -> str:
    """Table from escaped column heads and finished rows."""
    cells = "".join(
        f'<th scope="col">{f"<button>{h}</button>" if sortable else h}</th>' for h in head
    )
    return (
        f"<table{attributes}>\n<caption>{caption}</caption>\n<thead><tr>{cells}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>"
    )


def html_row(head: str, cells: Iterable[str], css: str = "") -> str:
    """Table row from a finished head and finished cells."""
    opening = f'<tr class="{css}">' if css else "<tr>"
    return f'{opening}<th scope="row">{head}</th>{"".join(cells)}</tr>'
