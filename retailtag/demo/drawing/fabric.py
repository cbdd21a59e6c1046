"""Cloth: the patterns printed on it, and the grain of what it is made of.

A pattern is an index image: 0 is the base colour, 127 the accent, 255 the third colour,
and what lies between is a mixture. `cloth` colours it through a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from retailtag.demo.drawing.look import Look
from retailtag.demo.drawing.pieces import ellipse, polygon, smooth
from retailtag.demo.drawing.words import RGB

WIDTH, HEIGHT = 192, 256
UNIT = 2.0  # canvas pixels to one picture unit
ACCENT, THIRD = 127, 255

Field = np.ndarray
Drawn = Callable[[Field, Field, np.random.Generator], Field]


@dataclass(frozen=True)
class Material:
    """How a material catches light.

    Parameters
    ----------
    grain : str
        Which grain of `grain` it shows.
    rough : float
        Amplitude of the grain, as a fraction of brightness.
    gloss : float
        Strength of the highlights, as a fraction of white.
    folds : float
        Depth of the folds, as a fraction of brightness.
    """

    grain: str
    rough: float
    gloss: float
    folds: float


MATERIALS: dict[str, Material] = {
    "Cotton": Material("fine", 0.05, 0.0, 0.12),
    "Polyester": Material("none", 0.0, 0.10, 0.10),
    "Leather": Material("pebble", 0.10, 0.22, 0.10),
    "Denim": Material("twill", 0.10, 0.0, 0.10),
    "Wool": Material("knit", 0.22, 0.0, 0.06),
    "Linen": Material("weave", 0.14, 0.0, 0.22),
    "Nylon": Material("none", 0.0, 0.24, 0.26),
    "Canvas": Material("basket", 0.10, 0.0, 0.04),
    "Silk": Material("none", 0.0, 0.30, 0.24),
    "Suede": Material("nap", 0.16, 0.0, 0.05),
    "Fleece": Material("curl", 0.26, 0.0, 0.04),
    "Satin": Material("none", 0.0, 0.40, 0.30),
    "Metal": Material("none", 0.0, 0.50, 0.25),
    "Corduroy": Material("ribs", 0.30, 0.0, 0.06),
    "Velvet": Material("nap", 0.10, 0.22, 0.34),
    "Lace": Material("lace", 0.10, 0.0, 0.05),
    "Rubber": Material("none", 0.0, 0.30, 0.03),
    "Cashmere": Material("fine", 0.14, 0.0, 0.05),
    "Straw": Material("straw", 0.34, 0.0, 0.0),
    "Tweed": Material("speckle", 0.42, 0.0, 0.05),
}


def coordinates(turn: float, scale: float) -> tuple[Field, Field]:
    """Cloth coordinates of the canvas.

    Parameters
    ----------
    turn : float
        Angle of the cloth in radians.
    scale : float
        Picture units to one period of the pattern.

    Returns
    -------
    u, v : ndarray of float32, shape (256, 192)
        In periods; u runs across the cloth and v along it.
    """
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32) / np.float32(UNIT * scale)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return c * x - s * y, s * x + c * y


def pattern_index(name: str, turn: float, scale: float, rng: np.random.Generator) -> Field:
    """Index image of a pattern, uint8 of shape (256, 192)."""
    if name in MOTIFS:
        return _scattered(MOTIFS[name], scale, rng)
    u, v = coordinates(turn, scale)
    return DRAWN[name](u, v, rng).astype(np.uint8)


def cloth(look: Look, turn: float, rng: np.random.Generator) -> Image.Image:
    """The product's printed cloth, filling the canvas.

    Parameters
    ----------
    look : Look
        Pattern, scale and colours are read.
    turn : float
        Angle of the cloth in radians.
    rng : numpy Generator
        Places the motifs.

    Returns
    -------
    PIL image, RGB, 192 x 256
    """
    if look.pattern == "Plain":
        return Image.new("RGB", (WIDTH, HEIGHT), look.colours[0])
    index = pattern_index(look.pattern, turn, look.scale, rng)
    image = Image.fromarray(index, "P")
    image.putpalette(_mixture(look.colours).tobytes())
    return image.convert("RGB")


def _mixture(colours: tuple[RGB, RGB, RGB]) -> np.ndarray:
    """Table from index to colour, uint8 of shape (256, 3)."""
    base, accent, third = (np.array(colour, dtype=np.float32) for colour in colours)
    share = np.linspace(0, 1, 128, dtype=np.float32)[:, None]
    first = base + share * (accent - base)
    # Straight from the base again: antialiasing against the third colour needs no accent.
    second = base + share * (third - base)
    return np.concatenate([first, second]).round().astype(np.uint8)


def _wave(x: Field) -> Field:
    """Distance from the middle of the period, 0 to 0.5."""
    return np.abs(x - np.floor(x) - 0.5)


def _steps(x: Field) -> Field:
    return x - np.floor(x)


def _noise(rng: np.random.Generator, cells: int) -> Field:
    """Smooth noise in [0, 1], float32 of shape (256, 192), about `cells` bumps wide."""
    coarse = rng.integers(0, 256, (cells * 4 // 3, cells), dtype=np.uint8)
    smooth_image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(smooth_image, dtype=np.float32) / 255


def _striped(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return ACCENT * (_wave(v) < 0.24)


def _vertical(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return ACCENT * (_wave(u) < 0.24)


def _pinstripe(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return ACCENT * (_wave(u * 2) < 0.13)


def _checked(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return ACCENT * ((_wave(u * 0.8) < 0.10) | (_wave(v * 0.8) < 0.10))


def _gingham(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return (ACCENT // 2) * ((_wave(u * 1.3) < 0.25) + 1.0 * (_wave(v * 1.3) < 0.25))


def _tartan(u: Field, v: Field, rng: np.random.Generator) -> Field:
    broad = 50 * ((_wave(u * 0.6) < 0.2) + 1.0 * (_wave(v * 0.6) < 0.2))
    thin = (_wave(u * 0.6 + 0.5) < 0.05) | (_wave(v * 0.6 + 0.5) < 0.05)
    return np.where(thin, THIRD, broad)


def _herringbone(u: Field, v: Field, rng: np.random.Generator) -> Field:
    side = np.where(np.floor(u * 1.4) % 2 < 1, 1.0, -1.0)
    return ACCENT * (_wave(2.2 * v + side * 2.2 * _steps(u * 1.4)) < 0.22)


def _chevron(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return ACCENT * (_wave(v + 1.1 * _wave(u * 0.8)) < 0.25)


def _houndstooth(u: Field, v: Field, rng: np.random.Generator) -> Field:
    a, b = _steps(u * 0.9), _steps(v * 0.9)
    square = (a < 0.5) & (b < 0.5)
    teeth = ((a < 0.5) ^ (b < 0.5)) & (_steps((a + b) * 2) < 0.5)
    return ACCENT * (square | teeth)


def _argyle(u: Field, v: Field, rng: np.random.Generator) -> Field:
    column = np.floor(u * 0.8)
    diamond = _wave(u * 0.8) + _wave(v * 0.55 + 0.5 * (column % 2))
    lines = _wave(u * 0.8 + v * 0.55) < 0.05
    lines |= _wave(u * 0.8 - v * 0.55) < 0.05
    return np.where(lines, THIRD, ACCENT * (diamond < 0.36))


def _geometric(u: Field, v: Field, rng: np.random.Generator) -> Field:
    table = rng.integers(0, 4, (64, 64))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = _steps(u), _steps(v)
    kind = table[i % 64, j % 64]
    first = np.choose(kind, [a + b < 1, a > b, (a - 0.5) ** 2 + (b - 0.5) ** 2 < 0.15, a < 0.5])
    return np.where(first, np.where((i + j) % 3 == 0, THIRD, ACCENT), 0)


def _zebra(u: Field, v: Field, rng: np.random.Generator) -> Field:
    bend = _noise(rng, 6)
    return ACCENT * (_wave(v * 0.9 + 0.35 * u + 2.4 * bend) < 0.23)


def _camouflage(u: Field, v: Field, rng: np.random.Generator) -> Field:
    first, second = _noise(rng, 9), _noise(rng, 9)
    return np.where(first > 0.58, ACCENT, np.where(second > 0.6, THIRD, 0))


def _tie_dye(u: Field, v: Field, rng: np.random.Generator) -> Field:
    x, y = u - u.mean() + rng.normal(0, 0.6), v - v.mean() + rng.normal(0, 0.6)
    spiral = np.hypot(x, y) * 0.55 + np.arctan2(y, x) / np.pi + 0.7 * _noise(rng, 8)
    phase = _steps(spiral * 0.75)
    return np.where(phase < 0.5, 2 * ACCENT * _wave(phase * 2), 128 + 2 * ACCENT * _wave(phase * 2))


def _colour_block(u: Field, v: Field, rng: np.random.Generator) -> Field:
    y = np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None] + np.zeros_like(v)
    low, high = rng.uniform(0.52, 0.6), rng.uniform(0.36, 0.44)
    return np.where(y > low, ACCENT, np.where(y > high, THIRD, 0))


def _ombre(u: Field, v: Field, rng: np.random.Generator) -> Field:
    y = np.linspace(-0.45, 1.35, HEIGHT, dtype=np.float32)[:, None] + np.zeros_like(v)
    return ACCENT * np.clip(y, 0, 1)


DRAWN: dict[str, Drawn] = {
    "Striped": _striped,
    "Vertical Striped": _vertical,
    "Pinstripe": _pinstripe,
    "Checked": _checked,
    "Gingham": _gingham,
    "Tartan": _tartan,
    "Herringbone": _herringbone,
    "Chevron": _chevron,
    "Houndstooth": _houndstooth,
    "Argyle": _argyle,
    "Geometric": _geometric,
    "Zebra": _zebra,
    "Camouflage": _camouflage,
    "Tie Dye": _tie_dye,
    "Colour Block": _colour_block,
    "Ombre": _ombre,
}


@dataclass(frozen=True)
class Motif:
    """A printed motif: polygons of radius about 1, with their index, and how it repeats.

    Parameters
    ----------
    shapes : tuple of (ndarray of float64, shape (n_points, 2), int)
        Drawn in order.
    size : float
        Radius, as a fraction of the pattern's period.
    jitter : float
        Displacement off the grid, as a fraction of the period.
    spin : float
        Largest rotation either way, in radians.
    """

    shapes: tuple[tuple[np.ndarray, int], ...]
    size: float
    jitter: float
    spin: float


def _star() -> np.ndarray:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2, 0.42, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([np.sin(t) ** 3, y / 16], axis=1)


def _flower() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    radius = 0.68 + 0.32 * np.cos(5 * t)
    return np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1)


def _leaf() -> np.ndarray:
    t = np.linspace(-1, 1, 13)
    edge = 0.34 * (1 - t**2) * (1 - 0.55 * (np.arange(13) % 2))
    return np.concatenate([np.stack([t, edge], 1), np.stack([t[::-1], -edge[::-1]], 1)])


def _teardrop() -> np.ndarray:
    return smooth(
        polygon((0.1, -1.0), (0.75, -0.1), (0.55, 0.75), (-0.2, 0.9), (-0.6, 0.3), (-0.15, -0.3))
    )


_DISC = ellipse(0, 0, 1, 1)
MOTIFS: dict[str, Motif] = {
    "Polka Dot": Motif(((_DISC, ACCENT),), 0.24, 0.0, 0.0),
    "Star Print": Motif(((_star(), ACCENT),), 0.40, 0.1, 0.5),
    "Heart Print": Motif(((_heart(), ACCENT),), 0.36, 0.1, 0.3),
    "Floral": Motif(
        ((_leaf() + (0.9, 0.5), THIRD), (_flower(), ACCENT), (0.3 * _DISC, THIRD)), 0.42, 0.22, 3.1
    ),
    "Leopard": Motif(
        ((ellipse(0, 0, 1, 0.8, 0.05, 0.8), ACCENT), (0.5 * _DISC, THIRD)), 0.30, 0.28, 3.1
    ),
    "Tropical": Motif(((_leaf(), ACCENT), (0.75 * _leaf()[:, ::-1], THIRD)), 0.85, 0.25, 3.1),
    "Paisley": Motif(
        ((_teardrop(), ACCENT), (0.6 * _teardrop(), 0), (0.3 * _teardrop(), THIRD)), 0.52, 0.1, 0.7
    ),
}


def _scattered(motif: Motif, scale: float, rng: np.random.Generator) -> Field:
    """The motif on a staggered grid over the canvas, uint8 of shape (256, 192)."""
    image = Image.new("L", (WIDTH, HEIGHT), 0)
    draw = ImageDraw.Draw(image)
    period = scale * UNIT
    for row in range(int(HEIGHT / period) + 2):
        for column in range(int(WIDTH / period) + 2):
            offset = rng.uniform(-motif.jitter, motif.jitter, 2) + (0.5 * (row % 2), 0)
            centre = (np.array([column, row]) + offset) * period
            spin = rng.uniform(-motif.spin, motif.spin)
            c, s = np.cos(spin), np.sin(spin)
            turn = np.array([[c, s], [-s, c]]) * (motif.size * period)
            for points, index in motif.shapes:
                draw.polygon((points @ turn + centre).ravel().tolist(), fill=index)
    return np.asarray(image)


@lru_cache(maxsize=32)
def grain(kind: str) -> Field:
    """Brightness of a grain, float32 of shape (256, 192), about -1 to 1.

    The same for every product (only its strength differs), so it is computed once.
    """
    rng = np.random.default_rng(len(kind))
    u, v = coordinates(0.0, 1.0)
    white = rng.normal(0, 0.5, (HEIGHT, WIDTH)).astype(np.float32)
    kinds: dict[str, Callable[[], Field]] = {
        "fine": lambda: white,
        "twill": lambda: np.sign(_wave((u + v) * 0.45) - 0.25) * 0.6 + white * 0.8,
        "knit": lambda: (_wave(v * 0.38 + 0.8 * _wave(u * 0.38)) - 0.25) * 5,
        "weave": lambda: np.repeat(white[:, :1] * 2, WIDTH, 1) * 0.6 + white[:1] * 1.0,
        "basket": lambda: np.sign(_wave(u * 0.34) - 0.25) * np.sign(_wave(v * 0.34) - 0.25),
        "pebble": lambda: _noise(rng, 60) * 2 - 1,
        "nap": lambda: _noise(rng, 30) * 1.6 - 0.8 + white * 0.6,
        "curl": lambda: _noise(rng, 44) * 2.6 - 1.3,
        "ribs": lambda: np.sin(2 * np.pi * u / 2.6),
        "lace": lambda: np.where(np.hypot(_wave(u * 0.3), _wave(v * 0.3)) < 0.2, 1, -0.4),
        "straw": lambda: np.sin(2 * np.pi * v / 3.2) * np.sign(np.sin(2 * np.pi * u / 6.4)),
        "speckle": lambda: np.where(np.abs(white) > 0.6, np.sign(white), 0.2 * white),
        "none": lambda: np.zeros_like(white),
    }  # fmt: skip
    return kinds[kind]().astype(np.float32)


@lru_cache(maxsize=1)
def fold_maps() -> Field:
    """A stock of soft vertical folds, float32 of shape (12, 256, 192), about -1 to 1."""
    rng = np.random.default_rng(5)
    maps = []
    for _ in range(12):
        coarse = rng.normal(0, 1, (6, 14)).astype(np.float32)
        coarse -= coarse.mean()
        image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        maps.append(np.asarray(image) / 1.6)
    return np.stack(maps).astype(np.float32)
