"""ONNX models on disk and running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

_LOG_ERRORS_ONLY = 3  # ONNX Runtime's severity level
# A protobuf message is shorter than 2 GiB; tensors above this lie in a file beside the model.
MAX_INSIDE_BYTES = 1_900_000_000

Feed = Mapping[str, NDArray[np.uint8]]


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, with the tensors of a large one beside it in ``NAME.data``."""
    import onnx

    # Not ByteSize, which fails above 2 GiB
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if held < MAX_INSIDE_BYTES:
        onnx.save(model, path)
    else:
        name = data_of(path).name
        onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=1024)


def data_of(path: Path) -> Path:
    """File of the tensors of a large model; there is none for others."""
    return path.with_name(f"{path.name}.data")


def is_large(path: Path) -> bool:
    """Whether the tensors of the model at `path` lie beside it."""
    return data_of(path).exists()


class OnnxSession:
    """A model, a file or its bytes, in ONNX Runtime on the CPU."""

    def __init__(self, model: Path | bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _LOG_ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])

    def run(self, feed: Feed, outputs: Sequence[str] = ("logits",)) -> list[NDArray[np.float32]]:
        """Values of `outputs` for a batch."""
        values: list[NDArray[np.float32]] = self._session.run(list(outputs), dict(feed))
        return values

    def logits(self, feed: Feed) -> NDArray[np.float32]:
        """Logits (n, n_tags) of a batch."""
        return self.run(feed)[0]
