"""Resize and crop decoded images to the uint8 pixels that a model was trained on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from retailtag.backbones.ids import BackboneId
from retailtag.backbones.resize import INTERPOLATIONS, Pixels, arithmetic, centre, scale
from retailtag.errors import UsageError
from retailtag.files import parse_json
from retailtag.images.decode import DECODE_POLICY, TRUNCATED_ACCEPTED
from retailtag.store.spec import FeatureSpec, canonical_json

Triple = tuple[float, float, float]

MAX_SIDE = 4096  # pixels of the scaled image, against ids that would exhaust the memory
MODES = ("shortest", "squash", "longest")
CROP_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}


@dataclass(frozen=True)
class Preprocess:
    """Resize and crop of one model, and the normalisation, which the device applies later.

    Mode ``shortest`` scales the shorter side to ``size / crop_pct`` and crops the centre.
    ``squash`` scales both sides to ``size / crop_pct``, whatever the aspect ratio, and crops the
    centre. ``longest`` fits the whole image and adds a border of `fill`.

    Sizes, crops and borders equal those of ``timm.data.create_transform`` and
    ``open_clip.image_transform`` with torchvision's Pillow backend. With bilinear and bicubic,
    which PyTorch computes (`retailtag.backbones.resize`), pixels differ by at most 2 of 255 and by
    under 0.05 on average; with the other filters they are equal.
    """

    size: tuple[int, int]  # height and width of the result, pixels
    mode: str = "shortest"
    crop_pct: float = 1.0  # fraction of the scaled side that the crop keeps, in (0, 1]
    interpolation: str = "bicubic"  # key of `INTERPOLATIONS`
    mean: Triple = (0.5, 0.5, 0.5)  # (pixel / 255 - mean) / std per channel, red first
    std: Triple = (0.5, 0.5, 0.5)
    fill: tuple[int, int, int] = (0, 0, 0)  # colour of a border, 0 to 255

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"Image size {self.size} is not a positive height and width.")
        if self.mode not in MODES:
            raise UsageError(f"Resize mode {self.mode} is unknown; use one of {', '.join(MODES)}.")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"Interpolation {self.interpolation} is unknown; use one of "
                f"{', '.join(INTERPOLATIONS)}."
            )
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"crop_pct {self.crop_pct} is not in (0, 1].")
        if max(self.size) / self.crop_pct > MAX_SIDE:
            raise UsageError(
                f"Image size {self.size} at crop_pct {self.crop_pct} is more than {MAX_SIDE} "
                "pixels per side; give a smaller size."
            )
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise UsageError("mean and std need one finite value per channel, and std above 0.")

    def __call__(self, image: Image.Image) -> Pixels:
        """Resize and crop one RGB image of any size to uint8 (3, h, w)."""
        return self.of_pixels(np.asarray(image))

    def of_pixels(self, pixels: Pixels) -> Pixels:
        """Resize and crop decoded RGB pixels (any, any, 3) to uint8 (3, h, w), a copy."""
        height, width = pixels.shape[:2]
        scaled = scale(pixels, self._scaled(width, height), self.interpolation)
        return centre(scaled, self.size, self.fill)

    @property
    def target(self) -> tuple[int, int]:
        """Height and width that the mode scales to, before the crop."""
        h, w = self.size
        return math.floor(h / self.crop_pct), math.floor(w / self.crop_pct)

    @property
    def same_pixels(self) -> Preprocess:
        """Without the normalisation: two that are equal here give the same pixels."""
        return replace(self, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def to_json(self) -> str:
        """Every fact that changes the pixels, the decoder's policy included, as canonical JSON."""
        facts = {
            "antialias": True,
            "resize": arithmetic(self.interpolation),
            "decode": DECODE_POLICY,
        }
        return canonical_json(asdict(self) | facts)

    def _scaled(self, w: int, h: int) -> tuple[int, int]:
        """Width and height after scaling (Pillow's order)."""
        target_h, target_w = self.target
        if self.mode == "squash":
            return target_w, target_h
        if self.mode == "shortest" and target_h == target_w:
            # torchvision's Resize, which timm and open_clip take for square sizes, truncates the
            # longer side; their own resize for other sizes rounds it
            if w <= h:
                return target_w, int(target_w * h / w)
            return int(target_h * w / h), target_h
        pick = min if self.mode == "shortest" else max
        ratio = pick(h / target_h, w / target_w)
        return max(round(w / ratio), 1), max(round(h / ratio), 1)


def with_truncated(spec: FeatureSpec) -> FeatureSpec:
    """Identity of the same embeddings when truncated JPEG files are accepted."""
    facts = parse_json(spec.preprocessing)
    facts["decode"] = {**facts.get("decode", {}), "truncated": TRUNCATED_ACCEPTED}
    return replace(spec, preprocessing=canonical_json(facts))


def accepts_truncated(spec: FeatureSpec) -> bool:
    """Whether an identity comes from `with_truncated`; False if it does not say."""
    try:
        return with_truncated(spec) == spec
    except (ValueError, TypeError, AttributeError):
        return False


def with_arguments(base: Preprocess, backbone_id: BackboneId) -> Preprocess:
    """Apply the arguments of an id; `UsageError`, naming it, for a value that cannot be used."""
    args = backbone_id.preprocess_args
    try:
        changes: dict[str, Any] = {k: triple(args[k]) for k in ("mean", "std") if k in args}
        if "size" in args:
            changes["size"] = pair(args["size"])
        if "crop_pct" in args:
            changes["crop_pct"] = float(args["crop_pct"])
        if "interpolation" in args:
            changes["interpolation"] = str(args["interpolation"])
        if "crop_mode" in args:
            changes["mode"] = CROP_MODES.get(args["crop_mode"], str(args["crop_mode"]))
        return replace(base, **changes)
    except (UsageError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"Backbone {backbone_id}: {error}") from error


def triple(value: Any) -> Triple:
    """One value per channel from one value or three."""
    values = [float(v) for v in value] if isinstance(value, list | tuple) else [float(value)]
    if len(values) not in (1, 3):
        raise UsageError(f"{value} is neither one value nor three.")
    r, g, b = values if len(values) == 3 else values * 3
    return r, g, b


def pair(value: Any) -> tuple[int, int]:
    """Height and width from one side or two."""
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    if len(values) not in (1, 2):
        raise UsageError(f"{value} is neither one side nor height and width.")
    return values[0], values[-1]
