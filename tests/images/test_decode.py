"""Every odd file becomes upright sRGB on white, or a reason."""

import io
import json
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from retailtag.errors import UnreadableImage
from retailtag.images.decode import DECODE_POLICY, decode_image


def save(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, **options) -> np.ndarray:
    image = decode_image(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_plain_images_decode_as_pillow_has_them(picture, kind):
    data = picture(90, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (pixels(data) == expected).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied_once(kind, orientation):
    image = Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = Image.open(io.BytesIO(data))
    expected.load()
    expected = np.asarray(ImageOps.exif_transpose(expected).convert("RGB"))
    assert (pixels(data) == expected).all()
    assert pixels(data).shape == ((30, 20, 3) if 5 <= orientation <= 8 else (20, 30, 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_exif_is_ignored(picture):
    data = picture(10, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert pixels(data).shape == (40, 48, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    got = pixels(save(image.convert(mode)))
    assert got[0, 0].tolist() == [0, 0, 0]
    assert got[2, 2].tolist() == [255, 255, 255]


def test_half_transparency_is_mixed_with_white():
    assert pixels(save(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))).ravel()[0] == 127


def test_a_transparent_colour_becomes_white():
    image = Image.new("RGB", (4, 4), (9, 9, 9))
    image.putpixel((1, 1), (200, 0, 0))
    got = pixels(save(image, transparency=(9, 9, 9)))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[1, 1].tolist() == [200, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind):
    values = np.array([[0, 257, 32_768, 65_535]], np.uint16)
    got = pixels(save(Image.fromarray(values), kind))
    assert got[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    assert pixels(save(image, "TIFF")).min() >= 250


def test_floating_point_pixels_are_refused():
    with pytest.raises(UnreadableImage, match="float32"):
        decode_image(save(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "PNG"):
        data = save(frames[0], kind, save_all=True, append_images=frames[1:])
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def swapped_profile(picture) -> bytes:
    """An sRGB profile whose red and green primaries changed places."""
    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    return bytes(
        raw.replace(b"rXYZ", b"tmpX", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmpX", b"gXYZ", 1)
    )


def test_profiles_are_converted_and_srgb_is_left_alone(picture):
    plain = picture(200, "PNG")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (pixels(picture(200, "PNG", icc_profile=srgb)) == pixels(plain)).all()
    swapped = pixels(picture(200, "PNG", icc_profile=swapped_profile(picture)))
    assert np.abs(swapped[..., [1, 0, 2]] - pixels(plain)).max() <= 3


def test_invalid_and_foreign_profiles_are_ignored(picture):
    assert (pixels(picture(9, "PNG", icc_profile=b"junk")) == pixels(picture(9, "PNG"))).all()
    grey = Image.new("L", (4, 4), 128)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixels(save(grey, icc_profile=srgb)).ravel()[0] == 128


def declared(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares a size."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_bomb_is_refused_from_its_header(picture):
    with pytest.raises(UnreadableImage, match="pixels"):
        decode_image(declared(30_000, 30_000))
    with pytest.raises(UnreadableImage, match=r"48 x 40 .* limit of 100"):
        decode_image(picture(), max_pixels=100)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><p>404", "web page"),
        (b"<svg xmlns=''/>", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\x00" * 100, "no image format"),
        (b"\xff\xd8\xff\xe0", "is"),
    ],
)
def test_what_is_no_image_says_what_it_is(data, words):
    with pytest.raises(UnreadableImage, match=words):
        decode_image(data)


def test_truncation_is_refused_unless_allowed(picture):
    data = picture(50, size=(200, 200))
    cut = data[: len(data) // 2]
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(cut)
    top = pixels(cut, allow_truncated=True)[:8]
    assert np.abs(top - pixels(data)[:8]).max() <= 2
    with pytest.raises(UnreadableImage):
        decode_image(picture(50, "PNG")[:110], allow_truncated=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    cut=st.integers(0, 2000),
    places=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
)
def test_damage_never_raises_anything_else(picture, kind, cut, places):
    data = bytearray(picture(7, kind))
    for place, value in places:
        data[place % len(data)] = value
    with suppress(UnreadableImage):
        image = decode_image(bytes(data[: len(data) - cut % len(data)]), max_pixels=10**6)
        assert image.mode == "RGB"


def test_the_policy_is_plain_json():
    assert json.loads(json.dumps(DECODE_POLICY)) == DECODE_POLICY
