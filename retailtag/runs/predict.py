"""Tags of many images: read, decoded and embedded as an extraction does, given as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retailtag.backbones.engines.build import CPU_BATCH_SIZE, embedder_of
from retailtag.backbones.engines.embedder import EngineEmbedder
from retailtag.backbones.engines.names import EngineName
from retailtag.backbones.engines.trial import Bench
from retailtag.backbones.fingerprint import pictures
from retailtag.catalog.named import NamedImage, NamedImages
from retailtag.errors import Unavailable
from retailtag.extraction.embed import Block, BlockRequest, Loading, embed_blocks
from retailtag.extraction.embedder import device_of
from retailtag.extraction.forward import BATCH_SIZES, Forward
from retailtag.images.decode import decode_image
from retailtag.images.sources import ImageSource
from retailtag.progress import SILENT, Progress
from retailtag.tagger.predicting import Choice
from retailtag.tagger.tagger import Tagger

if TYPE_CHECKING:
    from retailtag.backbones.backbone import Backbone

# Converting a model takes seconds, in which eager mode tags a few images on any device.
MIN_IMAGES_FOR_ENGINE = 256


@dataclass(frozen=True)
class Prediction:
    """What became of one image: its tags, or why there are none."""

    image_id: str
    path: str
    tags: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()  # of `tags`, which fall
    uncertain: tuple[str, ...] = ()  # the closest to its decision first
    doubts: tuple[float, ...] = ()  # probabilities of `uncertain`
    error: str = ""  # why the image could not be read
    read: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)  # its bytes


@dataclass(frozen=True, eq=False)
class Predicting:
    """A model, images and how they are tagged; to be run through once.

    Iterating gives lists of `Prediction`, a batch at a time, in the order of the images.
    """

    tagger: Tagger
    images: NamedImages
    choice: Choice
    loading: Loading
    progress: Progress = SILENT

    def __iter__(self) -> Generator[list[Prediction], None, None]:
        tagger = _with_engines(self.tagger, self.loading.batch_size, self.images.total)
        models = tuple(
            Forward(e, self.loading.batch_size, self.progress.say) for e in tagger.embedders
        )
        stream = _Stream(self.images)
        requests = stream.requests(self.loading.batch_size, models)
        n_failed = 0
        with (
            self.progress.task("predict", self.images.total) as advance,
            closing(embed_blocks(stream, requests, self.loading)) as batches,
        ):
            for batch in batches:
                found = self._found(tagger, [block for _, block in batch], stream)
                n_failed += len(batch[0][1].failures)
                advance(len(found), f"{n_failed:,} unreadable" if n_failed else "")
                yield found

    def _found(self, tagger: Tagger, blocks: Sequence[Block], stream: _Stream) -> list[Prediction]:
        """Predictions of one batch, of which every backbone gives one block."""
        first = blocks[0]
        by_row: dict[int, Prediction] = {}
        for failure in first.failures:
            image = stream.take(failure.row)
            by_row[failure.row] = Prediction(image.image_id, image.path, error=failure.reason)
        if len(first.rows):
            embeddings = np.concatenate([block.embeddings for block in blocks], axis=1)
            given = self.choice.given(tagger, tagger.head.logits(embeddings))
            for row, tags in zip(first.rows.tolist(), given, strict=True):
                image = stream.take(row)
                by_row[row] = Prediction(image.image_id, image.path, *tags, read=image.read)
        return [by_row[row] for row in sorted(by_row)]


class _Stream(ImageSource):
    """Images in the order in which they come, each held until its tags are known."""

    def __init__(self, images: Iterable[NamedImage]) -> None:
        super().__init__(Path(), ())
        self._coming = iter(images)
        self._held: dict[int, NamedImage] = {}
        self._next = 0

    def requests(self, size: int, models: tuple[Forward, ...]) -> Iterator[BlockRequest]:
        """Yield the images in batches, numbered from 0 on."""
        while images := list(islice(self._coming, size)):
            rows = range(self._next, self._next + len(images))
            self._held.update(zip(rows, images, strict=True))
            self._next = rows.stop
            yield BlockRequest(np.array(rows, np.intp), models)

    def take(self, row: int) -> NamedImage:
        """The image of a row, which is then forgotten."""
        return self._held.pop(row)

    def _read(self, index: int) -> bytes:
        return self._held[index].read()


def batch_size_of(tagger: Tagger, asked: int | None) -> int:
    """Images per forward pass: those asked for, or what suits the device."""
    devices = {device_of(embedder) for embedder in tagger.embedders}
    return asked or min(BATCH_SIZES.get(device, BATCH_SIZES["cpu"]) for device in devices)


def _with_engines(tagger: Tagger, batch_size: int, n_images: int | None) -> Tagger:
    """The same model in the engines that its features were extracted with, for whole batches.

    A `Tagger` runs float32 in eager mode, because one image is not worth converting a model for.
    The engines compute the same float32, sooner; what cannot run here stays as it is.
    """
    if n_images is not None and n_images < MIN_IMAGES_FOR_ENGINE:
        return tagger
    stored = tagger.head.facts.get("stored_as") or {}
    names = str(stored.get("engine") or "eager").split("+")
    if len(names) == 1:
        names *= len(tagger.embedders)
    if len(names) != len(tagger.embedders):
        return tagger
    embedders = tuple(
        _in_batches(embedder, EngineName.parse(name), batch_size)
        for embedder, name in zip(tagger.embedders, names, strict=True)
    )
    return replace(tagger, embedders=embedders)


def _in_batches(
    embedder: Backbone | EngineEmbedder, name: EngineName, batch_size: int
) -> Backbone | EngineEmbedder:
    """The embedder in an engine that is quicker over whole batches, if it gives the same."""
    size = min(batch_size, CPU_BATCH_SIZE)
    if isinstance(embedder, EngineEmbedder):  # of reduced precision, built for single images
        name, backbone = embedder.name, embedder.backbone
        if embedder.batch_size in (size, None):
            return embedder
    elif name.exact:
        backbone = embedder
    else:
        return embedder  # reduced precision that cannot run here, as loading has said
    if name.engine in ("eager", "compile"):  # compiling takes minutes
        return embedder
    try:
        built = embedder_of(backbone, name, batch_size=size)
        is_same = isinstance(embedder, EngineEmbedder) or _agrees(built, backbone)
    except Unavailable:
        return embedder
    return built if is_same else embedder


def _agrees(engine: Backbone | EngineEmbedder, backbone: Backbone) -> bool:
    """Whether an engine's embeddings of the shipped pictures are those of eager float32 here."""
    import torch

    images = [backbone.preprocess(decode_image(data)) for data in pictures().values()]
    bench = Bench(torch.from_numpy(np.stack(images)), backbone, "exact")
    return isinstance(engine, EngineEmbedder) and not bench.compare(engine).problem("exact")


def record_batch(predictions: Sequence[Prediction]) -> Any:
    """Arrow record batch of predictions, with the columns of `schema`."""
    import pyarrow as pa

    # Arrow's text is UTF-8; a file name may be any bytes.
    rows = [
        {
            "image_id": utf8(p.image_id),
            "path": utf8(p.path),
            "tags": None if p.error else list(p.tags),
            "probabilities": None if p.error else list(p.probabilities),
            "uncertain": None if p.error else list(p.uncertain),
            "error": utf8(p.error) or None,
        }
        for p in predictions
    ]
    return pa.RecordBatch.from_pylist(rows, schema=schema())


def schema() -> Any:
    """Columns of the tables of predictions."""
    import pyarrow as pa

    return pa.schema(
        {
            "image_id": pa.string(),
            "path": pa.string(),
            "tags": pa.list_(pa.string()),
            "probabilities": pa.list_(pa.float32()),
            "uncertain": pa.list_(pa.string()),
            "error": pa.string(),
        }
    )


def utf8(text: str) -> str:
    r"""Text whose bytes that are not UTF-8 are written as ``\xff``."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
