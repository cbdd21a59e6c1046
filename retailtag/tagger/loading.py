"""Loading a fitted model from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from retailtag.backbones.engines.build import as_fitted
from retailtag.backbones.engines.names import EngineName
from retailtag.backbones.factory import load_backbone
from retailtag.backbones.ids import components_of, resolve_id
from retailtag.backbones.preprocess import with_truncated
from retailtag.backbones.weights import load_state
from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.files import read_json
from retailtag.finetuning.artefact import Checkpoint
from retailtag.images.decode import MAX_PIXELS
from retailtag.probes.artefact import Probe
from retailtag.progress import SILENT, Progress
from retailtag.store import FeatureSpec, JointSpec
from retailtag.tagger.exported import HEADER, read_exported
from retailtag.tagger.tagger import Tagger, point_name

Weights = str | Path | Mapping[str, str | Path] | None


def load_fitted(
    folder: str | Path,
    *,
    weights: Weights = None,
    device: str = "cpu",
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    progress: Progress = SILENT,
) -> Tagger:
    """Load what ``retailtag probe``, ``finetune``, ``tune`` or ``export`` wrote to `folder`.

    Parameters
    ----------
    weights : str, Path or mapping of str to str or Path, optional
        Local weights of the backbone, or of several by their ids. A fine-tune has its own
        weights and needs these only if their folder describes the architecture; an exported
        folder needs none.
    progress : Progress
        Receives a message if the probe's engine of reduced precision cannot run here.

    Raises
    ------
    DataError
        If the folder holds no model.
    ArtefactError
        If the backbone here differs from the one that was fitted.
    UsageError
        If one path of weights is given for several backbones.
    """
    folder = Path(folder)
    if (folder / HEADER).exists():
        tagger = read_exported(folder, device=device, progress=progress)
        tagger.check_dim(folder)
        return replace(tagger, max_pixels=max_pixels, allow_truncated=allow_truncated)
    if (folder / "checkpoint.json").exists():
        tagger = _from_checkpoint(Checkpoint.load(folder), folder, weights, device)
    elif (folder / "probe.json").exists():
        tagger = _from_probe(Probe.load(folder), folder, weights, device, progress)
    else:
        raise DataError(
            f"{folder} holds no probe, fine-tune or exported tagger; name a folder that retailtag "
            "probe, finetune or export wrote."
        )
    tagger.check_dim(folder)
    return replace(
        tagger,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        exclusive=tuple(tagger.head.facts.get("exclusive") or ()),
        operating_points={point_name(tagger.head.facts): tagger.thresholds},
    )


def backbones_of(folder: Path) -> tuple[str, ...]:
    """Ids of the backbones of the probe or fine-tune in `folder`; empty if there is none."""
    try:
        if (folder / "checkpoint.json").exists():
            return components_of(read_json(folder / "checkpoint.json")["backbone"])
        return components_of(read_json(folder / "probe.json")["facts"]["backbone"])
    except (DataError, UsageError, KeyError, TypeError):
        return ()  # loading the folder will say what is wrong with it


def _recorded_backbones(name: str, path: Path) -> tuple[str, ...]:
    """Ids of the backbones of a model, whose header is at `path`."""
    try:
        ids = components_of(name)
        for one in ids:
            resolve_id(one)
    except UsageError as error:
        raise ArtefactError(f"{path} records no backbone that is known here: {error}") from error
    return ids


def _from_checkpoint(saved: Checkpoint, folder: Path, weights: Weights, device: str) -> Tagger:
    _recorded_backbones(saved.backbone, folder / "checkpoint.json")
    local = _local_weights(weights, (saved.backbone,)).get(saved.backbone)
    # without local weights the architecture is enough: the checkpoint replaces every weight
    backbone = load_backbone(
        saved.backbone, weights=local, device=device, random_weights=local is None
    )
    spec = backbone.spec()
    known = [[s.architecture, s.preprocessing] for s in (spec, with_truncated(spec))]
    if saved.facts["model"] not in known:
        raise ArtefactError(
            f"{folder} was trained with another architecture or preprocessing than "
            f"{backbone.id} has here; give the --weights folder that it was trained from."
        )
    file = f"{folder}/checkpoint.safetensors"
    load_state(backbone.module, saved.state, file, "run retailtag finetune again")
    backbone.module.eval()
    head = Probe(
        saved.tags,
        saved.weight,
        saved.bias,
        saved.thresholds,
        C=np.full(len(saved.tags), np.nan),
        facts=saved.facts,
        head="fine-tuned",
    )
    return Tagger((backbone,), head, "finetune", calibration=saved.calibration)


def _from_probe(
    probe: Probe, folder: Path, weights: Weights, device: str, progress: Progress
) -> Tagger:
    ids = _recorded_backbones(probe.facts["backbone"], folder / "probe.json")
    local = _local_weights(weights, ids)
    backbones = [
        load_backbone(i, weights=local.get(i), device=device, progress=progress) for i in ids
    ]
    stored = probe.facts["stored_as"]
    engines = stored["engine"].split("+")  # one for all components, or one for each
    if len(engines) == 1:
        engines = engines * len(ids)
    if len(engines) != len(ids):
        raise ArtefactError(
            f"{folder}/probe.json: facts.stored_as names {len(engines)} engines for {len(ids)} "
            "backbones; run retailtag probe again."
        )
    specs = [b.spec(e, stored["dtype"]) for b, e in zip(backbones, engines, strict=True)]
    # Whether truncated files were accepted does not change the embeddings of whole images.
    lenient = [with_truncated(spec) for spec in specs]
    if probe.facts["features"] not in (_digest(specs), _digest(lenient)):
        raise ArtefactError(
            f"{folder} was fitted on embeddings of other weights or preprocessing than "
            f"{'+'.join(ids)} has here; run retailtag probe again, or give its --weights."
        )
    embedders = tuple(
        as_fitted(backbone, EngineName.parse(engine), progress)
        for backbone, engine in zip(backbones, engines, strict=True)
    )
    return Tagger(embedders, probe, "probe", calibration=probe.calibration)


def _digest(specs: Sequence[FeatureSpec]) -> str:
    """Identity of the embeddings of one backbone, or of several joined."""
    return specs[0].digest if len(specs) == 1 else JointSpec(tuple(specs)).digest


def _local_weights(weights: Weights, ids: tuple[str, ...]) -> dict[str, Path]:
    """Local weights by backbone id."""
    if weights is None:
        return {}
    if not isinstance(weights, str | Path):
        return {backbone: Path(path) for backbone, path in weights.items()}
    if len(ids) > 1:
        raise UsageError(f"{'+'.join(ids)} is several backbones; give --weights ID=PATH for each.")
    return {ids[0]: Path(weights)}
