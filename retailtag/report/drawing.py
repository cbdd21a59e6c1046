"""A figure of the page: drawn once for wide screens and paper, once for phones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from retailtag.report.theme import NARROW, WIDE, Layout, style, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """Title, caption, and the function that draws the figure for a layout.

    `key` is distinct on the page: the ids within the SVG derive from it.
    """

    key: str
    title: str
    caption: str
    draw: Callable[[Layout], Figure]

    def svg(self) -> dict[str, Markup]:
        """The figure as ``<svg>`` elements, by name of the layout."""
        return {layout.name: self._svg(layout) for layout in (WIDE, NARROW)}

    def _svg(self, layout: Layout) -> Markup:
        with style(salt=f"{self.key}-{layout.name}"):
            # Title and caption are escaped here; matplotlib escapes the text of the figure.
            svg = to_svg(self.draw(layout), str(escape(self.title)), str(escape(self.caption)))
        return Markup(svg)
