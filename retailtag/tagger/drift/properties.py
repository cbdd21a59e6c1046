"""Properties of an image that do not need a model: size, light, sharpness, and its file."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UnreadableImage
from retailtag.images.decode import MAX_PIXELS
from retailtag.images.header import one_image, open_image

if TYPE_CHECKING:
    from PIL import Image

# Brightness, contrast and sharpness are those of a reduced image: a Laplacian at full resolution
# tells noise of the sensor from its absence, not whether a model sees edges.
SIDE = 256  # pixels of the longer side, at least, after reduction by a whole factor
# Table of luminance of annex K of the JPEG standard, which libjpeg scales by quality
_LUMINANCE = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)
OF_PIXELS = ("megapixels", "aspect", "brightness", "contrast", "sharpness")
OF_FILE = ("bytes_per_pixel", "jpeg_quality")
PROPERTIES = (*OF_PIXELS, *OF_FILE)
IN_MEMORY = "none"  # file type of an image that is no file


def pixel_properties(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Values of `OF_PIXELS` of an RGB image (h, w, 3).

    Brightness and contrast are mean and standard deviation of the luma (0 to 255), sharpness the
    variance of its Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy",
    ICPR 2000).

    Examples
    --------
    >>> flat = np.full((4, 8, 3), 100, np.uint8)
    >>> pixel_properties(flat)[1:].tolist()
    [2.0, 100.0, 0.0, 0.0]
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    grey = Image.fromarray(np.ascontiguousarray(pixels)).convert("L")
    factor = max(max(width, height) // SIDE, 1)
    luma = np.asarray(grey.reduce(factor) if factor > 1 else grey, np.float32)
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    sharpness = float(laplacian.var()) if laplacian.size else 0.0
    found = (width * height / 1e6, width / height, luma.mean(), luma.std(), sharpness)
    return np.array(found, np.float32)


class PixelProperties:
    """A step of `retailtag.images.loader.load_views` beside the preprocessing of the backbones."""

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Properties of a PIL image (RGB)."""
        return pixel_properties(np.asarray(image))

    def of_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Properties of decoded pixels."""
        return pixel_properties(pixels)


class FileProperties(NamedTuple):
    """What the bytes of a file tell."""

    kind: str  # as Pillow calls it, such as JPEG
    bytes_per_pixel: float
    jpeg_quality: float  # estimated from the table of luminance; NaN for other formats


UNKNOWN = FileProperties(IN_MEMORY, math.nan, math.nan)


def file_properties(data: bytes, max_pixels: int = MAX_PIXELS) -> FileProperties:
    """Properties of an encoded image, from its header; `UNKNOWN` if that cannot be read."""
    try:
        with one_image():
            image = open_image(data, max_pixels)
            tables = getattr(image, "quantization", None)
            quality = _quality(sum(tables[0])) if tables and 0 in tables else math.nan
            width, height = image.size
            return FileProperties(str(image.format), len(data) / (width * height), quality)
    except UnreadableImage:
        return UNKNOWN


@cache
def _sums() -> NDArray[np.int64]:
    """Sum of the table of luminance at quality 1 to 100, as libjpeg scales it."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = (_LUMINANCE * scale[:, None] + 50) // 100
    return np.asarray(tables.clip(1, 255).sum(axis=1))


def _quality(total: int) -> float:
    """Quality whose table of luminance has the sum nearest to `total`."""
    return float(1 + np.argmin(np.abs(_sums() - total)))
