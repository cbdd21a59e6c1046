"""Check the header of an image file before any pixel is decoded.

A few bytes can declare 65,535 x 65,535 pixels: size and format are refused from the header alone,
before a decoder allocates memory for them.
"""

from __future__ import annotations

import ctypes
import io
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from retailtag.errors import NO_ROOM, RetailtagError, UnreadableImage, lacks_memory
from retailtag.files import HEAD_BYTES, other_kind

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif", ".heic", ".heif", ".bmp",
    ".tif", ".tiff", ".jp2", ".ppm", ".pgm",
)  # fmt: skip
# EPS and its like are left out on purpose: they run an interpreter. HEIF needs pillow-heif.
_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "GIF", "AVIF", "HEIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM",
    "ICO",
)  # fmt: skip

# What Pillow's parsers raise on damaged bytes, warnings-as-errors included.
PARSER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, ArithmeticError,
    LookupError, TypeError, AttributeError, RuntimeError, MemoryError, AssertionError, Warning,
)  # fmt: skip

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_ICO = b"\0\0\1\0"
_TOLD_BY_HEAD = (_JPEG, _PNG, b"GIF8", b"\0\0\0\x0cjP  ")
_OURS = (*_TOLD_BY_HEAD, b"BM", b"II*\0", b"MM\0*", _ICO)

_OTHER_FORMATS = {
    b"<svg": "SVG", b"%pdf": "PDF", b"%!ps": "PostScript", b"8bps": "a Photoshop file",
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cjxl ": "JPEG XL",
}  # fmt: skip
_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"hevc": "HEIF",
    b"heim": "HEIF", b"heis": "HEIF", b"mif1": "HEIF", b"msf1": "HEIF",
}  # fmt: skip
_NEEDS = {
    "AVIF": "which Pillow reads from 11.3 on; update it",
    "HEIF": "which needs the package pillow-heif; install that",
}

AGAIN = "fetch it again"
_CONVERT = "convert it to JPEG or PNG"
_NO_MEMORY = "does not fit into memory; scale it down"
_OR_ACCEPT = "or accept what there is with --allow-truncated"


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Image whose header was read and whose pixels were not.

    Raises `UnreadableImage` if the bytes are not an image of the formats read, or declare more
    pixels than `max_pixels` or Pillow's own guard allow.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise UnreadableImage(f"is empty (0 bytes); {AGAIN}")
    for width, height in _icon_sizes(data):
        _check_size(width, height, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=known_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(
            "declares more pixels than Pillow's guard allows; scale it down"
        ) from error
    except UnidentifiedImageError:
        raise UnreadableImage(_unknown(data)) from None
    except PARSER_ERRORS as error:
        raise UnreadableImage(damage(error, data)) from error
    _check_size(*image.size, max_pixels)
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableImage(
            f"declares {width} x {height} pixels, above the limit of {max_pixels:,}; scale it "
            "down or raise --max-pixels"
        )
    if width * height == 0:
        raise UnreadableImage(f"has no pixels ({width} x {height}); {AGAIN}")


@lru_cache(maxsize=1)
def known_formats() -> tuple[str, ...]:
    """The formats that this Pillow and its plugins read."""
    from PIL import Image

    Image.init()
    _keep_off_stderr()
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _keep_off_stderr() -> None:
    """Silence what libtiff and Pillow's log print about files; refusals have their own reason."""
    # libtiff prints from C, so no Python stream can catch it. The symbols are found through the
    # library that links to it; one with a libtiff of its own inside hides them, and stays loud.
    with suppress(OSError, AttributeError):
        linked = ctypes.CDLL(import_module("PIL._imaging").__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            getattr(linked, name)(None)
    # A logger without a handler prints to stderr; those that a program adds still get everything.
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def _icon_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of every image in an icon, which Pillow decodes on opening."""
    if not data.startswith(_ICO):
        return
    for entry in range(int.from_bytes(data[4:6], "little")):
        at = int.from_bytes(data[18 + 16 * entry : 22 + 16 * entry], "little")
        head = data[at : at + 24]
        if len(head) < 24:
            return
        if head.startswith(_PNG):
            yield struct.unpack(">II", head[16:24])
        else:
            width, height = struct.unpack("<ii", head[4:12])
            yield abs(width), abs(height) // 2  # the picture and, below it, its mask


def _unknown(data: bytes) -> str:
    """What bytes are that no parser takes, and the remedy."""
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if kind := other_kind(data[:HEAD_BYTES], "an image", but=("PDF",)):
        return kind
    for start, what in _OTHER_FORMATS.items():
        if head.startswith(start):
            return f"is {what}, which retailtag does not read; {_CONVERT}"
    brand = _BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    if brand and brand not in known_formats():
        return f"is {brand}, {_NEEDS[brand]} or {_CONVERT}"
    if brand or data.startswith(_OURS) or _is_webp(data):
        return f"is damaged (its header cannot be read); {AGAIN}"
    return f"is of no image format that retailtag reads; {AGAIN} or {_CONVERT}"


def is_image(head: bytes) -> bool:
    """Whether the first 32 bytes of a file are those of an image.

    TIFF is left out: camera raw files begin alike and hold a thumbnail that would be read instead.
    """
    is_bitmap = head.startswith(b"BM") and head[6:10] == b"\0" * 4
    is_iso = head[4:8] == b"ftyp" and head[8:12] in _BRANDS
    return is_bitmap or is_iso or _is_webp(head) or head.startswith(_TOLD_BY_HEAD)


def file_is_image(path: Path) -> bool:
    """Whether a file holds an image, by its first bytes; links and devices are not opened."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as handle:
            return is_image(handle.read(HEAD_BYTES))
    except OSError:
        return False


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


@contextmanager
def one_image() -> Iterator[None]:
    """Make whatever fails inside, over one image, the reason that this image is left out.

    Shapes, modes and sizes that nobody foresaw must not end a run over a million images. What
    retailtag raises on purpose passes, and so does a disk that is full or fails: that is no fault
    of the image, and would leave out all that follow.
    """
    try:
        yield
    except RetailtagError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        raise UnreadableImage(_unusable(error)) from error


def _unusable(error: Exception) -> str:
    """One sentence for what a step after reading raised, and the remedy."""
    if lacks_memory(error):
        return _NO_MEMORY
    name = type(error).__name__
    return f"cannot be used ({name}: {_first_line(error)}); {_CONVERT}, or leave it out"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def damage(error: BaseException, data: bytes) -> str:
    """One sentence for what a parser raised over `data`, and the remedy."""
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    text = _first_line(error)
    if "truncated" in text.lower() or is_cut_off(data):
        return f"is truncated; {AGAIN}" + f" {_OR_ACCEPT}" * data.startswith(_JPEG)
    return f"is damaged ({text}); {AGAIN}"


def is_cut_off(data: bytes) -> bool:
    """Whether a PNG or WebP ends before the end that its own structure declares."""
    # Pillow decodes a PNG that breaks off behind its last pixels. Only chunk lengths are read.
    if _is_webp(data):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if not data.startswith(_PNG):
        return False
    at = len(_PNG)
    while data[at + 4 : at + 8] != b"IEND":
        if at + 12 > len(data):
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return at + 12 > len(data)
