"""Weights files: found, fitted to a model by the one reading that fits, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from retailtag.backbones.onnx_file import ONNX_SUFFIX, REMEDY
from retailtag.backbones.tensor_file import TORCH_SUFFIXES, State, TensorFile, read_tensors
from retailtag.backbones.weight_names import CONVERSIONS, HF_CLIP
from retailtag.errors import ArtefactError, DataError, UsageError, named
from retailtag.files import read_json

USUAL_NAMES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# What the libraries' conversions raise on names of other architectures.
_CONVERSION_ERRORS = (
    KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError,
)  # fmt: skip
_BRANCH = "?branch="
LACKS = "lacks"


def split_branch(path: Path | None) -> tuple[Path | None, str]:
    """Path and branch of ``PATH?branch=NAME``; the branch is empty where none is given."""
    place, _, branch = str(path or "").partition(_BRANCH)
    return (Path(place) if place else None), branch


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
    found = found or sorted(path.glob(f"*{ONNX_SUFFIX}"))
    if len(found) != 1:
        raise UsageError(
            f"--weights {path} holds {len(found)} weights files and none is called "
            f"{USUAL_NAMES[0]}; give the file itself."
        )
    return found[0]


@dataclass(frozen=True)
class Reading:
    """One way to read a checkpoint: the tensors under one prefix, in the model's names."""

    where: str  # dotted prefix; empty for the whole file
    state: State
    faults: dict[str, list[str]]  # names, by what is wrong with them; empty if it fits
    conversion: str = ""  # what was converted, if anything

    @property
    def misfit(self) -> tuple[int, int]:
        """How far from fitting: names that are missing, then names with any fault."""
        return len(self.faults.get(LACKS, ())), sum(map(len, self.faults.values()))

    def equals(self, other: Reading) -> bool:
        """Whether both give the same tensors."""
        return self.state.keys() == other.state.keys() and all(
            tensor is other.state[name] or torch.equal(tensor, other.state[name])
            for name, tensor in self.state.items()
        )


@dataclass(frozen=True)
class Target:
    """The model that weights are read for.

    `optional` says whether a name may be missing or differ in shape, such as a classifier's.
    `convert` is the library's own conversion, from names of the same library's older versions.
    """

    module: nn.Module
    optional: Callable[[str], bool] = lambda name: False
    convert: Callable[[State], State] = dict

    def load(self, path: Path, branch: str = "") -> str:
        """Load the file's weights, and return a sentence on what was stripped or converted.

        Prefixes of training scripts (``state_dict``, ``module.``, ``teacher.backbone.``) are
        stripped where exactly one reading fits wholly; `branch` chooses among several. The sentence
        is empty if the names were the model's own. Raises `DataError` if no reading fits, and
        `UsageError` if several do.
        """
        file = read_tensors(path)
        candidates = self._candidates(file.tensors, branch)
        fitting: list[Reading] = []
        for reading in candidates:
            if not reading.faults and not any(map(reading.equals, fitting)):
                fitting.append(reading)
        if len(fitting) > 1:
            raise UsageError(_choose(path, fitting))
        if not fitting:
            raise self._no_fit(file, branch, candidates)
        if fitting[0].conversion == HF_CLIP:
            _check_activation(self.module, path)
        self._check_finite(path, fitting[0].state)
        self.module.load_state_dict(fitting[0].state, strict=False)
        return _sentence(path, fitting[0], [*file.tensors, *file.unusable])

    def _check_finite(self, path: Path, state: State) -> None:
        """Raise `DataError` for weights that are NaN or infinite as the model would hold them."""
        wanted = self.module.state_dict()
        # masks hold infinity by design, in the model as it was built too
        bad = [
            k for k, v in state.items() if not _is_finite(v, wanted[k]) and _is_finite(wanted[k])
        ]
        if bad:
            raise DataError(
                f"{path} holds NaN or infinite numbers in {named(bad)}; the training that wrote it "
                "diverged, or the file is damaged: use an earlier checkpoint."
            )

    def _candidates(self, tensors: State, branch: str) -> list[Reading]:
        """Readings under every prefix that could hold the model, the whole file first."""
        n_wanted = self._n_wanted()
        found: list[Reading] = []
        for where, n in _prefixes(tensors).items():
            if not _could_hold(n, n_wanted) or (branch and f".{branch}." not in f".{where}."):
                continue
            start = f"{where}." if where else ""
            inside = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            found.append(self._best(where, inside))
            if not where and not found[0].faults:
                break
        return found

    def _best(self, where: str, state: State) -> Reading:
        """The tensors under one prefix, as they are or converted, whichever fits."""
        plain = self._read(where, state)
        if not plain.faults:
            return plain
        for what, convert in CONVERSIONS.items():
            renamed = convert(state)
            if renamed is not None:
                reading = self._read(where, renamed, what)
                if not reading.faults:
                    return reading
                plain = min(plain, reading, key=lambda r: r.misfit)
        return plain

    def _read(self, where: str, state: State, conversion: str = "") -> Reading:
        wanted = self.module.state_dict()
        with suppress(*_CONVERSION_ERRORS):  # what the library cannot convert has faults below
            state = self.convert(dict(state))
        state = {k: v for k, v in state.items() if k in wanted or not self.optional(k)}
        state = {
            k: v for k, v in state.items() if not (self.optional(k) and v.shape != wanted[k].shape)
        }
        faults = {
            LACKS: [k for k in wanted if k not in state and self._is_needed(k)],
            "has unknown": [k for k in state if k not in wanted],
            "has another shape of": [
                k for k, v in state.items() if k in wanted and v.shape != wanted[k].shape
            ],
            "has integers (quantised weights) for": [
                k for k, v in state.items() if _is_quantised(v, wanted.get(k))
            ],
        }
        return Reading(where, state, {k: v for k, v in faults.items() if v}, conversion)

    def _n_wanted(self) -> int:
        return sum(map(self._is_needed, self.module.state_dict()))

    def _is_needed(self, name: str) -> bool:
        # BatchNorm's counters are missing in old and converted files and unused in evaluation.
        return not (self.optional(name) or name.endswith("num_batches_tracked"))

    def _no_fit(self, file: TensorFile, branch: str, candidates: Sequence[Reading]) -> DataError:
        path = file.path
        if file.models:
            return file.needs_classes()
        if branch and not candidates:
            counts, n_wanted = _prefixes(file.tensors), self._n_wanted()
            known = [where for where, n in counts.items() if where and _could_hold(n, n_wanted)]
            hint = f"known: {named(known, 8)}" if known else "leave ?branch= out"
            return DataError(f"{path} has no branch {branch} as large as this model; {hint}.")
        whole = Reading("", {}, {"holds": [f"only {len(file.tensors)} tensors"]})
        best = min(candidates, key=lambda r: r.misfit[0], default=whole)
        if file.unusable and (best is whole or LACKS in best.faults):
            return file.needs_numbers()
        if file.is_exported:
            return self._lost_by_export(path, best)
        found = [f"{fault} {named(names)}" for fault, names in best.faults.items()]
        return DataError(
            f"{path} holds the weights of another architecture: "
            f"{f'under {best.where} ' if best.where else ''}it {'; it '.join(found)}. Give the id "
            "that they belong to, with its arguments (id?argument=value)."
        )

    def _lost_by_export(self, path: Path, best: Reading) -> DataError:
        """The error of an ONNX file that lacks weights or has others."""
        norms = [f"{n}." for n, m in self.module.named_modules() if isinstance(m, _BatchNorm)]
        if norms and not any(name.startswith(tuple(norms)) for name in best.state):
            return DataError(
                f"{path} holds no batch norms, which this model has: they were folded into the "
                f"convolutions when it was exported, or it holds another model; {REMEDY}."
            )
        faults = [f"{fault} {named(names)}" for fault, names in best.faults.items()]
        return DataError(
            f"{path} cannot be read as this model's weights: it {'; it '.join(faults)}, because "
            f"its exporter merged or renamed them, or because it holds another model; {REMEDY}."
        )


def _check_activation(module: nn.Module, path: Path) -> None:
    """Refuse Hugging Face's CLIP weights if the ``config.json`` beside them has another activation.

    OpenAI's models use an approximation of GELU; the tensors do not show it.
    """
    place = path.parent / "config.json"
    config = read_json(place) if place.is_file() else None
    if not isinstance(config, dict) or not str(config.get("model_type")).startswith("clip"):
        return
    vision = config.get("vision_config", config)
    stored = vision.get("hidden_act", "quick_gelu") if isinstance(vision, dict) else ""
    has_quick = any(type(m).__name__ == "QuickGELU" for m in module.modules())
    if (stored == "quick_gelu") != has_quick:
        with_or_without = "with" if stored == "quick_gelu" else "without"
        raise DataError(
            f"{place} says that the activation of {path.name} is {stored}, which this model does "
            f"not use; give the id of the model {with_or_without} quickgelu in its name."
        )


def _could_hold(n: int, n_wanted: int) -> bool:
    """Whether `n` tensors could make a model of `n_wanted`."""
    return 2 * n >= n_wanted  # conversions fuse more tensors than they divide


def _is_finite(tensor: Tensor, wanted: Tensor | None = None) -> bool:
    """Whether no number is NaN or infinite, after conversion to the dtype of `wanted`."""
    if not tensor.is_floating_point():
        return True
    # isfinite takes no float8
    to = torch.float32 if tensor.element_size() == 1 else tensor.dtype
    if wanted is not None and wanted.is_floating_point():
        to = wanted.dtype
    return bool(torch.isfinite(tensor.to(to)).all())


def _is_quantised(tensor: Tensor, wanted: Tensor | None) -> bool:
    return wanted is not None and wanted.is_floating_point() and not tensor.is_floating_point()


def _prefixes(tensors: State) -> dict[str, int]:
    """Every dotted prefix of the names, the empty one first, and how many tensors it has."""
    counts = {"": len(tensors)}
    for name in tensors:
        parts = name.split(".")
        for i in range(1, len(parts)):
            prefix = ".".join(parts[:i])
            counts[prefix] = counts.get(prefix, 0) + 1
    return counts


def _choose(path: Path, fitting: Sequence[Reading]) -> str:
    """The sentence that asks for a branch, with the shortest names that tell them apart."""
    places = [reading.where.split(".") for reading in fitting]
    short = [
        next((p for p in place if all(p not in o for o in places if o is not place)), "")
        or ".".join(place)
        for place in places
    ]
    return (
        f"{path} holds {len(fitting)} sets of weights that fit, {named(short, 8)}; choose one with "
        f"--weights {path.name}?branch=NAME."
    )


def _sentence(path: Path, reading: Reading, tensors: Iterable[str]) -> str:
    done = [f"took the weights under {reading.where}"] if reading.where else []
    done += [f"converted {reading.conversion}"] if reading.conversion else []
    start = reading.where.split(".") if reading.where else []
    others: dict[str, None] = {}
    for name in tensors:
        parts = name.split(".")
        same = [a == b for a, b in zip(start, parts, strict=False)]
        if False in same:
            others[".".join(parts[: same.index(False) + 1])] = None
    done += [f"left out {named(list(others))}"] if others else []
    return f"{path}: {'; '.join(done)}." if done else ""


def load_state(module: nn.Module, state: State, file: str, remedy: str) -> None:
    """Load tensors that are exactly a module's own.

    Raises
    ------
    ArtefactError
        If one is missing, unknown, or of another type or shape; `file` (which calls them
        ``backbone.NAME``) and `remedy` are for the message.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state:
            problem = f"lacks backbone.{name}"
        elif name not in own:
            problem = f"holds an unknown tensor, backbone.{name}"
        elif (here := _form(own[name])) != (there := _form(state[name])):
            problem = f"holds backbone.{name} as {there}, not {here}"
        else:
            continue
        raise ArtefactError(f"{file} {problem}; {remedy}.")
    module.load_state_dict(state)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


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
