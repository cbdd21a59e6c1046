"""An ONNX model in int8: weights and activations of convolutions and products."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import Unavailable
from retailtag.tagger.onnx.session import Feed, is_large

if TYPE_CHECKING:
    import onnx

OPERATORS = ("Conv", "MatMul", "Gemm")
WEIGHT_BITS = 7
_HEAD = "head."  # begins the names of the head's tensors; see `TaggerGraph`


def quantise(source: Path, target: Path, images: Iterable[Feed]) -> dict[str, Any]:
    """Write the float32 model at `source` as int8 to `target`; returns what was done, JSON-able.

    Ranges of activations are the smallest and largest values that `images`, batches of the model's
    inputs, give. Weights have one scale per output channel. What is small and sensitive stays
    float32: the first convolution or product, which sees the pixels, the head, which decides the
    tags, and depthwise and grouped convolutions, whose few weights differ widely in range (without
    them a MobileNetV2's logits are off by half as much, for 2 % more bytes).

    Raises `Unavailable` if ONNX Runtime cannot quantise the model.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    reader = _reader(images)
    with TemporaryDirectory(prefix="retailtag-") as folder, _quiet():
        folded = Path(folder) / "folded.onnx"
        try:
            quant_pre_process(source, folded, skip_symbolic_shape=True)
            nodes = onnx.load(folded, load_external_data=False).graph.node
            known = [node for node in nodes if node.op_type in OPERATORS]
            head = {n.name for n in known if any(i.startswith(_HEAD) for i in n.input)}
            kept = sorted({known[0].name} | head | {n.name for n in known if _is_grouped(n)})
            quantize_static(
                folded,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                # With 8 bits, sums of products of bytes saturate on processors without VNNI
                # instructions: the model would give other tags there.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=kept,
                calibrate_method=CalibrationMethod.MinMax,
                use_external_data_format=is_large(source),
            )
        except (RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise Unavailable(
                f"ONNX Runtime cannot quantise the model: {reason.rstrip('.')}; leave --int8 out."
            ) from error
    return {
        "calibration_images": reader.n_images,
        "calibration": "smallest and largest value",
        "operators": list(OPERATORS),
        "per_channel": True,
        "weight_bits": WEIGHT_BITS,
        "float32_nodes": len(kept),
        "int8_nodes": len(known) - len(kept),
    }


def _is_grouped(node: onnx.NodeProto) -> bool:
    return any(a.name == "group" and a.i > 1 for a in node.attribute)


def _reader(images: Iterable[Feed]) -> Any:
    """The images as ONNX Runtime reads them, counted."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        batches = iter(images)
        n_images = 0

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            if batch is None:
                return None
            self.n_images += len(next(iter(batch.values())))
            return dict(batch)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser, which warns on the root logger about its own steps."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
