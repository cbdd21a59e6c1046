"""A tagger as one ONNX graph: pixels of its backbones to logits and probabilities."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retailtag.backbones.engines.build import CONVERTER_ERRORS, why_unavailable
from retailtag.backbones.engines.embedder import WithNormalisation
from retailtag.backbones.engines.names import EngineName
from retailtag.backbones.preprocess import Preprocess
from retailtag.errors import Unavailable
from retailtag.probes.artefact import Probe
from retailtag.probes.heads.knn import KnnVote
from retailtag.tagger.onnx.resizing import OPSET
from retailtag.tagger.tagger import Tagger
from retailtag.version import __version__

if TYPE_CHECKING:
    import onnx

OUTPUTS = ("logits", "probabilities")
BATCH = "batch"  # name of the only axis of any length
# The exporter takes an axis of length 1 for a constant.
_EXAMPLES = 2


class TaggerGraph(nn.Module):
    """A tagger as one network, from the uint8 pixels of its inputs to logits and probabilities."""

    slope: Tensor
    offset: Tensor

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        names = list(inputs_of(tagger))
        pixels = [b.preprocess.same_pixels for b in tagger.backbones]
        distinct = list(dict.fromkeys(pixels))
        self.sources = [names[distinct.index(p)] for p in pixels]  # of each backbone
        self.names = names
        self.bodies = nn.ModuleList(
            WithNormalisation(b.lean_module(), b.preprocess).to(b.device) for b in tagger.backbones
        )
        device = tagger.backbones[0].device
        vote = tagger.head.vote
        self.head = (_Linear(tagger.head) if vote is None else _Vote(vote)).to(device)
        curves = tagger.calibration
        self.is_calibrated = curves is not None
        if curves is not None:
            self.register_buffer("slope", torch.from_numpy(curves.slope).to(device))
            self.register_buffer("offset", torch.from_numpy(curves.offset).to(device))

    def forward(self, *pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities (n, n_tags) of uint8 pixels (n, 3, h, w) of each input."""
        given = dict(zip(self.names, pixels, strict=True))
        parts = [body(given[name]) for body, name in zip(self.bodies, self.sources, strict=True)]
        logits = self.head(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        score = logits
        if self.is_calibrated:
            score = self.slope * logits + self.offset
        return logits, torch.sigmoid(score)


class _Linear(nn.Module):
    """The logits of `Probe.logits` for a linear head."""

    weight: Tensor
    bias: Tensor

    def __init__(self, head: Probe) -> None:
        super().__init__()
        self.unit = head.unit
        self.register_buffer("weight", torch.from_numpy(head.weight))
        self.register_buffer("bias", torch.from_numpy(head.bias))

    def forward(self, embedding: Tensor) -> Tensor:
        if self.unit:
            tiny = torch.finfo(torch.float32).tiny
            norm = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)
            embedding = embedding / norm.clamp(min=tiny)
        return nn.functional.linear(embedding, self.weight, self.bias)


class _Vote(nn.Module):
    """The logits of `KnnVote.logits`: a product with the bank, its largest, and their labels."""

    mean: Tensor
    directions: Tensor
    labels: Tensor
    prior: Tensor
    votes: Tensor

    def __init__(self, vote: KnnVote) -> None:
        super().__init__()
        bank = vote.bank
        self.counts = vote.counts.tolist()
        self.most = min(max(self.counts), len(bank.directions))
        self.temperature = vote.temperature
        self.complete = bool((bank.labels >= 0).all())
        buffers = {
            "mean": bank.mean,
            "directions": bank.directions.T,
            "labels": bank.labels,
            "prior": 1 / (1 + np.exp(-bank.prior.astype(np.float64))),
        }
        for name, values in buffers.items():
            tensor = torch.from_numpy(np.ascontiguousarray(values))
            kept = tensor if name == "labels" else tensor.float()
            self.register_buffer(name, kept)
        # (k, n_tags): the neighbours that vote on each tag
        votes = torch.arange(self.most)[:, None] < torch.tensor(self.counts)
        self.register_buffer("votes", votes.float())

    def forward(self, embedding: Tensor) -> Tensor:
        centred = embedding - self.mean
        length = (centred * centred).double().sum(dim=1, keepdim=True).sqrt()
        length = torch.where(length > 0, length, torch.ones_like(length))
        similarity = (centred.double() / length).float() @ self.directions
        best, near = torch.topk(similarity, self.most, dim=1)
        weight = torch.exp((best - best[:, :1]) / self.temperature)[:, :, None] * self.votes
        labels = self.labels[near]  # (n, k, n_tags)
        yes = (weight * (labels == 1)).sum(dim=1)
        cast = (weight if self.complete else weight * (labels >= 0)).sum(dim=1)
        return torch.log((yes + self.prior) / (cast - yes + 1 - self.prior))


def check_extra(what: str) -> None:
    """Raise `Unavailable` unless the packages of the extra ``onnx`` are installed."""
    if missing := why_unavailable(EngineName("onnxruntime"), "cpu"):
        raise Unavailable(f"{what} cannot be made: {missing}.")


def inputs_of(tagger: Tagger) -> dict[str, Preprocess]:
    """Inputs of the graph by name: ``pixels``, or ``pixels_1`` and so on for several.

    Backbones whose pixels are the same share one.
    """
    distinct = list(dict.fromkeys(b.preprocess.same_pixels for b in tagger.backbones))
    if len(distinct) == 1:
        return {"pixels": distinct[0]}
    return {f"pixels_{i}": p for i, p in enumerate(distinct, start=1)}


def feed_of(tagger: Tagger, pixels: list[list[NDArray[np.uint8]]]) -> dict[str, NDArray[np.uint8]]:
    """What the graph takes for images, from what `Tagger.pixels` gives for each."""
    places = [b.preprocess.same_pixels for b in tagger.backbones]
    return {
        name: np.stack([rows[places.index(p)] for rows in pixels])
        for name, p in inputs_of(tagger).items()
    }


def graph_of(tagger: Tagger) -> onnx.ModelProto:
    """ONNX model of a tagger, float32, with a batch of any size.

    Inputs are those of `inputs_of`, uint8 (batch, 3, h, w); outputs ``logits`` and
    ``probabilities``, float32 (batch, n_tags). Engines of reduced precision are not reproduced.

    Raises
    ------
    Unavailable
        If the extra ``onnx`` is missing, or a backbone cannot be converted.
    """
    check_extra("An ONNX model")
    network = TaggerGraph(tagger).eval()
    inputs = inputs_of(tagger)
    device = tagger.backbones[0].device
    examples = tuple(
        torch.zeros(_EXAMPLES, 3, *p.size, dtype=torch.uint8, device=device)
        for p in inputs.values()
    )
    batch = torch.export.Dim(BATCH, min=1)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # converters warn about their own internals
            program = torch.onnx.export(
                network,
                examples,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(OUTPUTS),
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            )
        assert program is not None
        model: onnx.ModelProto = program.model_proto
    except CONVERTER_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        names = "+".join(b.id for b in tagger.backbones)
        raise Unavailable(
            f"{names} cannot be exported to ONNX: {reason.rstrip('.')}; export another pair, or "
            "leave --format out."
        ) from error
    finally:
        log.setLevel(level)
    return model


def finite_or_none(values: NDArray[np.floating]) -> list[float | None]:
    """Numbers as JSON has them; None for infinity."""
    return [float(v) if math.isfinite(v) else None for v in values]


def describe(model: onnx.ModelProto, tagger: Tagger, preprocessing: Mapping[str, Any]) -> None:
    """Put tags, thresholds and preprocessing into the metadata of a model."""
    facts = {
        "tags": list(tagger.tags),
        "thresholds": finite_or_none(tagger.thresholds),  # on logits; null: never given
        "preprocessing": preprocessing,
    }
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "retailtag", __version__
    for name, value in facts.items():
        model.metadata_props.add(key=name, value=json.dumps(value, ensure_ascii=False))
