"""ONNX Runtime on a CPU, float32."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from torch import Tensor

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines.embedder import Run, WithNormalisation
from retailtag.backbones.engines.names import EngineName

_LOG_ERRORS_ONLY = 3  # ONNX Runtime's severity level


def build(backbone: Backbone, name: EngineName, batch_size: int) -> Run:
    """Export a backbone through a temporary folder, for micro-batches of `batch_size` images."""
    model = WithNormalisation(backbone.lean_module(), backbone.preprocess).eval()
    example = torch.zeros(batch_size, 3, *backbone.preprocess.size, dtype=torch.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _LOG_ERRORS_ONLY
    with TemporaryDirectory(prefix="retailtag-") as folder:
        path = Path(folder) / "backbone.onnx"
        _export(model, example, path)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (graph_input,) = session.get_inputs()

    def run(micro_batches: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (batch_size, 3, h, w) each to float32 (batch_size, dim) each."""
        outputs = [session.run(None, {graph_input.name: m.numpy()}) for m in micro_batches]
        return [torch.from_numpy(rows) for (rows,) in outputs]

    return run


def _export(model: WithNormalisation, example: Tensor, path: Path) -> None:
    """Write `path` and, for a large model, its weights beside it."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            torch.onnx.export(model, (example,), path, dynamo=True, verbose=False)
    finally:
        log.setLevel(level)
