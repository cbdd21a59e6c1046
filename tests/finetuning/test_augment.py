from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from retailtag.errors import UsageError
from retailtag.finetuning.augment import PRESETS, Augment


def _images(n=6, h=40, w=28):
    """Smooth images, each different: gradients with a bright spot."""
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    colours = torch.stack([torch.stack([x, y, (x + k / n) % 1]) for k in range(n)])
    return (40 + 160 * colours).to(torch.uint8)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_view_depends_on_seed_image_and_view_alone(preset):
    augment, pixels, rows = Augment(preset), _images(), np.arange(100, 106)
    views = augment.view(pixels, rows, 3, 5)
    order = [4, 0, 2]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - a view must not draw from what others seed
    assert torch.equal(augment.view(pixels[order], rows[order], 3, 5), views[order])
    with ThreadPoolExecutor(3) as pool:
        assert torch.equal(augment.view(pixels, rows, 3, 5, pool), views)
    for other in (
        augment.view(pixels, rows, 4, 5),
        augment.view(pixels, rows, 3, 6),
        augment.view(pixels, rows + 1, 3, 5),
    ):
        assert all(not torch.equal(a, b) for a, b in zip(other, views, strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_views_have_the_shape_of_images_and_leave_them_alone(preset):
    pixels = _images()
    before = pixels.clone()
    out = Augment(preset).view(pixels, np.arange(6), 0, 1)
    assert out.shape == pixels.shape
    assert out.dtype == torch.uint8
    assert torch.equal(pixels, before)


def test_view_zero_and_none_are_the_images():
    pixels = _images()
    assert torch.equal(Augment("strong").view(pixels, np.arange(6), 0, 0), pixels)
    assert torch.equal(Augment.parse("none").view(pixels, np.arange(6), 0, 7), pixels)


def test_light_views_are_crops_mirrored_in_half_of_the_images():
    n = 200
    ramp = torch.linspace(20, 230, 32).to(torch.uint8).expand(n, 3, 32, 32)
    out = Augment("light").view(ramp, np.arange(n), 0, 1).float()
    slopes = out[..., 28:].mean((1, 2, 3)) - out[..., :4].mean((1, 2, 3))
    assert 70 <= (slopes < 0).sum() <= 130
    spans = slopes.abs() / (ramp[0, 0, 0, 28:].float().mean() - ramp[0, 0, 0, :4].float().mean())
    assert spans.min() > 0.7  # a crop of 70 % of the area, stretched by 15 %, spans at least this
    assert spans.max() < 1.02
    assert spans.std() > 0.03


def test_strong_views_change_tones_and_blank_patches_but_keep_grey_grey():
    n = 200
    grey = torch.full((n, 3, 32, 32), 120, dtype=torch.uint8)
    grey[:, :, ::2] = 140
    out = Augment("strong").view(grey, np.arange(n), 0, 1).float()
    assert (out.amax(1) - out.amin(1)).max() <= 1  # no hue where there was none
    assert out.mean((1, 2, 3)).std() > 10
    # Every row is one tone, but for those that a patch crosses.
    patched = (out[:, 0].std(2) > 0.5).any(1)
    assert 0.15 < patched.float().mean() < 0.35


def test_cached_views_come_in_turn_and_are_those_of_the_preset():
    cached, pixels, rows = Augment.parse("cached:3:strong"), _images(), np.arange(6)
    assert [cached.view_of(e) for e in range(1, 8)] == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(
        cached.view(pixels, rows, 1, 2), Augment.parse("strong").view(pixels, rows, 1, 2)
    )


def test_only_settings_that_repeat_views_are_cacheable():
    texts = ("none", "cached:1", "cached:4:strong", "light", "strong")
    assert [Augment.parse(text).cacheable for text in texts] == [True, True, True, False, False]


@pytest.mark.parametrize(
    "text", ["heavy", "cached", "cached:0", "cached:x", "cached:2:none", "light:2", "cached:-1"]
)
def test_bad_text_lists_the_forms(text):
    with pytest.raises(UsageError, match=f"--augment {text} is unknown; use none, light, strong"):
        Augment.parse(text)
