"""A corpus of odd and broken image files, made by seeded code, each with its verdict."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, features
from reference_images import (
    SIZE,
    SRGB,
    SWAPPED,
    UPRIGHT,
    adam7,
    bmp_declaring,
    chunk,
    encoded,
    entry,
    exif,
    filtered,
    flipped,
    icon_of,
    jpeg_declaring,
    photo,
    png,
    spliced,
    tiff_with,
    webp_declaring,
    ycck,
)

WITHIN = {"JPEG": 16, "WEBP": 16, "AVIF": 16, "MPO": 16}  # largest difference of lossy formats
AVIF = features.check("avif")
KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"] + ["AVIF"] * AVIF
LOSSLESS = {"WEBP": {"lossless": True}}
CUT = "truncated|damaged|no image format|empty"
DAMAGED = "damaged|truncated"


@dataclass(frozen=True, eq=False)
class Case:
    """One file and what must become of it.

    Parameters
    ----------
    name : str
        Says what is odd.
    data : bytes
        The file.
    size : (int, int) or None
        Width and height it decodes to; None: refused.
    reason : str
        Pattern that the refusal matches.
    pixels : ndarray of uint8, shape (h, w, 3), optional
        What it decodes to.
    within : int
        Largest difference from `pixels`.
    may_refuse : bool
        The format has no checksum there: damage shows as other pixels or as a refusal.
    """

    name: str
    data: bytes
    size: tuple[int, int] | None = None
    reason: str = ""
    pixels: np.ndarray | None = None
    within: int = 0
    may_refuse: bool = False


def good(name: str, data: bytes, pixels: np.ndarray, within: int = 0) -> Case:
    return Case(name, data, pixels.shape[1::-1], pixels=pixels, within=within)


def bad(name: str, data: bytes, reason: str) -> Case:
    return Case(name, data, reason=reason)


def grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, axis=2)


def plain() -> Iterator[Case]:
    """Sound files of every format and of the options that change how pixels are stored."""
    rgb = photo()
    for kind in KINDS:
        if kind != "GIF":
            yield good(kind, encoded(rgb, kind, **LOSSLESS.get(kind, {})), rgb, WITHIN.get(kind, 0))
    jpeg = [{"subsampling": s} for s in (0, 1, 2)] + [{"keep_rgb": True}, {"progressive": True}]
    jpeg += [{"optimize": True}, {"restart_marker_blocks": 2}, {"quality": 100}]
    for options in jpeg:
        yield good(f"JPEG {options}", encoded(rgb, "JPEG", **options), rgb, WITHIN["JPEG"])
    compressions = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
    for compression in compressions:
        yield good(f"TIFF {compression}", encoded(rgb, "TIFF", compression=compression), rgb)
    yield good("TIFF jpeg", encoded(rgb, "TIFF", compression="jpeg"), rgb, WITHIN["JPEG"])
    yield good("WebP lossy", encoded(rgb, "WEBP"), rgb, WITHIN["WEBP"])
    yield good("PNG interlaced", adam7(rgb), rgb)
    yield good("DIB", encoded(rgb, "DIB"), rgb)
    yield good("icon of PNG", icon_of(encoded(rgb, "PNG")), rgb)
    square = photo((32, 32))
    yield good("icon of bitmap", encoded(square, "ICO", bitmap_format="bmp"), square)


def modes() -> Iterator[Case]:
    """Grey, palette, 1-bit, CMYK and 16-bit images."""
    rgb, level = photo(), photo()[..., 0]
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"):
        yield good(f"grey {kind}", encoded(level, kind), grey(level), WITHIN.get(kind, 0))
    bits = Image.fromarray(np.where(level > 120, 255, 0).astype(np.uint8)).convert("1")
    for kind in ("PNG", "TIFF", "BMP", "GIF", "PPM"):
        yield good(f"1-bit {kind}", encoded(bits, kind), grey(np.asarray(bits) * np.uint8(255)))
    fax = encoded(bits, "TIFF", compression="group4")
    yield good("1-bit fax", fax, grey(np.asarray(bits) * np.uint8(255)))
    palette = Image.fromarray(rgb).quantize(16)
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        yield good(f"palette {kind}", encoded(palette, kind), np.asarray(palette.convert("RGB")))
    ink = np.concatenate([255 - rgb, np.full((*rgb.shape[:2], 1), 60, np.uint8)], axis=2)
    left = (255.0 - ink[..., :3]) * (255 - 60) / 255
    for kind in ("JPEG", "TIFF"):
        data = encoded(
            Image.fromarray(ink, "CMYK"), kind, **({"quality": 95} if kind == "JPEG" else {})
        )
        yield good(f"CMYK {kind}", data, left.round().astype(np.uint8), WITHIN.get(kind, 1))
    yield good("YCCK JPEG", ycck(ink), left.round().astype(np.uint8), WITHIN["JPEG"])
    yield good("YCbCr TIFF", encoded(Image.fromarray(rgb).convert("YCbCr"), "TIFF"), rgb, 3)
    deep = photo().astype(np.uint16) * 257
    for kind in ("PNG", "TIFF"):
        yield good(f"16-bit grey {kind}", encoded(deep[..., 0], kind), grey(level))
    big_endian = Image.frombytes("I;16B", SIZE, deep[..., 0].astype(">u2").tobytes())
    yield good("16-bit grey TIFF, big-endian", encoded(big_endian, "TIFF"), grey(level))
    yield good(
        "16-bit grey PGM", b"P5 48 40 65535\n" + deep[..., 0].astype(">u2").tobytes(), grey(level)
    )
    yield good("16-bit RGB PNG", png(*SIZE, 16, 2, filtered(deep)), rgb)
    grey_tiff = encoded(deep[..., 0], "TIFF")
    for name, tag, value in (("white is zero", 262, 0), ("12 bits", 258, 12)):
        yield bad(f"grey TIFF, {name}", tiff_with(grey_tiff, tag, value), "not known; convert")
    signed = encoded(deep[..., 0], "TIFF", tiffinfo={339: 2})
    yield bad("grey TIFF, signed", signed, "not known; convert")
    yield bad(
        "floating point TIFF", encoded(deep[..., 0].astype(np.float32), "TIFF"), "float32.*convert"
    )


def transparency() -> Iterator[Case]:
    """Everything transparent lies on white, half of it half."""
    rgb = photo()
    alpha = np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1))
    a = alpha[..., None].astype(float) / 255
    mixed = (rgb * a + 255 * (1 - a)).round().astype(np.uint8)
    rgba = np.dstack([rgb, alpha])
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        yield good(f"RGBA {kind}", encoded(rgba, kind, **options), mixed, 1)
    yield good("RGBA icon", icon_of(encoded(rgba, "PNG")), mixed, 1)
    la = Image.merge("LA", [Image.fromarray(rgb[..., 0]), Image.fromarray(alpha)])
    yield good("LA PNG", encoded(la, "PNG"), grey(mixed[..., 0]), 1)
    yield good(
        "16-bit RGBA PNG", png(*SIZE, 16, 6, filtered(rgba.astype(np.uint16) * 257)), mixed, 1
    )
    hard = np.where(np.arange(SIZE[0])[None, :, None] < 20, 255, rgb).astype(np.uint8)
    index = np.where(np.arange(SIZE[0]) < 20, 1, 0).astype(np.uint8)
    two = Image.fromarray(np.tile(index, (SIZE[1], 1)), "L").convert("P")
    two.putpalette([10, 200, 30, 90, 90, 90])
    flat = np.where(hard == 255, 255, np.array([10, 200, 30])).astype(np.uint8)
    for kind in ("PNG", "GIF"):
        yield good(f"palette with a clear colour {kind}", encoded(two, kind, transparency=1), flat)
    half = encoded(two, "PNG", transparency=bytes([255, 128]))
    mixed_flat = flat.copy()
    mixed_flat[:, :20] = round(90 * 128 / 255 + 255 * 127 / 255)
    yield good("palette half clear", half, mixed_flat, 1)
    flat_rgb = two.convert("RGB")
    yield good("clear colour PNG", encoded(flat_rgb, "PNG", transparency=(90, 90, 90)), flat)
    keyed = np.where(rgb[..., 0] == 44, 255, rgb[..., 0]).astype(np.uint8)
    yield good("clear grey PNG", encoded(rgb[..., 0], "PNG", transparency=44), grey(keyed))


def orientation() -> Iterator[Case]:
    """All eight, in every format that carries EXIF, and values that mean nothing."""
    rgb = photo()
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", *["AVIF"] * AVIF):
        for value, turn in UPRIGHT.items():
            tags = Image.Exif()
            tags[0x0112] = value
            data = encoded(rgb, kind, exif=tags, **LOSSLESS.get(kind, {}))
            yield good(f"{kind} turned {value}", data, turn(rgb), WITHIN.get(kind, 0))
    for value in (0, 9, 255, 65535):
        data = spliced(encoded(rgb, "JPEG"), b"\xe1" + exif([entry(0x0112, 3, 1, value)]))
        yield good(f"JPEG turned {value}", data, rgb, WITHIN["JPEG"])


def metadata() -> Iterator[Case]:
    """Broken EXIF and profiles say nothing about the pixels."""
    rgb, jpeg = photo(), encoded(photo(), "JPEG")
    directories = {
        "no directory": b"Exif\0\0",
        "junk": b"Exif\0\0" + b"\xff" * 60,
        "directory beyond its end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
        "directory that follows itself": exif([entry(0x0112, 3, 1, 1)], 8),
        "sub-directory that is its parent": exif([entry(0x8769, 4, 1, 8), entry(0x0112, 3, 1, 1)]),
        "entries beyond its end": exif([entry(0x0112, 3, 1, 1)])[:-6],
        "count of billions": exif([entry(0x010F, 2, 0xFFFFFFFF, 0)]),
        "value beyond its end": exif([entry(0x010F, 2, 64, 0x7FFFFFFF)]),
        "type that is none": exif([entry(0x0112, 99, 1, 6)]),
        "orientation in words": exif([entry(0x0112, 2, 4, 0x20746F6E)]),
        "orientation many times": exif([entry(0x0112, 3, 2, 0x00010001)]),
    }
    for name, block in directories.items():
        yield good(f"EXIF: {name}", spliced(jpeg, b"\xe1" + block), rgb, WITHIN["JPEG"])
        tagged = png(*SIZE, 8, 2, filtered(rgb), extra=chunk(b"eXIf", block[6:]))
        yield good(f"EXIF in PNG: {name}", tagged, rgb)
    for kind in ("PNG", "JPEG", "TIFF"):
        within = WITHIN.get(kind, 0)
        for name, profile in (("junk", b"junk"), ("cut off", SRGB[:200]), ("sRGB", SRGB)):
            yield good(f"ICC {name} {kind}", encoded(rgb, kind, icc_profile=profile), rgb, within)
        swapped = encoded(rgb[..., [1, 0, 2]], kind, icc_profile=SWAPPED)
        yield good(f"ICC swapped {kind}", swapped, rgb, within + 4)
    level = rgb[..., 0]
    yield good("ICC of colours on grey", encoded(level, "PNG", icc_profile=SRGB), grey(level), 1)
    bomb = chunk(b"iCCP", b"x\0\0" + b"\x78\x9c" + b"\xff" * 40)
    yield good("ICC that does not inflate", png(*SIZE, 8, 2, filtered(rgb), extra=bomb), rgb)


def frames() -> Iterator[Case]:
    """Of several pictures in one file the first counts."""
    first, second = photo(), photo(seed=5)
    flat = np.full_like(first, (200, 30, 60))
    for kind in ("PNG", "WEBP", "TIFF", "MPO", *["AVIF"] * AVIF):
        more = {"save_all": True, "append_images": [Image.fromarray(second)]}
        data = encoded(first, kind, **more, **LOSSLESS.get(kind, {}))
        yield good(f"two frames {kind}", data, first, WITHIN.get(kind, 0))
    data = encoded(flat, "GIF", save_all=True, append_images=[Image.fromarray(second)])
    yield good("two frames GIF", data, flat)
    for kind in KINDS:
        picture = flat if kind == "GIF" else first
        one = encoded(picture, kind, **LOSSLESS.get(kind, {}))
        within = WITHIN.get(kind, 0)
        yield good(f"garbage behind {kind}", one + b"\xde\xad\xbe\xef" * 50, picture, within)
        twice = one + encoded(second, kind, **LOSSLESS.get(kind, {}))
        # AVIF and JPEG 2000 are made of boxes: of two files some readers see one strange one
        boxes = kind in ("AVIF", "JPEG2000")
        yield Case(f"{kind} twice", twice, SIZE, DAMAGED, picture, within, may_refuse=boxes)
        yield bad(f"garbage before {kind}", b"\xde\xad\xbe\xef" + one, "no image format")


def cut_off(rng: np.random.Generator) -> Iterator[Case]:
    """Files that end early, anywhere."""
    noisy = np.clip(photo() + rng.integers(-20, 21, (*SIZE[::-1], 3)), 0, 255).astype(np.uint8)
    files = {kind: encoded(noisy, kind, **LOSSLESS.get(kind, {})) for kind in KINDS}
    files["progressive"] = encoded(noisy, "JPEG", progressive=True)
    files["interlaced"] = adam7(noisy)
    files["palette"] = encoded(Image.fromarray(noisy).quantize(32), "PNG")
    for name, data in files.items():
        margin = 3 if name == "GIF" else 1  # behind its last block a GIF has all its pixels
        places = {1, 8, len(data) // 2, len(data) - margin}
        places |= set(rng.integers(1, len(data) - margin, 9).tolist())
        for place in sorted(places):
            yield bad(f"{name} cut at {place} of {len(data)}", data[:place], CUT)


def flips(rng: np.random.Generator) -> Iterator[Case]:
    """One bit changed in the pixels: found by a checksum, seen as itself, or unknowable."""
    rgb = photo()
    coded = encoded(rgb, "PNG")
    start, end = coded.index(b"IDAT") + 4, coded.index(b"IEND") - 8
    for place in rng.integers(start, end, 24).tolist():
        case = flipped(coded, place, int(rng.integers(8)))  # a bit of padding changes nothing
        yield Case(f"PNG bit at {place}", case, SIZE, DAMAGED, rgb, may_refuse=True)
    for kind in ("BMP", "PPM"):
        data = encoded(rgb, kind)
        for place in rng.integers(len(data) - 3 * SIZE[0] * SIZE[1], len(data), 12).tolist():
            bit = int(rng.integers(8))
            yield good(f"{kind} bit at {place}", flipped(data, place, bit), rgb, 1 << bit)
    for kind in ("JPEG", "WEBP", "GIF", "TIFF", "JPEG2000", *["AVIF"] * AVIF):
        data = encoded(rgb, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
        start = {"JPEG": data.find(b"\xff\xda"), "GIF": 800, "TIFF": 8}.get(kind, len(data) // 2)
        for place in rng.integers(start + 14, len(data) - 200 * (kind == "TIFF"), 10).tolist():
            case = flipped(data, place, int(rng.integers(8)))
            yield Case(f"{kind} bit at {place}", case, SIZE, DAMAGED, may_refuse=True)


def not_images(rng: np.random.Generator) -> Iterator[Case]:
    """What a scraper brings home under the name of an image."""
    texts = {
        "nothing": (b"", "empty"),
        "a space": (b" ", "no image format"),
        "zeros": (bytes(500), "no image format"),
        "words": (b"Forbidden\n" * 9, "no image format"),
        "page": (b"<!DOCTYPE html><title>404</title>", "web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS.*git lfs pull"),
        "page behind a mark": (b"\xef\xbb\xbf\n <HTML>", "web page"),
        "feed": (b"<?xml version='1.0'?><rss/>", "XML"),
        "drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG.*convert"),
        "answer": (b'{"error": 403}', "JSON"),
        "document": (b"%PDF-1.7\n", "PDF.*convert"),
        "program for a printer": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "PostScript",
        ),
        "archive": (b"PK\3\4" + bytes(40), "zip archive"),
        "compressed": (b"\x1f\x8b\x08" + bytes(20), "gzip archive"),
        "RAR": (b"Rar!\x1a\x07\0", "RAR"),
        "layers": (b"8BPS\0\1" + bytes(40), "Photoshop"),
        "cursor": (b"\0\0\2\0" + encoded(photo((16, 16)), "ICO")[4:], "no image format"),
        "JPEG XL": (b"\xff\x0a\xfa\x1f", "JPEG XL.*convert"),
        "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL.*convert"),
        "HEIF": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIF|damaged"),
        "film": (b"\0\0\0\x18ftypisom\0\0\0\0" + bytes(40), "no image format"),
        "program": (b"\x7fELF\2\1\1" + bytes(60), "no image format"),
        "windows program": (b"MZ\x90\0" + bytes(60), "no image format"),
        "TGA": (encoded(photo(), "TGA"), "no image format"),
        "one marker": (b"\xff\xd8\xff", "damaged"),
        "two markers": (b"\xff\xd8\xff\xd9", "damaged"),
    }
    for name, (data, reason) in texts.items():
        yield bad(name, data, reason)
    for i in range(8):
        yield bad(f"noise {i}", rng.bytes(int(rng.integers(1, 4000))), "no image format|damaged")


def declared() -> Iterator[Case]:
    """Sizes that no picture has, from headers without pixels."""
    for width, height in ((30_000, 30_000), (65_000, 60_000), (1, 900_000_000)):
        header = f"{width} x {height}"
        too_large = "declares .*(scale it down)"
        yield bad(f"PNG of {header}", png(width, height, 8, 2, b""), too_large)
        yield bad(f"BMP of {header}", bmp_declaring(width, height), too_large)
        yield bad(f"PPM of {header}", f"P6 {width} {height} 255\n".encode(), too_large)
        tiff = tiff_with(tiff_with(encoded(photo(), "TIFF"), 256, width), 257, height)
        yield bad(f"TIFF of {header}", tiff, too_large)
        inside = icon_of(png(width, height, 8, 2, b""))
        yield bad(f"icon of {header}", inside, too_large)
        if height < 1 << 16:
            gif = encoded(photo(), "GIF")
            gif = gif[:6] + struct.pack("<HH", width, height) + gif[10:]
            yield bad(f"GIF of {header}", gif, too_large)
            yield bad(f"JPEG of {header}", jpeg_declaring(width, height), too_large)
            yield bad(f"WebP of {header}", webp_declaring(width, height), "declares|damaged")
    between = icon_of(png(10_500, 10_000, 8, 2, b""))  # above our limit, below Pillow's guard
    yield bad("icon of 10500 x 10000", between, "declares 10500 x 10000 .*scale it down")
    none = "no pixels|damaged|no image format|truncated"
    for width, height in ((0, 40), (48, 0), (0, 0)):
        header = f"{width} x {height}"
        yield bad(f"PNG of {header}", png(width, height, 8, 2, b""), none)
        yield bad(f"BMP of {header}", bmp_declaring(width, height), none)
        yield bad(f"PPM of {header}", f"P6 {width} {height} 255\n".encode(), none)
        yield bad(f"JPEG of {header}", jpeg_declaring(width, height), none)
        tiff = tiff_with(tiff_with(encoded(photo(), "TIFF"), 256, width), 257, height)
        yield bad(f"TIFF of {header}", tiff, none)


def extremes() -> Iterator[Case]:
    """One pixel, one row, one column."""
    for kind in KINDS:
        for size in ((1, 1), (1, 3000), (3000, 1), (7, 3)):
            if kind == "AVIF" and 1 in size:
                continue  # its encoders want more
            flat = np.full((*size[::-1], 3), (40, 150, 90), np.uint8)
            data = encoded(flat, kind, **LOSSLESS.get(kind, {}))
            yield good(f"{kind} of {size}", data, flat, WITHIN.get(kind, 0))


def inside() -> Iterator[Case]:
    """Files whose header is right and whose body is not, or of a coding that is not read."""
    jpeg, rows = encoded(photo(), "JPEG"), filtered(photo())
    at = jpeg.index(b"\xff\xc4")
    without_tables = jpeg[:at] + jpeg[jpeg.index(b"\xff\xda") :]
    yield Case("JPEG without Huffman tables", without_tables, SIZE, DAMAGED, may_refuse=True)
    for name, marker in (("lossless", 0xC3), ("hierarchical", 0xC5), ("arithmetic", 0xC9)):
        data = jpeg_declaring(*SIZE, marker=marker)
        yield Case(f"JPEG {name}", data, SIZE, DAMAGED, may_refuse=True)
    yield bad("JPEG of 12 bits", jpeg_declaring(*SIZE, bits=12), DAMAGED)
    yield bad("JPEG without scan", jpeg[: jpeg.index(b"\xff\xda")], DAMAGED)
    yield bad("PNG with other checksum", flipped(png(*SIZE, 8, 2, rows), 30, 0), DAMAGED)
    yield bad("PNG of colour type 5", png(*SIZE, 8, 5, rows), DAMAGED)
    yield bad("PNG of 3 bits", png(*SIZE, 3, 2, rows), DAMAGED)
    yield bad("PNG of filter type 9", png(*SIZE, 8, 2, b"\x09" + rows[1:]), DAMAGED)
    few = png(*SIZE, 8, 2, rows[:-145])  # complete as a stream: Pillow leaves the last row black
    yield Case("PNG with too few rows", few, SIZE, DAMAGED, may_refuse=True)
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(100 << 20)))
    yield bad("PNG with a bomb of text", png(*SIZE, 8, 2, rows, extra=text), DAMAGED)
    no_pixels = png(*SIZE, 8, 2, rows)
    yield bad("PNG without pixels", no_pixels[:33] + no_pixels[-12:], DAMAGED)
    gif = bytearray(encoded(photo(), "GIF"))
    yield bad("GIF without a picture", bytes(gif[:13]) + b";", DAMAGED)
    tiff = encoded(photo(), "TIFF")
    yield bad("TIFF whose directory is itself", tiff[:4] + struct.pack("<I", 4) + tiff[8:], DAMAGED)
    yield bad("TIFF whose pixels lie beyond", tiff_with(tiff, 273, 1 << 30), DAMAGED)
    yield bad("icon without entries", b"\0\0\1\0\0\0", DAMAGED)
    yield bad("icon that points beyond", icon_of(b"")[:18] + b"\xff\xff\xff\x7f", DAMAGED)


def classes(seed: int = 0) -> dict[str, list[Case]]:
    """The whole corpus by class."""
    makers: dict[str, Callable[[], Iterator[Case]]] = {
        f.__name__: f
        for f in (
            plain,
            modes,
            transparency,
            orientation,
            metadata,
            frames,
            declared,
            extremes,
            inside,
        )
    }
    rng = np.random.default_rng(seed)
    found = {name: list(make()) for name, make in makers.items()}
    return found | {f.__name__: list(f(rng)) for f in (cut_off, flips, not_images)}
