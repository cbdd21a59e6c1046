"""Which rows of a catalogue one of several machines does."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError


@dataclass(frozen=True)
class Part:
    """One of several equal parts of a catalogue, for a run on several machines.

    Parameters
    ----------
    number, of : int
        ``1 <= number <= of``.

    Raises
    ------
    UsageError
        If they are not.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(
                f"--shard {self.number}/{self.of}: give I/N with I from 1 to N, such as 2/8."
            )

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``I/N``.

        Raises
        ------
        UsageError
            If it is none.

        Examples
        --------
        >>> Part.parse("2/8")
        Part(number=2, of=8)
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None:
            raise UsageError(f"--shard {text}: give I/N with I from 1 to N, such as 2/8.")
        return cls(int(match[1]), int(match[2]))

    @property
    def folder(self) -> str:
        """Name of the folder, below the features, that holds the stores of this part.

        Names in alphabetical order are the parts in order, so that ``part-*`` joins them so.
        """
        return f"part-{self.number:0{len(str(self.of))}}-of-{self.of}"

    def rows(self, n: int, block_rows: int) -> NDArray[np.intp]:
        """Rows of this part of a catalogue of `n` images: whole blocks of `block_rows`, in order.

        The parts are disjoint, cover every row, and differ by one block at most; they follow
        from the arguments alone, so machines that never talk agree on them.
        """
        n_blocks = -(-n // block_rows)
        first, last = (n_blocks * i // self.of * block_rows for i in (self.number - 1, self.number))
        return np.arange(min(first, n), min(last, n))


ALL = Part(1, 1)
