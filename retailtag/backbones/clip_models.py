"""Backbones from open_clip: the image tower, with the text tower for `encode_text`."""

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

from retailtag.backbones.backbone import EncodeText, LoadedModel, Tower
from retailtag.backbones.blocks import layout_of
from retailtag.backbones.hub import Published
from retailtag.backbones.ids import BackboneId, nearest
from retailtag.backbones.preprocess import Preprocess, pair, triple, with_arguments
from retailtag.backbones.tensor_file import State
from retailtag.backbones.weights import Target, split_branch, weights_file
from retailtag.errors import DataError, Unavailable, UsageError
from retailtag.files import read_json

CONFIG_NAME = "open_clip_config.json"
_TEXT_BATCH = 256
_SHOWN_TAGS = 8
_NORMALISATION = ("mean", "std", "interpolation", "resize_mode")
# The scale and bias of the contrastive loss, and a buffer of older text models: no embedding
# depends on them.
_OPTIONAL = ("logit_scale", "logit_bias", "text.transformer.embeddings.position_ids")

# The smallest text tower that open_clip builds, for image towers that need none.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


class ClipTower(nn.Module):
    """The image tower of a CLIP model: (n, 3, h, w) to the projected embedding (n, dim)."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        if getattr(trunk, "output_tokens", False):
            trunk.output_tokens = False  # CoCa's tower returns its tokens beside the embedding

    def forward(self, x: Tensor) -> Tensor:
        """Projected embedding, not normalised to unit length."""
        embedding: Tensor = self.trunk(x)
        return embedding


def build(
    backbone_id: BackboneId, weights: Path | None, *, random_weights: bool = False
) -> LoadedModel:
    """Build an open_clip model and load its weights; see `factory.load_backbone`.

    The ``open_clip_config.json`` of a local folder decides architecture and preprocessing.
    """
    weights, branch = split_branch(weights)
    from_hub = weights is None and not random_weights
    folder = weights if weights is not None and (weights / CONFIG_NAME).is_file() else None
    stored = _folder_config(folder) if folder else {}
    if not stored:
        _check_known(backbone_id, needs_tag=from_hub)
    if weights is not None and not stored:
        _require_normalisation(backbone_id)
    tag = {} if stored else pretrained.get_pretrained_cfg(backbone_id.model, backbone_id.tag)
    path = published(backbone_id).fetch() if from_hub else weights and weights_file(weights)
    model, config = _create(backbone_id, stored, tag)
    note = _load(model, path, branch) if path is not None else ""
    if "size" in backbone_id.preprocess_args and hasattr(model.visual, "set_input_size"):
        # timm towers need the positions of their checkpoint's size until it is loaded
        model.visual.set_input_size(pair(backbone_id.preprocess_args["size"]))
    module, layout = _tower(model.visual)
    of_tag = {k: tag[k] for k in (*_NORMALISATION, "fill_color") if tag.get(k) is not None}
    config_of_images = {
        **asdict(open_clip.transform.PreprocessCfg()),
        **stored.get("preprocess_cfg", {}),
        **of_tag,
        "size": model.visual.image_size,
    }
    return LoadedModel(
        id=backbone_id,
        module=module,
        layout=layout,
        preprocess=with_arguments(from_open_clip(config_of_images), backbone_id),
        architecture={"library": "open_clip", "model": backbone_id.model, "args": config},
        output="encode_image, projected, not normalised",
        note=note,
        encode_text=_text_encoder(model, f"local-dir:{folder}" if folder else backbone_id.model),
    )


def tower(backbone_id: BackboneId, args: dict[str, Any], preprocess: Preprocess) -> Tower:
    """Module and blocks as `build` gives them, with untrained weights and without texts."""
    vision = {**args["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    model = open_clip.CustomTextCLIP(
        args["embed_dim"], vision, dict(_NO_TEXT), quick_gelu=bool(args.get("quick_gelu"))
    )
    if "size" in backbone_id.preprocess_args and hasattr(model.visual, "set_input_size"):
        model.visual.set_input_size(preprocess.size)
    return _tower(model.visual)


def _tower(visual: Any) -> Tower:
    layout = layout_of(visual)
    return ClipTower(visual), layout.under("trunk") if layout else None


def published(backbone_id: BackboneId) -> Published:
    """Where open_clip publishes the weights of an id."""
    _check_known(backbone_id, needs_tag=True)
    config = pretrained.get_pretrained_cfg(backbone_id.model, backbone_id.tag)
    repo, _, name = config.get("hf_hub", "").rpartition("/")
    name = name or "open_clip_pytorch_model.bin"
    # Repositories hold the same weights as safetensors, which are tried first.
    safe = ["open_clip_model.safetensors"] if name == "open_clip_pytorch_model.bin" else []
    if name.endswith((".bin", ".pth")):
        safe.append(f"{name[:-4]}.safetensors")
    return Published(str(backbone_id), repo, (*safe, name))


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


def from_open_clip(config: dict[str, Any]) -> Preprocess:
    """Preprocessing of an open_clip ``PreprocessCfg`` given as a dictionary."""
    size = pair(config["size"])
    mode = config["resize_mode"]
    interpolation = config["interpolation"]
    if mode == "shortest" and size[0] != size[1]:
        interpolation = "bicubic"  # open_clip ignores the setting for sizes that are not square
    fill = int(config.get("fill_color") or 0)
    return Preprocess(
        size=size,
        mode=mode,
        # at random in training only: open_clip evaluates such models with bicubic
        interpolation="bicubic" if interpolation == "random" else interpolation,
        mean=triple(config["mean"]),
        std=triple(config["std"]),
        fill=(fill, fill, fill),
    )


def _require_normalisation(backbone_id: BackboneId) -> None:
    """Refuse a file without configuration if open_clip's weights of the model differ in theirs."""
    if backbone_id.tag or {"mean", "std"} <= backbone_id.preprocess_args.keys():
        return
    tags = open_clip.list_pretrained_tags_by_model(backbone_id.model)
    configs = [pretrained.get_pretrained_cfg(backbone_id.model, tag) for tag in tags]
    seen = {str([c.get(k) for k in (*_NORMALISATION, "quick_gelu")]) for c in configs}
    if len(seen) > 1:
        raise UsageError(
            f"{backbone_id} does not say which preprocessing and activation its weights were "
            f"trained with, and open_clip's weights differ in that; write "
            f"open_clip:{backbone_id.model}/TAG with the tag that the weights derive from, or put "
            f"{CONFIG_NAME} beside them."
        )


def _folder_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG_NAME)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise DataError(
            f"{folder / CONFIG_NAME} has no model_cfg; use the file published with the weights."
        )
    return config


def _create(
    backbone_id: BackboneId, stored: dict[str, Any], tag: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Build the model and return it with its full configuration."""
    config = stored.get("model_cfg") or factory.get_model_config(backbone_id.model)
    config = {**config, **backbone_id.model_args}
    if tag.get("quick_gelu"):
        config["quick_gelu"] = True  # a fact of the weights that the model's name does not carry
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
        with _root_logger_unchanged():
            return kind(**kwargs)
    except (RuntimeError, OSError, ImportError) as error:
        if "hf_model_name" not in text:
            raise
        raise Unavailable(
            f"The text tower of {backbone_id} is {text['hf_model_name']}, which needs the package "
            f"transformers and that model's configuration ({error}); install and download them."
        ) from error
    except (TypeError, KeyError, AssertionError) as error:
        raise UsageError(f"open_clip cannot build {backbone_id}: {error}") from error


@contextmanager
def _root_logger_unchanged() -> Iterator[None]:
    """Keep open_clip's ``logging.info`` from configuring the root logger of the program."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _load(model: Any, path: Path, branch: str) -> str:
    target = Target(
        model,
        optional=lambda name: name in _OPTIONAL,
        convert=lambda state: _converted(model, state),
    )
    return target.load(path, branch)


def _converted(model: Any, state: State) -> State:
    """Apply open_clip's conversions: foreign names, older layouts, resized positions."""
    state = factory.convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    factory.resize_pos_embed(state, model)
    factory.resize_text_pos_embed(state, model)
    return state


def _text_encoder(model: Any, tokenizer_name: str) -> EncodeText:
    """Embed texts in batches; the text tower moves to the device when first used."""

    def encode(texts: list[str], device: torch.device) -> Tensor:
        """Embed texts on the device, float32 (n_texts, dim)."""
        tokenize = _tokenizer(tokenizer_name)
        model.to(device)  # the image tower is shared with the backbone and is there already
        for name, tower in model.named_children():
            if name != "visual":  # its mode belongs to the training that may be running
                tower.eval()
        with torch.inference_mode():
            batches = [
                model.encode_text(tokenize(texts[i : i + _TEXT_BATCH]).to(device))
                for i in range(0, len(texts), _TEXT_BATCH)
            ]
        return torch.cat(batches)

    return encode


def _tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    try:
        with _root_logger_unchanged():
            tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(name)
            return tokenizer
    except (OSError, ImportError) as error:
        raise Unavailable(
            f"The tokenizer of {name} needs the package transformers and files from the hub "
            f"({error}); install it and load the model once with a network."
        ) from error
