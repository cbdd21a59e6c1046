"""Features that need not be in memory."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class FeatureRows(Protocol):
    """Features (n_images, dim) read by slices: an array, a memory map, a lazy view."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_images, dim)."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Features of consecutive images, (len, dim)."""
        ...
