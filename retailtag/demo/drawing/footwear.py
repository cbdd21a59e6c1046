"""Silhouettes of shoes, drawn as a pair."""

from __future__ import annotations

import numpy as np

from retailtag.demo.drawing.pieces import (
    CENTRE,
    Piece,
    Shape,
    Silhouette,
    box,
    ellipse,
    flipped,
    polygon,
    smooth,
    stroke,
)


def shoe(shape: Shape) -> Silhouette:
    """Pair of shoes: ``sole``, ``heel`` and ``shaft`` give the form, ``flip`` makes flip-flops."""
    if shape.get("flip"):
        return _flip_flops()
    near = _one_shoe(shape)
    # The second shoe of the pair stands behind the first.
    far = [Piece(p.points * 0.95 + (11, -12), p.fill, p.turn, p.width) for p in near]
    drop = 0.25 * shape.get("shaft", 0) - 8
    pieces = [Piece(p.points + (-5, drop), p.fill, p.turn, p.width) for p in far + near]
    return Silhouette(
        pieces,
        mark=(62.0, 78 + drop - shape.get("heel", 0) * 0.7, 5.0),
        chest=(40.0, 82 + drop, 5.0),
        waist=(64.0, 80 + drop - shape.get("heel", 0) * 0.8, 11.0),
        hem=(CENTRE - 5, 92 + drop, 30.0),
    )


def _one_shoe(shape: Shape) -> list[Piece]:
    """A shoe from the side, its toe to the left, standing at y = 96."""
    heel, shaft, sole = shape.get("heel", 0), shape.get("shaft", 0), shape.get("sole", 2)
    ground = 96.0
    back = ground - heel - sole
    toe = ground - sole
    bed = [(82, back), (68, back + heel * 0.1), (48, toe - heel * 0.25), (34, toe), (15, toe)]
    under = [(x, min(y + sole, ground)) for x, y in reversed(bed)]
    pieces = [Piece(smooth(polygon((82, back), *bed, *under, (82, back + sole))), "sole")]
    if heel > 4:
        thick = 3.0 if heel > 16 else 9.0
        pieces.append(
            Piece(
                polygon(
                    (82, back), (82 - thick * 1.8, back + 2), (81 - thick, ground), (81, ground)
                ),
                "dark",
            )
        )
    if shape.get("straps"):
        return pieces + _straps(back, toe)
    low = 11.0 if shape.get("low") or heel > 16 else 6.0 * bool(shape.get("saddle"))
    collar = back - 22 + low
    throat = min(toe - 22 + low - heel * 0.4, toe - 15 - heel * 0.45)
    upper_edge = [(82, back), (83, back - 8), (82, collar - shaft), (82, collar - shaft)]
    front = 64 if shape.get("wide") else 61
    upper_edge += [
        (front, collar + 1 - shaft),
        (front, collar + 1 - shaft),
        (front - 1, throat + 3),
    ]
    if shape.get("mule"):
        upper_edge = [(58, back + heel * 0.4), (57, throat - 1), (57, throat - 1)]
    toe_cap = [(46, throat + 5 + low * 0.6), (30, toe - 12 + low * 0.3), (19, toe - 10 + low * 0.3)]
    toe_cap += [(13, toe - 4), (14, toe), (14, toe)]
    outline = smooth(polygon(*upper_edge, *toe_cap, *bed[::-1][1:4]))
    pieces.append(Piece(outline, turn=0.1))
    pieces += _shoe_surface(shape, collar - shaft, throat, toe)
    return pieces


def _shoe_surface(shape: Shape, top: float, throat: float, toe: float) -> list[Piece]:
    """Laces, the saddle of a loafer, the opening, and the seam of a boot."""
    pieces: list[Piece] = []
    if not shape.get("mule"):
        pieces.append(Piece(ellipse(71.5, top + 0.6, 10.5, 1.8), "inside"))
    if shape.get("laces"):
        pieces.append(
            Piece(smooth(polygon((14, toe), (16, toe - 6), (27, toe - 8), (29, toe))), "sole")
        )
        for step in np.linspace(0, 1, 4):
            x, y = 40 + 18 * step, throat + 6 - 8 * step
            pieces.append(stroke((x - 3, y - 1.5), (x + 3, y + 3.5), fill="sole", width=1.5))
    if shape.get("saddle"):
        pieces.append(
            Piece(
                polygon((38, throat + 3), (50, throat + 1), (54, throat + 13), (42, throat + 14)),
                "shade",
            )
        )
        pieces.append(stroke((42, throat + 7), (49, throat + 5), fill="dark", width=1.6))
    if shape.get("low"):
        pieces.append(
            Piece(polygon((24, toe - 11), (32, toe - 6), (24, toe - 4), (32, toe - 12)), "accent")
        )
    if shape.get("shaft", 0) > 20 and not shape.get("wide"):
        pieces.append(stroke((72, top + 4), (72, toe - 20), width=1.0))
    if shape.get("wide"):
        pieces.append(Piece(box(72, top + 2, 10.5, 1.8), "accent"))
    return pieces


def _straps(back: float, toe: float) -> list[Piece]:
    across = [Piece(ellipse(x, toe, 11, h, 0.52, 0.9), width=6.0) for x, h in ((33, 12), (52, 17))]
    ankle = polygon((81, back), (83, back - 19), (62, back - 22), (64, back - 8))
    buckle = Piece(box(66, back - 20, 2.2, 2.8), "metal")
    return [*across, Piece(smooth(ankle, closed=False), width=4.5), buckle]


def _flip_flops() -> Silhouette:
    footbed = smooth(
        polygon(
            (34, 28), (43, 36), (43, 58), (40, 84), (33, 98), (25, 94), (22, 76), (22, 52), (25, 34)
        )
    )
    strap = [
        stroke((33, 42), (24, 66), fill="accent", width=3.4),
        stroke((33, 42), (42, 66), fill="accent", width=3.4),
    ]
    pair = [Piece(footbed + (0, 2), "sole"), Piece(footbed * (0.94, 0.96) + (1.8, 2.4)), *strap]
    return Silhouette(
        pair + [flipped(piece) for piece in pair],
        mark=(32.0, 82.0, 4.0),
        chest=(33.0, 56.0, 4.0),
        waist=(CENTRE, 66.0, 24.0),
        hem=(CENTRE, 98.0, 24.0),
    )
