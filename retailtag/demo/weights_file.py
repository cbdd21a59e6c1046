"""File format of the demo backbones' weights: float16, text matrices in 8 bits.

Matrices of the text tower are stored as int8 with one scale per row, without rows of zeros (word
pieces that pretraining never saw). The image tower is stored in plain float16, so embeddings of
images do not depend on this format.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = 127


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack a model's state for a file; integer tensors keep their type."""
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
    """Float32 state from packed tensors; `like` is a state of the same model, for the shapes."""
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
