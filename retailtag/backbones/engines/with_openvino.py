"""OpenVINO on a CPU: float32, or bfloat16 if the processor has its instructions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines.embedder import Run, WithNormalisation
from retailtag.backbones.engines.names import BFLOAT16, EngineName

MAX_STREAMS = 4  # an extraction's batch of 64 images holds four micro-batches of 16


def build(backbone: Backbone, name: EngineName, batch_size: int) -> Run:
    """Convert a backbone in memory, for micro-batches of `batch_size` images."""
    openvino = _openvino()
    module = WithNormalisation(backbone.lean_module(), backbone.preprocess).eval()
    # The conversion traces the model; with one image it may drop the batch axis of length 1.
    example = torch.zeros(2, 3, *backbone.preprocess.size, dtype=torch.uint8)
    model = openvino.convert_model(module, example_input=example)
    model.reshape([batch_size, *example.shape[1:]])
    threads = torch.get_num_threads()
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            # By default OpenVINO computes in bfloat16 on processors that have it.
            "INFERENCE_PRECISION_HINT": "bf16" if name.arithmetic == BFLOAT16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            # Micro-batches in separate streams do not wait for one another after each layer, nor
            # for a thread whose core decodes images.
            "NUM_STREAMS": 1 if batch_size == 1 else min(threads, MAX_STREAMS),
        },
    )
    queue = openvino.AsyncInferQueue(compiled)  # by default one request per stream
    return partial(_run, queue)


def _run(queue: Any, micro_batches: Sequence[Tensor]) -> list[Tensor]:
    """uint8 (batch_size, 3, h, w) each to float32 (batch_size, dim) each."""
    rows: dict[int, Tensor] = {}

    def store(request: Any, i: int) -> None:
        """Copy a result out of the memory that the next request overwrites."""
        rows[i] = torch.from_numpy(request.get_output_tensor(0).data.copy())

    queue.set_callback(store)
    for i, pixels in enumerate(micro_batches):
        queue.start_async([pixels.numpy()], userdata=i, share_inputs=True)
    queue.wait_all()
    return [rows[i] for i in range(len(micro_batches))]


def _openvino() -> Any:
    """Import OpenVINO without its telemetry, which reports every import to its makers."""
    if "openvino" not in sys.modules:
        # None makes the import of that package fail, and OpenVINO then does without it
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")
