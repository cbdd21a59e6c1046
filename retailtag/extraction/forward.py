"""A backbone's forward pass, in as many images at a time as the memory takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import Unavailable

if TYPE_CHECKING:
    import torch

    from retailtag.extraction.embed import Embedder

# Images a forward pass: beyond these neither kind of device gains, and memory grows.
BATCH_SIZES = {"cpu": 32, "cuda": 256}
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")


def device_of(backbone: Embedder) -> str:
    """Kind of device that a backbone computes on: ``cpu`` where it does not say."""
    return str(getattr(backbone, "device", "cpu")).partition(":")[0]


class Forward:
    """A backbone whose batches shrink, for good, when memory runs out.

    Parameters
    ----------
    backbone : Embedder
    size : int
        Images a forward pass at most.
    say : callable
        Told in one line of every reduction.

    Attributes
    ----------
    size : int
        Images a forward pass at most, as reduced so far.
    """

    def __init__(
        self, backbone: Embedder, size: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.backbone = backbone
        self.size = size
        self._say = say
        self.is_asynchronous = device_of(backbone) == "cuda"

    def start(self, pixels: NDArray[np.uint8]) -> list[torch.Tensor]:
        """Begin to embed (n, 3, h, w); on a GPU this returns before it is done.

        Raises
        ------
        Unavailable
            If not even one image fits into memory.
        """
        at, parts = 0, []
        while at < len(pixels):
            some = pixels[at : at + self.size]
            part = self._attempt(some)
            if part is None:
                self._shrink(len(some))
                continue
            parts.append(part)
            at += len(some)
        return parts

    def finish(self, parts: list[torch.Tensor]) -> NDArray[np.float32]:
        """Embeddings (n, dim) in main memory of what `start` began."""
        arrays = [part.cpu().numpy().astype(np.float32, copy=False) for part in parts]
        return np.concatenate([np.empty((0, self.backbone.dim), np.float32), *arrays])

    def _attempt(self, pixels: NDArray[np.uint8]) -> torch.Tensor | None:
        """Embeddings, or None if there was no memory for them."""
        import torch

        try:
            batch = torch.from_numpy(pixels)
            # Only from pinned memory does a copy to the device go on beside the host's work.
            return self.backbone.embed(batch.pin_memory() if self.is_asynchronous else batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_about_memory(error):
                raise
        # Not within the handler: the error's traceback holds what filled the memory.
        return None

    def _shrink(self, n: int) -> None:
        """Halve the size after `n` images were too many."""
        import torch

        if n == 1:
            raise Unavailable(
                f"{self.backbone.id} does not fit into the memory of this device even with one "
                "image at a time; use a smaller backbone or image size, or another --device."
            )
        self.size = n // 2
        if self.is_asynchronous:
            torch.cuda.empty_cache()
        self._say(
            f"{self.backbone.id}: no memory for {n} images a forward pass; going on with "
            f"{self.size}."
        )


def _is_about_memory(error: Exception) -> bool:
    """Whether an allocation failed; ``torch.OutOfMemoryError`` is a `RuntimeError` that says so."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)
