"""A fitted model, ready to run: images in, tags out."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines.build import embedder_of
from retailtag.backbones.engines.embedder import EngineEmbedder
from retailtag.backbones.engines.names import EngineName
from retailtag.backbones.factory import load_backbone
from retailtag.backbones.ids import components_of, resolve_id
from retailtag.backbones.preprocess import with_truncated
from retailtag.errors import ArtefactError, DataError, Unavailable, UnreadableImage, UsageError
from retailtag.files import read_json
from retailtag.finetuning.artefact import Checkpoint
from retailtag.images.decode import MAX_PIXELS, decode_image, to_rgb
from retailtag.images.header import one_image
from retailtag.probes.artefact import Probe
from retailtag.progress import SILENT, Progress
from retailtag.statistics.exclusive import (
    INDEPENDENT,
    assign,
    attribute_columns,
    check_assignment,
)
from retailtag.store import FeatureSpec, JointSpec

ImageInput = str | Path | bytes | Image.Image
Weights = str | Path | Mapping[str, str | Path] | None


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

    @classmethod
    def load(
        cls,
        folder: str | Path,
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
        weights : str, Path or mapping of str to str or Path, optional
            Local weights of the backbone, or of several by their ids. A fine-tune has its own
            weights and needs these only if their folder describes the architecture.
        progress : Progress
            Receives a message if the probe's engine of reduced precision cannot run here.

        Raises
        ------
        DataError
            If the folder holds neither.
        ArtefactError
            If the backbone here differs from the one that was fitted.
        UsageError
            If one path of weights is given for several backbones.
        """
        folder = Path(folder)
        if (folder / "checkpoint.json").exists():
            tagger = _from_checkpoint(Checkpoint.load(folder), folder, weights, device)
        elif (folder / "probe.json").exists():
            tagger = _from_probe(Probe.load(folder), folder, weights, device, progress)
        else:
            raise DataError(
                f"{folder} holds neither a probe nor a fine-tuned checkpoint; name a folder that "
                "retailtag probe or retailtag finetune wrote."
            )
        tagger.check_dim(folder)
        recorded = tuple(tagger.head.facts.get("exclusive") or ())
        return replace(
            tagger, max_pixels=max_pixels, allow_truncated=allow_truncated, exclusive=recorded
        )

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
        """Tags of each image, by falling logit: those at or above their thresholds.

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
        for z, own in zip(logits.astype(np.float64), cells, strict=True):
            order = np.argsort(-z, kind="stable")
            given = order[own[order]]
            probabilities = 0.5 * (1 + np.tanh(0.5 * z[given]))  # the logistic, without overflow
            names = [self.tags[j] for j in given]
            found.append(dict(zip(names, probabilities.tolist(), strict=True)))
        return found

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
    _check_state(saved.state, backbone.module.state_dict(), folder)
    backbone.module.load_state_dict(saved.state)
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
    return Tagger((backbone,), head, "finetune")


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
        _embedder(backbone, EngineName.parse(engine), progress)
        for backbone, engine in zip(backbones, engines, strict=True)
    )
    return Tagger(embedders, probe, "probe")


def _embedder(
    backbone: Backbone, name: EngineName, progress: Progress
) -> Backbone | EngineEmbedder:
    """The backbone itself for float32, otherwise the arithmetic that the probe was fitted on."""
    if name.exact:
        return backbone
    if name.engine == "compile":  # eager gives the same arithmetic without minutes of compiling
        name = replace(name, engine="eager")
    try:
        return embedder_of(backbone, name, batch_size=1)
    except Unavailable as error:
        progress.say(f"{error} Predictions are made in eager float32 and may differ slightly.")
        return backbone


def _check_state(saved: Mapping[str, Tensor], module: Mapping[str, Tensor], folder: Path) -> None:
    """Raise `ArtefactError` unless the tensors of a fine-tune are those of its architecture."""
    place = f"{folder}/checkpoint.safetensors"
    for name in sorted(module.keys() | saved.keys()):
        if name not in saved:
            problem = f"lacks backbone.{name}"
        elif name not in module:
            problem = f"holds an unknown tensor, backbone.{name}"
        elif (here := _form(module[name])) != (there := _form(saved[name])):
            problem = f"holds backbone.{name} as {there}, not {here}"
        else:
            continue
        raise ArtefactError(f"{place} {problem}; run retailtag finetune again.")


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


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
