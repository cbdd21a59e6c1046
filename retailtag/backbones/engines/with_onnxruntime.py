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
from retailtag.backbones.engines.embedder import Run, Whole
from retailtag.backbones.engines.names import EngineName

_ERRORS_ALONE = 3  # of ONNX Runtime's levels


def build(backbone: Backbone, name: EngineName, batch: int) -> Run:
    """Export a backbone through a temporary folder, for batches of `batch` images."""
    whole = Whole(backbone.lean_module(), backbone.preprocess).eval()
    example = torch.zeros(batch, 3, *backbone.preprocess.size, dtype=torch.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ALONE
    with TemporaryDirectory(prefix="retailtag-") as folder:
        path = Path(folder) / "backbone.onnx"
        _export(whole, example, path)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(parts: Sequence[Tensor]) -> list[Tensor]:
        """Parts uint8 (batch, 3, h, w) to parts float32 (batch, dim)."""
        found = [session.run(None, {given.name: part.numpy()}) for part in parts]
        return [torch.from_numpy(rows) for (rows,) in found]

    return run


def _export(whole: Whole, example: Tensor, path: Path) -> None:
    """Write ``path`` and, for a large model, its weights beside it."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            torch.onnx.export(whole, (example,), path, dynamo=True, verbose=False)
    finally:
        log.setLevel(level)
