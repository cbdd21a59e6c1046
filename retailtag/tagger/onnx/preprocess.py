"""Image files to the pixels that the tagger was fitted on, with NumPy and Pillow alone.

The rules are those of ``preprocessing.json``. Pixels equal those of retailtag byte for byte.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

Pixels = NDArray[np.uint8]


def decode(path: str | Path) -> Image.Image:
    """Upright opaque sRGB image of a file; `ValueError` for 16-bit pixels."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{path} has 16-bit pixels; convert it to 8 bits.")
    profile, alpha = image.info.get("icc_profile"), None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    rgb = _to_srgb(image, profile).convert("RGB")
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white


def pixels_of(image: Image.Image, rule: Mapping[str, Any]) -> Pixels:
    """Scale and crop an RGB image by one rule, to uint8 (3, height, width)."""
    name = rule["interpolation"]
    size = scaled_size(image.width, image.height, rule)
    if size == image.size:
        scaled = np.asarray(image)
    elif name in ("bilinear", "bicubic"):
        scaled = _scaled(np.asarray(image), size, name)
    else:
        scaled = np.asarray(image.resize(size, Image.Resampling[name.upper()]))
    return _centred(scaled, rule)


def scaled_size(w: int, h: int, rule: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of an image of w x h pixels after scaling, before the crop."""
    target_h, target_w = rule["scaled"]
    if rule["mode"] == "squash":
        return target_w, target_h
    if rule["mode"] == "shortest" and target_h == target_w:
        return target_w * w // min(w, h), target_h * h // min(w, h)
    pick = min if rule["mode"] == "shortest" else max
    ratio = pick(h / target_h, w / target_w)
    return max(round(w / ratio), 1), max(round(h / ratio), 1)


def _scaled(x: Pixels, size: tuple[int, int], name: str) -> Pixels:
    """Antialiased scaling of (h, w, 3) as PyTorch scales bytes, one side after the other."""
    (h, w), (width, height) = x.shape[:2], size
    if h - height > 2 * max(w - width, 0):
        x = _resampled(x, height, name)
        return _resampled(x.swapaxes(0, 1), width, name).swapaxes(0, 1)
    x = _resampled(x.swapaxes(0, 1), width, name).swapaxes(0, 1)
    return _resampled(x, height, name)


def _resampled(x: Pixels, n: int, name: str) -> Pixels:
    """Scale the first axis to n rows, with weights of 16 bits."""
    old = len(x)
    if n == old:
        return x
    scale = old / n
    reach = (1.0 if name == "bilinear" else 2.0) * max(scale, 1.0)  # of the filter, in old rows
    centre = scale * (np.arange(n) + 0.5)
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    last = np.minimum((centre + reach + 0.5).astype(int), old)
    spans = zip(centre, first, last, strict=True)
    weights = [_filter((np.arange(a, b) - c + 0.5) / max(scale, 1.0), name) for c, a, b in spans]
    weights = [w / w.sum() for w in weights]
    largest = max(w.max() for w in weights)
    bits = next(b for b in range(23) if b == 22 or int(0.5 + largest * 2.0 ** (b + 1)) >= 2**15)
    rows = x.reshape(old, -1).astype(np.float64)  # sums of whole numbers, exact
    out = np.empty((n, rows.shape[1]), np.uint8)
    for i, w in enumerate(weights):
        whole = np.trunc(w * 2.0**bits + np.copysign(0.5, w))
        total = whole @ rows[first[i] : last[i]]
        out[i] = np.clip(np.floor((total + 2.0 ** (bits - 1)) / 2.0**bits), 0, 255)
    return out.reshape(n, *x.shape[1:])


def _filter(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Triangle, or Keys' cubic with a = -1/2."""
    x = np.abs(x)
    if name == "bilinear":
        return np.maximum(1 - x, 0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _centred(x: Pixels, rule: Mapping[str, Any]) -> Pixels:
    """Crop the centre of (h, w, 3), with a border where it is smaller."""
    h, w = rule["size"]
    height, width = max(len(x), h), max(x.shape[1], w)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = rule["fill"]
    top, left = (height - len(x)) // 2, (width - x.shape[1]) // 2
    canvas[top : top + len(x), left : left + x.shape[1]] = x
    top, left = round((height - h) / 2), round((width - w) / 2)
    return np.ascontiguousarray(canvas[top : top + h, left : left + w].transpose(2, 0, 1))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by an embedded profile; leave the image where that is invalid or does nothing."""
    if not profile:
        return image
    transform = _transform(profile, image.mode)
    if transform is None and image.mode == "L":
        transform = _transform(profile, "RGB")
        image = image.convert("RGB") if transform is not None else image
    if transform is None:
        return image
    try:
        return ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, ValueError):
        return image


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Transform to sRGB; None where it is invalid or moves no colour by more than 1."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[mode]
        if source.profile.xcolor_space.strip() != space:
            return None
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode != "RGB":
        return transform
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
    return transform if np.abs(moved.astype(int) - cube).max() > 1 else None
