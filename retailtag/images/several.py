"""Images that are spread over several folders and archives."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

from retailtag.images.opening import is_archive, open_images
from retailtag.images.sources import MISSING, ImageSource, clean_path
from retailtag.remote import RemotePath, as_path


class SeveralImages(ImageSource):
    """Images of several folders, tar and zip archives; each path lies in exactly one of them.

    `places` are opened in order; `root` is for messages. A path that several places hold is a
    fault, because nothing says which of them is meant.
    """

    def __init__(
        self,
        root: Path,
        places: Sequence[Path],
        paths: Sequence[str],
        allowed: Sequence[Path] = (),
    ) -> None:
        self._sources = [open_images(place, (), allowed) for place in places]
        self._places = tuple(map(as_path, places))
        self._where: list[tuple[int, int]] = []  # source of each path, and its row in there
        super().__init__(root, paths)

    @property
    def places(self) -> tuple[Path, ...]:
        """The folder of the archives, or each place."""
        is_one = all(p.parent == self.root and _is_found(p) for p in self._places)
        return (self.root,) if is_one else self._places

    def serve(self, paths: Sequence[str]) -> None:
        """Assign each path to the place that holds it."""
        self.paths = tuple(clean_path(p) for p in paths)
        self.faults = {}
        distinct = set(self.paths)
        owners: dict[str, list[int]] = {}
        for number, source in enumerate(self._sources):
            for path in source.held(distinct):
                owners.setdefault(path, []).append(number)
        rows: list[list[int]] = [[] for _ in self._sources]
        self._where = [(0, 0)] * len(self.paths)
        for i, path in enumerate(self.paths):
            # An absolute path leads to one file, whichever of the folders follows it.
            found = owners.get(path, [])[: 1 if path.startswith("/") else None]
            if len(found) == 1:
                self._where[i] = (found[0], len(rows[found[0]]))
                rows[found[0]].append(i)
            else:
                several = " and ".join(str(self._places[n]) for n in found[:2])
                self.faults[i] = f"is in both {several}; leave one out" if found else MISSING
        for source, own in zip(self._sources, rows, strict=True):
            source.serve([self.paths[i] for i in own])
            self.faults |= {own[k]: why for k, why in source.faults.items()}

    def part(self, rows: Sequence[int]) -> Self:
        """Images of some rows alone, with the places that hold them."""
        part = super().part(rows)
        own: dict[int, list[int]] = {0: []}  # rows in each place; what no place serves names one
        part._where = []
        for number, row in ((0, -1) if r in self.faults else self._where[r] for r in rows):
            held = own.setdefault(number, [])
            part._where.append((list(own).index(number), len(held)))
            if row >= 0:
                held.append(row)
        part._sources = [self._sources[n].part(held) for n, held in own.items()]
        part._places = tuple(self._places[number] for number in own)
        return part

    def names(self, folder: str) -> Collection[str]:
        """Names in one folder of any of the places."""
        return {name for source in self._sources for name in source.names(folder)}

    def name(self, index: int) -> str:
        """Place and path of image `index`, for messages."""
        number, _ = self._where[index]
        return f"{self._places[number]}/{self.paths[index]}"

    def stamp(self, index: int) -> tuple[int, int] | None:
        """Of the file in its place."""
        number, row = self._where[index]
        return None if index in self.faults else self._sources[number].stamp(row)

    def _read(self, index: int) -> bytes:
        number, row = self._where[index]
        source = self._sources[number]
        source.max_bytes = self.max_bytes
        return source.read(row)


def _is_found(place: Path) -> bool:
    """Whether a place is an archive that is found by naming its folder."""
    if isinstance(place, RemotePath):
        return place.is_listed and is_archive(place)
    return not place.is_dir()
