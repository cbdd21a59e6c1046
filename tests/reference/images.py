"""Image files written the plain way, odd and broken ones too, as their specifications have it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

SIZE = (48, 40)

# The EXIF orientation as an array operation on (h, w, 3), from the TIFF 6.0 table of rows 0.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def photo(size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """A smooth picture without symmetry, (h, w, 3); `seed` shifts its colours."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    bands = [180 * x + 40, 120 * y + 90 * x + 20, 200 - 150 * x * y]
    return np.clip(np.stack(bands, -1) + 20 * seed, 0, 255).round().astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour, rows: bytes, *, interlaced=0, extra=b"") -> bytes:
    """A PNG from filtered rows, as its specification has it: Pillow writes only some kinds."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = [
        chunk(b"IHDR", header),
        extra,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def filtered(array: np.ndarray) -> bytes:
    """Rows of an array, each behind filter type 0, big-endian."""
    return b"".join(b"\0" + row.astype(array.dtype.newbyteorder(">")).tobytes() for row in array)


def adam7(array: np.ndarray) -> bytes:
    """An interlaced PNG of 8-bit RGB."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))  # fmt: skip
    rows = b"".join(filtered(array[y::dy, x::dx]) for x, y, dx, dy in passes)
    return png(array.shape[1], array.shape[0], 8, 2, rows, interlaced=1)


def exif(entries: list[bytes], following: int = 0) -> bytes:
    """A little-endian EXIF block of one directory; `following` is the offset of the next."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return b"Exif\0\0" + head + b"".join(entries) + struct.pack("<I", following)


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", tag, kind, count, value)


def spliced(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with APP segments behind its first marker; each begins with the marker's byte."""
    parts = [b"\xff" + s[:1] + struct.pack(">H", len(s) + 1) + s[1:] for s in segments]
    return data[:2] + b"".join(parts) + data[2:]


def flipped(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def tiff_with(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF whose directory has another value for a tag."""
    changed = bytearray(data)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] == tag:
            struct.pack_into("<I", changed, place + 8, value)
            return bytes(changed)
    raise AssertionError(f"no tag {tag}")


def webp_declaring(width: int, height: int) -> bytes:
    """An extended WebP of 30 bytes that declares a canvas."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_declaring(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def jpeg_declaring(width: int, height: int, *, marker: int = 0xC0, bits: int = 8) -> bytes:
    """The photograph as JPEG whose frame header says something else."""
    data = encoded(photo(), "JPEG")
    at = data.index(b"\xff\xc0")
    frame = struct.pack(">BHH", bits, height, width)
    return data[: at + 1] + bytes([marker]) + data[at + 2 : at + 4] + frame + data[at + 9 :]


def ycck(ink: np.ndarray) -> bytes:
    """A JPEG of CMYK pixels (h, w, 4) in Adobe's YCCK: cyan, magenta, yellow coded as if RGB."""
    luma = np.asarray(Image.fromarray(ink[..., :3]).convert("YCbCr"))
    data = encoded(
        Image.fromarray(np.dstack([255 - luma, ink[..., 3]]), "CMYK"), "JPEG", quality=95
    )
    at = data.index(b"Adobe") + 11  # the colour transform: 0 is CMYK, 2 is YCCK
    return data[:at] + b"\2" + data[at + 1 :]


def icon_of(data: bytes) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(data), 22) + data


_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB = _PROFILE[:24] + bytes(12) + _PROFILE[36:]  # without the time at which it was made
SWAPPED = (
    SRGB.replace(b"rXYZ", b"tmpX", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmpX", b"gXYZ", 1)
)  # red and green primaries changed places
