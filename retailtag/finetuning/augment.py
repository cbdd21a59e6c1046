"""Views of images for training, each a function of (seed, image, view) alone.

``Augment.parse("light")`` reads a setting. Epoch e shows view e of every image, a new one each
time; ``cached:V`` shows V views in turn, so that the activations of a frozen part can be cached.
View 0 is the image itself.

===================  ========================================================================
setting              an epoch shows
===================  ========================================================================
``none``             the images themselves
``light``            mirrored or not; a crop of 70 to 100 % of the area
``strong``           mirrored or not; a crop of 35 to 100 %; brightness, contrast and
                     saturation ±30 %; in a quarter of the images a patch blanked
``cached:V``         one of V views: the image itself and V - 1 of ``light``
``cached:V:strong``  the same of ``strong``
===================  ========================================================================

Hue is left alone: colours are tags. Views are cut from preprocessed pixels of the backbone's input
size by torchvision's v2 functions on bytes. The random numbers are drawn here: torchvision's come
from one global generator and would depend on the order of images and threads.

References
----------
Zhong et al. (2020), Random Erasing Data Augmentation (the blank patch).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.errors import UsageError

_STREAM = 0xA06  # separates these draws from others of the same seed


@dataclass(frozen=True)
class _Preset:
    """Ranges that a view is drawn from."""

    area: float  # smallest crop, as a share of the image
    ratio: float  # largest change of the aspect
    tone: float = 0.0  # largest change of brightness, contrast and saturation
    erase: float = 0.0  # share of the images with a blank patch


PRESETS = {"light": _Preset(0.7, 1.15), "strong": _Preset(0.35, 4 / 3, tone=0.3, erase=0.25)}
MAX_VIEWS = 1000  # far more than the epochs of a fine-tune could show
FORMS = "none, light, strong, cached:V or cached:V:strong"


@dataclass(frozen=True)
class Augment:
    """Which views of the images training sees.

    Examples
    --------
    >>> augment = Augment.parse("cached:3")
    >>> [augment.view_of(epoch) for epoch in (1, 2, 3, 4)]
    [0, 1, 2, 0]
    >>> [Augment.parse("light").view_of(epoch) for epoch in (1, 2, 3, 4)]
    [1, 2, 3, 4]
    """

    preset: str = "light"  # or none, strong
    views: int = 0  # distinct views of an image, shown in turn; 0: a new one every epoch

    @classmethod
    def parse(cls, text: str) -> Augment:
        """Setting from its text; `UsageError` if it is not one of the forms above."""
        if text == "none":
            return cls("none", 1)
        if text in PRESETS:
            return cls(text)
        kind, _, rest = text.partition(":")
        views, _, preset = rest.partition(":")
        preset = preset or "light"
        n_views = int(views) if re.fullmatch("[0-9]{1,9}", views) else 0
        if kind != "cached" or not 1 <= n_views <= MAX_VIEWS or preset not in PRESETS:
            raise UsageError(f"--augment {text} is unknown; use {FORMS}, V being 1 to {MAX_VIEWS}.")
        return cls(preset, n_views)

    @property
    def cacheable(self) -> bool:
        """Whether epochs repeat views, so that caching their activations pays."""
        return self.views > 0

    def view_of(self, epoch: int) -> int:
        """View that `epoch`, from 1, shows of every image."""
        return (epoch - 1) % self.views if self.views else epoch

    def view(
        self,
        pixels: Tensor,
        images: NDArray[np.integer[Any]],
        seed: int,
        view: int,
        pool: Executor | None = None,
    ) -> Tensor:
        """View number `view` of a batch of images on the CPU, uint8 (n, 3, h, w).

        `images` (n,) are their keys, at least 0; see `image_keys`. `pixels` are not changed, and
        returned as they are for view 0. Threads of `pool` share the batch; the result is the same.
        """
        if view == 0 or self.preset == "none":
            return pixels
        preset = PRESETS[self.preset]

        def one(image: Tensor, key: int) -> Tensor:
            return _draw(image, preset, np.random.default_rng([seed, view, int(key), _STREAM]))

        spread: Callable[..., Any] = pool.map if pool else map
        return torch.stack(list(spread(one, pixels, images.tolist())))


def _draw(image: Tensor, preset: _Preset, rng: np.random.Generator) -> Tensor:
    """One view (3, h, w) of an image (3, h, w)."""
    from torchvision.transforms.v2 import functional as tv

    size = [image.shape[1], image.shape[2]]
    box = _box(size, rng.uniform(preset.area, 1.0), preset.ratio, rng)
    out = tv.resized_crop(image, *box, size, antialias=True)
    if rng.random() < 0.5:
        out = tv.horizontal_flip(out)
    if preset.tone:
        adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
        for change, amount in zip(adjust, rng.uniform(-preset.tone, preset.tone, 3), strict=True):
            out = change(out, 1 + amount)
    if rng.random() < preset.erase:
        colour = out.float().mean((1, 2), keepdim=True).round().to(out.dtype)  # (3, 1, 1)
        out = tv.erase(out, *_box(size, rng.uniform(0.02, 0.2), 2.0, rng), colour)
    return out


def _box(
    size: list[int], area: float, ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a share `area` of an image, its aspect off by up to `ratio`."""
    h, w = size
    # Log-uniform in [1/√ratio, √ratio]: height/stretch times width·stretch keeps the area.
    stretch = math.exp(rng.uniform(-1, 1) * math.log(ratio) / 2)
    height = min(h, max(1, round(h * math.sqrt(area) / stretch)))
    width = min(w, max(1, round(w * math.sqrt(area) * stretch)))
    return int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1)), height, width
