"""Engines: other programs that compute a backbone's embeddings, faster than PyTorch's eager mode.

==============  =========================  ================================================
engine          arithmetic                 where
==============  =========================  ================================================
eager           float32                    everywhere; what the others are compared with
eager           bfloat16                   CPU with bfloat16 instructions
eager           autocast-float16,          CUDA; bfloat16 where the GPU computes it
                autocast-bfloat16
compile         as eager                   CPU with a C++ compiler, CUDA; minutes to build
openvino        float32, bfloat16          CPU; extra ``openvino``
onnxruntime     float32                    CPU; extra ``onnx``
==============  =========================  ================================================

`with_engine` gives one of them, built when it is first used; which one to take for a catalogue is
chosen by `retailtag.extraction.engines`. Nothing here imports torch before an engine is asked for.
"""

from __future__ import annotations

from retailtag.backbones.engines.build import embedder_of, with_engine
from retailtag.backbones.engines.names import AUTO, EAGER, ENGINES, PRECISIONS, EngineName

__all__ = [
    "AUTO",
    "EAGER",
    "ENGINES",
    "PRECISIONS",
    "EngineName",
    "embedder_of",
    "with_engine",
]
