"""A shard: the share of a catalogue that one of several machines extracts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of a catalogue; raises `UsageError` for a number out of range."""

    number: int  # 1 <= number <= of
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(
                f"--shard {self.number}/{self.of}: give I/N with I from 1 to N, such as 2/8, or "
                "auto."
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/N``; raises `UsageError` for another form.

        Examples
        --------
        >>> Shard.parse("2/8")
        Shard(number=2, of=8)
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None:
            raise UsageError(f"--shard {text}: give I/N with I from 1 to N, such as 2/8, or auto.")
        return cls(int(match[1]), int(match[2]))

    @property
    def folder(self) -> str:
        """Name of the folder, below the features folder, that holds the stores of this shard."""
        # Zero-padded, so that the shell's shard-* lists the shards in order and a merge of that
        # list writes the rows in the catalogue's order.
        return f"shard-{self.number:0{len(str(self.of))}}-of-{self.of}"

    def root(self, features: Path) -> Path:
        """Folder of the stores: `features` itself for the whole catalogue.

        Raises
        ------
        UsageError
            If there is a folder of the former name, ``part-I-of-N``.
        """
        if self == WHOLE:
            return features
        old = features / self.folder.replace("shard", "part")
        if old.is_dir():
            # A second folder would be filled from the start, and merge would not look into this.
            raise UsageError(
                f"{old} holds shard {self.number}/{self.of} under the former name of its folder; "
                f"rename it to {self.folder}."
            )
        return features / self.folder

    def rows(self, n_images: int, block_size: int) -> NDArray[np.intp]:
        """Rows of this shard of a catalogue of `n_images`, in order, in whole blocks.

        The shards are disjoint, cover every row, and differ by at most one block.
        """
        # The bounds follow from the arguments alone: machines that never communicate agree on
        # them. Shards of whole blocks merge into the very blocks that one machine would write.
        n_blocks = -(-n_images // block_size)
        first = n_blocks * (self.number - 1) // self.of * block_size
        last = n_blocks * self.number // self.of * block_size
        return np.arange(min(first, n_images), min(last, n_images))


WHOLE = Shard(1, 1)
