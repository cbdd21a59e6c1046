"""OpenVINO on a CPU: float32, or bfloat16 where the processor computes it."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines.embedder import Run, Whole
from retailtag.backbones.engines.names import BFLOAT16, EngineName


def build(backbone: Backbone, name: EngineName, batch: int) -> Run:
    """Convert a backbone in memory, for batches of `batch` images."""
    openvino = _openvino()
    whole = Whole(backbone.module, backbone.preprocess).eval()
    # the conversion runs the model: on two images, for on one an axis of length 1 may be dropped
    example = torch.zeros(2, 3, *backbone.preprocess.size, dtype=torch.uint8)
    model = openvino.convert_model(whole, example_input=example)
    model.reshape([batch, *example.shape[1:]])
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            # without it OpenVINO takes bfloat16 unasked on processors that have it
            "INFERENCE_PRECISION_HINT": "bf16" if name.arithmetic == BFLOAT16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()

    def run(pixels: Tensor) -> Tensor:
        """uint8 (batch, 3, h, w) to float32 (batch, dim)."""
        found = request.infer([pixels.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(found[0])

    return run


def _openvino() -> Any:
    """OpenVINO, kept from reporting to its makers that it is used, as it does when imported."""
    if "openvino" not in sys.modules:
        # an import of None fails, and OpenVINO goes without that package
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")
