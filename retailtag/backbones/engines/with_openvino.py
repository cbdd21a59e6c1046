"""OpenVINO on a CPU: float32, or bfloat16 where the processor computes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines.embedder import Run, Whole
from retailtag.backbones.engines.names import BFLOAT16, EngineName

MOST_STREAMS = 4  # parts computed at once: the batches of an extraction have four


def build(backbone: Backbone, name: EngineName, batch: int) -> Run:
    """Convert a backbone in memory, for batches of `batch` images."""
    openvino = _openvino()
    whole = Whole(backbone.lean_module(), backbone.preprocess).eval()
    # the conversion runs the model: on two images, for on one an axis of length 1 may be dropped
    example = torch.zeros(2, 3, *backbone.preprocess.size, dtype=torch.uint8)
    model = openvino.convert_model(whole, example_input=example)
    model.reshape([batch, *example.shape[1:]])
    threads = torch.get_num_threads()
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            # without it OpenVINO takes bfloat16 unasked on processors that have it
            "INFERENCE_PRECISION_HINT": "bf16" if name.arithmetic == BFLOAT16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            # Parts on threads of their own need not wait for one another after every layer, nor
            # for a thread that decoding keeps from its core. A single image is one part.
            "NUM_STREAMS": 1 if batch == 1 else min(threads, MOST_STREAMS),
        },
    )
    queue = openvino.AsyncInferQueue(compiled)  # as many requests as keep the streams busy
    return partial(_run, queue)


def _run(queue: Any, parts: Sequence[Tensor]) -> list[Tensor]:
    """Parts uint8 (batch, 3, h, w) to parts float32 (batch, dim)."""
    rows: dict[int, Tensor] = {}

    def keep(request: Any, i: int) -> None:
        """Copy a result out of the memory that the next request writes to."""
        rows[i] = torch.from_numpy(request.get_output_tensor(0).data.copy())

    queue.set_callback(keep)
    for i, part in enumerate(parts):
        queue.start_async([part.numpy()], userdata=i, share_inputs=True)
    queue.wait_all()
    return [rows[i] for i in range(len(parts))]


def _openvino() -> Any:
    """OpenVINO, kept from reporting to its makers that it is used, as it does when imported."""
    if "openvino" not in sys.modules:
        # an import of None fails, and OpenVINO goes without that package
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")
