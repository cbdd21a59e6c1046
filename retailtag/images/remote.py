"""Images that are files on an object store or a web server, each read when it is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from retailtag.errors import UnreadableImage
from retailtag.images.sources import MAX_BYTES, MISSING, ImageSource, check_size
from retailtag.remote import Entry, RemoteFault, RemotePath, as_path, is_remote, read_url

OUTSIDE = "leads out of the folder; name the URL it may lead to with --allow-root"


def is_below(url: str, roots: Sequence[Path]) -> bool:
    """Whether a URL lies below one of the remote ones among `roots`."""
    inside = ".." not in url or ".." not in url.split("/")
    remote = (str(root) for root in roots if isinstance(root, RemotePath))
    return inside and any(url.startswith(f"{root}/") for root in remote)


class RemoteImages(ImageSource):
    """Files below the URL `root`; a path that is a URL itself may lead into `allowed` as well.

    Folders of object stores are listed once, so that missing files are known beforehand. Web
    servers list none: there a missing file is an unreadable image.
    """

    def __init__(
        self, root: RemotePath, paths: Sequence[str], allowed: Sequence[Path] = ()
    ) -> None:
        self._place = root
        self._allowed = (root, *allowed)
        # By the folder as paths write it: what lies there, or why none of it may be read.
        self._listings: dict[str, dict[str, Entry] | str] = {}
        super().__init__(root, paths)

    def serve(self, paths: Sequence[str]) -> None:
        """Look the paths up, and keep their stamps instead of the listings."""
        super().serve(paths)
        # Bytes and version of each; -1 where unknown.
        self._stamps = np.full((len(self.paths), 2), -1, np.int64)
        for row, path in enumerate(self.paths):
            folder, _, name = path.rpartition("/")
            listed = self._listing(folder)
            found = listed.get(name) if isinstance(listed, dict) else None
            if found is not None and found.stamp:
                self._stamps[row] = found.stamp
        self._listings.clear()

    def part(self, rows: Sequence[int]) -> Self:
        """Images of some rows alone, with their stamps."""
        part = super().part(rows)
        part._stamps = self._stamps[list(rows)]
        return part

    def fault(self, path: str) -> str:
        """Why a path cannot be served: it is missing, or leads out of the folder."""
        folder, _, name = path.rpartition("/")
        if name == ".." or path.startswith("/"):
            return OUTSIDE
        listed = self._listing(folder)
        if isinstance(listed, str):
            return listed
        if name not in listed:
            return MISSING
        return "is not a file" if listed[name].is_folder else ""

    def names(self, folder: str) -> Collection[str]:
        """Names of what lies in one folder; empty on a web server."""
        listed = self._listing(folder)
        return () if isinstance(listed, str) else listed

    def name(self, index: int) -> str:
        """URL of image `index`, for messages."""
        return self._url(self.paths[index])

    def stamp(self, index: int) -> tuple[int, int] | None:
        """Bytes and version of the file, as they were listed; None on a web server."""
        size, version = self._stamps[index].tolist()
        return None if size < 0 else (size, version)

    def _url(self, path: str) -> str:
        return path if is_remote(path) else self._place.below(path)

    def _listing(self, folder: str) -> dict[str, Entry] | str:
        """What lies in a folder, or why that is not known; empty: it may be read all the same."""
        if folder not in self._listings:
            self._listings[folder] = self._scan(folder)
        return self._listings[folder]

    def _scan(self, folder: str) -> dict[str, Entry] | str:
        place = as_path(folder) if is_remote(folder) else self._place / folder
        if not isinstance(place, RemotePath) or not is_below(f"{place}/", self._allowed):
            return OUTSIDE
        return place.entries() if place.is_listed else ""

    def _read(self, index: int) -> bytes:
        self._check_size(int(self._stamps[index, 0]))
        return read_remote(self.name(index), self.max_bytes)


def read_remote(url: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Bytes of a remote file; `UnreadableImage` if it is missing, may not be read or is too large.

    Raises `Unavailable` where the store or server stays away, which is no fault of the image.
    """
    try:
        data = read_url(url)
    except RemoteFault as fault:
        raise UnreadableImage(fault.reason) from fault
    check_size(len(data), max_bytes)
    return data
