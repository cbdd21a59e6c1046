"""The exported folder: a tagger as files that need no catalogue, no feature store and no hub.

``tagger.json`` describes everything and binds the files of tensors by their digests: the head with
its thresholds and calibration, a bank of neighbours if it votes, and the weights of each backbone,
which are built from the description of their architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from retailtag.artefacts import (
    BOUND,
    FACTS,
    FINITE,
    KNN,
    OBJECT,
    TAGS,
    THRESHOLD,
    Kind,
    Rule,
    StoredModel,
    TensorRule,
    one_of,
    write_model,
)
from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines.build import as_fitted
from retailtag.backbones.engines.embedder import EngineEmbedder
from retailtag.backbones.engines.names import EAGER, EngineName
from retailtag.backbones.factory import rebuild
from retailtag.backbones.ids import resolve_id
from retailtag.backbones.preprocess import Preprocess, pair, triple
from retailtag.backbones.weights import load_state, state_sha256
from retailtag.calibration import TENSORS as CALIBRATION
from retailtag.calibration import Calibration
from retailtag.errors import ArtefactError, UsageError
from retailtag.files import parse_json
from retailtag.probes.artefact import Probe, vote_of
from retailtag.probes.heads.knn import FILE as KNN_FILE
from retailtag.probes.scaling import SCALES
from retailtag.progress import SILENT, Progress
from retailtag.statistics.exclusive import ASSIGNMENTS
from retailtag.tagger.tagger import Tagger

HEADER = "tagger.json"
HEAD_FILE = "head.safetensors"
PREFIX = "backbone."  # of the names of a backbone's tensors
HEAD = {
    "weight": TensorRule("F32", ("tags", "dim"), FINITE),
    "bias": TensorRule("F32", ("tags",), FINITE),
    "thresholds": TensorRule("F32", ("points", "tags"), THRESHOLD),
}
_TEXTS = ("id", "output", "engine", "weights_sha256", "licence")


def _are_backbones(value: Any) -> bool:
    return (
        isinstance(value, list)
        and value != []
        and all(
            isinstance(one, dict)
            and one.keys() == {*_TEXTS, "architecture", "preprocessing"}
            and all(isinstance(one[name], str) and one[name] for name in _TEXTS)
            and all(isinstance(one[name], dict) for name in ("architecture", "preprocessing"))
            for one in value
        )
    )


KIND = Kind(
    name="tagger",
    command="retailtag export",
    version=1,
    bound_from=1,
    fields={
        "tags": TAGS,
        "strategy": one_of("probe", "finetune"),
        "head": one_of("logistic", "ridge", "text", "knn", "fine-tuned"),
        "scale": one_of(*SCALES, "l2-standardise"),  # the last of earlier probes
        "knn": KNN,
        "operating_points": TAGS,
        "assignment": one_of(*ASSIGNMENTS),
        "backbones": Rule(
            f"a list of objects with architecture, preprocessing, {', '.join(_TEXTS)}",
            _are_backbones,
        ),
        "calibration": OBJECT,
        "provenance": OBJECT,
    },
    facts=FACTS,
    optional=frozenset({"knn", "calibration"}),
)


@dataclass(frozen=True, eq=False)
class Exported:
    """What the header holds beside the tagger itself, JSON-able."""

    calibration: Mapping[str, Any]  # how it was fitted, and its errors; empty without one
    provenance: Mapping[str, Any]  # digests and versions
    licences: Sequence[str]  # of the weights, one for each backbone


def write_exported(folder: Path, tagger: Tagger, about: Exported) -> None:
    """Write ``tagger.json`` and the files of tensors that it binds into an empty folder."""
    from safetensors.numpy import save
    from safetensors.torch import save as save_torch

    head = tagger.head
    points = tagger.operating_points
    arrays = {
        "weight": head.weight,
        "bias": head.bias,
        "thresholds": np.stack(list(points.values())),
    }
    if tagger.calibration is not None:
        arrays |= {name: getattr(tagger.calibration, name) for name in CALIBRATION}
    whole = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    files = {HEAD_FILE: save(whole, metadata=BOUND)}
    header: dict[str, Any] = {
        "tags": list(tagger.tags),
        "strategy": tagger.strategy,
        "head": head.head,
        "scale": head.scale,
        "operating_points": list(points),
        "assignment": tagger.assignment,
        "backbones": [],
        "provenance": dict(about.provenance),
        "facts": {**head.facts, "exclusive": list(tagger.exclusive)},
    }
    if tagger.calibration is not None:
        header["calibration"] = dict(about.calibration)
    if head.vote is not None:
        counts = head.vote.counts.tolist()
        header["knn"] = {"counts": counts, "temperature": head.vote.temperature}
        files[KNN_FILE] = head.vote.bank.to_bytes()
    for number, (embedder, licence) in enumerate(
        zip(tagger.embedders, about.licences, strict=True), start=1
    ):
        backbone = embedder.backbone if isinstance(embedder, EngineEmbedder) else embedder
        state = {f"{PREFIX}{k}": v for k, v in _state_of(backbone.module).items()}
        files[backbone_file(number)] = save_torch(state, metadata=BOUND)
        header["backbones"].append(_described(embedder, backbone, licence))
    write_model(folder, KIND, header, files)


def backbone_file(number: int) -> str:
    """Name of the file of a backbone's weights, counted from 1."""
    return f"backbone-{number}.safetensors"


def _state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of a module, each with memory of its own, on the CPU."""
    # copied: safetensors refuses tensors that share memory, as tied weights do
    return {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in module.state_dict().items()
    }


def _described(
    embedder: Backbone | EngineEmbedder, backbone: Backbone, licence: str
) -> dict[str, Any]:
    """Everything that rebuilds one backbone beside its weights."""
    return {
        "id": backbone.id,
        "architecture": backbone.architecture,
        "preprocessing": parse_json(backbone.preprocess.to_json()),
        "output": backbone.spec().output,
        "engine": str(embedder.name if isinstance(embedder, EngineEmbedder) else EAGER),
        "weights_sha256": state_sha256(backbone.module),
        "licence": licence,
    }


def read_exported(folder: Path, *, device: str = "cpu", progress: Progress = SILENT) -> Tagger:
    """Read what `write_exported` wrote.

    Raises
    ------
    DataError, ArtefactError
        As `retailtag.artefacts.StoredModel` does; `ArtefactError` also if the libraries here build
        another architecture or other pixels than those of the export.
    """
    from safetensors.numpy import load

    stored = StoredModel(folder, KIND)
    header = stored.header
    stored.sizes["points"] = len(header["operating_points"])
    if header["head"] == "knn":
        stored.sizes["dim"] = 0  # its logits are votes of the bank
    has_calibration = "calibration" in header
    arrays = stored.tensors(HEAD_FILE, HEAD | (CALIBRATION if has_calibration else {}), load)
    tags = tuple(header["tags"])
    head = Probe(
        tags,
        arrays["weight"],
        arrays["bias"],
        arrays["thresholds"][0],
        C=np.full(len(tags), np.nan),
        facts=header["facts"],
        scale=header["scale"],
        head=header["head"],
        vote=vote_of(stored) if header["head"] == "knn" else None,
    )
    curves = Calibration(arrays["slope"], arrays["offset"]) if has_calibration else None
    tagger = Tagger(
        tuple(
            _embedder(stored, number, device, progress)
            for number in range(1, len(header["backbones"]) + 1)
        ),
        head,
        header["strategy"],
        exclusive=tuple(header["facts"].get("exclusive") or ()),
        operating_points=dict(zip(header["operating_points"], arrays["thresholds"], strict=True)),
        calibration=curves,
    )
    try:
        return tagger.assigning(header["assignment"])
    except UsageError as error:
        raise ArtefactError(f"{stored.path}: {error}") from error


def licences_of(folder: Path) -> tuple[str, ...]:
    """Licences of the weights in an exported folder; raises as `read_exported` does."""
    return tuple(one["licence"] for one in StoredModel(folder, KIND).header["backbones"])


def _embedder(
    stored: StoredModel, number: int, device: str, progress: Progress
) -> Backbone | EngineEmbedder:
    """One backbone of the header, counted from 1, with its engine."""
    from safetensors.torch import load

    one = stored.header["backbones"][number - 1]
    file = str(stored.folder / backbone_file(number))
    tensors = stored.tensors(backbone_file(number), {}, load, others=PREFIX, finite=torch.isfinite)
    state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    remedy = f"install the versions that {HEADER} records, or {stored.again.rstrip('.')}"
    try:
        preprocess = _preprocess(one["preprocessing"])
        model = rebuild(
            resolve_id(one["id"]),
            one["architecture"],
            preprocess,
            one["output"],
            partial(load_state, state=state, file=file, remedy=remedy),
        )
    except UsageError as error:
        raise ArtefactError(f"{stored.path}: {str(error).rstrip('.')}; {remedy}.") from error
    if parse_json(preprocess.to_json()) != one["preprocessing"]:
        raise ArtefactError(
            f"{stored.path}: images are decoded or resized in another way than this version does; "
            f"{remedy}."
        )
    backbone = Backbone(model, device)
    if backbone.weights_sha256 != one["weights_sha256"]:
        raise ArtefactError(f"{file} does not hold the weights of {stored.path}; {stored.again}")
    return as_fitted(backbone, EngineName.parse(one["engine"]), progress)


def _preprocess(facts: Mapping[str, Any]) -> Preprocess:
    """Preprocessing from its JSON; raises `UsageError` for what cannot be used."""
    try:
        fill = facts["fill"]
        if not (len(fill) == 3 and all(type(v) is int and 0 <= v <= 255 for v in fill)):
            raise ValueError(f"fill is {fill}, not three numbers from 0 to 255")
        return Preprocess(
            size=pair(facts["size"]),
            mode=facts["mode"],
            crop_pct=float(facts["crop_pct"]),
            interpolation=facts["interpolation"],
            mean=triple(facts["mean"]),
            std=triple(facts["std"]),
            fill=(fill[0], fill[1], fill[2]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"its preprocessing cannot be followed ({error})") from error
