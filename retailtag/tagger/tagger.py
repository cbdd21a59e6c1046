"""The fitted model as one thing: image bytes in, tags out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from retailtag.backbones import load_backbone
from retailtag.backbones.backbone import Backbone
from retailtag.catalog.decode import MAX_PIXELS, decode_image
from retailtag.errors import ArtefactError, DataError
from retailtag.finetune.artefact import Checkpoint
from retailtag.probes.artefact import Probe
from retailtag.probes.scaling import is_unit, unit_rows


@dataclass(frozen=True, eq=False)
class Tagger:
    """A backbone with a linear head and thresholds, from either strategy.

    Parameters
    ----------
    backbone : Backbone
        Frozen for a probe, with its trained blocks for a fine-tune.
    tags : tuple of str, length n_tags
    weight : ndarray of float32, shape (n_tags, dim)
        On raw embeddings, or on unit rows of them.
    bias, thresholds : ndarray of float32, shape (n_tags,)
    max_pixels : int
        Larger images are refused.
    allow_truncated : bool
        Accept files that end early.
    unit : bool
        Divide every embedding by its norm first.
    """

    backbone: Backbone
    tags: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    max_pixels: int = MAX_PIXELS
    allow_truncated: bool = False
    unit: bool = False

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        weights: Path | None = None,
        device: str = "cpu",
        max_pixels: int = MAX_PIXELS,
        allow_truncated: bool = False,
    ) -> Tagger:
        """Load what ``retailtag probe`` or ``retailtag finetune`` wrote to `folder`.

        Parameters
        ----------
        folder : Path
        weights : Path, optional
            Local weights of the backbone, for a probe; a fine-tune carries its own and needs
            them only where their folder says how the model is built.
        device : str
            ``cpu`` or ``cuda``.
        max_pixels : int
            Larger images are refused.
        allow_truncated : bool
            Accept files that end early.

        Raises
        ------
        DataError
            If the folder holds neither.
        ArtefactError
            If the backbone here is not the one that was fitted.
        """
        if (folder / "checkpoint.json").exists():
            tagger = cls._from_checkpoint(Checkpoint.load(folder), folder, weights, device)
            return replace(tagger, max_pixels=max_pixels, allow_truncated=allow_truncated)
        if (folder / "probe.json").exists():
            tagger = cls._from_probe(Probe.load(folder), folder, weights, device)
            return replace(tagger, max_pixels=max_pixels, allow_truncated=allow_truncated)
        raise DataError(
            f"{folder} holds neither a probe nor a fine-tuned checkpoint; name the folder that "
            "retailtag probe or retailtag finetune wrote."
        )

    @classmethod
    def _from_checkpoint(
        cls, saved: Checkpoint, folder: Path, weights: Path | None, device: str
    ) -> Tagger:
        random = weights is None
        backbone = load_backbone(
            saved.backbone, weights=weights, device=device, random_weights=random
        )
        spec = backbone.spec()
        if [spec.architecture, spec.preprocessing] != saved.facts["model"]:
            raise ArtefactError(
                f"{folder} was trained with another architecture or preprocessing than "
                f"{backbone.id} has here; give the --weights folder that it was trained from."
            )
        backbone.module.load_state_dict(saved.state)
        backbone.module.eval()
        return cls(backbone, saved.tags, saved.weight, saved.bias, saved.thresholds)

    @classmethod
    def _from_probe(cls, probe: Probe, folder: Path, weights: Path | None, device: str) -> Tagger:
        backbone = load_backbone(probe.facts["backbone"], weights=weights, device=device)
        spec = backbone.spec(**probe.facts["stored_as"])
        if spec.digest != probe.facts["features"]:
            raise ArtefactError(
                f"{folder} was fitted on embeddings of other weights or preprocessing than "
                f"{backbone.id} has here; run retailtag probe again, or give its --weights."
            )
        head = (probe.weight, probe.bias, probe.thresholds)
        return cls(backbone, probe.tags, *head, unit=is_unit(probe.scale))

    def logits(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of encoded images (JPEG, PNG, ...).

        Raises
        ------
        UnreadableImage
            If one does not decode.
        """
        pixels = np.stack([self.backbone.preprocess(self._decode(data)) for data in images])
        embeddings = self.backbone.embed(torch.from_numpy(pixels)).float().cpu().numpy()
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
        """Parameters of backbone and head together."""
        body = sum(p.numel() for p in self.backbone.module.parameters())
        return body + self.weight.size + self.bias.size
