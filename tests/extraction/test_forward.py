"""A batch that does not fit into memory is halved, and the run remembers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from retailtag.errors import Unavailable
from retailtag.extraction.embed import BlockRequest, Loading, embed_blocks
from retailtag.extraction.forward import Forward

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError(),
)


class Small:
    """Sums pixels; fails with `error` for more than `most` images."""

    id, dim = "demo:small", 1

    def __init__(self, most: int, error: Exception = OUT_OF_MEMORY[0]) -> None:
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels))
        if len(pixels) > self.most:
            raise self.error
        return pixels.float().sum((1, 2, 3))[:, None]


def images(n: int) -> np.ndarray:
    return np.arange(n * 12, dtype=np.uint8).reshape(n, 3, 2, 2)


def embedded(model: Forward, pixels: np.ndarray) -> np.ndarray:
    return model.finish(model.start(pixels))


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_batches_are_halved_until_they_fit_and_stay_so(error):
    backbone, said = Small(3, error), []
    model = Forward(backbone, 16, said.append)
    pixels = images(10)
    expected = pixels.astype(np.float32).sum((1, 2, 3))[:, None]
    np.testing.assert_array_equal(embedded(model, pixels), expected)
    assert backbone.sizes == [10, 5, 2, 2, 2, 2, 2]
    assert said == [
        "demo:small: not enough memory for 10 images a forward pass; continuing with 5.",
        "demo:small: not enough memory for 5 images a forward pass; continuing with 2.",
    ]
    backbone.sizes.clear()
    np.testing.assert_array_equal(embedded(model, pixels), expected)
    assert (backbone.sizes, model.size, len(said)) == ([2] * 5, 2, 2)


def test_what_does_not_fit_at_all_is_said_in_one_sentence():
    with pytest.raises(Unavailable, match=r"^demo:small does not fit [^.]*one image at a time;"):
        embedded(Forward(Small(0), 8), images(4))


def test_another_error_is_not_taken_for_out_of_memory():
    backbone = Small(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        embedded(Forward(backbone, 8), images(4))
    assert backbone.sizes == [4]


def test_no_images_give_no_embeddings():
    assert embedded(Forward(Small(1), 8), images(0)).shape == (0, 1)


class Device(Forward):
    """Stands for a model on a GPU; notes when work is handed over and when it is waited for."""

    def __init__(self, backbone: Small, size: int) -> None:
        super().__init__(backbone, size)
        self.is_asynchronous = True
        self.events: list[str] = []

    def start(self, pixels):
        self.events.append("start")
        return super().start(pixels)

    def finish(self, parts):
        self.events.append("finish")
        return super().finish(parts)


class Drawn:
    """Images of one pixel, as bright as their row."""

    def stamp(self, index: int) -> None:
        """No file holds it."""

    def read(self, index: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (1, 1), (index, index, index)).save(buffer, "PNG")
        return buffer.getvalue()

    def name(self, index: int) -> str:
        return str(index)


def test_a_device_has_the_next_batch_before_the_last_is_fetched(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    backbone = Small(8)
    backbone.preprocess = lambda image: np.asarray(image).transpose(2, 0, 1)
    model = Device(backbone, 8)
    work = [BlockRequest(np.arange(at, at + 3), (model,)) for at in (0, 3, 6)]
    loading = Loading(batch_size=2, workers=0)
    blocks = [block for ((_, block),) in embed_blocks(Drawn(), work, loading)]
    assert model.events == ["start", *["start", "finish"] * 5, "finish"]
    for block, piece in zip(blocks, work, strict=True):
        assert block.rows.tolist() == piece.rows.tolist()
        assert block.embeddings[:, 0].tolist() == [3.0 * row for row in piece.rows]
