"""The fitted model as one thing: image bytes in, tags out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from retailtag.backbones import components_of, load_backbone
from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines import EngineName, embedder_of
from retailtag.backbones.engines.embedder import EngineEmbedder
from retailtag.backbones.preprocess import with_truncated
from retailtag.errors import ArtefactError, DataError, Unavailable, UsageError
from retailtag.files import read_json
from retailtag.finetuning.artefact import Checkpoint
from retailtag.images.decode import MAX_PIXELS, decode_image
from retailtag.probes.artefact import Probe
from retailtag.probes.heads.knn import KnnVote
from retailtag.probes.scaling import unit_rows
from retailtag.progress import SILENT, Progress
from retailtag.store import FeatureSpec, JointSpec

Weights = Path | Mapping[str, Path] | None


@dataclass(frozen=True, eq=False)
class Tagger:
    """One or more backbones with a head and thresholds, from either strategy.

    Parameters
    ----------
    backbones : tuple of Backbone
        Frozen for a probe, with its trained blocks for a fine-tune; the head reads their
        embeddings joined end to end.
    tags : tuple of str, length n_tags
    weight : ndarray of float32, shape (n_tags, dim)
        On raw embeddings, or on unit rows of them; (n_tags, 0) where neighbours vote.
    bias, thresholds : ndarray of float32, shape (n_tags,)
    max_pixels : int
        Larger images are refused.
    allow_truncated : bool
        Accept files that end early.
    unit : bool
        Divide every embedding by its norm first.
    vote : KnnVote, optional
        Gives the logits in place of weight and bias; searched on the CPU.
    embedders : tuple of Backbone or EngineEmbedder
        What computes the embeddings of each backbone, if not the backbone itself: the engine of
        reduced precision that the probe was fitted on.
    """

    backbones: tuple[Backbone, ...]
    tags: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    max_pixels: int = MAX_PIXELS
    allow_truncated: bool = False
    unit: bool = False
    vote: KnnVote | None = None
    embedders: tuple[Backbone | EngineEmbedder, ...] = ()

    def __post_init__(self) -> None:
        if not self.embedders:
            object.__setattr__(self, "embedders", self.backbones)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        weights: Weights = None,
        device: str = "cpu",
        max_pixels: int = MAX_PIXELS,
        allow_truncated: bool = False,
        progress: Progress = SILENT,
    ) -> Tagger:
        """Load what ``retailtag probe`` or ``retailtag finetune`` wrote to `folder`.

        Parameters
        ----------
        folder : Path
        weights : Path or mapping of str to Path, optional
            Local weights of the backbone, for a probe, or of several by their ids; a fine-tune
            carries its own and needs them only where their folder says how the model is built.
        device : str
            ``cpu`` or ``cuda``.
        max_pixels : int
            Larger images are refused.
        allow_truncated : bool
            Accept files that end early.
        progress : Progress
            Told if the probe's engine of reduced precision cannot run here.

        Raises
        ------
        DataError
            If the folder holds neither.
        ArtefactError
            If the backbone here is not the one that was fitted.
        UsageError
            If one path of weights is given for several backbones.
        """
        if (folder / "checkpoint.json").exists():
            tagger = cls._from_checkpoint(Checkpoint.load(folder), folder, weights, device)
            return replace(tagger, max_pixels=max_pixels, allow_truncated=allow_truncated)
        if (folder / "probe.json").exists():
            tagger = cls._from_probe(Probe.load(folder), folder, weights, device, progress)
            return replace(tagger, max_pixels=max_pixels, allow_truncated=allow_truncated)
        raise DataError(
            f"{folder} holds neither a probe nor a fine-tuned checkpoint; name the folder that "
            "retailtag probe or retailtag finetune wrote."
        )

    @classmethod
    def _from_checkpoint(
        cls, saved: Checkpoint, folder: Path, weights: Weights, device: str
    ) -> Tagger:
        local = _local_weights(weights, (saved.backbone,)).get(saved.backbone)
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
        backbone.module.load_state_dict(saved.state)
        backbone.module.eval()
        return cls((backbone,), saved.tags, saved.weight, saved.bias, saved.thresholds)

    @classmethod
    def _from_probe(
        cls, probe: Probe, folder: Path, weights: Weights, device: str, progress: Progress
    ) -> Tagger:
        ids = components_of(probe.facts["backbone"])
        local = _local_weights(weights, ids)
        backbones = tuple(load_backbone(i, weights=local.get(i), device=device) for i in ids)
        stored = probe.facts["stored_as"]
        engines = stored["engine"].split("+")  # one, or one a backbone where they differ
        engines = engines * len(ids) if len(engines) == 1 else engines
        specs = tuple(
            backbone.spec(engine, stored["dtype"])
            for backbone, engine in zip(backbones, engines, strict=True)
        )
        # With files that end early or without: of whole images the embeddings are the same.
        lenient = tuple(map(with_truncated, specs))
        if probe.facts["features"] not in (_digest(specs), _digest(lenient)):
            raise ArtefactError(
                f"{folder} was fitted on embeddings of other weights or preprocessing than "
                f"{'+'.join(ids)} has here; run retailtag probe again, or give its --weights."
            )
        head = (probe.weight, probe.bias, probe.thresholds)
        embedders = tuple(
            _embedder(backbone, EngineName.parse(engine), progress)
            for backbone, engine in zip(backbones, engines, strict=True)
        )
        return cls(
            backbones, probe.tags, *head, unit=probe.unit, vote=probe.vote, embedders=embedders
        )

    def logits(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of encoded images (JPEG, PNG, ...).

        Raises
        ------
        UnreadableImage
            If one does not decode.
        """
        pixels: list[list[NDArray[np.uint8]]] = [[] for _ in self.backbones]
        for data in images:  # decoded once for all backbones, and let go before the next
            picture = self._decode(data)
            for backbone, rows in zip(self.backbones, pixels, strict=True):
                rows.append(backbone.preprocess(picture))
        parts = [
            embedder.embed(torch.from_numpy(np.stack(rows))).float().cpu().numpy()
            for embedder, rows in zip(self.embedders, pixels, strict=True)
        ]
        embeddings = np.concatenate(parts, axis=1)
        if self.vote is not None:
            return self.vote.logits(embeddings)
        inputs = unit_rows(embeddings) if self.unit else embeddings
        return inputs @ self.weight.T + self.bias

    def _decode(self, data: bytes) -> Image:
        return decode_image(data, max_pixels=self.max_pixels, allow_truncated=self.allow_truncated)

    def tag(self, images: Sequence[bytes]) -> list[list[str]]:
        """Tags of each encoded image, those at or above their thresholds, likeliest first."""
        return [
            [self.tags[j] for j in np.argsort(-z, kind="stable") if z[j] >= self.thresholds[j]]
            for z in self.logits(images)
        ]

    @property
    def parameters(self) -> int:
        """Parameters of backbones and head together; the directions of a bank are some too."""
        bank = self.vote.bank.directions.size if self.vote else 0
        body = sum(p.numel() for b in self.backbones for p in b.module.parameters())
        return body + bank + self.weight.size + self.bias.size

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters of backbones and head together, and of a bank."""
        bank = self.vote.bank.nbytes if self.vote else 0
        body = [p for b in self.backbones for p in b.module.parameters()]
        size = sum(p.numel() * p.element_size() for p in body)
        return size + bank + self.weight.nbytes + self.bias.nbytes


def _embedder(
    backbone: Backbone, name: EngineName, progress: Progress
) -> Backbone | EngineEmbedder:
    """What predicts as a probe on features of `name` expects: float32 in any case by eager."""
    if name.exact:
        return backbone
    if name.engine == "compile":  # the same arithmetic, without minutes of compiling
        name = replace(name, engine="eager")
    try:
        return embedder_of(backbone, name, batch_size=1)
    except Unavailable as error:
        progress.say(f"{error} Predictions are made in eager float32 and may differ slightly.")
        return backbone


def _digest(specs: tuple[FeatureSpec, ...]) -> str:
    """Identity of the embeddings of one or several backbones side by side."""
    return specs[0].digest if len(specs) == 1 else JointSpec(specs).digest


def backbones_of(folder: Path) -> tuple[str, ...]:
    """Ids of the backbones that the fitted pair in `folder` runs; empty if it holds no pair."""
    try:
        if (folder / "checkpoint.json").exists():
            return components_of(read_json(folder / "checkpoint.json")["backbone"])
        return components_of(read_json(folder / "probe.json")["facts"]["backbone"])
    except (DataError, KeyError, TypeError):
        return ()  # what is wrong with the folder, loading it says


def _local_weights(weights: Weights, ids: tuple[str, ...]) -> Mapping[str, Path]:
    """Local weights by backbone id."""
    if isinstance(weights, Path) and len(ids) > 1:
        raise UsageError(f"{'+'.join(ids)} is several backbones; give --weights ID=PATH for each.")
    return {ids[0]: weights} if isinstance(weights, Path) else weights or {}
