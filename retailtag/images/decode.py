"""Decode image files to RGB pixels under one policy, which is part of an embedding's identity.

EXIF orientation is applied, because cameras store the sensor's rows and viewers turn them: models
were trained on upright images. Transparent pixels are composited on white, the background of
product photographs; dropping alpha would show whatever colour is stored under it. 16-bit grey is
scaled; Pillow's own conversion clips everything above 255 to white.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UnreadableImage
from retailtag.images.header import AGAIN, PARSER_ERRORS, damage, is_cut_off, one_image, open_image

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageCms import ImageCmsTransform

Pixels = NDArray[np.uint8]

MAX_PIXELS = 100_000_000

DECODE_POLICY: dict[str, str] = {
    "decoder": "pillow",
    "exif": "orientation applied",
    "transparency": "composited on white",
    "icc": "embedded profile to sRGB, perceptual; invalid profile ignored",
    "cmyk": "through its profile, else (255 - ink) (255 - black) / 255",
    "grey16": "scaled by 255/65535",
    "animation": "first frame",
    "truncated": "refused",
}
TRUNCATED_ACCEPTED = "of a JPEG the missing part grey, others refused"  # with allow_truncated

# TIFF 6.0: BitsPerSample, PhotometricInterpretation (black is zero), SampleFormat (unsigned)
_TIFF_GREY16 = {258: 16, 262: 1, 339: 1}

_NO_CACHE = 0x0040  # cmsFLAGS_NOCACHE: one transform may then serve several threads


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, allow_truncated: bool = False
) -> Image.Image:
    """Upright sRGB pixels (mode RGB) of an encoded image, as `DECODE_POLICY` says.

    Parameters
    ----------
    data : bytes
        A whole file: JPEG, PNG, WebP, GIF, AVIF, BMP, TIFF, JPEG 2000, PPM or ICO; HEIF where the
        package pillow-heif is installed.
    max_pixels : int
        Width times height that is refused above this, before any pixel is decoded. Pillow's own
        guard, twice ``PIL.Image.MAX_IMAGE_PIXELS``, stays in force above a larger one.
    allow_truncated : bool
        Decode a JPEG that ends early and leave the missing rest grey. Other formats are refused
        all the same, and so is a progressive JPEG that ends between scans; a PNG may lack what
        follows its pixels.

    Raises
    ------
    UnreadableImage
        If the bytes are not an image of these formats, are damaged, or exceed `max_pixels`; the
        message is the reason and the remedy, without the name of the file.

    Examples
    --------
    >>> decode_image(b"<!DOCTYPE html>")
    Traceback (most recent call last):
    ...
    retailtag.errors.UnreadableImage: is a web page, not an image; fetch it again
    """
    with one_image():
        return _decoded(open_image(data, max_pixels), data, allow_truncated)


def decode_pixels(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    room: Callable[[int], memoryview] | None = None,
) -> Pixels:
    """Pixels of `decode_image`, uint8 (h, w, 3), the same to the last bit and sooner.

    `room` gives memory of a number of bytes to decode into; the pixels may still be elsewhere.
    """
    with one_image():
        image = open_image(data, max_pixels)
        # An upright RGB JPEG without a profile that moves colours, which nearly every photograph
        # is, goes straight to libjpeg-turbo: the library that Pillow decodes with, without Pillow's
        # own copies of the pixels. Where it warns or fails, Pillow decodes and gives the reason.
        if _is_plain_jpeg(image) and (pixels := _by_libjpeg(data, image.size, room)) is not None:
            return pixels
        return np.asarray(_decoded(image, data, allow_truncated))


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright sRGB pixels of an image that Pillow has opened or made; raises `UnreadableImage`."""
    try:
        image.load()
        return _to_rgb(_upright(image))
    except PARSER_ERRORS as error:
        raise UnreadableImage(f"cannot be decoded ({error}); {AGAIN}") from error


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an opened image's pixels are those that its JPEG data decode to."""
    if image.format != "JPEG" or image.mode != "RGB" or _orientation(image) != 1:
        return False
    profile = image.info.get("icc_profile")
    return not profile or _transform(profile, "RGB") is None


def _by_libjpeg(
    data: bytes, size: tuple[int, int], room: Callable[[int], memoryview] | None
) -> Pixels | None:
    """RGB pixels of a JPEG of this width and height that decodes without a warning, else None."""
    try:
        import simplejpeg
    except ImportError:
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=True)
        if (width, height) != size:  # the limit on pixels was held against `size`
            return None
        buffer = None if room is None else room(3 * width * height)
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True, buffer=buffer)
    except (ValueError, MemoryError):
        return None
    return pixels


def _decoded(image: Image.Image, data: bytes, allow_truncated: bool) -> Image.Image:
    """Pixels of an opened image under the policy."""
    if image.format == "PNG" and not allow_truncated and is_cut_off(data):
        raise UnreadableImage(f"is truncated; {AGAIN}")
    try:
        image.load()
    except PARSER_ERRORS as error:
        if not (allow_truncated and image.format in ("JPEG", "MPO")):
            raise UnreadableImage(damage(error, data)) from error
        image = _load_truncated(data)
    try:
        return _to_rgb(_upright(image))
    except PARSER_ERRORS as error:
        raise UnreadableImage(damage(error, data)) from error


def _load_truncated(data: bytes) -> Image.Image:
    """Let libjpeg fill what is missing: after an end marker it no longer asks for bytes."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data + b"\xff\xd9"), formats=("JPEG", "MPO"))
        image.load()
    except PARSER_ERRORS as error:
        raise UnreadableImage(f"is damaged beyond its end ({error}); {AGAIN}") from error
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if it is missing or invalid."""
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        orientation = image.getexif().get(0x0112, 1)
    except PARSER_ERRORS:
        return 1  # a damaged EXIF block says nothing about the pixels
    return orientation if orientation in range(2, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; TIFF has already done so on loading."""
    from PIL.Image import Transpose

    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    orientation = _orientation(image)
    if orientation == 1:
        return image
    turned = image.transpose(methods[orientation])
    turned.info = image.info
    return turned


def _to_rgb(image: Image.Image) -> Image.Image:
    """Bring any mode to opaque sRGB."""
    if image.mode.startswith(("I", "F")):
        image = _grey8(image)
    alpha = None
    if image.has_transparency_data:
        info = image.info
        rgba = image.convert("RGBA")
        rgba.info = info
        alpha = rgba.getchannel("A")
        image = rgba.convert("RGB")
        image.info = info
    elif image.mode not in ("RGB", "L", "CMYK"):
        info = image.info
        image = image.convert("L" if image.mode == "1" else "RGB")
        image.info = info
    profile = image.info.get("icc_profile")
    if profile:
        image = _to_srgb(image, profile)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if alpha is None else _on_white(image, alpha)


def _grey8(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by scale; Pillow's own conversion clips at 255, hence to white."""
    from PIL import Image

    values = np.asarray(image)
    known = values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65_535
    if not known or (image.format == "TIFF" and not _is_plain_grey16(image)):
        raise UnreadableImage(
            f"has {values.dtype} pixels, whose black and white are not known; convert it to 8 bits"
        )
    # round(value * 255 / 65535) in integers; 65535 * 255 needs 24 bits, hence uint32.
    grey = ((values.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    result = Image.fromarray(grey)
    result.info = {k: v for k, v in image.info.items() if k != "transparency"}
    return result


def _is_plain_grey16(image: Image.Image) -> bool:
    """Whether a TIFF says that 0 is black and 65535 white; Pillow hands on values as stored."""
    tags = getattr(image, "tag_v2", {})
    stated = {tag: tags.get(tag, plain) for tag, plain in _TIFF_GREY16.items()}
    return all(stated[tag] in (plain, (plain,)) for tag, plain in _TIFF_GREY16.items())


def _on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    from PIL import Image

    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=alpha)
    return white


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert RGB, L or CMYK pixels by `profile`; leave them where it is invalid or does nothing.

    An RGB image may carry a grey profile (a palette of greys) and the reverse; then the profile
    does not describe these pixels and is ignored, except that a grey image is also RGB.
    """
    from PIL import ImageCms

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


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """Transform from `profile` to sRGB; None where it is invalid or moves no colour by over 1.

    Most embedded profiles are sRGB itself: measuring a cube of colours once spares a pass over
    every image.
    """
    from PIL import Image, ImageCms

    space = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[mode]
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != space:
            return None
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags(_NO_CACHE)
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode != "RGB":
        return transform
    # 18 steps per channel are 5,832 colours: enough, because profiles are smooth curves.
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
    return transform if np.abs(moved.astype(int) - cube).max() > 1 else None
