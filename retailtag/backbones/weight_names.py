"""Other libraries' names of the same tensors, renamed; query, key and value are fused into one.

Each conversion is pure renaming, up to fusing and to the shape of a token's embedding, so that a
converted file embeds as the plain one does. A name that no rule knows stays, and the model then
refuses the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from retailtag.backbones.tensor_file import State

Rules = Sequence[tuple[str, str]]

_FUSED = re.compile(r"(.*\.attn\.)(q|k|v)\.(weight|bias)")
_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")

_HF_VIT: Rules = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.", ""),  # tokens: of the class, of masks, registers
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.([qkv])(?:uery|ey|alue)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.(?:intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.weights_out)\.", ".mlp.fc2."),
)
_HF_CLIP: Rules = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"visual.transformer.resblocks.\1."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_TORCHVISION_VIT: Rules = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)


def _from_hf_vit(state: State) -> State | None:
    """Hugging Face's ViT, DeiT and Dinov2, in timm's names."""
    if "embeddings.cls_token" not in state:
        return None
    # The pooler is a layer behind the embedding; timm's models have none.
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    return _fused(_renamed(kept, _HF_VIT), "qkv.")


def _from_hf_clip(state: State) -> State | None:
    """Hugging Face's CLIP, in open_clip's names, of which timm takes the image tower."""
    if "vision_model.embeddings.class_embedding" not in state:
        return None
    # Older files store the numbers 0, 1, 2, ... of positions.
    kept = {n: t for n, t in state.items() if not n.endswith("embeddings.position_ids")}
    found = _fused(_renamed(kept, _HF_CLIP), "in_proj_")
    for name in ("visual.proj", "text_projection"):
        if name in found:
            found[name] = found[name].T  # weights of a linear layer (out, in) to a factor (in, out)
    return found


def _from_torchvision_vit(state: State) -> State | None:
    return _renamed(state, _TORCHVISION_VIT) if "class_token" in state else None


def _without_chunks(state: State) -> State | None:
    """DINOv2's blocks in chunks, ``blocks.CHUNK.BLOCK.``, whose second number counts all blocks."""
    matches = {name: _CHUNKED.fullmatch(name) for name in state}
    if not any(matches.values()):
        return None
    # A network whose stages count their blocks from 0 each has no such names.
    chunks = {m[2]: m[1] for m in matches.values() if m}
    if any(m and chunks[m[2]] != m[1] for m in matches.values()):
        return None
    return {
        f"blocks.{m[2]}.{m[3]}" if (m := matches[name]) else name: t for name, t in state.items()
    }


HF_CLIP = "names of Hugging Face's CLIP"
CONVERSIONS: dict[str, Callable[[State], State | None]] = {
    "names of Hugging Face's ViT and Dinov2": _from_hf_vit,
    HF_CLIP: _from_hf_clip,
    "names of torchvision's ViT": _from_torchvision_vit,
    "chunked blocks": _without_chunks,
}
"""By what they convert: the state in the other names, or None if it has none of these names."""


def _renamed(state: State, rules: Rules) -> State:
    found = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        found[new] = tensor
    return found


def _fused(state: State, fused_name: str) -> State:
    """Stack query, key and value, (d, d) each, to (3d, d) where all three are there."""
    found = {}
    for name, tensor in state.items():
        match = _FUSED.fullmatch(name)
        triple = [f"{match[1]}{part}.{match[3]}" for part in "qkv"] if match else []
        if not match or not all(part in state for part in triple):
            found[name] = tensor
        elif match[2] == "q":
            found[f"{match[1]}{fused_name}{match[3]}"] = torch.cat([state[part] for part in triple])
    return found
