"""Resize and crop RGB pixels like torchvision with Pillow, several times as fast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retailtag.errors import UnreadableImage

Pixels = NDArray[np.uint8]

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_IN_TORCH = ("bilinear", "bicubic")
# That scaling may take. The shorter side of 1 x 10,000 pixels at 224 needs 1.5 GB; photographs of
# any size need under 0.1.
MAX_SCALING_BYTES = 1 << 30
# Per pixel of a scaled side and of its source: weights of 8 bytes, Lanczos reaching 3 pixels out
# in both directions of the coarser of the two.
_WEIGHT_BYTES = 8 * 2 * 3


def arithmetic(interpolation: str) -> str:
    """Library that scales with this filter, ``torch`` or ``pillow``; they round differently."""
    return "torch" if interpolation in _IN_TORCH else "pillow"


def scale(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Scale RGB pixels with an antialiasing filter.

    `pixels` are uint8 (h, w, 3), and returned as they are if they have the size (width, height).

    Bilinear and bicubic use PyTorch's kernel for bytes. It has Pillow's filters and its two
    passes, rounded to bytes between them, but weights of 16 bits instead of 22: a byte differs
    from Pillow's by at most 2, and by under 0.05 on average (0.08 for bilinear on pure noise at a
    scale of exactly 4/5, whose weights end in ties). The passes run in the order of Pillow 13
    (`_vertical_first`), whichever Pillow is installed, in the calling thread and without the
    interpreter lock.

    Raises `UnreadableImage` where that takes over `MAX_SCALING_BYTES` of memory.
    """
    width, height = pixels.shape[1], pixels.shape[0]
    if size == (width, height):
        return pixels
    if (needed := scaling_bytes((width, height), size)) > MAX_SCALING_BYTES:
        # A fixed limit, and no try for memory: the same images are left out on every machine.
        raise UnreadableImage(
            f"has {width} x {height} pixels, which need {needed / 2**30:,.1f} GiB of memory to be "
            f"scaled to {size[0]} x {size[1]}; crop it or scale it down"
        )
    if arithmetic(interpolation) == "pillow":
        scaled = Image.fromarray(pixels).resize(size, INTERPOLATIONS[interpolation])
        return np.asarray(scaled)
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # from_numpy warns about memory that it may not write to
    if _vertical_first((width, height), size):
        pixels = _interpolated(pixels, (width, size[1]), interpolation)
    return _interpolated(pixels, size, interpolation)


def scaling_bytes(old: tuple[int, int], new: tuple[int, int]) -> int:
    """Bytes that scaling RGB pixels from width and height `old` to `new` takes at most.

    Examples
    --------
    >>> scaling_bytes((100_000_000, 1), (22_400_000_000, 224)) // 2**30
    15082
    """
    between = (old[0], new[1]) if _vertical_first(old, new) else (new[0], old[1])
    pixels = between[0] * between[1] + new[0] * new[1]
    return 3 * pixels + _WEIGHT_BYTES * (max(old[0], new[0]) + max(old[1], new[1]))


def _vertical_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether Pillow 13 scales the height first: if it loses over twice as much as the width.

    The order changes the rounding between the passes: a fifth of the bytes of an image of noise
    differ by 1.
    """
    return old[1] - new[1] > 2 * max(old[0] - new[0], 0)


def _interpolated(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Scale with PyTorch, the width first."""
    import torch

    # (h, w, 3) -> (1, 3, h, w), a view with channels last in memory: the kernel's fast path
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    scaled = torch.nn.functional.interpolate(
        image, size=(size[1], size[0]), mode=interpolation, antialias=True
    )
    result: Pixels = scaled[0].permute(1, 2, 0).numpy()
    return result


def centre(pixels: Pixels, size: tuple[int, int], fill: tuple[int, int, int]) -> Pixels:
    """Crop the centre of RGB pixels (any, any, 3) to `size`, height h and width w.

    Smaller pixels get a border of colour `fill`. Returns a contiguous copy, uint8 (3, h, w).
    """
    (h, w), (height, width) = size, pixels.shape[:2]
    if height < h or width < w:
        canvas = np.empty((max(height, h), max(width, w), 3), np.uint8)
        canvas[:] = fill
        top, left = max(h - height, 0) // 2, max(w - width, 0) // 2
        canvas[top : top + height, left : left + width] = pixels
        return centre(canvas, size, fill)
    top, left = round((height - h) / 2), round((width - w) / 2)
    return np.array(pixels[top : top + h, left : left + w].transpose(2, 0, 1), order="C")
