"""Silhouettes that hang from the shoulders: tops, outerwear, dresses, and all-in-ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retailtag.demo.drawing.pieces import (
    CENTRE,
    Piece,
    Silhouette,
    band,
    both_sides,
    box,
    ellipse,
    mirrored,
    polygon,
    smooth,
    stroke,
)

_DEFAULTS = {"shoulder": 19.0, "chest": 18.0, "waist": 17.0, "hem": 18.0, "length": 58.0}
# Share of the arm covered, width at the cuff relative to the top of the sleeve, bulge.
_SLEEVES = {
    "Long": (1.0, 0.62, 0.0),
    "Three Quarter": (0.72, 0.72, 0.0),
    "Short": (0.4, 0.95, 0.0),
    "Cap": (0.17, 0.95, 0.0),
    "Bell": (0.9, 1.9, -0.15),
    "Puff": (0.42, 0.6, 0.75),
}
ARM = 50.0


@dataclass(frozen=True)
class _Frame:
    """The measures of one garment, in picture units: half-widths and heights.

    ``bare`` is true for bare shoulders, where the sleeves begin lower.
    """

    top: float
    shoulder: float
    chest: float
    waist: float
    hem: float
    length: float
    neck: float
    bare: bool

    @property
    def bottom(self) -> float:
        return self.top + self.length

    @property
    def armpit(self) -> float:
        return self.top + 19

    @property
    def middle(self) -> float:
        """Height of the waist: shorter garments end before they narrow."""
        return self.top + min(38.0, 0.62 * self.length)


def upper(shape: Mapping[str, float], neck: str, sleeve: str) -> Silhouette:
    """Draw a garment that hangs from the shoulders.

    Parameters
    ----------
    shape : mapping of str to float
        Half-widths ``shoulder``, ``chest``, ``waist``, ``hem``; ``length``; ``legs`` below
        the body; ``strap`` (1 broad, 2 thin), ``cape``, ``bib``; ``front`` (1 buttoned,
        2 zipped, 3 double-breasted, 4 wrapped), ``placket``, ``lapel``, ``rib``, ``puffer``,
        ``belt``, ``fur``, ``kangaroo``, ``points``, ``brief``, ``arm``.
    neck, sleeve : str
        Values of the facets ``neck`` and ``sleeve``; empty for neither.

    Returns
    -------
    Silhouette
    """
    frame = _frame(shape, neck)
    pieces = _sleeves(shape, sleeve, frame)
    limbs = [_elbow(frame, sleeve, side) for side in (-1, 1)] if sleeve == "Long" else []
    pieces += _back_of_neck(neck, frame) + _body(shape, neck, frame)
    pieces += _legs(shape, frame) + _surface(shape, frame) + _front(shape, frame)
    pieces += _neck_pieces(neck, frame) + _collar_pieces(shape, neck, frame)
    return Silhouette(
        pieces,
        mark=(CENTRE + frame.chest * 0.5, frame.armpit + 1, 5.5),
        chest=(CENTRE - frame.chest * 0.5, frame.armpit + 3, 5.5),
        waist=(CENTRE, frame.middle, frame.waist + 0.5),
        hem=(CENTRE, frame.bottom, frame.hem),
        limbs=limbs,
        support="hanger" if shape.get("length", 58) < 70 else "body",
        top=frame.top,
    )


def _frame(shape: Mapping[str, float], neck: str) -> _Frame:
    measures = {key: shape.get(key, value) for key, value in _DEFAULTS.items()}
    build = shape.get("build", 1.0)
    total = measures["length"] + shape.get("legs", 0)
    # Long garments are photographed from further away, so they come out narrower.
    slim = 1.0 if total < 66 else 0.84
    widths = {k: measures[k] * slim for k in ("chest", "hem")}
    widths["shoulder"] = measures["shoulder"] * slim * build
    widths["waist"] = measures["waist"] * slim * (0.5 + 0.5 * build)
    spread = 1.0 if neck not in ("Boat", "Scoop", "Square", "Sweetheart") else 1.3
    top = max(12.0, 64 - total / 2)
    return _Frame(
        top=top,
        length=measures["length"],
        neck=7.5 * slim * spread,
        bare=neck == "Off Shoulder",
        **widths,
    )


def _elbow(frame: _Frame, sleeve: str, side: int) -> tuple[float, float]:
    return CENTRE + side * (frame.shoulder + 8), frame.top + 29


def _sleeves(shape: Mapping[str, float], sleeve: str, frame: _Frame) -> list[Piece]:
    """Two sleeves behind the body, their cloth turned along the arm."""
    if sleeve not in _SLEEVES:
        return []
    share, cuff, bulge = _SLEEVES[sleeve]
    angle = 0.62 - 0.35 * share
    along = np.array([np.sin(angle), np.cos(angle)])
    across = np.array([np.cos(angle), -np.sin(angle)])
    width = shape.get("arm", 8.5)
    drop = 8.0 if frame.bare else 0.0
    outer = np.array([CENTRE + frame.shoulder, frame.top + 4.5 + drop])
    inner = np.array([CENTRE + frame.chest - 2, frame.armpit + 1])
    end = (outer + inner) / 2 + along * ARM * share
    middle = (outer + inner + 2 * end) / 4
    swell = width * (0.55 + bulge)
    cuff_outer, cuff_inner = end + across * width * cuff * 0.6, end - across * width * cuff * 0.6
    points = [
        outer - (4, 1),
        outer - (4, 1),
        outer,
        middle + across * swell,
        cuff_outer,
        cuff_outer,
    ]
    points += [cuff_inner, cuff_inner, middle - across * width * 0.5, inner, inner]
    pieces = [Piece(smooth(np.array(points)), turn=-angle)]
    if shape.get("rib") and share == 1.0:
        tip = [cuff_outer, cuff_inner, cuff_inner - along * 4, cuff_outer - along * 4]
        pieces.append(Piece(np.array(tip), "rib"))
    return both_sides(*pieces)


def _shoulder_line(
    shape: Mapping[str, float], neck: str, frame: _Frame
) -> list[tuple[float, float]]:
    """Right half of the top edge, from the neck to the armpit."""
    top, armpit = frame.top, frame.armpit
    if shape.get("strap") or shape.get("bib"):
        thin = 1.4 if shape.get("strap", 0) > 1.5 or shape.get("bib") else 4.0
        at = frame.chest * 0.6
        cup = armpit - 6 if shape.get("bib") else armpit - 4
        return [(at - thin, cup), (at - thin, top), (at + thin, top), (at + thin, cup + 1)]
    if neck == "Off Shoulder":
        return [(0, top + 11), (frame.shoulder + 2, top + 9), (frame.shoulder + 3, top + 14)]
    if neck == "Halter":
        return [(3, top - 3), (6, top - 3), (frame.chest * 0.62, top + 10)]
    return [(frame.neck, top), (frame.shoulder, top + 4.5), (frame.shoulder + 0.5, top + 8)]


def _body(shape: Mapping[str, float], neck: str, frame: _Frame) -> list[Piece]:
    """The trunk of the garment, or the one cloth of a cape."""
    if shape.get("cape"):
        wide = 34.0 if shape["cape"] < 1.5 else 27.0
        low = frame.bottom if shape["cape"] > 1.5 else frame.bottom - 14
        half = [
            (frame.neck, frame.top),
            (frame.shoulder, frame.top + 6),
            (wide, low),
            (wide * 0.6, low + 6),
        ]
        return [Piece(smooth(mirrored([*half, (0, frame.bottom)])))]
    half = _shoulder_line(shape, neck, frame)
    half += [(frame.chest, frame.armpit), (frame.waist, frame.middle)]
    if shape.get("brief"):
        half += [(frame.hem, frame.middle + 10), (4, frame.bottom), (4, frame.bottom)]
    elif shape.get("points"):
        half += [(frame.hem, frame.bottom - 4), (6, frame.bottom + 5), (0.5, frame.bottom - 3)]
    else:
        half += [(frame.hem, frame.bottom - 1), (frame.hem * 0.9, frame.bottom)]
        half += [(0, frame.bottom + 1.5)]
    return [Piece(mirrored(half))]


def _legs(shape: Mapping[str, float], frame: _Frame) -> list[Piece]:
    if not shape.get("legs"):
        return []
    y, end, hip = frame.bottom - 1, frame.bottom + shape["legs"], frame.hem
    leg = polygon(
        (CENTRE, y - 6), (CENTRE + hip * 0.92, y - 2), (CENTRE + hip * 1.05, end),
        (CENTRE + hip * 0.35, end), (CENTRE + 0.5, y + 8),
    )  # fmt: skip
    return both_sides(Piece(leg, turn=-0.04)) + [stroke((CENTRE, y - 6), (CENTRE, y + 8))]


def _surface(shape: Mapping[str, float], frame: _Frame) -> list[Piece]:
    """Ribs, quilting channels, pockets and belts that belong to the article itself."""
    pieces: list[Piece] = []
    if shape.get("rib"):
        pieces.append(band(frame.bottom - 5, frame.hem * 0.97, 5.5, "rib", droop=1))
    if shape.get("puffer"):
        levels = np.arange(frame.top + 10, frame.bottom - 2, 8.0)
        for y in levels:
            arc = [(CENTRE - frame.chest, y), (CENTRE, y + 2.5), (CENTRE + frame.chest, y)]
            pieces.append(Piece(smooth(np.array(arc), closed=False), "seam", width=1.6))
    if shape.get("kangaroo"):
        y = frame.bottom - 9
        pocket = mirrored([(7, y - 11), (12, y - 2), (12, y), (0, y)])
        pieces.append(Piece(np.concatenate([pocket, pocket[:1]]), "seam", width=0.9))
    if shape.get("bib"):
        pieces.append(Piece(box(CENTRE, frame.armpit + 6, 7, 5), "seam", width=0.8))
        pieces += both_sides(
            Piece(box(CENTRE + frame.chest * 0.6, frame.armpit - 3, 1.6, 1.6), "metal")
        )
    if shape.get("belt"):
        pieces.append(band(frame.middle - 2, frame.waist + 0.6, 4.2, "shade", droop=0.8))
        pieces.append(
            Piece(
                polygon(
                    (CENTRE + 2, frame.middle),
                    (CENTRE + 8, frame.middle + 16),
                    (CENTRE + 4, frame.middle + 17),
                ),
                "shade",
            )
        )
    return pieces


def _front(shape: Mapping[str, float], frame: _Frame) -> list[Piece]:
    """The opening: buttons, zip, two rows of buttons, a wrap, or a short placket."""
    kind = round(shape.get("front", 0))
    top, bottom = frame.top + 6, frame.bottom
    pieces: list[Piece] = []
    if shape.get("placket"):
        end = top + (bottom - top) * min(1.0, shape["placket"])
        pieces += [
            stroke((CENTRE - 1.6, top), (CENTRE - 1.6, end)),
            stroke((CENTRE + 1.6, top), (CENTRE + 1.6, end)),
        ]
        pieces += _buttons(CENTRE, top + 3, end - 2, 7)
    if kind == 1:
        pieces += [stroke((CENTRE, top), (CENTRE, bottom + 1), width=1.0)]
        pieces += _buttons(CENTRE + 2.5, frame.armpit + 2, bottom - 8, 10)
    elif kind == 2:
        pieces += [stroke((CENTRE, top - 3), (CENTRE, bottom + 1), fill="metal", width=1.5)]
        pieces += both_sides(
            stroke((CENTRE + 7, bottom - 18), (CENTRE + 12, bottom - 9), width=1.2)
        )
    elif kind == 3:
        pieces += [stroke((CENTRE + 5, frame.armpit), (CENTRE + 5, bottom), width=0.9)]
        pieces += _buttons(CENTRE - 5, frame.armpit + 3, bottom - 20, 9)
        pieces += _buttons(CENTRE + 3, frame.armpit + 3, bottom - 20, 9)
    elif kind == 4:
        edge = [(CENTRE - 7, frame.top), (CENTRE + 3, frame.armpit + 10), (CENTRE + 5, bottom)]
        pieces += [Piece(polygon(*edge), "accent", width=2.6)]
        pieces += [
            stroke(
                (CENTRE + 7, frame.top), (CENTRE + 1, frame.armpit + 3), fill="accent", width=2.6
            )
        ]
    return pieces


def _buttons(x: float, start: float, end: float, spacing: float) -> list[Piece]:
    count = max(2, int((end - start) / spacing) + 1)
    return [Piece(box(x, y, 0.9, 0.9), "button") for y in np.linspace(start, end, count)]


def _back_of_neck(neck: str, frame: _Frame) -> list[Piece]:
    """What shows behind the neckline."""
    x, y = CENTRE, frame.top
    if neck == "Hooded":
        hood = [(frame.neck + 2, y + 5), (frame.neck + 4, y - 3), (5, y - 11), (0, y - 12)]
        return [Piece(smooth(mirrored(hood[::-1]))), Piece(ellipse(x, y - 1, 6.5, 7.5), "inside")]
    if neck == "Halter":
        return [Piece(box(x, y - 3, 6, 1.5))]
    if neck == "Off Shoulder":
        return []
    return [Piece(ellipse(x, y + 1, frame.neck, 3.0), "inside")]


def _neck_pieces(neck: str, frame: _Frame) -> list[Piece]:
    """The opening itself: cloth cut away down to the back of the garment, and its trim."""
    x, y, n = CENTRE, frame.top, frame.neck
    if neck in ("Turtleneck", "Mock"):
        return _tube(frame, 8.0 if neck == "Turtleneck" else 3.5)
    if neck == "Off Shoulder":
        half = [(0, y + 11), (frame.shoulder + 3, y + 9), (frame.shoulder + 5, y + 17)]
        fold = mirrored([*half, (0, y + 20)])
        return [Piece(fold), Piece(fold, "seam", width=0.9)]
    edge = _neckline(neck, frame)
    open_front = neck in ("Halter", "Scoop", "Sweetheart", "Square", "V Neck")
    pieces = [Piece(edge, "hole" if open_front else "inside")]
    if open_front and neck != "Halter":
        pieces.append(Piece(ellipse(x, y + 0.5, n, 2.6), "inside"))
    if neck not in ("Halter", "Collared"):
        pieces.append(Piece(edge, "trim", width=1.6))
    return pieces


def _tube(frame: _Frame, high: float) -> list[Piece]:
    """A standing collar; a high one is folded over."""
    x, y, n = CENTRE, frame.top, frame.neck
    tube = mirrored([(n * 0.85, y - high), (n, y + 2), (0, y + 4)])
    folds = [band(y - high * 0.45, n * 0.88, 0.8, "seam", droop=1)] if high > 5 else []
    return [Piece(tube), Piece(ellipse(x, y - high, n * 0.85, 1.6), "inside"), *folds]


def _neckline(neck: str, frame: _Frame) -> np.ndarray:
    """Lower edge of the opening, from one shoulder to the other."""
    x, y, n = CENTRE, frame.top, frame.neck
    edges: dict[str, list[tuple[float, float]]] = {
        "V Neck": [(-n, -0.3), (0, 16)],
        "Square": [(-n, -0.3), (-n * 0.9, 11)],
        "Sweetheart": [(-n, 0), (-n * 0.95, 9), (-n * 0.5, 7), (0, 14), (0, 14)],
    }
    depth = {"Crew": 5.0, "Scoop": 15.0, "Boat": 2.6}.get(neck)
    left = edges.get(neck, [(-n, -0.3), (0, 9)])
    if depth:
        left = [(-n, 0.0), (-n * 0.8, depth * 0.7), (0.0, depth)]
    half = np.array(left, dtype=np.float64)
    edge = np.concatenate([half, half[::-1] * (-1, 1)]) + (x, y)
    return smooth(edge, closed=False) if depth or neck == "Sweetheart" else edge


def _collar_pieces(shape: Mapping[str, float], neck: str, frame: _Frame) -> list[Piece]:
    """Collars, lapels, drawstrings of hoods, and fur."""
    x, y, n = CENTRE, frame.top, frame.neck
    if shape.get("lapel"):
        low = y + (16 if shape["lapel"] < 1.5 else 27)
        notch = [(x + n + 4, y + 7), (x + n + 1, y + 10), (x + n + 2.5, y + 12)]
        lapel = polygon((x + n * 0.5, y - 2), *notch, (x + 1, low))
        return both_sides(
            Piece(lapel, turn=0.4), Piece(np.concatenate([lapel, lapel[:1]]), "seam", width=0.9)
        )
    if neck == "Collared":
        flap = polygon(
            (x + n * 0.5, y - 2.5), (x + n + 2, y + 1), (x + n + 0.5, y + 8.5), (x + 0.8, y + 5.5)
        )
        return both_sides(
            Piece(flap, turn=0.7), Piece(np.concatenate([flap, flap[:1]]), "seam", width=0.8)
        )
    if neck == "Hooded":
        strings = both_sides(stroke((x + 4, y + 6), (x + 3.4, y + 17), fill="trim", width=1.0))
        fur = (
            [Piece(ellipse(x, y - 1, 8, 9, 0.45, 1.05), "fur", width=4.0)]
            if shape.get("fur")
            else []
        )
        return strings + fur
    return []
