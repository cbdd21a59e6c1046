"""A backbone's forward pass, on as many images at a time as fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import Unavailable
from retailtag.extraction.embedder import Embedder, device_of

if TYPE_CHECKING:
    import torch

# Images per forward pass: larger batches gain nothing on either device and need more memory.
BATCH_SIZES = {"cpu": 32, "cuda": 256}

# torch raises OutOfMemoryError on CUDA but a plain RuntimeError on a CPU: only the text tells.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")


class Forward:
    """A backbone whose batch size is halved, for good, when memory runs out.

    `size` is the largest number of images per forward pass, as reduced so far; `say` is called
    with one line for every reduction.
    """

    def __init__(
        self, backbone: Embedder, size: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.backbone = backbone
        self.size = size
        self._say = say
        self.is_asynchronous = device_of(backbone) == "cuda"

    def start(self, pixels: NDArray[np.uint8]) -> list[torch.Tensor]:
        """Begin to embed (n, 3, h, w); on a GPU this returns before the device has finished.

        Raises
        ------
        Unavailable
            If not even one image fits into memory.
        """
        outputs: list[torch.Tensor] = []
        done = 0
        while done < len(pixels):
            batch = pixels[done : done + self.size]
            output = self._attempt(batch)
            if output is None:
                self._shrink(len(batch))
                continue
            outputs.append(output)
            done += len(batch)
        return outputs

    def finish(self, outputs: list[torch.Tensor]) -> NDArray[np.float32]:
        """Embeddings (n, dim) in main memory of what `start` returned."""
        arrays = [output.cpu().numpy().astype(np.float32, copy=False) for output in outputs]
        return np.concatenate([np.empty((0, self.backbone.dim), np.float32), *arrays])

    def _attempt(self, pixels: NDArray[np.uint8]) -> torch.Tensor | None:
        """Embeddings, or None if there was no memory for them."""
        import torch

        try:
            batch = torch.from_numpy(pixels)
            # Only a copy from pinned memory overlaps with work of the host.
            return self.backbone.embed(batch.pin_memory() if self.is_asynchronous else batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        # Outside the handler: the traceback of the error still refers to what filled the memory.
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
            f"{self.backbone.id}: not enough memory for {n} images a forward pass; continuing "
            f"with {self.size}."
        )


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)
