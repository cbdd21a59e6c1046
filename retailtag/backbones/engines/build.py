"""Engines by name: which one can run here, and building it for a backbone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from retailtag.backbones import cpu
from retailtag.backbones.engines.names import (
    BFLOAT16,
    EAGER,
    ENGINES,
    FLOAT32,
    EngineName,
)
from retailtag.errors import Unavailable
from retailtag.progress import SILENT, Progress

if TYPE_CHECKING:
    from retailtag.backbones.backbone import Backbone
    from retailtag.backbones.engines.embedder import EngineEmbedder, Run

CPU_BATCH_SIZE = 16  # images per call; more are not faster on a CPU and need more memory
CUDA_BATCH_SIZE = 64

# Engines that need more than torch: the extra that installs their packages, and the packages.
_PACKAGES = {
    "openvino": ("openvino", ("openvino",)),
    "onnxruntime": ("onnx", ("onnxruntime", "onnx", "onnxscript")),
}
# Converters fail with many kinds of exceptions; any other kind is a defect of retailtag.
CONVERTER_ERRORS = (
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
    backbone: Backbone, engine: str, precision: str = "exact", *, batch_size: int | None = None
) -> Backbone | EngineEmbedder:
    """Return a backbone whose embeddings an engine, one of `ENGINES`, computes.

    The backbone is not changed, and its weights must not change afterwards; for eager float32 it is
    returned itself. An engine is built when it first embeds, and its embeddings are not compared:
    see `retailtag.backbones.engines.trial`.

    `precision` is ``exact`` (float32) or ``fast``, the engine's shortest type on this device
    (float32 if there is no other). `batch_size` counts images per call of an engine that converts
    the model; default: 16 on a CPU, 64 on CUDA. Raises `Unavailable` if the engine is unknown or
    cannot run here; the message says what is missing.
    """
    name = best_name(engine, precision, backbone.device.type)
    return embedder_of(backbone, name, batch_size=batch_size)


def embedder_of(
    backbone: Backbone, name: EngineName, *, batch_size: int | None = None
) -> Backbone | EngineEmbedder:
    """Return a backbone that computes with this engine and arithmetic, as `with_engine` does."""
    if name == EAGER:
        return backbone
    from retailtag.backbones.engines.embedder import EngineEmbedder

    device = backbone.device.type
    missing = why_unavailable(name, device)
    if missing:
        raise Unavailable(f"Engine {name} cannot run here: {missing}.")
    batch_size = batch_size or (CPU_BATCH_SIZE if device == "cpu" else CUDA_BATCH_SIZE)
    build = partial(_build, backbone, name, batch_size)
    # eager arithmetic builds no graph, so it needs no fixed shape and no padding
    return EngineEmbedder(backbone, name, build, None if name.engine == "eager" else batch_size)


def as_fitted(
    backbone: Backbone, name: EngineName, progress: Progress = SILENT
) -> Backbone | EngineEmbedder:
    """The backbone itself for float32, otherwise the arithmetic that a probe was fitted on.

    `progress` hears it if that cannot run here, and eager float32 takes its place.
    """
    try:
        return same_arithmetic(backbone, name)
    except Unavailable as error:
        progress.say(f"{error} Predictions are made in eager float32 and may differ slightly.")
        return backbone


def same_arithmetic(backbone: Backbone, name: EngineName) -> Backbone | EngineEmbedder:
    """A few images at a time in an engine's arithmetic: the backbone itself for float32.

    Raises `Unavailable` if reduced arithmetic cannot run here.
    """
    if name.exact:
        return backbone
    if name.engine == "compile":  # eager gives the same arithmetic without minutes of compiling
        name = replace(name, engine="eager")
    return embedder_of(backbone, name, batch_size=1)


def best_name(engine: str, precision: str, device: str) -> EngineName:
    """The engine with the arithmetic of a numeric precision on ``cpu`` or ``cuda``."""
    if precision == "exact" or engine == "onnxruntime":
        return EngineName(engine, FLOAT32)
    if device == "cuda":
        return EngineName(engine, f"autocast-{_cuda_half()}")
    has_bfloat16 = device == "cpu" and cpu.has_bfloat16()
    return EngineName(engine, BFLOAT16 if has_bfloat16 else FLOAT32)


def candidates(precision: str, device: str) -> list[EngineName]:
    """Engines that ``auto`` tries, the likely fastest first, eager float32 last.

    Under ``fast`` those in float32 follow, for models whose embeddings bfloat16 distorts.
    """
    cpu_only = ("openvino", "onnxruntime")
    order = ("compile", "eager") if device == "cuda" else (*cpu_only, "compile", "eager")
    wanted = ("fast", "exact") if precision == "fast" else ("exact",)
    names = [best_name(engine, p, device) for p in wanted for engine in order]
    return [name for name in dict.fromkeys(names) if name != EAGER] + [EAGER]


def why_unavailable(name: EngineName, device: str) -> str:
    """Why an engine cannot run on ``cpu`` or ``cuda`` here, and the remedy; empty if it can."""
    if name.engine not in ENGINES:
        return f"this version of retailtag has no engine {name.engine}; it has {', '.join(ENGINES)}"
    extra, packages = _PACKAGES.get(name.engine, ("", ()))
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return f"{missing[0]} is not installed; run pip install 'retailtag[{extra}]'"
    if extra and device != "cpu":
        return f"{name.engine} runs on a CPU only; give --device cpu or --engine eager"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if name.engine == "compile" and device == "cpu" and not any(map(shutil.which, compilers)):
        return "torch.compile needs a C++ compiler; install g++, or set CXX to one"
    return _why_not_computed(name.arithmetic, device)


def _why_not_computed(arithmetic: str, device: str) -> str:
    if arithmetic == BFLOAT16 and not (device == "cpu" and cpu.has_bfloat16()):
        return "bfloat16 needs a CPU with bfloat16 instructions; give --precision exact"
    if arithmetic.startswith("autocast") and device != "cuda":
        return "autocast needs a CUDA device; give --precision exact"
    return ""


def _cuda_half() -> str:
    """bfloat16 if the GPU computes it, otherwise float16 (a T4, for example)."""
    import torch

    return BFLOAT16 if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _build(backbone: Backbone, name: EngineName, batch_size: int) -> Run:
    """Convert the backbone for an engine; a failure becomes one sentence."""
    place = "torch" if name.engine in ("eager", "compile") else name.engine
    module = import_module(f"retailtag.backbones.engines.with_{place}")
    build: Callable[[Backbone, EngineName, int], Run] = module.build
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # converters warn about their own internals
            return build(backbone, name, batch_size)
    except CONVERTER_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise Unavailable(
            f"Engine {name} cannot compute {backbone.id}: {reason.rstrip('.')}; use --engine eager."
        ) from error
