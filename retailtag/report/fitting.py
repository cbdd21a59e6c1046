"""Terminal tables that leave out columns rather than break words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000  # columns of a terminal on which any table fits


class FittingTable(Table):
    """Table that leaves out spare columns while it is wider than the terminal.

    Parameters
    ----------
    spare : sequence of str
        Headers of columns that may be left out, the first one first. A line below the table
        names those that are.
    **options
        Of `rich.table.Table`.
    """

    def __init__(self, *, spare: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._spare = spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the columns that fit; see `rich.table.Table`."""
        whole = self.columns
        left_out: list[str] = []
        try:
            for header in self._spare:
                if self._width(console, options) <= options.max_width:
                    break
                kept = [column for column in self.columns if column.header != header]
                if len(kept) < len(self.columns):
                    left_out.append(" ".join(header.split()))
                # rich looks cells up by the place of their column
                self.columns = [replace(column, _index=k) for k, column in enumerate(kept)]
            yield from super().__rich_console__(console, options)
        finally:
            self.columns = whole
        if left_out:
            yield Text(f"Not shown at this width: {', '.join(left_out)}.", style="dim")

    def _width(self, console: Console, options: ConsoleOptions) -> int:
        """Width without a broken word or line."""
        unbounded = options.update(max_width=UNBOUNDED)
        return Measurement.get(console, unbounded, self).maximum
