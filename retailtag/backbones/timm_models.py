"""Backbones from timm: architecture, preprocessing and weights."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import timm.data
import timm.models
from torch import Tensor, nn

from retailtag.backbones.backbone import LoadedModel, Tower
from retailtag.backbones.blocks import layout_of
from retailtag.backbones.hub import Published
from retailtag.backbones.ids import BackboneId, nearest
from retailtag.backbones.preprocess import (
    CROP_MODES,
    Preprocess,
    Triple,
    pair,
    triple,
    with_arguments,
)
from retailtag.backbones.tensor_file import State
from retailtag.backbones.weights import Target, split_branch, weights_file
from retailtag.errors import DataError, UsageError
from retailtag.files import read_json

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_CONFIG_KEYS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "classifier")
# Arguments of timm.create_model that read files or ask the hub.
_READING = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_strict"}
_BUILD_ERRORS = (TypeError, ValueError, AssertionError, RuntimeError, KeyError)


class TimmTower(nn.Module):
    """A timm model up to the layer before its classifier: (n, 3, h, w) to (n, dim)."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """Features, pooled as the model pools them, before the classifier."""
        pooled: Tensor = self.trunk.forward_head(self.trunk.forward_features(x), pre_logits=True)
        return pooled


def build(
    backbone_id: BackboneId, weights: Path | None, *, random_weights: bool = False
) -> LoadedModel:
    """Build a timm model and load its weights; see `retailtag.backbones.factory.load_backbone`.

    The ``config.json`` of a local folder in timm's hub format is followed; of Hugging Face's own
    models mean and standard deviation in ``preprocessor_config.json``.
    """
    weights, branch = split_branch(weights)
    from_hub = weights is None and not random_weights
    backbone_id = _known(backbone_id, default_tag=from_hub)
    config = _folder_config(backbone_id, weights)
    args = {**config.get("model_args", {}), **backbone_id.model_args}
    if weights is not None and not config:
        _require_normalisation(backbone_id)
    path = published(backbone_id).fetch() if from_hub else weights and weights_file(weights)
    trunk = _create(backbone_id, args, config.get("pretrained_cfg", {}))
    note = _load(trunk, path, branch) if path is not None else ""
    module, layout = _tower(trunk)
    return LoadedModel(
        id=backbone_id,
        module=module,
        layout=layout,
        preprocess=_preprocess(backbone_id, trunk),
        architecture={"library": "timm", "model": backbone_id.model, "args": args},
        output=f"forward_head(pre_logits=True), pool={_pool_name(trunk)}",
        note=note,
    )


def tower(backbone_id: BackboneId, args: dict[str, Any], preprocess: Preprocess) -> Tower:
    """Module and blocks as `build` gives them, with untrained weights."""
    if reads := _READING.intersection(args):
        raise UsageError(f"an architecture has no argument {min(reads)}")
    # models of a fixed input size take it from their configuration
    return _tower(_create(backbone_id, args, {"input_size": (3, *preprocess.size)}))


def _tower(trunk: Any) -> Tower:
    layout = layout_of(trunk)
    return TimmTower(trunk), layout.under("trunk") if layout else None


def licence(backbone_id: BackboneId) -> str:
    """Licence of the published weights, as timm states it; empty if it does not."""
    config = timm.models.get_pretrained_cfg(_timm_name(backbone_id), allow_unregistered=True)
    stated = getattr(config, "license", None)
    return "" if stated in (None, "unknown") else f"{stated}, as timm states"


def published(backbone_id: BackboneId) -> Published:
    """Where timm publishes the weights of an id."""
    backbone_id = _known(backbone_id, default_tag=True)
    config = timm.models.get_pretrained_cfg(_timm_name(backbone_id))
    if not config.hf_hub_id:
        remedy = f"download {config.url}" if config.url else "add a tag to the id"
        raise UsageError(
            f"timm publishes no weights for {backbone_id} on the Hugging Face hub; {remedy}, or "
            "give --weights FILE."
        )
    name = config.hf_hub_filename
    return Published(str(backbone_id), config.hf_hub_id, (name,) if name else _HUB_FILES)


def _known(backbone_id: BackboneId, *, default_tag: bool) -> BackboneId:
    """Check model and tag against timm's registry; fill in timm's default tag on request."""
    model, tag = backbone_id.model, backbone_id.tag
    if not timm.is_model(model):
        raise UsageError(f"timm has no model {model}; {nearest(model, timm.list_models())}")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise UsageError(f"timm has no weights {tag} for {model}; {nearest(tag, tags)}")
    if default_tag and not tag:
        tag = getattr(timm.models.get_pretrained_cfg(model), "tag", None) or ""
    return replace(backbone_id, tag=tag)


def _timm_name(backbone_id: BackboneId) -> str:
    return backbone_id.model + (f".{backbone_id.tag}" if backbone_id.tag else "")


def _folder_config(backbone_id: BackboneId, weights: Path | None) -> dict[str, Any]:
    """The model_args and the known keys of pretrained_cfg in ``config.json`` beside weights."""
    if weights is None or not (weights / "config.json").is_file():
        return {}
    config = read_json(weights / "config.json")
    if isinstance(config, dict) and "model_type" in config and "architecture" not in config:
        return _hugging_face_config(weights)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if architecture != backbone_id.model:
        raise DataError(
            f"{weights / 'config.json'} describes {architecture or 'no timm architecture'}, not "
            f"{backbone_id.model}; use timm:{architecture or 'MODEL'} or other weights."
        )
    stored = config.get("pretrained_cfg", config)
    model_args = config.get("model_args", {})
    if not isinstance(stored, dict) or not isinstance(model_args, dict):
        raise DataError(
            f"{weights / 'config.json'}: pretrained_cfg and model_args must be objects; use the "
            "file published with the weights."
        )
    args = {k: v for k, v in model_args.items() if k != "num_classes"}
    known = {k: stored[k] for k in _CONFIG_KEYS if k in stored}
    for name, value in known.items():
        # timm takes its default in place of a 0, an empty value or a mode that it does not know.
        odd_text = name in ("interpolation", "crop_mode") and not isinstance(value, str)
        if value is not None and (not value or odd_text):
            raise DataError(
                f"{weights / 'config.json'}: {name} is {value!r}, which cannot be followed; use "
                "the file published with the weights."
            )
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    return {"model_args": args, "pretrained_cfg": known}


def _hugging_face_config(weights: Path) -> dict[str, Any]:
    """Normalisation of a model that Hugging Face's own library wrote; empty if it is not stored."""
    place = weights / "preprocessor_config.json"
    stored = read_json(place) if place.is_file() else {}
    found = {
        name: tuple(stored[f"image_{name}"])
        for name in ("mean", "std")
        if f"image_{name}" in stored
    }
    return {"pretrained_cfg": found} if found else {}


def _create(backbone_id: BackboneId, args: dict[str, Any], overlay: dict[str, Any]) -> Any:
    """Build without a classifier, with the input size and pooling of the id."""
    chosen = backbone_id.preprocess_args
    config = timm.models.get_pretrained_cfg(_timm_name(backbone_id))
    # Other models take any size; these need it for their position embeddings or windows.
    if "size" in chosen and getattr(config, "fixed_input_size", False):
        args = {"img_size": pair(chosen["size"]), **args}
    try:
        model = timm.create_model(
            _timm_name(backbone_id), num_classes=0, pretrained_cfg_overlay=overlay or None, **args
        )
        if "pool" in chosen:
            model.reset_classifier(0, str(chosen["pool"]))
        return model
    except _BUILD_ERRORS as error:
        if not (args or "pool" in chosen):
            raise
        raise UsageError(f"timm cannot build {backbone_id}: {error}") from error


def _preprocess(backbone_id: BackboneId, trunk: Any) -> Preprocess:
    config = dict(timm.data.resolve_model_data_config(trunk))
    if "img_size" in backbone_id.model_args:
        config["input_size"] = (3, *pair(backbone_id.model_args["img_size"]))
    chosen = with_arguments(from_timm(config), backbone_id)
    # the colour of a border follows the mode and mean that the id may have changed
    return replace(chosen, fill=_fill(chosen.mode, chosen.mean))


def from_timm(config: dict[str, Any]) -> Preprocess:
    """Preprocessing of timm's resolved data configuration (see ``resolve_data_config``)."""
    mean = triple(config["mean"])
    mode = CROP_MODES.get(config["crop_mode"], "shortest")
    return Preprocess(
        size=pair(config["input_size"][-2:]),
        mode=mode,
        crop_pct=float(config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=mean,
        std=triple(config["std"]),
        fill=_fill(mode, mean),
    )


def _fill(mode: str, mean: Triple) -> tuple[int, int, int]:
    """Border colour of timm: the mean, so that a border is zero after normalisation."""
    r, g, b = (round(255 * v) for v in mean) if mode == "longest" else (0, 0, 0)
    return r, g, b


def _require_normalisation(backbone_id: BackboneId) -> None:
    """Refuse a file without configuration if timm's weights of the model differ in mean or std."""
    if backbone_id.tag or {"mean", "std"} <= backbone_id.preprocess_args.keys():
        return
    configs = [
        timm.models.get_pretrained_cfg(name)
        for name in timm.list_pretrained(f"{backbone_id.model}.*")
    ]
    if len({(tuple(c.mean), tuple(c.std)) for c in configs}) > 1:
        raise UsageError(
            f"{backbone_id} does not say how its images are normalised, and timm's weights of this "
            "model differ in that; add the tag that the weights derive from or ?mean=...&std=... "
            "to the id, or put timm's config.json beside the weights."
        )


def _load(trunk: Any, path: Path, branch: str) -> str:
    classifiers = trunk.pretrained_cfg.get("classifier") or ()  # two names if it was distilled
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    prefixes = tuple(f"{name}." for name in names)
    target = Target(
        trunk,
        optional=lambda name: name.startswith(prefixes),
        convert=lambda state: _converted(trunk, state),
    )
    return target.load(path, branch)


def _converted(trunk: Any, state: State) -> State:
    """Apply timm's conversion for this family: foreign names, position embeddings resized."""
    # timm keeps it as a function of the model's module and exports no way to ask for it
    home = vars(sys.modules[type(trunk).__module__])
    names = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
    convert = next((home[name] for name in names if name in home), None)
    if convert is None:
        return state
    takes_model = len(inspect.signature(convert).parameters) > 1
    converted: State = convert(state, trunk) if takes_model else convert(state)
    return converted


def _pool_name(trunk: Any) -> str:
    """Name of the pooling, such as ``token``, ``avg`` or ``map``."""
    for holder in (trunk, getattr(trunk, "head", None)):
        pool = getattr(holder, "global_pool", None)
        name = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
        if name:
            return str(name)
    return "default"
