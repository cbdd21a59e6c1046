"""Photographs of a drawn product: background, camera, light, shadow, and what is in the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from retailtag.demo.drawing.draw import Drawing

WIDTH, HEIGHT = 96, 128
_STUDIO = ((250, 250, 248), (244, 242, 238), (236, 238, 242), (248, 243, 236), (255, 255, 255))
_WALLS = (
    (206, 196, 182), (178, 188, 196), (218, 204, 200), (196, 204, 186), (160, 156, 152),
    (226, 214, 176), (150, 168, 176), (204, 180, 162), (120, 118, 122), (188, 178, 204),
)  # fmt: skip
_FLOORS = ((172, 142, 108), (150, 146, 142), (126, 98, 72), (206, 198, 188), (110, 112, 118))
_SKIN = ((232, 196, 170), (198, 150, 116), (140, 98, 70), (92, 62, 46))


def photograph(drawing: Drawing, rng: np.random.Generator) -> Image.Image:
    """Take one photograph of a product.

    Parameters
    ----------
    drawing : Drawing
        The product.
    rng : numpy Generator
        Decides the scene, the camera and the accidents.

    Returns
    -------
    PIL image, RGB, 96 x 128
    """
    close = rng.random() < 0.10
    article = drawing.held if rng.random() < 0.4 and not close else drawing.flat
    if rng.random() < 0.3:
        article = article.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    article = _shot(article, rng, close)
    scene = _background(rng)
    red, green, blue, alpha = article.split()
    scene = _with_shadow(scene, alpha, rng)
    scene.paste(Image.merge("RGB", (red, green, blue)), mask=alpha)
    if rng.random() < 0.16:
        OCCLUSIONS[int(rng.integers(len(OCCLUSIONS)))](scene, rng)
    return _exposed(scene, rng)


def _shot(article: Image.Image, rng: np.random.Generator, close: bool) -> Image.Image:
    """Place the article in front of the camera: rotated, shifted, scaled, slightly skewed."""
    nearer = rng.uniform(1.5, 2.0) if close else np.clip(rng.normal(1.0, 0.07), 0.8, 1.15)
    angle = rng.normal(0, 0.05)
    c, s = np.cos(angle) / nearer, np.sin(angle) / nearer
    shear = rng.normal(0, 0.04)
    spread = 14 if close else 7
    shift = rng.normal(0, spread, 2)
    centre = np.array([96.0, 128.0])
    # PIL wants the map from the picture back to the canvas, perspective in the last two.
    tilt = rng.normal(0, 2.5e-4, 2)
    matrix = np.array([[c, s + shear], [-s, c]])
    offset = centre - matrix @ (centre + shift)
    data = (*matrix[0], offset[0], *matrix[1], offset[1], *tilt)
    size = article.size
    turned = article.transform(size, Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR)
    return turned.reduce(2)


def _background(rng: np.random.Generator) -> Image.Image:
    """Mostly studio paper, otherwise a wall and a floor, boards, or a coloured cloth."""
    kind = rng.random()
    if kind < 0.58:
        base = np.array(_STUDIO[rng.integers(len(_STUDIO))], np.float32)
        fall = np.linspace(0, rng.uniform(-22, 4), HEIGHT, dtype=np.float32)
        return _image(np.broadcast_to((base + fall[:, None])[:, None], (HEIGHT, WIDTH, 3)))
    wall = np.array(_WALLS[rng.integers(len(_WALLS))], np.float32) + rng.normal(0, 6, 3)
    if kind < 0.74:
        return _wall_and_floor(wall, rng)
    if kind < 0.86:
        return _boards(rng)
    return _image(np.broadcast_to(wall, (HEIGHT, WIDTH, 3)) + _mottle(rng, 4, 8))


def _wall_and_floor(wall: np.ndarray, rng: np.random.Generator) -> Image.Image:
    floor = np.array(_FLOORS[rng.integers(len(_FLOORS))], np.float32)
    edge = int(rng.integers(84, 116))
    rows = np.where(np.arange(HEIGHT)[:, None] < edge, wall, floor)
    image = _image(np.broadcast_to(rows[:, None], (HEIGHT, WIDTH, 3)) + _mottle(rng, 5, 7))
    if rng.random() < 0.4:
        _furniture(image, edge, rng)
    return image


def _furniture(image: Image.Image, edge: int, rng: np.random.Generator) -> None:
    """A plant or a picture frame beside the article."""
    draw = ImageDraw.Draw(image)
    x = int(rng.choice([6, 88]))
    if rng.random() < 0.5:
        draw.rectangle(
            (x - 11, 10, x + 11, 42), fill=(232, 228, 220), outline=(110, 84, 60), width=2
        )
        return
    draw.rectangle((x - 6, edge - 12, x + 6, edge + 2), fill=(164, 92, 60))
    for lean in (-12, -5, 2, 9):
        draw.polygon(
            (x - 2, edge - 12, x + lean - 3, edge - 40, x + lean + 3, edge - 38, x + 2, edge - 12),
            fill=(70, 112, 74),
        )


def _boards(rng: np.random.Generator) -> Image.Image:
    """Wooden boards seen from above."""
    base = np.array(_FLOORS[rng.integers(len(_FLOORS))], np.float32) + 22
    pitch = int(rng.integers(14, 26))
    tone = rng.normal(0, 9, HEIGHT // pitch + 2)[np.arange(HEIGHT) // pitch]
    tone = np.where(np.arange(HEIGHT) % pitch == 0, -46, tone)
    grain = rng.normal(0, 4, (HEIGHT, 1)) + _mottle(rng, 4, 6)[:, :, 0]
    return _image(base + (tone[:, None] + grain)[:, :, None])


def _mottle(rng: np.random.Generator, cells: int, strength: float) -> np.ndarray:
    """Smooth unevenness, float32 of shape (128, 96, 1)."""
    coarse = rng.normal(0, strength, (cells, cells)).astype(np.float32)
    image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(image)[:, :, None]


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _with_shadow(scene: Image.Image, alpha: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The article's soft shadow on the background."""
    reach = int(rng.integers(1, 6))
    side = int(rng.choice([-1, 1]))
    strength = rng.uniform(0.1, 0.36)
    shadow = alpha.filter(ImageFilter.BoxBlur(reach)).point(lambda value: int(value * strength))
    mask = Image.new("L", scene.size)
    mask.paste(shadow, (side * reach, reach))
    scene.paste((30, 28, 34), mask=mask)
    return scene


def _tag_card(scene: Image.Image, rng: np.random.Generator) -> None:
    """A price card on a string."""
    x, y = (int(v) for v in rng.uniform((22, 30), (70, 92)))
    draw = ImageDraw.Draw(scene)
    draw.line((x, y - 16, x + 3, y), fill=(120, 110, 100))
    draw.rectangle((x - 5, y, x + 8, y + 17), fill=(250, 246, 236), outline=(150, 140, 130))
    draw.line((x - 2, y + 6, x + 5, y + 6), fill=(60, 60, 60))
    draw.line((x - 2, y + 10, x + 3, y + 10), fill=(190, 50, 50))


def _hand(scene: Image.Image, rng: np.random.Generator) -> None:
    """A hand reaching in from a side."""
    skin = _SKIN[rng.integers(len(_SKIN))]
    y, right = int(rng.integers(40, 100)), rng.random() < 0.5
    tip = int(rng.integers(16, 34))
    layer = ImageDraw.Draw(scene)
    for finger in range(4):
        top = y + 4 * finger
        reach = tip + (3, 6, 5, 0)[finger]
        span = (WIDTH - reach, top, WIDTH + 9, top + 4) if right else (-9, top, reach, top + 4)
        layer.rounded_rectangle(span, 2, fill=skin)
    wrist = (WIDTH - tip + 12, y - 3, WIDTH + 9, y + 18) if right else (-9, y - 3, tip - 12, y + 18)
    layer.rounded_rectangle(wrist, 5, fill=tuple(int(0.94 * v) for v in skin))


def _leaf(scene: Image.Image, rng: np.random.Generator) -> None:
    """A blurred leaf close to the lens."""
    x, y = rng.choice([4, 92]), rng.uniform(20, 120)
    mask = Image.new("L", scene.size)
    points = np.array([[0, -44], [13, -12], [11, 16], [0, 40], [-11, 16], [-13, -12]])
    angle = rng.uniform(-0.8, 0.8)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    ImageDraw.Draw(mask).polygon((points @ turn + (x, y)).ravel().tolist(), fill=225)
    scene.paste((64, 104, 62), mask=mask.filter(ImageFilter.BoxBlur(3)))


def _ribbon(scene: Image.Image, rng: np.random.Generator) -> None:
    """A shop's sale ribbon over a corner."""
    colour = tuple(int(v) for v in rng.choice([(206, 40, 46), (30, 96, 160), (34, 34, 38)]))
    draw = ImageDraw.Draw(scene)
    draw.polygon((0, 30, 30, 0, 48, 0, 0, 48), fill=colour)
    draw.line((10, 29, 29, 10), fill=(250, 250, 250), width=2)


OCCLUSIONS: tuple[Callable[[Image.Image, np.random.Generator], None], ...] = (
    _tag_card,
    _hand,
    _leaf,
    _ribbon,
)


def _exposed(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Exposure, colour of the light, its fall across the picture, blur and noise."""
    gain = rng.normal(0.97, 0.06) * (1 + rng.normal(0, 0.03, 3) * (1, 0, -1))
    slope_x, slope_y = rng.normal(0, 0.06, 2)
    x = np.linspace(-slope_x, slope_x, WIDTH, dtype=np.float32)
    y = np.linspace(-slope_y, slope_y, HEIGHT, dtype=np.float32)
    if rng.random() < 0.15:
        scene = scene.filter(ImageFilter.BoxBlur(float(rng.uniform(0.4, 1.0))))
    light = (1 + x[None, :] + y[:, None])[:, :, None] * gain.astype(np.float32)
    values = np.asarray(scene, np.float32) * light
    values += rng.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32) * np.float32(
        rng.uniform(0.3, 2.6)
    )
    return _image(values)
