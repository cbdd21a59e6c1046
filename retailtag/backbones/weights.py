"""Weights files: read without running pickled code, checked against a model, hashed."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retailtag.errors import DataError, UsageError

State = dict[str, Tensor]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
USUAL_NAMES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 3


def weights_file(path: Path) -> Path:
    """Find the file that ``--weights`` means: the file itself, or the one in a folder.

    Raises `UsageError` if there is none, or a folder holds several of unusual names.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"--weights {path} does not exist; give a file or a folder.")
    for name in USUAL_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(f for f in path.iterdir() if f.suffix in (".safetensors", *TORCH_SUFFIXES))
    if len(found) != 1:
        raise UsageError(
            f"--weights {path} holds {len(found)} weights files and none is called "
            f"{USUAL_NAMES[0]}; give the file itself."
        )
    return found[0]


def read_state(path: Path) -> State:
    """Read named tensors from safetensors, or from a torch file that needs no code to load.

    Unwraps what training scripts add: a nested ``state_dict`` (the moving average first), and the
    prefixes of distributed and compiled models. Raises `DataError` if the file is damaged, holds
    anything but tensors, or would have to run code.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise DataError(f"{path} holds no named tensors; save the model's state_dict().")
    odd = [k for k, v in content.items() if not isinstance(v, Tensor) or not isinstance(k, str)]
    if odd:
        raise DataError(f"{path} holds {odd[0]!r}, not a tensor; save only state_dict().")
    return {_unwrapped(name): tensor for name, tensor in content.items()}


def fit_state(
    model: nn.Module,
    state: State,
    path: Path,
    *,
    optional: Callable[[str], bool] = lambda name: False,
) -> None:
    """Load `state` into `model` after checking every name and shape.

    `optional` says whether a name may be missing or differ in shape, such as a classifier's. Raises
    `DataError` if the file `path` belongs to another architecture.
    """
    wanted = model.state_dict()
    state = {k: v for k, v in state.items() if k in wanted or not optional(k)}
    state = {k: v for k, v in state.items() if not (optional(k) and v.shape != wanted[k].shape)}
    lacking = [k for k in wanted if k not in state and not optional(k)]
    faults = {
        # BatchNorm's counters are missing in old and converted files and unused in evaluation.
        "lacks": [k for k in lacking if not k.endswith("num_batches_tracked")],
        "has unknown": [k for k in state if k not in wanted],
        "has another shape of": [
            k for k, v in state.items() if k in wanted and v.shape != wanted[k].shape
        ],
    }
    found = [f"{fault} {_names(keys)}" for fault, keys in faults.items() if keys]
    if found:
        raise DataError(
            f"{path} holds the weights of another architecture: it {'; it '.join(found)}. Give the "
            "id that they belong to, with its arguments (id?argument=value)."
        )
    model.load_state_dict(state, strict=False)


def state_sha256(module: nn.Module) -> str:
    """SHA-256 (hexadecimal) of names, dtypes, shapes and bytes of parameters and buffers.

    It does not depend on the format of the file that the tensors came from.
    """
    h = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        h.update(flat.view(torch.uint8).numpy())
    return h.hexdigest()


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a complete safetensors file: {error}.") from error


def _read_torch(path: Path) -> Any:
    if path.suffix not in TORCH_SUFFIXES:
        raise DataError(
            f"{path} has an unknown ending; weights are .safetensors, or torch files ending in "
            f"{', '.join(TORCH_SUFFIXES)}."
        )
    try:
        with warnings.catch_warnings():
            # torch warns about a pickle protocol that it did not write; such a file loads or is
            # refused below
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        # Torch's own message is left out: it advises to load the file with weights_only=False.
        raise DataError(
            f"{path} is damaged or would have to run code to be read, which retailtag never does; "
            "save the model's state_dict() as safetensors."
        ) from error


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPERS * 2:  # in either order
        name = name.removeprefix(prefix)
    return name


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
