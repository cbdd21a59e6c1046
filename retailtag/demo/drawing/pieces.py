"""The vocabulary of silhouettes: pieces of cloth, strokes, and the places on a garment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

CENTRE = 48.0
Shape = Mapping[str, float]  # numbers of a silhouette, in picture units


@dataclass(frozen=True)
class Piece:
    """One polygon or stroke of a silhouette.

    Parameters
    ----------
    points : ndarray of float64, shape (n_points, 2)
        x to the right and y down, in 96 x 128 picture units.
    fill : str
        ``fabric`` (the pattern), ``inside``, ``accent``, ``third``, ``sole``, ``metal``,
        ``dark``, ``seam`` (a shadow on what is there) or ``hole`` (cut out); the whole list
        is in `retailtag.demo.drawing.draw`.
    turn : float
        Angle of the cloth in radians, for the direction of its pattern.
    width : float
        0 fills the polygon; otherwise a stroke of that width, in picture units.
    clip : bool
        Shown only where the article already is, instead of growing it.
    """

    points: np.ndarray
    fill: str = "fabric"
    turn: float = 0.0
    width: float = 0.0
    clip: bool = False


@dataclass
class Silhouette:
    """Pieces in drawing order, and the places where marks and details go.

    Parameters
    ----------
    pieces : list of Piece
        Drawn one over the other.
    mark : tuple of three floats
        Centre x, y and half-size of a brand's mark.
    chest, waist, hem : tuple of three floats
        Centre x, y and half-width of three places that details refer to.
    limbs : list of tuple of two floats
        Elbows or knees.
    support : str
        ``hanger``, ``body`` or empty: what may hold the article in a photograph.
    top : float
        Height of the neck, read where there is a support.
    """

    pieces: list[Piece]
    mark: tuple[float, float, float] = (CENTRE, 60.0, 7.0)
    chest: tuple[float, float, float] = (CENTRE, 50.0, 14.0)
    waist: tuple[float, float, float] = (CENTRE, 66.0, 14.0)
    hem: tuple[float, float, float] = (CENTRE, 88.0, 16.0)
    limbs: list[tuple[float, float]] = field(default_factory=list)
    support: str = ""
    top: float = 20.0


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """Points as float64 of shape (n_points, 2)."""
    return np.array(points, dtype=np.float64)


def mirrored(half: Sequence[tuple[float, float]]) -> np.ndarray:
    """Close a right half, given from top to bottom as offsets from the centre line."""
    right = np.array(half, dtype=np.float64)
    left = right[::-1] * (-1, 1)
    return np.concatenate([right, left]) + (CENTRE, 0)


def smooth(points: np.ndarray, steps: int = 5, closed: bool = True) -> np.ndarray:
    """Catmull-Rom curve through the points.

    Parameters
    ----------
    points : ndarray of float64, shape (n_points, 2)
        A point given twice stays a corner.
    steps : int
        Segments between two points.
    closed : bool
        Whether the last point leads back to the first.

    Returns
    -------
    ndarray of float64, shape (about n_points * steps, 2)
    """
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    slope = (after - before) / 2
    corner = (points == after).all(axis=1) | (points == before).all(axis=1)
    if not closed:
        corner[[0, -1]] = True
    slope[corner] = 0
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    # Hermite cubic from each point to the next, as (steps, 1) @ (1, 2) products.
    rise = 3 * t**2 - 2 * t**3
    start, end = t**3 - 2 * t**2 + t, t**3 - t**2
    curve = [
        p + rise * (q - p) + start * m + end * n
        for p, q, m, n in zip(points, after, slope, np.roll(slope, -1, axis=0), strict=True)
    ]
    return np.concatenate(curve if closed else [*curve[:-1], points[-1:]])


def ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 1
) -> np.ndarray:
    """Points of an ellipse or of an arc of it, in turns, clockwise from the right."""
    angle = 2 * np.pi * np.linspace(start, end, 24)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def box(x: float, y: float, half_width: float, half_height: float, corner: float = 0) -> np.ndarray:
    """Rectangle around a centre, its corners cut by `corner`."""
    w, h, c = half_width, half_height, min(corner, half_width, half_height)
    if c == 0:
        return polygon((x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h))
    right = [(w - c, -h), (w - c * 0.3, -h + c * 0.3), (w, -h + c)]
    right += [(w, h - c), (w - c * 0.3, h - c * 0.3), (w - c, h)]
    half = np.array(right)
    return np.concatenate([half, half[::-1] * (-1, 1)]) + (x, y)


def flipped(piece: Piece) -> Piece:
    """The same piece on the other side of the centre line."""
    points = piece.points * (-1, 1) + (2 * CENTRE, 0)
    return replace(piece, points=points, turn=-piece.turn)


def both_sides(*pieces: Piece) -> list[Piece]:
    """Each piece, followed by its mirror image."""
    return [side for piece in pieces for side in (piece, flipped(piece))]


def stroke(*points: tuple[float, float], fill: str = "seam", width: float = 0.8) -> Piece:
    """An open line through the points."""
    return Piece(polygon(*points), fill, width=width)


def band(
    y: float, half_width: float, height: float, fill: str = "accent", droop: float = 0
) -> Piece:
    """A horizontal band across the garment, its middle lower by `droop`."""
    top = [(CENTRE - half_width, y), (CENTRE, y + droop), (CENTRE + half_width, y)]
    bottom = [(x, level + height) for x, level in reversed(top)]
    return Piece(polygon(*top, *bottom), fill)
