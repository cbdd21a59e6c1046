"""What an engine is called: by a user, and in the identity of the embeddings that it made."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.errors import UsageError

AUTO = "auto"
ENGINES = ("eager", "compile", "openvino", "onnxruntime")
PRECISIONS = ("exact", "fast")
FLOAT32 = "float32"
BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class EngineName:
    """One way to compute embeddings, as a feature store's identity names it.

    Parameters
    ----------
    engine : str
        One of `ENGINES`.
    arithmetic : str
        ``float32``; ``bfloat16``: weights and activations; ``autocast-float16`` or
        ``autocast-bfloat16``: what PyTorch's autocast computes so on CUDA.

    Examples
    --------
    >>> str(EngineName("openvino", "bfloat16"))
    'openvino-bfloat16'
    >>> EngineName.parse("eager-autocast-float16").arithmetic
    'autocast-float16'
    """

    engine: str
    arithmetic: str = FLOAT32

    def __str__(self) -> str:
        return f"{self.engine}-{self.arithmetic}"

    @classmethod
    def parse(cls, fact: str) -> EngineName:
        """Read what an identity says; the engine may be one that is not known here."""
        engine, _, arithmetic = fact.partition("-")
        return cls(engine, arithmetic)

    @property
    def exact(self) -> bool:
        """Whether it computes in float32, as ``--precision exact`` promises."""
        return self.arithmetic == FLOAT32


EAGER = EngineName("eager")


def check_engine(engine: str, precision: str) -> None:
    """Raise `UsageError` unless both are known; `engine` may be ``auto``."""
    if engine not in (AUTO, *ENGINES):
        raise UsageError(f"--engine {engine} is unknown; use {', '.join((AUTO, *ENGINES))}.")
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision} is unknown; use {' or '.join(PRECISIONS)}.")
