"""How the demo backbones' weights are kept small: half precision, text matrices in 8 bits.

Matrices of the text tower are stored as int8 with one scale a row, and rows that are zero (word
pieces that pretraining never saw) are left out. The image side is stored in float16 as it is, so
that embeddings of images do not depend on this format.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = 127


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file from a model's state; counters keep their type."""
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("text.") and tensor.ndim == 2:
            rows = tensor.float().abs().amax(dim=1).nonzero().flatten()
            kept = tensor[rows].float()
            scale = (kept.abs().amax(dim=1) / LEVELS).half()
            packed[f"{name}.int8"] = (kept / scale.float()[:, None]).round().to(torch.int8)
            packed[f"{name}.scale"] = scale
            packed[f"{name}.rows"] = rows.to(torch.int16)
        else:
            packed[name] = tensor.half() if tensor.is_floating_point() else tensor
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def unpack(packed: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 state from `pack`'s tensors; `like` is a state of the same model, for the shapes."""
    state: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        matrix, _, part = name.rpartition(".")
        if part == "int8" and matrix in like:
            full = torch.zeros(like[matrix].shape)
            scale = packed[f"{matrix}.scale"].float()[:, None]
            full[packed[f"{matrix}.rows"].long()] = tensor.float() * scale
            state[matrix] = full
        elif not (part in ("scale", "rows") and matrix in like):
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state
