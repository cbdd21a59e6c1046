"""PyTorch's own engines: bfloat16, autocast on CUDA, and torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from retailtag.backbones.backbone import Backbone, full_float32
from retailtag.backbones.engines.embedder import Run, WithNormalisation
from retailtag.backbones.engines.names import BFLOAT16, EngineName

_AUTOCAST_DTYPES = {"autocast-float16": torch.float16, "autocast-bfloat16": torch.bfloat16}


def build(backbone: Backbone, name: EngineName, batch_size: int) -> Run:
    """Make a backbone's module compute as `name` says, on micro-batches of `batch_size` images."""
    module = backbone.lean_module()
    dtype = torch.float32
    if name.arithmetic == BFLOAT16:
        dtype = torch.bfloat16
        module = copy.deepcopy(module).to(dtype).to(memory_format=backbone.memory_format)
    model: Any = WithNormalisation(module, backbone.preprocess, dtype, backbone.memory_format)
    model = model.eval().to(backbone.device)
    device = backbone.device
    autocast_dtype = _AUTOCAST_DTYPES.get(name.arithmetic)
    if name.engine == "compile":
        # Freezing folds the weights into the graph in the layout that its kernels prefer.
        # fullgraph raises an error instead of breaking the graph, which would be slower than eager.
        options: Any = {"freezing": True} if device.type == "cpu" else None
        model = torch.compile(model, fullgraph=True, dynamic=False, options=options)

    def run_one(pixels: Tensor) -> Tensor:
        """uint8 (batch_size, 3, h, w) to float32 (batch_size, dim) on the device."""
        pixels = pixels.to(device, non_blocking=True)
        if autocast_dtype is None:
            arithmetic: Any = full_float32(device)
        else:
            arithmetic = torch.autocast(device.type, autocast_dtype)
        with torch.inference_mode(), arithmetic:
            embedding: Tensor = model(pixels)
        return embedding.float()

    if name.engine == "compile":  # the first call compiles: a failure belongs to building
        run_one(torch.zeros(batch_size, 3, *backbone.preprocess.size, dtype=torch.uint8))
    return lambda micro_batches: [run_one(pixels) for pixels in micro_batches]
