"""PyTorch's own ways to compute faster: bfloat16, autocast on CUDA, and torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from retailtag.backbones.backbone import Backbone, full_float32
from retailtag.backbones.engines.embedder import Run, Whole
from retailtag.backbones.engines.names import BFLOAT16, EngineName

_HALVES = {"autocast-float16": torch.float16, "autocast-bfloat16": torch.bfloat16}


def build(backbone: Backbone, name: EngineName, batch: int) -> Run:
    """Make a backbone's module run as `name` says, on batches of `batch` images."""
    module, dtype = backbone.lean_module(), torch.float32
    if name.arithmetic == BFLOAT16:
        dtype = torch.bfloat16
        module = copy.deepcopy(module).to(dtype).to(memory_format=backbone.memory_format)
    whole: Any = Whole(module, backbone.preprocess, dtype, backbone.memory_format)
    whole = whole.eval().to(backbone.device)
    device, half = backbone.device, _HALVES.get(name.arithmetic)
    if name.engine == "compile":
        # Freezing folds the weights into the graph in the layout that its kernels want. A graph
        # in one piece, or an error: one in pieces would be slower than eager without a word.
        options: Any = {"freezing": True} if device.type == "cpu" else None
        whole = torch.compile(whole, fullgraph=True, dynamic=False, options=options)

    def run_one(pixels: Tensor) -> Tensor:
        """uint8 (batch, 3, h, w) to float32 (batch, dim) on the device."""
        pixels = pixels.to(device, non_blocking=True)
        scope = full_float32(device) if half is None else torch.autocast(device.type, half)
        with torch.inference_mode(), scope:
            embedding: Tensor = whole(pixels)
        return embedding.float()

    if name.engine == "compile":  # it is compiled by its first call: what fails, fails here
        run_one(torch.zeros(batch, 3, *backbone.preprocess.size, dtype=torch.uint8))
    return lambda parts: [run_one(part) for part in parts]
