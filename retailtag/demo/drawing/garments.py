"""Silhouettes of trousers and skirts, and the table of all families."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retailtag.demo.drawing.accessories import ACCESSORIES
from retailtag.demo.drawing.bags import bag
from retailtag.demo.drawing.footwear import shoe
from retailtag.demo.drawing.pieces import (
    CENTRE,
    Piece,
    Shape,
    Silhouette,
    both_sides,
    box,
    mirrored,
    polygon,
    stroke,
)
from retailtag.demo.drawing.upper import upper


def silhouette(family: str, shape: Shape, neck: str = "", sleeve: str = "") -> Silhouette:
    """The pieces of an article.

    Parameters
    ----------
    family : str
        A key of `FAMILIES`, or ``upper``.
    shape : mapping of str to float
        Numbers for the family, in picture units; what is absent takes the family's default.
    neck, sleeve : str
        Read by ``upper`` alone.

    Returns
    -------
    Silhouette
    """
    if family == "upper":
        return upper(shape, neck, sleeve)
    return FAMILIES[family](shape)


def _trousers(shape: Shape) -> Silhouette:
    length, hip, waist = shape.get("length", 92), shape.get("hip", 18), shape.get("waist", 14)
    knee, cuff = shape.get("knee", 10), shape.get("cuff", 9)
    top = max(14.0, 62 - length / 2)
    crotch, end = top + 26, top + length
    middle = min(crotch + 0.45 * (end - crotch), end - 1)
    inner = 1.2
    leg = polygon(
        (CENTRE, top), (CENTRE + waist, top), (CENTRE + hip, top + 16),
        (CENTRE + hip + 0.5, crotch),
        (CENTRE + inner + 1.6 * knee, middle), (CENTRE + inner + 1 + 1.9 * cuff, end),
        (CENTRE + inner + 1, end), (CENTRE + inner, middle), (CENTRE, crotch),
    )  # fmt: skip
    pieces = both_sides(Piece(leg, turn=-0.03))
    pieces += [Piece(box(CENTRE, top + 1.8, waist, 1.9), "shade")]
    pieces += [stroke((CENTRE, top + 3), (CENTRE, crotch), width=0.9)]
    pieces += both_sides(stroke((CENTRE + waist - 5, top + 4), (CENTRE + hip - 1, top + 11)))
    if shape.get("cargo"):
        pieces += both_sides(Piece(box(CENTRE + hip - 2, middle - 4, 4.5, 6), "shade"))
        pieces += both_sides(stroke((CENTRE + hip - 6, middle - 7), (CENTRE + hip + 2, middle - 7)))
    if shape.get("rib"):
        pieces += both_sides(
            Piece(box(CENTRE + inner + 1 + 0.95 * cuff, end - 2, 0.95 * cuff, 2.2), "rib")
        )
    return Silhouette(
        pieces,
        mark=(CENTRE + hip * 0.6, top + 17, 4.5),
        chest=(CENTRE - hip * 0.6, top + 18, 4.5),
        waist=(CENTRE, top + 2, waist),
        hem=(CENTRE, end, cuff * 2 + 2),
        limbs=[(CENTRE - knee, middle), (CENTRE + knee, middle)],
    )


def _skirt(shape: Shape) -> Silhouette:
    length, hem, waist = shape.get("length", 56), shape.get("hem", 24), shape.get("waist", 13)
    top = 62 - length / 2
    end = top + length
    half = [(waist, top), (waist + 0.55 * (hem - waist) + 2, top + length * 0.45), (hem, end)]
    pieces = [Piece(mirrored([*half, (hem * 0.5, end + 2.5), (0, end + 3)]))]
    if shape.get("pleats"):
        for share in np.linspace(-0.9, 0.9, 10):
            pieces.append(
                stroke(
                    (CENTRE + share * waist, top + 4), (CENTRE + share * hem, end + 1.5), width=1.1
                )
            )
    pieces.append(Piece(box(CENTRE, top + 1.6, waist, 1.8), "shade"))
    return Silhouette(
        pieces,
        mark=(CENTRE + hem * 0.45, end - 12, 4.5),
        chest=(CENTRE - hem * 0.3, top + 14, 4.5),
        waist=(CENTRE, top + 2, waist),
        hem=(CENTRE, end, hem),
    )


FAMILIES: dict[str, Callable[[Shape], Silhouette]] = {
    "trousers": _trousers,
    "skirt": _skirt,
    "shoe": shoe,
    "bag": bag,
    **ACCESSORIES,
}
