"""Embed blocks of images, each image read and decoded once for all backbones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.extraction.costs import ExtractCost
from retailtag.extraction.embedder import Embedder
from retailtag.extraction.forward import Forward
from retailtag.images.decode import MAX_PIXELS
from retailtag.images.loader import Batch, Failure, PreprocessFn, Request, load_views
from retailtag.images.sources import ImageSource

if TYPE_CHECKING:
    import torch

BATCHES_AHEAD = 2  # decoded before the model asks for them; more would only take memory


@dataclass(frozen=True)
class Loading:
    """How images are read; see `retailtag.images.loader.load_views`."""

    batch_size: int = 64
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    allow_truncated: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """Embeddings of one block of images, before they are stored."""

    rows: NDArray[np.intp]  # (n,), of the catalogue: those that gave an embedding, in order
    sha256: list[str]  # of their bytes, hexadecimal
    embeddings: NDArray[np.float32]  # (n, dim)
    failures: list[Failure]  # the other rows of the block
    cost: ExtractCost


OnBatch = Callable[[int, int, ExtractCost], None]
"""Called after each batch with embeddings computed, unreadable images, and the cost."""


class BlockRequest(NamedTuple):
    """A block of rows, and the models that need its embeddings."""

    rows: NDArray[np.intp]
    models: tuple[Forward, ...]


def embed_block(
    images: ImageSource,
    rows: Sequence[int] | NDArray[np.intp],
    backbone: Embedder,
    loading: Loading,
) -> Block:
    """Embed one block of images: the readable ones in order, and the failures.

    The result depends on the images' bytes and the backbone alone, as far as the engine gives an
    image the same embedding in every batch.
    """
    model = Forward(backbone, loading.batch_size)
    request = BlockRequest(np.asarray(rows, np.intp), (model,))
    (((_, block),),) = embed_blocks(images, [request], loading)
    return block


def embed_blocks(
    images: ImageSource,
    requests: Iterable[BlockRequest],
    loading: Loading,
    on_batch: OnBatch | None = None,
) -> Generator[list[tuple[Forward, Block]], None, None]:
    """Yield the blocks of each request, one per model, each image read and decoded once.

    `requests` are consumed in order, as far ahead as decoding needs; for `on_batch` see `OnBatch`.
    Images are decoded ahead across the bounds of blocks, so that the model does not wait at the
    end of a block, and only a few batches ahead, so that memory does not grow with their number.
    """
    # A batch never spans two blocks. Which images share a forward pass therefore follows from
    # the block's rows and the batch size alone, not from the other backbones that the same
    # decoded pixels go to: a store filled together with others equals one filled alone.
    batches = (b for request in requests for b in _batches(request, loading.batch_size))
    with closing(_started_batches(images, batches, loading)) as started:
        builders: list[_BlockBuilder] = []
        for running in started:
            request = running.request
            builders = builders or [_BlockBuilder(model) for model in request.models]
            costs = [
                builder.add(batch, outputs, cost)
                for builder, batch, outputs, cost in zip(
                    builders, running.inputs, running.outputs, running.costs, strict=True
                )
            ]
            if on_batch is not None:
                n_unreadable = len(running.inputs[0].failures)  # alike for every model
                n_embedded = len(request.rows) * len(request.models)
                on_batch(n_embedded, n_unreadable, sum(costs, ExtractCost()))
            if request.ends_block:
                yield [(builder.model, builder.block()) for builder in builders]
                builders = []


class _BatchRequest(NamedTuple):
    """One batch of a block."""

    rows: NDArray[np.intp]
    models: tuple[Forward, ...]
    ends_block: bool

    @property
    def steps(self) -> tuple[PreprocessFn, ...]:
        """The distinct preprocessings of the models."""
        return tuple(dict.fromkeys(map(_pixels_of, self.models)))


def _pixels_of(model: Forward) -> PreprocessFn:
    """Preprocessing up to the pixels: models that differ only in what follows share it."""
    own = model.backbone.preprocess
    return getattr(own, "same_pixels", own)


def _batches(request: BlockRequest, batch_size: int) -> Iterator[_BatchRequest]:
    n = len(request.rows)
    for start in range(0, max(n, 1), batch_size):
        end = min(start + batch_size, n)
        yield _BatchRequest(request.rows[start:end], request.models, end == n)


class _RunningBatch(NamedTuple):
    """A batch whose models have been started; one entry per model."""

    request: _BatchRequest
    inputs: list[Batch]
    outputs: list[list[torch.Tensor]]
    costs: list[ExtractCost]


def _started_batches(
    images: ImageSource, requests: Iterable[_BatchRequest], loading: Loading
) -> Generator[_RunningBatch, None, None]:
    """Load each batch, start its models, and yield it in order."""
    coming, requests = tee(requests)
    views = load_views(
        images,
        (Request(request.rows, request.steps) for request in coming),
        ahead=BATCHES_AHEAD * loading.batch_size,
        workers=loading.workers,
        max_pixels=loading.max_pixels,
        allow_truncated=loading.allow_truncated,
    )
    waiting: deque[_RunningBatch] = deque()
    with closing(views):
        for request in requests:
            waiting.append(_start(request, views))
            # A batch on a GPU is handed on only once the next one has been started: the device
            # then has work while the host fetches results and collates images.
            behind = 1 if any(model.is_asynchronous for model in request.models) else 0
            if len(waiting) > behind:
                yield waiting.popleft()
        yield from waiting


def _start(request: _BatchRequest, views: Iterator[tuple[Batch, ...]]) -> _RunningBatch:
    """Wait for the pixels of a batch and start its models."""
    start = time.perf_counter()
    by_step = dict(zip(request.steps, next(views), strict=True))
    any_view = next(iter(by_step.values()))
    # Reading and decoding are done once: each model bears an equal share of them.
    loading_share = ExtractCost(
        read_seconds=any_view.read_seconds,
        decode_seconds=any_view.decode_seconds,
        wait_seconds=time.perf_counter() - start,
    ).shared_by(len(request.models))
    running = _RunningBatch(request, [], [], [])
    for model in request.models:
        batch = by_step[_pixels_of(model)]
        start = time.perf_counter()
        running.outputs.append(model.start(batch.pixels))
        seconds = time.perf_counter() - start
        running.inputs.append(batch)
        running.costs.append(replace(loading_share, n_computed=len(batch), model_seconds=seconds))
    return running


class _BlockBuilder:
    """The batches of a block embedded so far, by one model."""

    def __init__(self, model: Forward) -> None:
        self.model = model
        self._rows = [np.empty(0, np.intp)]
        self._sha256: list[str] = []
        self._embeddings = [np.empty((0, model.backbone.dim), np.float32)]
        self._failures: list[Failure] = []
        self._cost = ExtractCost()

    def add(self, batch: Batch, outputs: list[torch.Tensor], cost: ExtractCost) -> ExtractCost:
        """Wait for the outputs of a batch and take them; returns the batch's whole cost."""
        start = time.perf_counter()
        self._embeddings.append(self.model.finish(outputs))
        self._rows.append(batch.rows)
        self._sha256 += batch.sha256
        self._failures += batch.failures
        cost += ExtractCost(model_seconds=time.perf_counter() - start)
        cost = replace(cost, seconds=cost.wait_seconds + cost.model_seconds)
        self._cost += cost
        return cost

    def block(self) -> Block:
        """The whole block."""
        return Block(
            rows=np.concatenate(self._rows),
            sha256=self._sha256,
            embeddings=np.concatenate(self._embeddings),
            failures=self._failures,
            cost=self._cost,
        )
