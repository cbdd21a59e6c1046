"""Images that are held in memory, as bytes of image files or as PIL images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from retailtag.errors import UnreadableImage
from retailtag.images.decode import to_rgb
from retailtag.images.header import one_image
from retailtag.images.sources import ImageSource


class MemoryImages(ImageSource):
    """Image bytes by row.

    Each of `images` is the bytes of a file, an opened PIL image, which is encoded once as PNG
    without loss, or None, which counts as missing; `root` and `paths` are for messages.
    """

    def __init__(self, root: Path, paths: Sequence[str], images: Sequence[Any]) -> None:
        super().__init__(root, paths)
        self._files: list[bytes] = []
        for i, image in enumerate(images):
            data = b""
            if isinstance(image, bytes | bytearray | memoryview):
                data = bytes(image)
            elif image is None:
                self.faults[i] = "has no image"
            else:
                try:
                    with one_image():
                        data = _png(image)
                except UnreadableImage as error:
                    self.faults[i] = str(error)
            self._files.append(data)

    def part(self, rows: Sequence[int]) -> Self:
        """Images of some rows alone, with their bytes."""
        part = super().part(rows)
        part._files = [self._files[row] for row in rows]
        return part

    def _read(self, index: int) -> bytes:
        self._check_size(len(self._files[index]))
        return self._files[index]


def _png(image: Any) -> bytes:
    """An opened image as PNG of the pixels that the decoding policy gives."""
    from PIL import Image

    buffer = io.BytesIO()
    # A fresh image: the profile and orientation in the old one's notes are applied already.
    Image.fromarray(np.asarray(to_rgb(image))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
