"""Silhouettes of bags."""

from __future__ import annotations

from retailtag.demo.drawing.pieces import (
    CENTRE,
    Piece,
    Shape,
    Silhouette,
    both_sides,
    box,
    ellipse,
    mirrored,
    polygon,
    smooth,
    stroke,
)


def bag(shape: Shape) -> Silhouette:
    """Bag of the given ``width`` and ``height``; other numbers choose handle, flap and form."""
    width, height = shape.get("width", 25), shape.get("height", 36)
    handle = round(shape.get("handle", 1))
    y = 70.0 if handle != 3 else 66.0
    top, bottom = y - height / 2, y + height / 2
    narrow = 0.86 if not shape.get("bucket") else 1.25
    if shape.get("duffel"):
        body = box(CENTRE, y, width, height / 2, corner=13)
    elif shape.get("round"):
        half = [
            (width * 0.55, top),
            (width * 0.9, top + 6),
            (width, top + 20),
            (width, bottom - 3),
            (width * 0.9, bottom),
        ]
        body = smooth(mirrored([(0, top - 1), *half, (0, bottom)]))
    else:
        body = mirrored([(width * narrow, top), (width, bottom - 3), (width - 2, bottom)])
    pieces = _handles(handle, width * narrow, top, bottom)
    pieces += [Piece(body), *_bag_surface(shape, width, narrow, top, bottom)]
    return Silhouette(
        pieces,
        mark=(CENTRE, y + height * 0.22, 5.5),
        chest=(CENTRE - width * 0.55, y, 5.5),
        waist=(CENTRE, y - height * 0.05, width * 0.97),
        hem=(CENTRE, bottom, width),
    )


def _handles(kind: int, width: float, top: float, bottom: float) -> list[Piece]:
    """0 none, 1 one arch, 2 two loops, 3 a backpack's straps, 4 one long strap."""
    if kind == 1:
        return [Piece(ellipse(CENTRE, top + 1, width * 0.62, 19, 0.5, 1.0), "shade", width=3.4)]
    if kind == 2:
        return [
            Piece(ellipse(CENTRE + x, top + 1, width * 0.5, 20 + x, 0.5, 1.0), "shade", width=2.6)
            for x in (2, -1)
        ]
    if kind == 3:
        loop = Piece(ellipse(CENTRE, top, 6, 7, 0.5, 1.0), "shade", width=2.4)
        strap = smooth(
            polygon(
                (CENTRE + width * 0.8, top + 6),
                (CENTRE + width + 7, top + 24),
                (CENTRE + width * 0.9, bottom - 4),
            ),
            closed=False,
        )
        return [loop, *both_sides(Piece(strap, "shade", width=4.0))]
    if kind == 4:
        strap = ellipse(CENTRE, top + 3, width * 0.98, 42, 0.5, 1.0)
        return [Piece(strap, "shade", width=1.8)]
    return []


def _bag_surface(
    shape: Shape, width: float, narrow: float, top: float, bottom: float
) -> list[Piece]:
    """Flap, front pocket, straps or drawstring, by the kind of bag."""
    pieces: list[Piece] = []
    if shape.get("flap"):
        low = top + (bottom - top) * min(0.8, shape["flap"])
        edge = [(width * narrow, top), (width * narrow + 1, low - 6), (width * 0.45, low)]
        flap = mirrored([*edge, (0, low + 2)])
        pieces += [Piece(flap), Piece(flap, "seam", width=1.0)]
        pieces += [Piece(box(CENTRE, low - 1, 2.6, 2.2), "metal")]
    if shape.get("round"):
        pieces += [Piece(box(CENTRE, bottom - 14, width * 0.68, 10, 4), "shade")]
        pieces += [_across(width * 0.68, bottom - 20, "metal", 1.0)]
        pieces += [Piece(ellipse(CENTRE, top + 18, width * 0.86, 13, 0.5, 1.0), "seam", width=1.2)]
    if shape.get("duffel"):
        side = CENTRE + width * 0.55
        pieces += both_sides(stroke((side, top), (side, bottom), fill="shade", width=3.0))
        pieces += [_across(width * 0.8, top + 4, "metal", 1.4)]
    if shape.get("bucket"):
        pieces += [Piece(ellipse(CENTRE, top, width * narrow, 3.5), "inside")]
        pieces += [_across(width * 1.15, top + 9, "shade", 2.0)]
    return pieces


def _across(half_width: float, y: float, fill: str, width: float) -> Piece:
    return stroke((CENTRE - half_width, y), (CENTRE + half_width, y), fill=fill, width=width)
