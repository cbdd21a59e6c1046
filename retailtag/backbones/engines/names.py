"""Names of engines and numeric precisions, in options and in the identity of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"
ENGINES = ("eager", "compile", "openvino", "onnxruntime")
FLOAT32 = "float32"
BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class EngineName:
    """One way to compute embeddings, as a feature store's identity names it.

    Examples
    --------
    >>> str(EngineName("openvino", "bfloat16"))
    'openvino-bfloat16'
    >>> EngineName.parse("eager-autocast-float16").arithmetic
    'autocast-float16'
    """

    engine: str
    # float32, bfloat16 (weights and activations), or on CUDA autocast-float16, autocast-bfloat16
    arithmetic: str = FLOAT32

    def __str__(self) -> str:
        return f"{self.engine}-{self.arithmetic}"

    @classmethod
    def parse(cls, fact: str) -> EngineName:
        """Read the name in an identity; the engine need not be one of `ENGINES`."""
        engine, _, arithmetic = fact.partition("-")
        return cls(engine, arithmetic)

    @property
    def exact(self) -> bool:
        """Whether it computes in float32, as ``--precision exact`` promises."""
        return self.arithmetic == FLOAT32


EAGER = EngineName("eager")
