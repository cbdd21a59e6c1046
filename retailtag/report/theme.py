"""Style of the figures, and their export as SVG for the page and as PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retailtag.backbones.names import name_backbones
from retailtag.report.results import BakeoffResult, PairResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In the SVG these colours become the page's CSS variables, so that a figure follows its theme.
INK, MUTED, GRID, BAND, PAPER = "#1c2430", "#66717f", "#d8dde4", "#eaf1fb", "#fffffe"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BAND: "band", PAPER: "paper"}

# One colour per backbone, readable on white and near-black and for colour-blind readers.
PALETTE = ("#3b7dd8", "#e0862b", "#2f9e77", "#a561c9", "#c94f6d", "#7d8b3a", "#3aa0b5", "#8a6d5a")
HEAD_NAMES = {
    "logistic": "linear probe",
    "ridge": "ridge probe",
    "knn": "nearest-neighbour probe",
    "text": "text-prior probe",
}


@dataclass(frozen=True)
class Layout:
    """Width for which a figure is drawn; 72 units of its SVG are one inch."""

    name: str  # of the CSS class that shows it
    inches: float


# The page shows no figure below its own size, so 11 units are at least 11 pixels: `WIDE` from a
# content width of 720 pixels, `NARROW` below, down to phones of 320 pixels without their margins.
WIDE, NARROW = Layout("wide", 10.0), Layout("narrow", 4.0)

STYLE: dict[Any, Any] = {
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a tag named "$5" is not a formula
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@contextmanager
def style(salt: str = "retailtag") -> Iterator[None]:
    """Draw in retailtag's style; a `salt` per figure keeps ids distinct on one page."""
    import matplotlib as mpl

    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # The drawing font lacks some scripts of tags; the page's own font shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def short_backbones(result: BakeoffResult) -> dict[str, str]:
    """Names of the backbones by id, see `retailtag.backbones.names.name_backbones`."""
    return name_backbones((p.backbone for p in result.pairs), dict(result.names))


def strategy_name(pair: PairResult) -> str:
    """Strategy in words; a probe by its head, where its predictions record one."""
    if pair.strategy == "probe":
        head = pair.scorecard.provenance.get("predictions", {}).get("head")
        return HEAD_NAMES.get(head, "probe") if isinstance(head, str) else "probe"
    return {"finetune": "fine-tune"}.get(pair.strategy, pair.strategy)


def short_names(result: BakeoffResult) -> dict[str, str]:
    """Pair names as figures and tables show them, by full name."""
    short = short_backbones(result)
    return {p.name: f"{short[p.backbone]} · {strategy_name(p)}" for p in result.pairs}


def colours(result: BakeoffResult) -> dict[str, str]:
    """Colour of each backbone, by id, in the order of the bake-off."""
    ids = dict.fromkeys(p.backbone for p in result.pairs)
    return {backbone: PALETTE[k % len(PALETTE)] for k, backbone in enumerate(ids)}


def to_svg(figure: Figure, title: str, description: str) -> str:
    """Figure as an ``<svg>`` element for a page: theme colours, no ids but its own, no URLs.

    The figure was drawn inside `style`; title and description are escaped already.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # without the XML declaration
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # ids of groups repeat from figure to figure
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1var(--font)", text)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    width, height = (72 * inches for inches in figure.get_size_inches())
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img"><title>{title}</title>'
    inside = text[text.index(">") + 1 :].strip()
    return f"{opening}<desc>{description}</desc>{inside}"


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """Figure as PNG on white, compressed with a palette of 256 colours."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    picture.save(packed, format="PNG", optimize=True)
    return packed.getvalue()
