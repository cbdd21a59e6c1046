"""Details on an article, the marks of brands, and the hanger or dummy that holds an article."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retailtag.demo.drawing.pieces import (
    CENTRE,
    Piece,
    Silhouette,
    box,
    ellipse,
    mirrored,
    polygon,
    smooth,
)

Detail = Callable[[Silhouette, np.random.Generator], list[Piece]]


def detail_pieces(name: str, article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    """Pieces that show a value of the facet ``detail`` on an article."""
    return DETAILS[name](article, rng)


def _line(*points: tuple[float, float], fill: str, width: float) -> Piece:
    return Piece(polygon(*points), fill, width=width, clip=True)


def _dot(x: float, y: float, radius: float, fill: str) -> Piece:
    return Piece(box(x, y, radius, radius, radius * 0.6), fill, clip=True)


def _buttons(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    start, end = article.waist[1] - 16, article.hem[1] - 6
    return [_dot(CENTRE, y, 1.6, "button") for y in np.linspace(start, end, 6)]


def _zip(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.waist
    across = _line((x - half * 0.75, y), (x + half * 0.75, y), fill="metal", width=1.8)
    return [across, _dot(x + half * 0.75, y + 1.5, 1.8, "metal")]


def _chest_pocket(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.chest
    patch = box(x, y + half * 0.4, half * 0.85, half)
    rim = Piece(np.concatenate([patch, patch[:1]]), "seam", width=1.0, clip=True)
    top = _line(
        (x - half * 0.85, y - half * 0.5),
        (x + half * 0.85, y - half * 0.5),
        fill="shade",
        width=1.6,
    )
    return [rim, top]


def _contrast_trim(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    pieces = [
        _line((x - half * 1.4, y + shift), (x + half * 1.4, y + shift), fill="accent", width=2.4)
        for x, y, half in (article.hem,)
        for shift in (-2.5, -7.5)
    ]
    x, y, half = article.waist
    return [
        *pieces,
        _line((x - half * 1.1, y - 9), (x + half * 1.1, y - 9), fill="accent", width=1.4),
    ]


def _drawstring(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, _ = article.waist
    return [
        _line((x + s, y), (x + s * 2.2, y + 14), fill="contrast", width=1.5) for s in (-1.6, 1.6)
    ]


def _belted(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.waist
    strap = Piece(box(x, y, half + 0.8, 2.3), "leather", clip=True)
    return [strap, Piece(box(x, y, 3, 2.9), "metal", width=1.3, clip=True)]


def _embroidery(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.chest
    t = np.linspace(0, 2 * np.pi, 20)
    petals = np.stack([np.cos(t), np.sin(t)], 1) * (0.62 + 0.38 * np.cos(5 * t))[:, None]
    stem = _line((x, y), (x + half * 0.5, y + half * 1.8), fill="stem", width=1.3)
    buds = [_dot(x + half * 0.9, y + half * s, 1.5, "third") for s in (0.7, 1.4)]
    flower = Piece(petals * half * 0.9 + (x, y), "third", clip=True)
    return [stem, *buds, flower, _dot(x, y, 1.3, "contrast")]


def _ruffle_hem(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.hem
    at = np.linspace(-1, 1, 9)
    scallops = [Piece(ellipse(x + half * s, y, half / 6.5, 4.2), "fabric") for s in at]
    return [
        *scallops,
        _line((x - half * 1.1, y - 3), (x + half * 1.1, y - 3), fill="seam", width=1.4),
    ]


def _bow(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y = article.waist[0], article.waist[1] - 12
    wing = smooth(polygon((0, 0), (0, 0), (8, -5), (9, 5)))
    ends = polygon((0, 0), (5, 12), (1.5, 11))
    return [
        *(
            Piece(shape * (s, 1) + (x, y), "accent", clip=False)
            for s in (-1, 1)
            for shape in (ends, wing)
        ),
        _dot(x, y, 1.9, "contrast"),
    ]


def _quilted(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    lines = []
    for shift in np.arange(-140, 140, 8.0):
        lines.append(_line((shift, 0), (shift + 128, 128), fill="seam", width=1.0))
        lines.append(_line((96 - shift, 0), (-32 - shift, 128), fill="seam", width=1.0))
    return lines


def _studs(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.hem
    across = np.linspace(-0.9, 0.9, 9) * half
    rows = [_dot(x + s, y - lift, 1.3, "metal") for s in across for lift in (3.5, 8.5)]
    x, y, half = article.waist
    return rows + [_dot(x + s, y - 6, 1.3, "metal") for s in np.linspace(-0.9, 0.9, 7) * half]


def _slit(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.hem
    at = x + half * 0.4
    return [Piece(polygon((at, y - 26), (at + 5.5, y + 4), (at - 3.0, y + 4)), "hole")]


def _ripped(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    places = article.limbs or [(article.hem[0], article.hem[1] - 12)]
    tears = []
    for x, y in places:
        for lift in (-9, 0, 6):
            wide = rng.uniform(3, 5.5)
            spot = polygon(
                (x - wide, y + lift), (x, y + lift - 1.6), (x + wide, y + lift), (x, y + lift + 1.6)
            )
            tears.append(Piece(spot, "thread", clip=True))
    return tears


def _fringe(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.hem
    strands = np.linspace(-0.95, 0.95, 16) * half
    return [
        Piece(polygon((x + s, y - 2), (x + s + rng.normal(0, 0.6), y + 9)), "shade", width=1.3)
        for s in strands
    ]


def _sequins(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.waist
    spots = rng.uniform((-half * 1.3, -24), (half * 1.3, 20), (90, 2)) + (x, y)
    return [_dot(a, b, 0.9, "sparkle") for a, b in spots]


def _elbow_patch(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    return [Piece(ellipse(x, y, 3.4, 6), "leather", clip=True) for x, y in article.limbs]


def _cut_out(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.waist
    return [Piece(ellipse(x + s * half * 0.8, y - 4, 4.6, 5.6), "hole") for s in (-1, 1)]


def _tassel(article: Silhouette, rng: np.random.Generator) -> list[Piece]:
    x, y, half = article.waist
    at = x + half * 0.7
    cord = Piece(polygon((at, y - 2), (at + 1, y + 8)), "accent", width=1.0)
    head = Piece(ellipse(at + 1, y + 9, 2.4, 2.4), "accent")
    return [
        cord,
        head,
        Piece(
            polygon((at - 1, y + 10), (at + 3, y + 10), (at + 4.5, y + 22), (at - 2.5, y + 22)),
            "accent",
        ),
    ]


DETAILS: dict[str, Detail] = {
    "Buttons": _buttons,
    "Zip": _zip,
    "Chest Pocket": _chest_pocket,
    "Contrast Trim": _contrast_trim,
    "Drawstring": _drawstring,
    "Belted": _belted,
    "Embroidery": _embroidery,
    "Ruffle Hem": _ruffle_hem,
    "Bow": _bow,
    "Quilted": _quilted,
    "Studs": _studs,
    "Slit": _slit,
    "Ripped": _ripped,
    "Fringe": _fringe,
    "Sequins": _sequins,
    "Elbow Patch": _elbow_patch,
    "Cut Out": _cut_out,
    "Tassel": _tassel,
}

_ARC = ellipse(0, 0, 1, 1, 0.5, 1.0)
# Sixteen signs; a brand's mark is one of them, bare or on a badge.
_SIGNS: tuple[tuple[np.ndarray, ...], ...] = (
    (polygon((-1, 1), (0, -1), (1, 1), (0.45, 1), (0, 0), (-0.45, 1)),),
    (box(0, -0.6, 1, 0.3), box(0, 0.6, 1, 0.3)),
    (polygon((0, -1), (1, 0), (0, 1), (-1, 0)),),
    (box(0, 0, 1, 0.28), box(0, 0, 0.28, 1)),
    (ellipse(-0.4, 0, 0.6, 0.6), ellipse(0.4, 0, 0.6, 0.6)),
    (polygon((-1, -1), (-0.4, -1), (0.4, 1), (1, 1), (1, -1), (0.4, -1), (-0.4, 1), (-1, 1)),),
    (polygon((-1, -0.8), (1, -0.8), (0, 1)),),
    (box(-0.7, 0.3, 0.25, 0.7), box(0, -0.0, 0.25, 1), box(0.7, 0.3, 0.25, 0.7)),
    (np.concatenate([_ARC, _ARC[::-1] * 0.5]), box(0, 0.6, 1, 0.25)),
    (box(0, 0, 1, 1), box(0, 0, 0.45, 0.45)),
    (smooth(polygon((-1, 0.5), (-0.4, -0.9), (0.1, 0.4), (1, -0.9), (0.3, 1), (-0.3, 0.1))),),
    (box(-0.7, 0, 0.28, 1), polygon((-0.5, 0), (0.5, -1), (1, -1), (0.1, 0), (1, 1), (0.5, 1))),
    (ellipse(0, 0, 1, 1), polygon((-1.1, 0), (1.1, -0.7), (1.1, 0.1))),
    (ellipse(0, -0.45, 0.55, 0.55), polygon((-0.25, 0), (0.25, 0), (0.6, 1), (-0.6, 1))),
    (box(0, -0.75, 1, 0.25), box(0, 0.2, 0.28, 0.8)),
    (polygon((-1, 0.9), (-1, -0.9), (-0.45, -0.2), (0, -1), (0.45, -0.2), (1, -0.9), (1, 0.9)),),
)  # fmt: skip


def mark_pieces(brand: int, article: Silhouette) -> list[Piece]:
    """A brand's mark where the article carries it.

    Parameters
    ----------
    brand : int
        Position in the list of brands, 0 to 31; larger numbers stand for brands outside the
        taxonomy, each with a sign of its own.
    article : Silhouette
        Its ``mark`` gives place and size.

    Returns
    -------
    list of Piece
        Brands above 15 set their sign on a round or square badge.
    """
    x, y, half = article.mark
    sign, badge = brand % len(_SIGNS), bool(brand // len(_SIGNS) % 2)
    pieces = []
    if badge:
        rim = ellipse(x, y, half, half) if brand % 2 else box(x, y, half, half * 0.9)
        pieces.append(Piece(rim, "contrast", clip=True))
    known = brand < 2 * len(_SIGNS)
    for number, shape in enumerate(_SIGNS[sign] if known else _foreign_sign(brand)):
        # The second part of a closed sign is its hollow.
        hollow = known and number == 1 and sign in (9, 12)
        fill = ("contrast" if hollow else "label") if badge else ("label" if hollow else "contrast")
        pieces.append(Piece(shape * half * (0.6 if badge else 0.8) + (x, y), fill, clip=True))
    return pieces


def _foreign_sign(brand: int) -> tuple[np.ndarray, ...]:
    """A sign of no brand of the taxonomy: a jagged ring of 3 to 8 corners."""
    rng = np.random.default_rng(brand)
    corners = int(rng.integers(3, 9))
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(0.4, 1.0, corners)
    return (np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1),)


def support_pieces(article: Silhouette) -> list[Piece]:
    """A hanger, or a dressmaker's dummy, to be drawn under the article."""
    top = article.top
    if article.support == "hanger":
        bar = polygon((CENTRE - 18, top + 7), (CENTRE, top - 2), (CENTRE + 18, top + 7))
        hook = ellipse(CENTRE, top - 9, 3.4, 3.8, 0.45, 1.2)
        stem = polygon((CENTRE, top - 2), (CENTRE, top - 6))
        return [
            Piece(bar, "wood", width=2.6),
            Piece(stem, "metal", width=1.3),
            Piece(hook, "metal", width=1.3),
        ]
    if article.support == "body":
        torso = [
            (3.6, top - 9),
            (3.8, top - 1),
            (13, top + 5),
            (12, top + 24),
            (9, top + 40),
            (12, top + 58),
        ]
        pole = polygon((CENTRE, top + 50), (CENTRE, 126))
        foot = ellipse(CENTRE, 125, 13, 2)
        return [
            Piece(pole, "metal", width=2.4),
            Piece(foot, "metal"),
            Piece(smooth(mirrored(torso)), "dummy"),
            Piece(ellipse(CENTRE, top - 9, 3.8, 1.4), "wood"),
        ]
    return []
