"""From a loaded backbone and the name of an engine to what computes its embeddings."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from retailtag.backbones import cpu
from retailtag.backbones.engines.names import (
    AUTO,
    BFLOAT16,
    EAGER,
    ENGINES,
    FLOAT32,
    EngineName,
    check_engine,
)
from retailtag.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from retailtag.backbones.backbone import Backbone
    from retailtag.backbones.engines.embedder import EngineEmbedder, Run

CPU_BATCH = 16  # images a call: larger ones bring nothing on a CPU and cost memory
CUDA_BATCH = 64

# What an engine needs beside torch: packages, and the extra that installs them.
_PACKAGES = {
    "openvino": ("openvino", ("openvino",)),
    "onnxruntime": ("onnx", ("onnxruntime", "onnx", "onnxscript")),
}
# Conversions are other programs' and fail in their own ways; anything but these is a defect here.
_BUILD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    OSError,
)


def with_engine(
    backbone: Backbone, engine: str, precision: str = "exact", *, batch: int | None = None
) -> Backbone | EngineEmbedder:
    """Let an engine compute a backbone's embeddings.

    Parameters
    ----------
    backbone : Backbone
        Loaded, in evaluation mode; not changed. Its weights must not change afterwards.
    engine : str
        One of `ENGINES`. (What ``auto`` means takes images: `retailtag.extraction.engines`.)
    precision : str
        ``exact``: float32. ``fast``: the smallest arithmetic that the engine has on this device,
        which is float32 again where there is none.
    batch : int, optional
        Images of one call of an engine that converts the model; default: 16 on a CPU, 64 on CUDA.

    Returns
    -------
    Backbone or EngineEmbedder
        What `retailtag.extraction.extract.extract` takes; the backbone itself for eager float32.
        It is built when it first embeds, and compared with nothing: see
        `retailtag.backbones.engines.parity`.

    Raises
    ------
    UsageError
        If engine or precision is unknown.
    Unavailable
        If the engine cannot run here; the sentence says what is missing.
    """
    check_engine(engine, precision)
    if engine == AUTO:
        raise UsageError(f"auto is chosen on images; name an engine: {', '.join(ENGINES)}.")
    return embedder_of(backbone, best_name(engine, precision, backbone.device.type), batch=batch)


def embedder_of(
    backbone: Backbone, name: EngineName, *, batch: int | None = None
) -> Backbone | EngineEmbedder:
    """Let exactly this engine and arithmetic compute; see `with_engine`.

    Raises
    ------
    Unavailable
        If it cannot run here.
    """
    if name == EAGER:
        return backbone
    from retailtag.backbones.engines.embedder import EngineEmbedder

    device = backbone.device.type
    missing = why_unavailable(name, device)
    if missing:
        raise Unavailable(f"Engine {name} cannot run here: {missing}.")
    batch = batch or (CPU_BATCH if device == "cpu" else CUDA_BATCH)
    build = partial(_build, backbone, name, batch)
    return EngineEmbedder(backbone, name, build, None if name.engine == "eager" else batch)


def best_name(engine: str, precision: str, device: str) -> EngineName:
    """What `engine` computes with under a precision on ``cpu`` or ``cuda``."""
    if precision == "exact" or engine == "onnxruntime":
        return EngineName(engine, FLOAT32)
    if device == "cuda":
        return EngineName(engine, f"autocast-{_cuda_half()}")
    return EngineName(engine, BFLOAT16 if cpu.has_bfloat16() else FLOAT32)


def candidates(precision: str, device: str) -> list[EngineName]:
    """Engines that ``auto`` tries under a precision, the likely fastest first, eager last.

    Under ``fast`` those of float32 follow, for the model whose embeddings bfloat16 spoils.
    """
    order = ("openvino", "onnxruntime", "compile", "eager")[2 * (device == "cuda") :]
    wanted = ("fast", "exact") if precision == "fast" else ("exact",)
    names = [best_name(engine, p, device) for p in wanted for engine in order]
    return [name for name in dict.fromkeys(names) if name != EAGER] + [EAGER]


def why_unavailable(name: EngineName, device: str) -> str:
    """Say why an engine cannot run on ``cpu`` or ``cuda`` here, and the remedy; empty if it can."""
    if name.engine not in ENGINES:
        return f"this version of retailtag has no engine {name.engine}; it has {', '.join(ENGINES)}"
    extra, packages = _PACKAGES.get(name.engine, ("", ()))
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return f"{missing[0]} is not installed; pip install 'retailtag[{extra}]' brings it"
    if extra and device != "cpu":
        return f"{name.engine} computes on the CPU; give --device cpu, or --engine eager"
    if name.engine == "compile" and device == "cpu" and not _compiler():
        return "torch.compile needs a C++ compiler; install g++, or set CXX to one"
    return _why_not_computed(name.arithmetic, device)


def _why_not_computed(arithmetic: str, device: str) -> str:
    if arithmetic == BFLOAT16 and not (device == "cpu" and cpu.has_bfloat16()):
        return "this takes a CPU that computes in bfloat16; give --precision exact"
    if arithmetic.startswith("autocast") and device != "cuda":
        return "this takes a CUDA device; give --precision exact"
    return ""


def _cuda_half() -> str:
    """bfloat16 where the GPU computes it, otherwise float16 (a T4, say)."""
    import torch

    return BFLOAT16 if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _compiler() -> str | None:
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    return next((found for found in map(shutil.which, names) if found), None)


def _build(backbone: Backbone, name: EngineName, batch: int) -> Run:
    """Convert the backbone for an engine; whatever goes wrong becomes one sentence."""
    place = "torch" if name.engine in ("eager", "compile") else name.engine
    module = import_module(f"retailtag.backbones.engines.with_{place}")
    build: Callable[[Backbone, EngineName, int], Run] = module.build
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converters' own, about their own insides
            return build(backbone, name, batch)
    except _BUILD_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise Unavailable(
            f"Engine {name} cannot compute {backbone.id}: {reason.rstrip('.')}; use --engine eager."
        ) from error
