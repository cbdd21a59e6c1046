"""The ten test pictures of a fingerprint, drawn by the demo.

Write them again after a change of the drawing: python tests/reference/pictures.py
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from retailtag.demo.drawing.draw import draw_product
from retailtag.demo.drawing.world import sample_product
from retailtag.demo.drawing.write import photographs

SEED = 19
FOLDER = Path(__file__).parents[2] / "retailtag" / "backbones" / "pictures"


def photo(index: int) -> Image.Image:
    """One photograph, 96 x 128, of a product."""
    return next(photographs(sample_product(SEED, index).look, SEED, index, 1))


def side_by_side(first: int, columns: int, rows: int) -> Image.Image:
    """Photographs of several products in a grid, without a gap."""
    sheet = Image.new("RGB", (96 * columns, 128 * rows))
    for place in range(columns * rows):
        row, column = divmod(place, columns)
        sheet.paste(photo(first + place), (96 * column, 128 * row))
    return sheet


def encoded(image: Image.Image, **how: object) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, **how)
    return file.getvalue()


def turned(image: Image.Image) -> bytes:
    """A JPEG whose rows are those of a camera held upright, with the tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), format="JPEG", exif=exif)


def draw() -> dict[str, bytes]:
    """Each picture's file by its name."""
    cut_out = draw_product(sample_product(SEED, 30).look, np.random.default_rng(SEED)).flat
    grey16 = np.asarray(ImageOps.grayscale(photo(31)), np.uint16) * 257
    return {
        "01-plain.jpg": encoded(photo(0), format="JPEG", quality=88),
        "02-wide.jpg": encoded(side_by_side(1, 4, 1), format="JPEG", quality=88),
        "03-large.jpg": encoded(side_by_side(5, 4, 4), format="JPEG", quality=75),
        "04-full-colour.jpg": encoded(photo(21), format="JPEG", quality=95, subsampling=0),
        "05-progressive.jpg": encoded(photo(22), format="JPEG", progressive=True),
        "06-grey.jpg": encoded(ImageOps.grayscale(photo(23)), format="JPEG"),
        "07-turned.jpg": turned(photo(24)),
        "08-transparent.png": encoded(cut_out, format="PNG"),
        "09-palette.png": encoded(photo(25).quantize(64), format="PNG"),
        "10-grey16.png": encoded(Image.fromarray(grey16), format="PNG"),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, data in draw().items():
        (FOLDER / name).write_bytes(data)
