"""Backbone ids: scheme, model, weights tag and arguments, parsed without a model library."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retailtag.backbones.registry import FAMILIES, PRESETS
from retailtag.errors import UsageError

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]

PREPROCESS_KEYS = ("crop_mode", "crop_pct", "interpolation", "mean", "pool", "size", "std")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-/]*")
_KEY = re.compile(r"[a-z_][a-z0-9_]*")
_JOINT = re.compile(r"\s*\+\s*(?=[A-Za-z])")  # the plus sign of a number such as 1e+5 stays


@dataclass(frozen=True)
class BackboneId:
    """A parsed id; its text is canonical, so equal ids are equal strings.

    Arguments in `PREPROCESS_KEYS` override preprocessing and pooling, the others go to the model's
    constructor.
    """

    scheme: str  # key of `FAMILIES`
    model: str  # name within the library
    tag: str = ""  # which published weights; empty for the library's default
    args: tuple[tuple[str, Value], ...] = ()  # sorted by name

    def __str__(self) -> str:
        name = f"{self.scheme}:{self.model}"
        if self.tag:
            name += FAMILIES[self.scheme].tag_separator + self.tag
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
    """Components of ``A+B``, as written; the id itself where it names one backbone.

    Raises `UsageError` if a backbone is named twice.

    Examples
    --------
    >>> components_of("dinov2+clip"), components_of("timm:resnet50?std=1e+1")
    (('dinov2', 'clip'), ('timm:resnet50?std=1e+1',))
    """
    components = tuple(component.strip() for component in _JOINT.split(backbone_id))
    if len(components) > 1 and len(set(map(canonical, components))) < len(components):
        raise UsageError(f"Backbone {backbone_id} names a backbone twice; name each once.")
    return components


def canonical(backbone_id: str) -> str:
    """Id with presets expanded and arguments sorted, of one backbone or several (``A+B``).

    Examples
    --------
    >>> canonical("demo:cnn+timm:x?b=1&a=2")
    'demo:cnn+timm:x?a=2&b=1'
    """
    return "+".join(str(resolve_id(component)) for component in components_of(backbone_id))


def pretraining_of(backbone_id: str) -> str:
    """How the published weights of an id were trained; of ``A+B`` each way that occurs.

    ``supervised``, ``self-supervised`` or ``image-text`` by the names in the id; imported
    embeddings are a kind of their own. Local weights under the id may be anything.

    Examples
    --------
    >>> [pretraining_of(b) for b in ("cnn", "dinov2", "clip", "own:mine")]
    ['supervised', 'self-supervised', 'image-text', 'own:mine']
    >>> pretraining_of("dinov2+clip")
    'image-text + self-supervised'
    """
    ids = map(resolve_id, components_of(backbone_id))
    return " + ".join(sorted({FAMILIES[i.scheme].pretraining(i.model, i.tag) for i in ids}))


def resolve_id(backbone_id: str) -> BackboneId:
    """Parse an id, expanding presets; imports neither torch nor a model library.

    An id is ``timm:MODEL[.TAG]``, ``open_clip:MODEL[/TAG]``, ``demo:cnn|dino|clip`` or a preset,
    then, optionally, arguments as ``?name=value&name=value``. Raises `UsageError` if the scheme or
    preset is unknown (the nearest spelling is named) or the syntax is wrong. Whether the library
    knows the model is seen when it is loaded.

    Examples
    --------
    >>> str(resolve_id("timm:mobilenetv2_100?pad_type=same&mean=0.5"))
    'timm:mobilenetv2_100?mean=0.5&pad_type=same'
    >>> str(resolve_id("clip"))
    'open_clip:ViT-B-32/datacomp_xl_s13b_b90k'
    """
    if _JOINT.search(backbone_id):
        raise UsageError(
            f"Backbone {backbone_id} names several; only retailtag probe and bakeoff join the "
            "embeddings of several backbones, so name one backbone here."
        )
    head, _, query = backbone_id.strip().partition("?")
    if head in PRESETS:
        head, _, preset_query = PRESETS[head].partition("?")
        query = "&".join(filter(None, (preset_query, query)))
    scheme, colon, name = head.partition(":")
    family = FAMILIES.get(scheme) if colon else None
    if family is None:
        raise UsageError(_unknown(backbone_id, scheme, bool(colon)))
    if not _NAME.fullmatch(name):
        raise UsageError(f"Backbone {backbone_id} names no model; write {scheme}:MODEL.")
    model, tag = family.split_name(name)
    if family.models and model not in family.models:
        hint = nearest(model, list(family.models))
        raise UsageError(f"Backbone {backbone_id} is unknown; {hint}")
    args = _parse_args(backbone_id, query)
    for key, _ in args:
        if family.arguments and key not in family.arguments:
            hint = nearest(key, list(family.arguments))
            raise UsageError(f"Backbone {backbone_id}: {scheme} models take no {key}; {hint}")
    return BackboneId(scheme, model, tag, args)


def nearest(word: str, known: list[str]) -> str:
    """End of a message about an unknown word: the closest known one, or the first few."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known[:8])}."


def _unknown(backbone_id: str, scheme: str, has_colon: bool) -> str:
    known = [f"{s}:" for s in FAMILIES] if has_colon else list(PRESETS)
    hint = nearest(f"{scheme}:" if has_colon else scheme, known)
    what = "library" if has_colon else "preset"
    patterns = ", ".join(f"{scheme}:{family.pattern}" for scheme, family in FAMILIES.items())
    return (
        f"Backbone {backbone_id} has an unknown {what}; {hint} An id is {patterns} or a preset "
        f"({', '.join(PRESETS)})."
    )


def _parse_args(backbone_id: str, query: str) -> tuple[tuple[str, Value], ...]:
    args: dict[str, Value] = {}
    for argument in query.split("&") if query else []:
        key, equals, text = argument.partition("=")
        if not (equals and text and _KEY.fullmatch(key)):
            raise UsageError(f"Backbone {backbone_id}: write argument {argument!r} as name=value.")
        if key == "branch":
            raise UsageError(
                f"Backbone {backbone_id}: a branch belongs to the weights file; write --weights "
                f"FILE?branch={text}."
            )
        if key in args:
            raise UsageError(f"Backbone {backbone_id} gives {key} twice; keep one.")
        args[key] = _value(text)
    return tuple(sorted(args.items()))


def _value(text: str) -> Value:
    return tuple(map(_scalar, text.split(","))) if "," in text else _scalar(text)


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
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def local_weights(values: Sequence[str], backbones: Sequence[str]) -> dict[str, Path]:
    """Resolve ``--weights`` values to one path per backbone id, those of ``A+B`` one by one.

    Raises `UsageError` for a value without an id that was asked for, unless there is one alone.

    Examples
    --------
    >>> local_weights(["demo:cnn=a.safetensors"], ["demo:cnn+demo:clip"])
    {'demo:cnn': PosixPath('a.safetensors')}
    """
    found: dict[str, Path] = {}
    ids = list(dict.fromkeys(part for b in backbones for part in components_of(b)))
    for value in values:
        name = next((b for b in ids if value.startswith(f"{b}=")), None)
        if name is not None:
            found[name] = Path(value[len(name) + 1 :])
        elif len(ids) == 1 and not value.startswith(("timm:", "open_clip:", "demo:")):
            found[ids[0]] = Path(value)
        else:
            raise UsageError(
                f"--weights {value} names none of the backbones {', '.join(ids)}; "
                "write --weights ID=PATH with one of these ids."
            )
    return found
