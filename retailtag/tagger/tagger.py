"""A fitted model, ready to run: images in, tags out."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines.embedder import EngineEmbedder
from retailtag.calibration import UNCALIBRATED, Calibration
from retailtag.errors import ArtefactError, UnreadableImage, UsageError
from retailtag.images.decode import MAX_PIXELS, decode_image, to_rgb
from retailtag.images.header import one_image
from retailtag.images.remote import read_remote
from retailtag.probes.artefact import Probe
from retailtag.remote import as_path, is_remote
from retailtag.statistics.exclusive import (
    INDEPENDENT,
    assign,
    attribute_columns,
    check_assignment,
)

ImageInput = str | Path | bytes | Image.Image


@dataclass(frozen=True, eq=False, repr=False)
class Tagger:
    """One or more backbones with a head and thresholds, from a probe or a fine-tune.

    The embeddings of `embedders`, joined end to end, are the input of the head. Engines compute in
    the reduced precision that a probe was fitted on.
    """

    embedders: tuple[Backbone | EngineEmbedder, ...]
    head: Probe  # head and thresholds; those of a fine-tune too
    strategy: str  # probe or finetune
    max_pixels: int = MAX_PIXELS  # larger images are refused
    allow_truncated: bool = False  # accept JPEG files that end early
    # Which tags of an attribute with one value an image are given; see `assign`
    assignment: str = INDEPENDENT
    exclusive: tuple[str, ...] = ()  # names of these attributes
    # Thresholds (n_tags,) by name, `head.thresholds` among them; see `at`
    operating_points: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    calibration: Calibration | None = None  # None: probabilities are the logistic of the logits

    def assigning(self, assignment: str, one_of: Sequence[str] = ()) -> Tagger:
        """The same model that gives at most one or exactly one value of an attribute.

        Parameters
        ----------
        assignment : {"independent", "at-most-one", "exactly-one"}
        one_of : sequence of str
            Attributes with one value an image; by default those that the model records.

        Raises
        ------
        UsageError
            If the model records none, or has no tag of one that is named.
        """
        exclusive = tuple(one_of) or self.exclusive
        check_assignment(assignment, exclusive)
        for name in one_of:
            if not len(attribute_columns(self.tags, name)):
                raise UsageError(f"--one-of {name}: no tag of the model begins with {name}:.")
        return replace(self, assignment=assignment, exclusive=exclusive)

    def at(self, point: str) -> Tagger:
        """The same model with the thresholds of one of its `operating_points`.

        Raises `UsageError` if there is none of this name.
        """
        if point not in self.operating_points:
            known = ", ".join(self.operating_points) or "none"
            raise UsageError(
                f"--operating-point {point} is not known to this model, which has {known}; "
                "retailtag export adds others, and retailtag tune tunes for anything else."
            )
        head = replace(self.head, thresholds=self.operating_points[point])
        return replace(self, head=head)

    def check_dim(self, folder: Path) -> None:
        """Raise `ArtefactError` unless the head takes embeddings of the backbones' length."""
        given = sum(backbone.dim for backbone in self.backbones)
        if given != self.head.dim:
            raise ArtefactError(
                f"{folder} has a head for embeddings of length {self.head.dim}, and "
                f"{'+'.join(b.id for b in self.backbones)} gives {given}; run retailtag "
                f"{self.strategy} again."
            )

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """The backbones, without their engines."""
        return tuple(e.backbone if isinstance(e, EngineEmbedder) else e for e in self.embedders)

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags, in the order of the logits' columns."""
        return self.head.tags

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """Smallest logit of each tag that assigns it, (n_tags,)."""
        return self.head.thresholds

    def logits(self, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of paths, encoded files (JPEG, PNG, ...) or PIL images.

        Raises `UnreadableImage` for one that cannot be read or decoded, and `UsageError` for one of
        another type.
        """
        if isinstance(images, ImageInput):
            raise UsageError(f"Give a list of images, [image], not one {type(images).__name__}.")
        if not len(images):
            return np.empty((0, len(self.tags)), np.float32)
        pixels = [self.pixels(image, number) for number, image in enumerate(images)]
        return self.head.logits(self.embeddings(pixels))

    def embeddings(self, pixels: Sequence[list[NDArray[np.uint8]]]) -> NDArray[np.float32]:
        """Embeddings (n_images, dim) of what `pixels` gives for each image, at least one."""
        parts = [
            embedder.embed(torch.from_numpy(np.stack(rows))).cpu().numpy()
            for embedder, rows in zip(self.embedders, zip(*pixels, strict=True), strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def pixels(self, image: ImageInput, number: int = 0) -> list[NDArray[np.uint8]]:
        """Preprocessed pixels (3, h, w) of one image for each backbone; raises as `logits` does.

        `number` is what messages call an image that has no name.
        """
        try:
            with one_image():
                return self.preprocessed(self.decoded(image, number))
        except UnreadableImage as error:
            name = f"{image} " if isinstance(image, str | Path) else ""
            raise UnreadableImage(f"{name}{error}") from error

    def tag(self, images: Sequence[ImageInput]) -> list[list[str]]:
        """Tags of each image, likeliest first: those at or above their thresholds.

        After `assigning`, of some attributes at most one or exactly one.
        Takes images and raises errors as `logits` does.
        """
        return [list(found) for found in self.predict(images)]

    def predict(self, images: Sequence[ImageInput]) -> list[dict[str, float]]:
        """Probability of each tag of each image, for the tags and in the order of `tag`."""
        return self.given(self.logits(images))

    def given(self, logits: NDArray[np.float32]) -> list[dict[str, float]]:
        """What `predict` gives for images of these logits (n_images, n_tags)."""
        found = []
        cells = assign(logits, self.thresholds, self.tags, self.exclusive, self.assignment)
        rows = zip(logits, self.probabilities(logits), cells, strict=True)
        for z, probability, own in rows:
            order = np.lexsort((-z, -probability))  # by logits where rounding makes 1 of both
            given = order[own[order]]
            names = [self.tags[j] for j in given]
            found.append(dict(zip(names, probability[given].tolist(), strict=True)))
        return found

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probability of every tag (n_images, n_tags): calibrated, or the logistic of the logits.

        Each rises with the logits of its tag, so that neither the order of images nor a threshold
        changes. The order of an image's tags may.
        """
        return (self.calibration or UNCALIBRATED).probabilities(logits)

    def preprocessed(self, decoded: Image.Image) -> list[NDArray[np.uint8]]:
        """Pixels (3, h, w) of one decoded image for each backbone."""
        return [embedder.preprocess(decoded) for embedder in self.embedders]

    def decoded(self, image: ImageInput, number: int = 0) -> Image.Image:
        """RGB image of a path, an encoded file or a PIL image, decoded once for all backbones."""
        if isinstance(image, Image.Image):
            return to_rgb(image)
        if not isinstance(image, ImageInput):
            raise UsageError(
                f"Image {number} is of type {type(image).__name__}; give a path, bytes or a PIL "
                "image."
            )
        decode = partial(
            decode_image, max_pixels=self.max_pixels, allow_truncated=self.allow_truncated
        )
        if isinstance(image, bytes):
            return decode(image)
        if is_remote(str(image)):
            return decode(read_remote(str(as_path(image))))
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"cannot be read: {error.strerror or error}.") from error
        return decode(data)

    @property
    def parameters(self) -> int:
        """Parameters of backbones and head together, with the directions of a kNN bank."""
        body = sum(p.numel() for b in self.backbones for p in b.module.parameters())
        bank = self.head.vote.bank.directions.size if self.head.vote else 0
        return body + bank + self.head.weight.size + self.head.bias.size

    @property
    def nbytes(self) -> int:
        """Bytes of `parameters`, and of the labels of a kNN bank."""
        body = [p for b in self.backbones for p in b.module.parameters()]
        size = sum(p.numel() * p.element_size() for p in body)
        bank = self.head.vote.bank.nbytes if self.head.vote else 0
        return size + bank + self.head.weight.nbytes + self.head.bias.nbytes

    def _summary(self) -> dict[str, str]:
        thresholds = self.head.facts.get("thresholds") or {}
        return {
            "backbone": "+".join(e.id for e in self.embedders),
            "strategy": self.strategy,
            "head": self.head.head,
            "tags": f"{len(self.tags):,}",
            "thresholds": thresholds.get("rule", "unknown rule"),
        }

    def __repr__(self) -> str:
        return f"Tagger({', '.join(f'{name}={value}' for name, value in self._summary().items())})"

    def _repr_html_(self) -> str:
        """Table for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._summary().items()
        )
        return f"<table>{rows}</table>"


def point_name(facts: Mapping[str, Any]) -> str:
    """Name of the thresholds that a model was fitted with, such as ``f1`` or ``max-tags:12``."""
    thresholds = facts.get("thresholds") or {}
    max_tags = thresholds.get("max_tags")
    return str(thresholds.get("objective", "f1")) if max_tags is None else f"max-tags:{max_tags:g}"
