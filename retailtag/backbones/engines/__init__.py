"""Engines: faster ways than PyTorch's eager mode to compute a backbone's embeddings.

==============  =========================  ================================================
engine          arithmetic                 where
==============  =========================  ================================================
eager           float32                    everywhere; the reference for the others
eager           bfloat16                   CPU with bfloat16 instructions
eager           autocast-float16,          CUDA; bfloat16 where the GPU computes it
                autocast-bfloat16
compile         like eager                 CPU with a C++ compiler, CUDA; builds for minutes
openvino        float32, bfloat16          CPU; extra ``openvino``
onnxruntime     float32                    CPU; extra ``onnx``
==============  =========================  ================================================

`with_engine` returns a backbone that computes with an engine, which is built on first use.
`retailtag.extraction.engines` chooses one for a catalogue. Importing this package imports no torch.
"""

from __future__ import annotations

from retailtag.backbones.engines.build import embedder_of, with_engine
from retailtag.backbones.engines.names import AUTO, EAGER, EngineName

__all__ = ["AUTO", "EAGER", "EngineName", "embedder_of", "with_engine"]
