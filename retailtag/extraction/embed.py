"""The unit of work of an extraction: one block of images, embedded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.preprocess import with_truncated
from retailtag.extraction.costs import Cost
from retailtag.extraction.forward import Forward
from retailtag.images.decode import MAX_PIXELS
from retailtag.images.loader import Batch, Failure, PreprocessFn, Request, load_views
from retailtag.images.sources import ImageSource
from retailtag.store import FeatureSpec

if TYPE_CHECKING:
    import torch


class Embedder(Protocol):
    """What `extract` needs: a backbone, or an engine that computes one."""

    @property
    def id(self) -> str:
        """Resolved id."""
        ...

    @property
    def dim(self) -> int:
        """Length of one embedding."""
        ...

    @property
    def preprocess(self) -> PreprocessFn:
        """PIL image (RGB) to uint8 (3, h, w)."""
        ...

    def spec(self, *, dtype: str = ...) -> FeatureSpec:
        """Identity of the embeddings under a stored dtype; it names the engine."""
        ...

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, h, w) to float32 (n, dim)."""
        ...


def identity(
    backbone: Embedder, dtype: str = "float32", *, allow_truncated: bool = False
) -> FeatureSpec:
    """Identity of a backbone's embeddings; which damaged files were accepted is part of it."""
    spec = backbone.spec(dtype=dtype)
    return with_truncated(spec) if allow_truncated else spec


@dataclass(frozen=True)
class Loading:
    """How images are read; see `retailtag.images.loader.load_views`."""

    batch_size: int = 64
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    allow_truncated: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """Embeddings of one block of images, before they are stored.

    Parameters
    ----------
    rows : ndarray of intp, shape (n,)
        Rows of the catalogue that gave an embedding, in order.
    sha256 : list of str, length n
        SHA-256 of their bytes, hexadecimal.
    embeddings : ndarray of float32, shape (n, dim)
        One row each.
    failures : list of Failure
        The other rows of the block.
    cost : Cost
        What computing it took.
    """

    rows: NDArray[np.intp]
    sha256: list[str]
    embeddings: NDArray[np.float32]
    failures: list[Failure]
    cost: Cost


Watch = Callable[[int, int, Cost], None]


def unwatched(n_done: int, n_failed: int, cost: Cost) -> None:
    """Watch that nobody keeps."""


class Work(NamedTuple):
    """A block of rows, and the models that want its embeddings."""

    rows: NDArray[np.intp]
    models: tuple[Forward, ...]


def embed_block(
    images: ImageSource,
    rows: Sequence[int] | NDArray[np.intp],
    backbone: Embedder,
    loading: Loading,
) -> Block:
    """Embed one block of images: the unit of work, the same whoever calls it.

    The result depends on the images' bytes and the backbone alone, as far as the engine gives an
    image the same embedding in every batch.

    Parameters
    ----------
    images : ImageSource
        Gives the bytes of a row.
    rows : sequence of int
        Rows of the block, in order.
    backbone : Embedder
        The model.
    loading : Loading
        How to read.

    Returns
    -------
    Block
        Embeddings of the readable images, and the failures.
    """
    model = Forward(backbone, loading.batch_size)
    work = [Work(np.asarray(rows, np.intp), (model,))]
    (((_, block),),) = embed_blocks(images, work, loading)
    return block


def embed_blocks(
    images: ImageSource, work: Iterable[Work], loading: Loading, watch: Watch = unwatched
) -> Generator[list[tuple[Forward, Block]], None, None]:
    """Yield each model with its block for each piece of work; every image is read and decoded once.

    Images are decoded ahead across the bounds of blocks, so that the model does not wait at the
    end of one, and no more than a few batches ahead, so that memory does not grow with their
    number. Each block is the one that `embed_block` gives.

    Parameters
    ----------
    images : ImageSource
        Gives the bytes of a row.
    work : iterable of Work
        Asked for in order, as far ahead as needed.
    loading : Loading
        How to read.
    watch : callable
        Told of each batch: embeddings done, images that could not be read, and the cost.

    Yields
    ------
    list of (Forward, Block)
        In the order of the work's models.
    """
    calls = (call for piece in work for call in _calls(piece, loading.batch_size))
    with closing(_launched(images, calls, loading)) as launched:
        piles: list[_Pile] = []
        for begun in launched:
            call = begun.call
            piles = piles or [_Pile(model) for model in call.models]
            together = zip(piles, begun.batches, begun.parts, begun.costs, strict=True)
            costs = [pile.add(batch, parts, cost) for pile, batch, parts, cost in together]
            watch(
                len(call.rows) * len(call.models),
                len(begun.batches[0].failures),
                sum(costs, Cost()),
            )
            if call.is_last:
                yield [(pile.model, pile.block()) for pile in piles]
                piles = []


class _Call(NamedTuple):
    """One batch of a piece of work."""

    rows: NDArray[np.intp]
    models: tuple[Forward, ...]
    is_last: bool

    @property
    def steps(self) -> tuple[PreprocessFn, ...]:
        """Preprocessings that differ in their pixels."""
        return tuple(dict.fromkeys(map(_pixels_of, self.models)))


def _pixels_of(model: Forward) -> PreprocessFn:
    """The preprocessing of a model without what comes after the pixels."""
    own = model.backbone.preprocess
    return getattr(own, "same_pixels", own)


def _calls(piece: Work, batch_size: int) -> Iterator[_Call]:
    n = len(piece.rows)
    for at in range(0, max(n, 1), batch_size):
        end = min(at + batch_size, n)
        yield _Call(piece.rows[at:end], piece.models, end == n)


class _Begun(NamedTuple):
    """One batch on its way through every model of its call."""

    call: _Call
    batches: list[Batch]
    parts: list[list[torch.Tensor]]
    costs: list[Cost]


def _launched(
    images: ImageSource, calls: Iterable[_Call], loading: Loading
) -> Generator[_Begun, None, None]:
    """Begin each call in order.

    On a GPU each is given on only when the next has begun: the device always has work while the
    host fetches results and puts batches together.
    """
    coming, calls = tee(calls)
    views = load_views(
        images,
        (Request(call.rows, call.steps) for call in coming),
        ahead=2 * loading.batch_size,
        workers=loading.workers,
        max_pixels=loading.max_pixels,
        allow_truncated=loading.allow_truncated,
    )
    waiting: deque[_Begun] = deque()
    with closing(views):
        for call in calls:
            waiting.append(_begin(call, views))
            behind = 1 if any(model.is_asynchronous for model in call.models) else 0
            if len(waiting) > behind:
                yield waiting.popleft()
        yield from waiting


def _begin(call: _Call, views: Iterator[tuple[Batch, ...]]) -> _Begun:
    """Wait for the pixels of a call and start its models."""
    start = time.perf_counter()
    by_step = dict(zip(call.steps, next(views), strict=True))
    any_view = next(iter(by_step.values()))
    loaded = Cost(
        read_seconds=any_view.read_seconds,
        decode_seconds=any_view.decode_seconds,
        wait_seconds=time.perf_counter() - start,
    ).shared_by(len(call.models))
    begun = _Begun(call, [], [], [])
    for model in call.models:
        batch = by_step[_pixels_of(model)]
        start = time.perf_counter()
        begun.parts.append(model.start(batch.pixels))
        seconds = time.perf_counter() - start
        begun.batches.append(batch)
        begun.costs.append(replace(loaded, n_computed=len(batch), model_seconds=seconds))
    return begun


class _Pile:
    """What has been embedded of a block so far, by one model."""

    def __init__(self, model: Forward) -> None:
        self.model = model
        self._rows = [np.empty(0, np.intp)]
        self._sha256: list[str] = []
        self._embeddings = [np.empty((0, model.backbone.dim), np.float32)]
        self._failures: list[Failure] = []
        self._cost = Cost()

    def add(self, batch: Batch, parts: list[torch.Tensor], cost: Cost) -> Cost:
        """Take the results of a batch, whose pixels are let go; what it cost in all."""
        start = time.perf_counter()
        self._embeddings.append(self.model.finish(parts))
        self._rows.append(batch.rows)
        self._sha256 += batch.sha256
        self._failures += batch.failures
        cost += Cost(model_seconds=time.perf_counter() - start)
        cost = replace(cost, seconds=cost.wait_seconds + cost.model_seconds)
        self._cost += cost
        return cost

    def block(self) -> Block:
        """All of it."""
        return Block(
            np.concatenate(self._rows),
            self._sha256,
            np.concatenate(self._embeddings),
            self._failures,
            self._cost,
        )
