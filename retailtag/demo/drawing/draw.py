"""Draw an article from its look: rasterise the pieces, fill them with cloth, shade them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from retailtag.demo.drawing import fabric
from retailtag.demo.drawing.details import detail_pieces, mark_pieces, support_pieces
from retailtag.demo.drawing.fabric import HEIGHT, MOTIFS, UNIT, WIDTH
from retailtag.demo.drawing.garments import silhouette
from retailtag.demo.drawing.look import Look
from retailtag.demo.drawing.pieces import CENTRE, Piece, Silhouette
from retailtag.demo.drawing.words import RGB

_MIDDLE = np.array([CENTRE, 66.0])
_FIXED: dict[str, RGB] = {
    "metal": (176, 178, 184),
    "dark": (38, 36, 38),
    "sole": (238, 236, 230),
    "leather": (94, 62, 42),
    "stem": (74, 120, 62),
    "thread": (226, 230, 236),
    "sparkle": (255, 250, 226),
    "fur": (206, 188, 158),
    "wood": (186, 150, 108),
    "dummy": (224, 214, 202),
}
_SHADOW = 150  # brightness of a seam or outline, before it is softened


@dataclass(frozen=True)
class Drawing:
    """The pictures of one product, from which its photographs are taken.

    Parameters
    ----------
    flat : PIL image, RGBA, 192 x 256
        The article alone.
    held : PIL image, RGBA, 192 x 256
        On a hanger or a dummy; the same as `flat` where it needs neither.
    """

    flat: Image.Image
    held: Image.Image


def draw_product(look: Look, rng: np.random.Generator) -> Drawing:
    """Draw a product.

    Parameters
    ----------
    look : Look
        What it looks like.
    rng : numpy Generator
        Places motifs, folds and the like.

    Returns
    -------
    Drawing
    """
    article = silhouette(look.family, look.shape, look.neck, look.sleeve)
    pieces = list(article.pieces)
    for name in look.details:
        pieces += detail_pieces(name, article, rng)
    if look.mark >= 0:
        pieces += mark_pieces(look.mark, article)
    size = look.shape.get("size", 1.0)
    flat = _shaded(_Raster(look, size, rng).drawn(pieces), look, rng)
    return Drawing(flat, _held(article, look, size, flat, rng))


def _held(
    article: Silhouette, look: Look, size: float, flat: Image.Image, rng: np.random.Generator
) -> Image.Image:
    pieces = support_pieces(article)
    if not pieces:
        return flat
    raster = _Raster(look, size, rng).drawn(pieces)
    under = raster.albedo
    under.putalpha(raster.alpha)
    return Image.alpha_composite(under, flat)


class _Raster:
    """The three images that pieces are drawn on: colour, coverage, and shadow."""

    def __init__(self, look: Look, size: float, rng: np.random.Generator) -> None:
        self.look, self.size, self.rng = look, size, rng
        # Filled with the base colour, so that resampling mixes no foreign colour into the rim.
        self.albedo = Image.new("RGB", (WIDTH, HEIGHT), look.colours[0])
        self.alpha = Image.new("L", (WIDTH, HEIGHT), 0)
        self.shadow = Image.new("L", (WIDTH, HEIGHT), 255)
        self.colours = _FIXED | _derived(look)
        self.cloths: dict[float, Image.Image] = {}

    def drawn(self, pieces: list[Piece]) -> _Raster:
        """Draw the pieces in order."""
        colour, cover = ImageDraw.Draw(self.albedo), ImageDraw.Draw(self.alpha)
        shadow = ImageDraw.Draw(self.shadow)
        for piece in pieces:
            points = ((piece.points - _MIDDLE) * self.size + _MIDDLE) * UNIT
            line: list[float] = points.ravel().tolist()
            width = max(1, round(piece.width * UNIT * self.size))
            if piece.fill == "hole":
                cover.polygon(line, fill=0)
            elif piece.fill == "seam":
                shadow.line(line, fill=_SHADOW, width=width)
            elif piece.width:
                self._stroke(piece, line, width, colour, cover)
            else:
                self._fill(piece, line, colour, cover)
                if not piece.clip:
                    shadow.line(line + line[:2], fill=_SHADOW, width=3)
        return self

    def _stroke(
        self,
        piece: Piece,
        line: list[float],
        width: int,
        colour: ImageDraw.ImageDraw,
        cover: ImageDraw.ImageDraw,
    ) -> None:
        fill = self.colours[piece.fill]
        colour.line(line, fill=fill, width=width, joint="curve")
        if not piece.clip:
            cover.line(line, fill=255, width=width, joint="curve")

    def _fill(
        self,
        piece: Piece,
        line: list[float],
        colour: ImageDraw.ImageDraw,
        cover: ImageDraw.ImageDraw,
    ) -> None:
        if piece.fill == "fabric" and self.look.pattern != "Plain":
            mask = Image.new("1", (WIDTH, HEIGHT))
            ImageDraw.Draw(mask).polygon(line, fill=1)
            self.albedo.paste(self._cloth(piece.turn), mask=mask)
        else:
            colour.polygon(line, fill=self.colours[piece.fill])
        if not piece.clip:
            cover.polygon(line, fill=255)

    def _cloth(self, turn: float) -> Image.Image:
        """Cloth turned with its piece; scattered motifs look alike at any angle."""
        key = 0.0 if self.look.pattern in MOTIFS else round(turn, 2)
        if key not in self.cloths:
            self.cloths[key] = fabric.cloth(self.look, key, self.rng)
        return self.cloths[key]


def _derived(look: Look) -> dict[str, RGB]:
    """Colours of the roles that depend on the product's own."""
    base, accent, third = look.colours
    trim = accent if "Contrast Trim" in look.details else _scaled(base, 0.86)
    light = sum(base) > 390
    return {
        "fabric": base,
        "accent": accent,
        "third": third,
        "inside": _scaled(base, 0.5),
        "shade": _scaled(base, 0.8),
        "rib": trim,
        "trim": trim,
        "button": (70, 60, 54) if light else (226, 222, 214),
        "contrast": (36, 36, 44) if light else (240, 238, 232),
        "label": (232, 228, 216) if light else (44, 44, 54),
    }


def _scaled(colour: RGB, share: float) -> RGB:
    red, green, blue = (int(share * value + 10 * (1 - share)) for value in colour)
    return red, green, blue


def _shaded(raster: _Raster, look: Look, rng: np.random.Generator) -> Image.Image:
    """Light the cloth: outlines, folds, grain and gloss.

    Notes
    -----
    brightness = shadow (1 + folds f) (1 + rough g), plus gloss where a second fold map
    peaks; f and g are about -1 to 1.
    """
    material = fabric.MATERIALS[look.material]
    soft = raster.shadow.filter(ImageFilter.BoxBlur(4))
    light = np.asarray(raster.shadow, np.float32) * np.float32(0.35 / 255)
    light += np.asarray(soft, np.float32) * np.float32(0.65 / 255)
    maps = fabric.fold_maps()
    first, second = rng.integers(0, len(maps), 2)
    light *= 1 + np.float32(material.folds) * maps[first]
    if material.rough:
        light *= 1 + np.float32(material.rough) * fabric.grain(material.grain)
    colour = np.asarray(raster.albedo, np.float32) * light[:, :, None]
    if material.gloss:
        peaks = np.clip(maps[second][:, ::-1] - 0.25, 0, 1)
        colour += (np.float32(255 * material.gloss) * peaks)[:, :, None]
    np.clip(colour, 0, 255, out=colour)
    image = Image.fromarray(colour.astype(np.uint8))
    image.putalpha(_pierced(raster.alpha) if material.grain == "lace" else raster.alpha)
    return image


def _pierced(alpha: Image.Image) -> Image.Image:
    """Lace lets the background through its holes."""
    holes = fabric.grain("lace") > 0.5
    return Image.fromarray(np.where(holes, np.asarray(alpha) // 3, np.asarray(alpha)))
