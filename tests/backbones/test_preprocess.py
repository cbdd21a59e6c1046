"""Pixels equal those of timm's and open_clip's own transforms, apart from rounding."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retailtag.backbones import resolve_id
from retailtag.backbones.clip_models import from_open_clip
from retailtag.backbones.preprocess import (
    MODES,
    Preprocess,
    accepts_truncated,
    with_arguments,
    with_truncated,
)
from retailtag.backbones.resize import MAX_SCALING_BYTES, scaling_bytes
from retailtag.backbones.timm_models import _preprocess, from_timm
from retailtag.errors import UnreadableImage, UsageError
from retailtag.store import FeatureSpec
from retailtag.store.spec import explain_differences

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIZES = [(60, 80), (80, 60), (224, 224), (500, 500), (333, 517), (1000, 130), (7, 300)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes, edges and a little grain: noise alone averages out when it shrinks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + c) * np.cos(y / b) for a, b, c in rng.uniform(3, 90, (3, 3))]
    image = 128 + 100 * np.stack(waves, axis=-1) + rng.normal(0, 6, (height, width, 3))
    image[height // 3 : height // 2, width // 4 :] = (255, 0, 12)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


PICTURES = (noise, photo)


def assert_same(mine, theirs, interpolation="bicubic"):
    """Parity: at most 2 of 255, under 0.05 in the mean; equal where Pillow scales."""
    assert mine.shape == theirs.shape
    assert mine.dtype == np.uint8
    assert mine.flags.c_contiguous
    difference = np.abs(mine.astype(int) - theirs.astype(int))
    most, mean = (2, 0.05) if interpolation in ("bilinear", "bicubic") else (0, 1e-9)
    assert difference.max() <= most, difference.max()
    assert difference.mean() < mean, difference.mean()


@pytest.mark.parametrize("draw", PICTURES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("shape", "crop_pct", "interpolation"),
    [
        ((224, 224), 0.875, "bilinear"),
        ((224, 224), 1.0, "bicubic"),
        ((96, 160), 0.9, "bicubic"),
        ((64, 48), 0.9, "bilinear"),
        ((33, 33), 0.95, "lanczos"),
    ],
)
def test_pixels_equal_timm(draw, size, crop_mode, shape, crop_pct, interpolation):
    from timm.data import create_transform

    config = {
        "input_size": (3, *shape),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
        **IMAGENET,
    }
    theirs = create_transform(**config, is_training=False, normalize=False)
    image = draw(*size)
    assert_same(from_timm(config)(image), theirs(image).numpy(), interpolation)


@pytest.mark.parametrize("draw", PICTURES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("shape", [224, (96, 160)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_equal_open_clip(draw, size, mode, shape, interpolation):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(
        size=shape, resize_mode=mode, interpolation=interpolation, fill_color=90, **IMAGENET
    )
    image = draw(*size)
    floats = image_transform_v2(config, is_train=False)(image).numpy()
    mean, std = (np.array(IMAGENET[k], np.float32).reshape(3, 1, 1) for k in ("mean", "std"))
    theirs = np.rint((floats * std + mean) * 255).clip(0, 255).astype(np.uint8)
    assert_same(from_open_clip(vars(config))(image), theirs)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from(["center", "squash", "border"]),
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.floats(0.5, 1.0),
)
def test_any_shape_equals_timm(width, height, crop_mode, shape, crop_pct):
    from timm.data import create_transform

    # where a side would vanish timm fails; retailtag keeps one pixel of it
    ratio = max(height / shape[0], width / shape[1]) * crop_pct
    if crop_mode == "border" and min(width, height) / ratio < 1:
        return
    config = {
        "input_size": (3, *shape),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": "bicubic",
        **IMAGENET,
    }
    image = noise(width, height)
    theirs = create_transform(**config, is_training=False, normalize=False)
    assert_same(from_timm(config)(image), theirs(image).numpy())


def test_a_sliver_keeps_a_pixel():
    wide = Preprocess(size=(16, 16), mode="longest")(noise(2000, 3))
    assert wide.shape == (3, 16, 16)


def test_normalised_pixels_equal_timm_bit_for_bit(pixels):
    from timm.data import create_transform, resolve_model_data_config

    from retailtag.backbones import load_backbone

    backbone = load_backbone("timm:resnet18?size=64", random_weights=True)
    config = {
        **resolve_model_data_config(backbone.module.trunk),
        "input_size": (3, 64, 64),
    }
    side = math.floor(64 / backbone.preprocess.crop_pct)
    image = noise(side + 9, side)  # nothing to scale: rounding there is another matter
    theirs = create_transform(**config, is_training=False)(image)

    import torch

    seen = []
    backbone.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    backbone.embed(torch.from_numpy(backbone.preprocess(image))[None])
    assert torch.equal(seen[0][0], theirs)


def test_the_id_overrides_the_configuration():
    base = Preprocess(size=(224, 224), crop_pct=0.875)
    asked = resolve_id("timm:x?mean=0.5&std=0.1,0.2,0.3&size=96,64&crop_mode=border&crop_pct=1")
    changed = with_arguments(base, asked)
    assert changed.mean == (0.5, 0.5, 0.5)
    assert changed.std == (0.1, 0.2, 0.3)
    assert changed.size == (96, 64)
    assert changed.mode == "longest"
    assert changed.crop_pct == 1.0


def test_a_border_of_a_timm_model_has_the_mean_of_the_id():
    import timm

    trunk = timm.create_model("resnet18")
    chosen = _preprocess(resolve_id("timm:resnet18?mean=0.5&crop_mode=border"), trunk)
    assert chosen.fill == (128, 128, 128)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("interpolation=sharp", "Interpolation sharp is unknown"),
        ("crop_pct=1.5", "crop_pct 1.5 is not in"),
        ("crop_mode=zoom", "Resize mode zoom is unknown"),
        ("std=0", "std above 0"),
        ("mean=0.1,0.2", "neither one value nor three"),
        ("size=0", "not a positive"),
        ("size=big", "invalid literal"),
        ("size=inf", "infinity"),
        ("size=nan", "NaN"),
        ("size=1e300", "more than 4096 pixels"),
        ("crop_pct=nan", "crop_pct nan is not in"),
        ("mean=nan", "one finite value"),
        ("mean=inf", "one finite value"),
        ("std=inf", "one finite value"),
        ("std=nan", "one finite value"),
    ],
)
def test_bad_overrides_name_the_id(args, said):
    with pytest.raises(UsageError, match=rf"timm:x\?{args.split('=')[0]}.*{said}"):
        with_arguments(Preprocess(size=(8, 8)), resolve_id(f"timm:x?{args}"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_what_needs_too_much_memory_to_be_scaled_is_refused_before_it_is_taken(mode, interpolation):
    """100 million pixels in a row, in one pixel's memory: within the limit on decoding."""
    step = Preprocess((224, 224), mode, interpolation=interpolation)
    row = np.broadcast_to(np.uint8(0), (1, 100_000_000, 3))
    with pytest.raises(UnreadableImage, match=r"has 100000000 x 1 pixels, .* GiB .*; crop"):
        step.of_pixels(row)
    with pytest.raises(UnreadableImage, match=r"has 1 x 100000000 pixels"):
        step.of_pixels(row.transpose(1, 0, 2))


@given(st.integers(1, 3_000), st.integers(1, 3_000), st.sampled_from(MODES))
def test_no_photograph_is_refused_for_the_memory_of_its_scaling(width, height, mode):
    """Sides in hundreds of pixels up to a ratio of 1,000."""
    width, height = 100 * width, 100 * height
    if max(width, height) > 1000 * min(width, height):
        return
    step = Preprocess((224, 224), mode)
    size = step._scaled(width, height)
    assert scaling_bytes((width, height), size) <= MAX_SCALING_BYTES


def test_json_says_every_field_and_the_decoder():
    from retailtag.images.decode import DECODE_POLICY

    value = json.loads(Preprocess(size=(8, 9)).to_json())
    assert value["decode"] == DECODE_POLICY
    assert value["size"] == [8, 9]
    assert value["antialias"] is True
    assert value["resize"] == "torch"
    lanczos = Preprocess(size=(8, 9), interpolation="lanczos").to_json()
    assert json.loads(lanczos)["resize"] == "pillow"
    assert value["decode"].keys() >= {"decoder", "exif", "transparency", "icc", "truncated"}
    assert Preprocess(size=(8, 9)).to_json() != Preprocess(size=(8, 9), mode="squash").to_json()


def test_accepted_truncation_is_one_more_fact():
    spec = FeatureSpec("x", "0" * 64, "{}", "avg", 3, Preprocess(size=(8, 9)).to_json())
    lenient = with_truncated(spec)
    assert explain_differences(spec, lenient) == (
        "preprocessing.decode.truncated: stored 'refused', "
        "asked 'of a JPEG the missing part grey, others refused'"
    )
    assert [accepts_truncated(s) for s in (spec, lenient)] == [False, True]
    assert with_truncated(lenient) == lenient
    assert not accepts_truncated(replace(spec, preprocessing="not JSON"))
    assert not accepts_truncated(replace(spec, preprocessing="[]"))


def test_it_can_be_pickled():
    preprocess = Preprocess(size=(8, 9))
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess  # noqa: S301


@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_pixels_are_a_copy_whatever_has_to_be_done(interpolation):
    for size in ((8, 8), (1, 1), (3, 2), (9, 9)):
        pixels = np.full((*size, 3), 7, np.uint8)
        made = Preprocess(size=size, interpolation=interpolation).of_pixels(pixels)
        assert (made == 7).all()
        assert not np.shares_memory(made, pixels)


def test_same_pixels_ignores_the_normalisation():
    one = Preprocess(size=(8, 9), mean=(0.1, 0.2, 0.3))
    assert one.same_pixels == replace(one, std=(1.0, 2.0, 3.0)).same_pixels
    assert one.same_pixels != replace(one, fill=(1, 1, 1)).same_pixels
