"""What a backbone id may say: library, model, weights tag, arguments, presets."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from retailtag.errors import UsageError

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]

PRESETS = {
    "cnn": "timm:resnet50.tv_in1k",
    "dinov2": "timm:vit_small_patch14_dinov2.lvd142m?img_size=224",
    "clip": "open_clip:ViT-B-32/datacomp_xl_s13b_b90k",
}
"""One backbone per family at comparable cost, small enough for an NVIDIA T4.

======  =======================  ============  ==========  ====  ======================
preset  image model              GFLOP/image   parameters  dim   pretraining
======  =======================  ============  ==========  ====  ======================
cnn     ResNet-50 at 224                  8.2      23.5 M  2048  ImageNet-1k labels
dinov2  ViT-S/14 at 224                  12.2      21.6 M   384  self-supervised
clip    ViT-B/32 at 224                   8.8      87.8 M   512  image-text contrastive
======  =======================  ============  ==========  ====  ======================

A multiply-add counts as two operations; `retailtag.backbones.cost` computes the table. ResNet-50
is taken in its plain softmax recipe: recipes with binary losses, mixing and label smoothing gain
ImageNet accuracy and lose linear transfer [1]_, which would settle the probe's comparison
beforehand. DINOv2 runs at 224 instead of its 518: a fifth of the tokens. CLIP's weights are
DataComp's, which at this architecture have the best zero-shot accuracy of the published ones [2]_.

References
----------
.. [1] Kornblith, Chen, Lee, Norouzi: Why Do Better Loss Functions Lead to Less Transferable
   Features? NeurIPS 2021.
.. [2] Gadre et al.: DataComp: In search of the next generation of multimodal datasets.
   NeurIPS 2023.
"""

SCHEMES = ("timm", "open_clip", "demo")
DEMOS = ("cnn", "dino", "clip")
PREPROCESS_KEYS = ("crop_mode", "crop_pct", "interpolation", "mean", "pool", "size", "std")
DEMO_KEYS = tuple(key for key in PREPROCESS_KEYS if key != "pool")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-/]*")
_KEY = re.compile(r"[a-z_][a-z0-9_]*")
_JOINT = re.compile(r"\s*\+\s*(?=[A-Za-z])")  # the plus sign of a number such as 1e+5 stays


@dataclass(frozen=True)
class BackboneId:
    """A parsed id; its text is canonical, so equal ids are equal strings.

    Parameters
    ----------
    scheme : str
        ``timm``, ``open_clip`` or ``demo``.
    model : str
        Model name within the library.
    tag : str
        Which published weights, empty for the library's default.
    args : tuple of (str, value), sorted by name
        Arguments of the id. Those of `PREPROCESS_KEYS` override preprocessing and pooling, the
        others go to the model's constructor.
    """

    scheme: str
    model: str
    tag: str = ""
    args: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        joint = {"timm": ".", "open_clip": "/", "demo": ""}[self.scheme]
        name = f"{self.scheme}:{self.model}" + (f"{joint}{self.tag}" if self.tag else "")
        query = "&".join(f"{key}={_text(value)}" for key, value in self.args)
        return f"{name}?{query}" if query else name

    @property
    def preprocess_args(self) -> dict[str, Any]:
        """Arguments that override preprocessing and pooling."""
        return {k: v for k, v in self.args if k in PREPROCESS_KEYS}

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments of the model's constructor."""
        return {k: v for k, v in self.args if k not in PREPROCESS_KEYS}


def components_of(backbone_id: str) -> tuple[str, ...]:
    """Ids that stand side by side in ``A+B``, as given; one for the id of one backbone.

    Raises
    ------
    UsageError
        If one is named twice.

    Examples
    --------
    >>> components_of("dinov2+clip"), components_of("timm:resnet50?std=1e+1")
    (('dinov2', 'clip'), ('timm:resnet50?std=1e+1',))
    """
    parts = tuple(part.strip() for part in _JOINT.split(backbone_id))
    if len({str(resolve_id(part)) for part in parts} if len(parts) > 1 else parts) < len(parts):
        raise UsageError(f"Backbone {backbone_id} names a backbone twice; name each once.")
    return parts


def canonical(backbone_id: str) -> str:
    """Id with presets expanded and arguments sorted, of one backbone or several (``A+B``).

    Examples
    --------
    >>> canonical("demo:cnn+timm:x?b=1&a=2")
    'demo:cnn+timm:x?a=2&b=1'
    """
    return "+".join(str(resolve_id(part)) for part in components_of(backbone_id))


def resolve_id(backbone_id: str) -> BackboneId:
    """Parse an id, expanding presets; imports neither torch nor a model library.

    Parameters
    ----------
    backbone_id : str
        ``timm:MODEL[.TAG]``, ``open_clip:MODEL[/TAG]``, ``demo:cnn|dino|clip`` or a preset, with
        optional arguments ``?name=value&name=value``.

    Raises
    ------
    UsageError
        If the scheme or preset is unknown (the nearest spelling is named) or the syntax is wrong.
        Whether the library knows the model is seen when it is loaded.

    Examples
    --------
    >>> str(resolve_id("timm:mobilenetv2_100?pad_type=same&mean=0.5"))
    'timm:mobilenetv2_100?mean=0.5&pad_type=same'
    >>> str(resolve_id("clip"))
    'open_clip:ViT-B-32/datacomp_xl_s13b_b90k'
    """
    if _JOINT.search(backbone_id):
        raise UsageError(
            f"Backbone {backbone_id} is several: only the embeddings of extracted backbones stand "
            "side by side, in retailtag probe and bakeoff; name one backbone here."
        )
    head, _, query = backbone_id.strip().partition("?")
    if head in PRESETS:
        head, _, preset_query = PRESETS[head].partition("?")
        query = "&".join(part for part in (preset_query, query) if part)
    scheme, colon, name = head.partition(":")
    if not colon or scheme not in SCHEMES:
        raise UsageError(_unknown(backbone_id, scheme, bool(colon)))
    if not _NAME.fullmatch(name):
        raise UsageError(f"Backbone {backbone_id} names no model; write {scheme}:MODEL.")
    model, tag = _split_tag(scheme, name)
    args = _parse_args(backbone_id, query)
    if scheme == "demo" and (odd := [key for key, _ in args if key not in DEMO_KEYS]):
        hint = nearest(odd[0], list(DEMO_KEYS))
        raise UsageError(f"Backbone {backbone_id}: demo models take no {odd[0]}; {hint}")
    return BackboneId(scheme, model, tag, args)


def nearest(word: str, known: list[str]) -> str:
    """Finish a sentence about an unknown word: the closest known ones."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known[:8])}."


def _unknown(backbone_id: str, scheme: str, has_colon: bool) -> str:
    known = [f"{s}:" for s in SCHEMES] if has_colon else list(PRESETS)
    hint = nearest(f"{scheme}:" if has_colon else scheme, known)
    what = "library" if has_colon else "preset"
    return (
        f"Backbone {backbone_id} has an unknown {what}; {hint} An id is timm:MODEL.TAG, "
        f"open_clip:MODEL/TAG, demo:NAME or a preset ({', '.join(PRESETS)})."
    )


def _split_tag(scheme: str, name: str) -> tuple[str, str]:
    if scheme == "timm":
        model, _, tag = name.partition(".")
        return model, tag
    if scheme == "open_clip":
        model, _, tag = name.rpartition("/") if "/" in name else (name, "", "")
        return model.replace("/", "-"), tag
    if name not in DEMOS:
        raise UsageError(f"Backbone demo:{name} is unknown; {nearest(name, list(DEMOS))}")
    return name, ""


def _parse_args(backbone_id: str, query: str) -> tuple[tuple[str, Value], ...]:
    args: dict[str, Value] = {}
    for part in query.split("&") if query else []:
        key, equals, text = part.partition("=")
        if not (equals and text and _KEY.fullmatch(key)):
            raise UsageError(f"Backbone {backbone_id}: write the argument {part!r} as name=value.")
        if key in args:
            raise UsageError(f"Backbone {backbone_id} gives {key} twice; keep one.")
        args[key] = _value(text)
    return tuple(sorted(args.items()))


def _value(text: str) -> Value:
    return tuple(_scalar(part) for part in text.split(",")) if "," in text else _scalar(text)


def _scalar(text: str) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        return ",".join(_text(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
