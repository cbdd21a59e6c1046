"""Backbones from open_clip: the image tower is the backbone, the text tower comes along."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory, pretrained
from torch import Tensor, nn

from retailtag.backbones.backbone import EncodeText, LoadedModel
from retailtag.backbones.blocks import layout_of
from retailtag.backbones.hub import Published
from retailtag.backbones.ids import BackboneId, nearest
from retailtag.backbones.preprocess import from_open_clip, override, pair
from retailtag.backbones.weights import State, fit_state, read_state, weights_file
from retailtag.errors import DataError, Unavailable, UsageError
from retailtag.files import read_json

CONFIG_NAME = "open_clip_config.json"
_TEXT_BATCH = 256
_SHOWN_TAGS = 8
_NORMALISATION = ("mean", "std", "interpolation", "resize_mode")
# scales of the contrastive loss and a buffer of older text models: no part of an embedding
_SPARE = ("logit_scale", "logit_bias", "text.transformer.embeddings.position_ids")


class ClipTower(nn.Module):
    """The image tower of a CLIP model: (n, 3, h, w) to the projected embedding (n, dim)."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        if getattr(trunk, "output_tokens", False):
            trunk.output_tokens = False  # CoCa also returns tokens; the embedding is the pooled one

    def forward(self, x: Tensor) -> Tensor:
        """Projected image embedding, not normalised to unit length."""
        embedding: Tensor = self.trunk(x)
        return embedding


def build(
    backbone_id: BackboneId, weights: Path | None, *, random_weights: bool = False
) -> LoadedModel:
    """Build an open_clip model and load its weights.

    Parameters
    ----------
    backbone_id : BackboneId
        With scheme ``open_clip``.
    weights : Path or None
        Local file, or folder (``open_clip_config.json`` is followed if it is there and decides
        architecture and preprocessing); None fetches the published weights.
    random_weights : bool
        Leave the initial values.

    Raises
    ------
    UsageError
        If open_clip does not know the model, tag or an argument.
    DataError
        If the weights do not fit.
    Unavailable
        If they cannot be downloaded, or the text tower needs a library or files not here.
    """
    from_hub = weights is None and not random_weights
    folder = weights if weights is not None and (weights / CONFIG_NAME).is_file() else None
    stored = _folder_config(folder) if folder else {}
    if not stored:
        _check_known(backbone_id, needs_tag=from_hub)
    if weights is not None and not stored:
        _need_normalisation(backbone_id)
    tag = {} if stored else pretrained.get_pretrained_cfg(backbone_id.model, backbone_id.tag)
    path = published(backbone_id).fetch() if from_hub else weights and weights_file(weights)
    model, config = _create(backbone_id, stored, tag)
    if path is not None:
        _load(model, path)
    if "size" in backbone_id.preprocess_args and hasattr(model.visual, "set_input_size"):
        # timm towers keep the positions of their checkpoint until it is loaded
        model.visual.set_input_size(pair(backbone_id.preprocess_args["size"]))
    layout = layout_of(model.visual)
    base = {**_preprocess_defaults(), **stored.get("preprocess_cfg", {}), **_preprocess_of(tag)}
    return LoadedModel(
        id=backbone_id,
        module=ClipTower(model.visual),
        layout=layout.under("trunk") if layout else None,
        preprocess=override(from_open_clip({**base, "size": model.visual.image_size}), backbone_id),
        architecture={"library": "open_clip", "model": backbone_id.model, "args": config},
        output="encode_image, projected, not normalised",
        encode_text=_text_encoder(model, f"local-dir:{folder}" if folder else backbone_id.model),
    )


def published(backbone_id: BackboneId) -> Published:
    """Where open_clip publishes the weights of an id.

    Raises
    ------
    UsageError
        If open_clip does not know the model or tag.
    """
    _check_known(backbone_id, needs_tag=True)
    config = pretrained.get_pretrained_cfg(backbone_id.model, backbone_id.tag)
    repo, _, name = config.get("hf_hub", "").rpartition("/")
    name = name or "open_clip_pytorch_model.bin"
    safe = ["open_clip_model.safetensors"] if name == "open_clip_pytorch_model.bin" else []
    if name.endswith((".bin", ".pth")):
        safe.append(f"{name[:-4]}.safetensors")
    return Published(str(backbone_id), repo, (*safe, name), config.get("url", ""))


def _check_known(backbone_id: BackboneId, *, needs_tag: bool) -> None:
    model, tag = backbone_id.model, backbone_id.tag
    models = open_clip.list_models()
    if model not in models:
        raise UsageError(f"open_clip has no model {model}; {nearest(model, models)}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and not pretrained.is_pretrained_cfg(model, tag):
        raise UsageError(f"open_clip has no weights {tag} for {model}; {nearest(tag, tags)}")
    if needs_tag and not tags:
        raise UsageError(f"open_clip publishes no weights for {model}; give --weights.")
    if needs_tag and not tag:
        raise UsageError(
            f"{backbone_id} does not say which weights; write open_clip:{model}/TAG with one of "
            f"{', '.join(tags[:_SHOWN_TAGS])}{' ...' if len(tags) > _SHOWN_TAGS else '.'}"
        )


def _need_normalisation(backbone_id: BackboneId) -> None:
    """Refuse a bare file where open_clip's own weights of the model disagree on preprocessing."""
    if backbone_id.tag or {"mean", "std"} <= backbone_id.preprocess_args.keys():
        return
    tags = open_clip.list_pretrained_tags_by_model(backbone_id.model)
    configs = [pretrained.get_pretrained_cfg(backbone_id.model, tag) for tag in tags]
    seen = {str([c.get(k) for k in (*_NORMALISATION, "quick_gelu")]) for c in configs}
    if len(seen) > 1:
        raise UsageError(
            f"{backbone_id} does not say which preprocessing and activation its weights were "
            f"trained with, and open_clip's differ; write open_clip:{backbone_id.model}/TAG with "
            f"the tag they derive from, or put {CONFIG_NAME} beside the weights."
        )


def _folder_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG_NAME)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise DataError(
            f"{folder / CONFIG_NAME} has no model_cfg; take the file published beside the weights."
        )
    return config


def _create(
    backbone_id: BackboneId, stored: dict[str, Any], tag: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Build the model; returns it and its full configuration."""
    config = stored.get("model_cfg") or factory.get_model_config(backbone_id.model)
    config = {**config, **backbone_id.model_args}
    if tag.get("quick_gelu"):
        config["quick_gelu"] = True  # the activation belongs to the weights, whatever the name says
    if "size" in backbone_id.preprocess_args:
        h, w = pair(backbone_id.preprocess_args["size"])
        vision = {**config["vision_cfg"], "image_size": h if h == w else (h, w)}
        config["vision_cfg"] = vision
    if "pool" in backbone_id.preprocess_args:
        raise UsageError(f"{backbone_id}: open_clip models have one pooling; drop pool=.")
    return _instantiate(backbone_id, config), config


def _instantiate(backbone_id: BackboneId, config: dict[str, Any]) -> Any:
    kwargs = {k: v for k, v in config.items() if k != "custom_text"}
    text = config.get("text_cfg", {})
    kind = open_clip.CLIP
    if config.get("custom_text") or "hf_model_name" in text:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    if "hf_model_name" in text:
        kwargs["text_cfg"] = {**text, "hf_model_pretrained": False}
    if "timm_model_name" in config.get("vision_cfg", {}):
        kwargs["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    try:
        with _library_log_apart():
            return kind(**kwargs)
    except (RuntimeError, OSError, ImportError) as error:
        if "hf_model_name" not in text:
            raise
        raise Unavailable(
            f"The text tower of {backbone_id} is {text['hf_model_name']} and needs the package "
            f"transformers and that model's configuration ({error}); install and download them."
        ) from error
    except (TypeError, KeyError, AssertionError) as error:
        raise UsageError(f"open_clip cannot build {backbone_id}: {error}") from error


@contextmanager
def _library_log_apart() -> Iterator[None]:
    """Keep open_clip's calls of ``logging.info`` from configuring the program's root logger."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _preprocess_defaults() -> dict[str, Any]:
    return asdict(open_clip.transform.PreprocessCfg())


def _preprocess_of(tag: dict[str, Any]) -> dict[str, Any]:
    return {k: tag[k] for k in (*_NORMALISATION, "fill_color") if tag.get(k) is not None}


def _load(model: Any, path: Path) -> None:
    state = _converted(model, read_state(path))
    fit_state(model, state, path, spare=lambda name: name in _SPARE)


def _converted(model: Any, state: State) -> State:
    """Apply open_clip's own conversions: foreign names, older layouts, resized positions."""
    state = factory.convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    factory.resize_pos_embed(state, model)
    factory.resize_text_pos_embed(state, model)
    return state


def _text_encoder(model: Any, tokenizer_name: str) -> EncodeText:
    """Texts to embeddings in batches; the text tower moves to the device when first used."""

    def encode(texts: list[str], device: torch.device) -> Tensor:
        """Embed texts on the device, float32 (n_texts, dim)."""
        tokenize = _tokenizer(tokenizer_name)
        model.to(device)  # the image tower, which is shared, is there already
        for name, part in model.named_children():
            if name != "visual":  # keeps whatever mode training left it in
                part.eval()
        with torch.inference_mode():
            parts = [
                model.encode_text(tokenize(texts[i : i + _TEXT_BATCH]).to(device))
                for i in range(0, len(texts), _TEXT_BATCH)
            ]
        return torch.cat(parts)

    return encode


def _tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    try:
        with _library_log_apart():
            tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(name)
            return tokenizer
    except (OSError, ImportError) as error:
        raise Unavailable(
            f"The tokenizer of {name} needs the package transformers and files from the hub "
            f"({error}); install it and load the model once with a network."
        ) from error
