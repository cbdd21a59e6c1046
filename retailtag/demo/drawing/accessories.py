"""Silhouettes of hats, scarves, jewellery and what else is worn or carried."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retailtag.demo.drawing.pieces import (
    Piece,
    Shape,
    Silhouette,
    both_sides,
    box,
    ellipse,
    flipped,
    mirrored,
    polygon,
    smooth,
    stroke,
)


def _cap(shape: Shape) -> Silhouette:
    crown = smooth(
        polygon((26, 72), (26, 72), (30, 50), (48, 40), (66, 50), (70, 72), (70, 72), (48, 69))
    )
    peak = smooth(
        polygon((26, 71), (48, 67), (70, 71), (76, 82), (62, 84), (48, 82), (34, 84), (20, 82))
    )
    seams = [stroke((48, 40), (48, 69)), *both_sides(stroke((48, 41), (60, 52), (63, 70)))]
    pieces = [
        Piece(crown),
        *seams,
        Piece(peak, "accent" if shape.get("two") else "shade"),
        Piece(box(48, 40, 2, 1.3), "shade"),
    ]
    return Silhouette(
        pieces, mark=(48, 58, 7.5), chest=(48, 58, 7), waist=(48, 68, 22), hem=(48, 76, 24)
    )


def _beanie(shape: Shape) -> Silhouette:
    crown = smooth(polygon((26, 82), (26, 82), (28, 58), (48, 40), (68, 58), (70, 82), (70, 82)))
    cuff = box(48, 82, 23, 7, 2)
    ribs = [stroke((x, 76), (x, 88), width=0.7) for x in np.linspace(28, 68, 12)]
    return Silhouette(
        [Piece(crown), Piece(cuff, "rib"), *ribs],
        mark=(48, 66, 6.5),
        chest=(48, 62, 6),
        waist=(48, 76, 22),
        hem=(48, 89, 22),
    )


def _sunhat(shape: Shape) -> Silhouette:
    brim = ellipse(48, 76, 37, 13)
    crown = smooth(
        polygon((29, 74), (29, 74), (33, 50), (48, 45), (63, 50), (67, 74), (67, 74), (48, 79))
    )
    ribbon = smooth(polygon((29, 68), (48, 73), (67, 68), (67, 74), (48, 79), (29, 74)))
    return Silhouette(
        [
            Piece(brim),
            Piece(ellipse(48, 77, 37, 12), "seam", width=0.9),
            Piece(crown),
            Piece(ribbon, "accent"),
        ],
        mark=(48, 60, 5),
        chest=(48, 60, 6),
        waist=(48, 70, 19),
        hem=(48, 88, 30),
    )


def _fedora(shape: Shape) -> Silhouette:
    brim = smooth(polygon((12, 76), (30, 74), (66, 74), (84, 72), (70, 84), (48, 86), (26, 84)))
    crown = smooth(
        polygon(
            (29, 78),
            (29, 78),
            (32, 52),
            (42, 46),
            (48, 51),
            (54, 46),
            (64, 52),
            (67, 78),
            (67, 78),
            (48, 81),
        )
    )
    ribbon = smooth(polygon((29, 69), (48, 72), (67, 69), (67, 77), (48, 81), (29, 77)))
    return Silhouette(
        [Piece(brim), Piece(crown), Piece(ribbon, "dark")],
        mark=(48, 61, 5),
        chest=(48, 60, 6),
        waist=(48, 72, 19),
        hem=(48, 85, 26),
    )


def _scarf(shape: Shape) -> Silhouette:
    loop = smooth(polygon((30, 36), (48, 28), (66, 36), (68, 50), (48, 60), (28, 50)))
    tails = [
        Piece(polygon((34, 50), (48, 54), (45, 108), (29, 106)), turn=0.06),
        Piece(polygon((48, 54), (62, 50), (66, 96), (51, 98)), turn=-0.08),
    ]
    fringe = [
        stroke((x, 106), (x - 0.5, 113), width=0.9, fill="shade") for x in np.linspace(30, 45, 7)
    ]
    fringe += [
        stroke((x, 97), (x + 0.6, 104), width=0.9, fill="shade") for x in np.linspace(52, 66, 7)
    ]
    return Silhouette(
        [*fringe, *tails, Piece(loop, turn=1.2), Piece(ellipse(48, 38, 11, 6), "hole")],
        mark=(38, 94, 5),
        chest=(58, 74, 5),
        waist=(48, 66, 16),
        hem=(38, 104, 8),
    )


def _tie(shape: Shape) -> Silhouette:
    blade = polygon((44, 28), (52, 28), (58, 96), (48, 108), (38, 96))
    knot = polygon((42, 17), (54, 17), (51, 28), (45, 28))
    return Silhouette(
        [
            Piece(blade, turn=0.6),
            Piece(knot, turn=-0.6),
            Piece(np.concatenate([knot, knot[:1]]), "seam", width=1),
        ],
        mark=(48, 90, 4),
        chest=(48, 70, 4),
        waist=(48, 50, 5),
        hem=(48, 100, 6),
    )


def _bowtie(shape: Shape) -> Silhouette:
    wing = smooth(
        polygon((48, 60), (48, 60), (70, 48), (72, 50), (72, 78), (70, 80), (48, 68), (48, 68))
    )
    strap = Piece(ellipse(48, 54, 22, 14, 0.5, 1.0), "shade", width=2)
    return Silhouette(
        [
            strap,
            *both_sides(Piece(wing, turn=0.2)),
            Piece(box(48, 64, 4.5, 6.5, 2)),
            Piece(box(48, 64, 4.5, 6.5, 2), "seam", width=1),
        ],
        mark=(64, 64, 4),
        chest=(34, 64, 5),
        waist=(48, 64, 18),
        hem=(48, 78, 20),
    )


def _belt(shape: Shape) -> Silhouette:
    coil = [
        Piece(ellipse(48, 62 + dy, 30, 21), "fabric" if dy else "inside", width=7.5)
        for dy in (0, 5)
    ]
    tail = Piece(polygon((20, 84), (78, 80), (79, 88), (20, 92)))
    holes = [Piece(box(x, 85, 0.9, 0.9), "dark") for x in (54, 60, 66, 72)]
    buckle = [
        Piece(box(27, 87.5, 7, 6.5), "metal", width=2.4),
        stroke((27, 87), (35, 87), fill="metal", width=1.8),
    ]
    return Silhouette(
        [*coil, tail, *holes, *buckle],
        mark=(44, 87, 3),
        chest=(48, 87, 4),
        waist=(48, 87, 26),
        hem=(48, 90, 26),
    )


def _gloves(shape: Shape) -> Silhouette:
    hand = [
        (22, 100),
        (22, 74),
        (15, 64),
        (18, 59),
        (25, 66),
        (24, 44),
        (28, 40),
        (31, 46),
        (31, 38),
        (35, 36),
        (37, 42),
    ]
    hand += [(38, 40), (41, 40), (43, 46), (44, 47), (47, 52), (44, 76), (43, 100)]
    glove = Piece(smooth(polygon((22, 100), *hand, (43, 100)), steps=4), turn=0.05)
    lines = [stroke((x, 50), (x, 64), width=0.9) for x in (30.5, 36, 41)]
    one = [glove, *lines, Piece(box(32.5, 97, 11, 3.4), "rib")]
    one = [Piece(p.points - (0, 4), p.fill, p.turn, p.width) for p in one]
    return Silhouette(
        one + [flipped(p) for p in one],
        mark=(33, 76, 4.5),
        chest=(62, 74, 5),
        waist=(48, 84, 24),
        hem=(48, 97, 26),
    )


def _socks(shape: Shape) -> Silhouette:
    sock = smooth(
        polygon(
            (30, 26),
            (30, 26),
            (46, 26),
            (46, 26),
            (46, 72),
            (44, 86),
            (26, 100),
            (15, 99),
            (15, 90),
            (29, 78),
            (30, 60),
        )
    )
    one = [
        Piece(sock),
        Piece(box(38, 29, 8, 3.4), "rib"),
        Piece(smooth(polygon((15, 99), (14, 91), (20, 87), (24, 100))), "accent"),
    ]
    other = [Piece(p.points + (26, -4), p.fill, p.turn, p.width) for p in one]
    return Silhouette(
        other + one, mark=(38, 44, 4.5), chest=(64, 48, 4.5), waist=(50, 50, 20), hem=(34, 32, 8)
    )


def _sunglasses(shape: Shape) -> Silhouette:
    lens = smooth(polygon((51, 58), (60, 54), (76, 55), (78, 64), (73, 76), (60, 78), (53, 70)))
    arm = stroke((77, 58), (84, 54), (82, 46), fill="fabric", width=2.6)
    rim = Piece(np.concatenate([lens, lens[:1]]), "fabric", width=3.2)
    shine = stroke((60, 72), (68, 60), fill="sole", width=1.2)
    bridge = stroke((44, 61), (48, 58.5), (52, 61), fill="fabric", width=2.6)
    return Silhouette(
        [*both_sides(arm, Piece(lens, "dark"), rim, shine), bridge],
        mark=(80, 56, 3),
        chest=(65, 66, 5),
        waist=(48, 62, 28),
        hem=(48, 78, 26),
    )


def _watch(shape: Shape) -> Silhouette:
    strap = [
        Piece(polygon((41, 14), (55, 14), (57, 46), (39, 46))),
        Piece(polygon((39, 82), (57, 82), (55, 114), (41, 114))),
    ]
    case = [Piece(ellipse(48, 64, 19, 19), "metal"), Piece(ellipse(48, 64, 15.5, 15.5), "accent")]
    ticks = [
        stroke(
            (48 + 12 * np.sin(a), 64 - 12 * np.cos(a)),
            (48 + 14 * np.sin(a), 64 - 14 * np.cos(a)),
            fill="dark",
            width=1.2,
        )
        for a in np.arange(12) * np.pi / 6
    ]
    hands = [
        stroke((48, 64), (48, 53), fill="dark", width=1.6),
        stroke((48, 64), (56, 68), fill="dark", width=1.6),
    ]
    holes = [Piece(box(48, y, 0.9, 1.2), "dark") for y in (96, 101, 106)]
    return Silhouette(
        [*strap, *case, *ticks, *hands, *holes, Piece(box(68.5, 64, 2, 2.4), "metal")],
        mark=(48, 58, 3),
        chest=(48, 30, 5),
        waist=(48, 40, 9),
        hem=(48, 110, 7),
    )


def _umbrella(shape: Shape) -> Silhouette:
    half = [(0, 28), (20, 36), (37, 62), (37, 62), (28, 58), (18, 64), (18, 64), (9, 59), (0, 64)]
    canopy = smooth(mirrored(half))
    ribs = [*both_sides(stroke((48, 28), (60, 44), (66, 64))), stroke((48, 28), (48, 62))]
    shaft = [
        stroke((48, 22), (48, 104), fill="metal", width=1.8),
        Piece(ellipse(43, 104, 5, 6, 0.0, 0.5), "dark", width=3),
    ]
    return Silhouette(
        [*shaft, Piece(canopy), *ribs],
        mark=(58, 50, 4.5),
        chest=(36, 48, 5),
        waist=(48, 50, 26),
        hem=(48, 62, 34),
    )


def _wallet(shape: Shape) -> Silhouette:
    body = box(48, 66, 30, 20, 3)
    flap = polygon((18, 48), (78, 48), (78, 62), (18, 62))
    pieces = [
        Piece(box(48, 63, 29, 20, 3), "inside"),
        Piece(body),
        Piece(flap, "shade"),
        stroke((18, 62), (78, 62), width=1.2),
    ]
    stitch = [
        stroke((x, 83), (x + 2.4, 83), fill="seam", width=0.8) for x in np.arange(21, 75, 4.5)
    ]
    return Silhouette(
        [*pieces, *stitch, Piece(ellipse(48, 62, 2.6, 2.6), "metal")],
        mark=(64, 74, 5),
        chest=(34, 73, 5),
        waist=(48, 66, 28),
        hem=(48, 85, 29),
    )


def _necklace(shape: Shape) -> Silhouette:
    chain = ellipse(48, 42, 24, 44, 0.0, 0.5)
    beads = [Piece(ellipse(x, y, 1.9, 1.9), "fabric") for x, y in chain]
    pendant = [
        Piece(smooth(polygon((48, 86), (55, 95), (48, 106), (41, 95))), "third"),
        Piece(smooth(polygon((48, 86), (55, 95), (48, 106), (41, 95))), "fabric", width=1.8),
    ]
    return Silhouette(
        [Piece(chain, "fabric", width=1.2), *beads, *pendant],
        mark=(48, 96, 3),
        chest=(48, 88, 4),
        waist=(48, 80, 8),
        hem=(48, 104, 5),
    )


def _earrings(shape: Shape) -> Silhouette:
    hook = Piece(ellipse(66, 34, 4, 7, 0.35, 1.0), "metal", width=1.3)
    drop = [
        Piece(ellipse(66, 48, 5.5, 5.5), "third"),
        Piece(ellipse(66, 68, 11, 14), "fabric", width=3.2),
        Piece(ellipse(66, 84, 3, 4.5), "third"),
    ]
    return Silhouette(
        both_sides(hook, *drop),
        mark=(66, 68, 3.5),
        chest=(66, 48, 4),
        waist=(48, 60, 20),
        hem=(66, 86, 6),
    )


ACCESSORIES: dict[str, Callable[[Shape], Silhouette]] = {
    "cap": _cap,
    "beanie": _beanie,
    "sunhat": _sunhat,
    "fedora": _fedora,
    "scarf": _scarf,
    "tie": _tie,
    "bowtie": _bowtie,
    "belt": _belt,
    "gloves": _gloves,
    "socks": _socks,
    "sunglasses": _sunglasses,
    "watch": _watch,
    "umbrella": _umbrella,
    "wallet": _wallet,
    "necklace": _necklace,
    "earrings": _earrings,
}
