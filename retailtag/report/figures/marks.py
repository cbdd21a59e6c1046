"""What several figures share: the empty figure, a pair's marker, short text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retailtag.report.results import PairResult
from retailtag.report.theme import PAPER, Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def empty_figure(layout: Layout, height: float) -> Figure:
    """Figure as wide as the layout, `height` inches high, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(layout.inches, height))
    FigureCanvasAgg(figure)
    return figure


def marker(pair: PairResult, colour: str, size: float) -> dict[str, Any]:
    """Hollow for a probe, filled for anything that trains the backbone."""
    return {
        "marker": "o",
        "markersize": size,
        "markerfacecolor": PAPER if pair.strategy == "probe" else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 1.8,
    }


def clipped(text: str, length: int = 26) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def pair_label(backbone: str, strategy: str, length: int) -> str:
    """Name of a pair in at most `length` characters; what is cut is the backbone."""
    return f"{clipped(backbone, max(length - len(strategy) - 3, 6))} · {strategy}"
