"""The direct way to libjpeg gives Pillow's pixels and leaves every doubt to Pillow."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from retailtag.errors import UnreadableImage
from retailtag.images import decode as module
from retailtag.images.decode import decode_image, decode_pixels
from retailtag.images.decode_pool import decode_in_subprocess

pytest.importorskip("simplejpeg")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
    grain = rng.normal(0, 20, (height, width, 3))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def directly(monkeypatch):
    """Fail where Pillow is asked for pixels."""

    def asked(*args):
        raise AssertionError("Pillow decoded")

    monkeypatch.setattr(module, "_decoded", asked)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (333, 250), (501, 77)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 75, 98])
@pytest.mark.parametrize("more", [{}, {"progressive": True}, {"icc_profile": SRGB}])
def test_plain_files_decode_directly_to_the_same_bytes(directly, size, subsampling, quality, more):
    data = jpeg(picture(*size), subsampling=subsampling, quality=quality, **more)
    pixels = decode_pixels(data)
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(pixels, np.asarray(expected.convert("RGB")))


def odd_files() -> dict[str, bytes]:
    image = picture(40, 30)
    turned = Image.Exif()
    turned[0x0112] = 6
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return {
        "turned": jpeg(image, exif=turned),
        "grey": jpeg(image.convert("L")),
        "cmyk": jpeg(image.convert("CMYK")),
        "rgb without luma": jpeg(image, keep_rgb=True),
        "foreign profile": jpeg(image, icc_profile=other),
        "broken profile": jpeg(image, icc_profile=b"no profile"),
        "bytes behind the end": jpeg(image) + b"behind",
        "restart markers": jpeg(image, restart_marker_blocks=1),
    }


@pytest.mark.parametrize("name", odd_files())
def test_odd_files_decode_as_pillow_and_the_policy_say(name):
    data = odd_files()[name]
    np.testing.assert_array_equal(decode_pixels(data), np.asarray(decode_image(data)))


def verdict(decode, data: bytes, **limits) -> bytes | str:
    try:
        return np.asarray(decode(data, **limits)).tobytes()
    except UnreadableImage as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 255),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_damaged_files_get_the_verdict_and_the_pixels_of_pillow(at, byte, cut, progressive, allow):
    data = bytearray(jpeg(picture(64, 48), quality=80, progressive=progressive))
    at %= len(data)
    data = data[:at] if cut else data[:at] + bytes([byte]) + data[at + 1 :]
    limits = {"max_pixels": 10**6, "allow_truncated": allow}
    assert verdict(decode_pixels, bytes(data), **limits) == verdict(
        decode_image, bytes(data), **limits
    )


def test_without_the_package_pillow_decodes(monkeypatch):
    data = jpeg(picture(20, 30))
    direct = decode_pixels(data)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    np.testing.assert_array_equal(decode_pixels(data), direct)


def test_limits_hold_before_a_pixel_is_decoded():
    with pytest.raises(UnreadableImage, match="20 x 30 pixels, above the limit of 599"):
        decode_pixels(jpeg(picture(20, 30)), max_pixels=599)


def test_pixels_go_where_they_are_told_to():
    memory, data = bytearray(5000), jpeg(picture(20, 30))
    pixels = decode_pixels(data, room=lambda size: memoryview(memory)[:size])
    assert np.shares_memory(pixels, np.frombuffer(memory, np.uint8))
    np.testing.assert_array_equal(pixels, np.asarray(decode_image(data)))


def test_small_and_large_files_alternate_in_shared_memory():
    """The memory grows with the files; a PNG between them comes by the way of copies."""
    files = [jpeg(picture(16, 16)), jpeg(picture(400, 300)), jpeg(picture(8, 9))]
    buffer = io.BytesIO()
    picture(50, 60).save(buffer, "PNG")
    for data in (*files, buffer.getvalue(), *files):
        np.testing.assert_array_equal(decode_in_subprocess(data), np.asarray(decode_image(data)))
