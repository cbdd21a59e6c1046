"""The file that a path means although it is written in another form: case, Unicode, suffix."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote

from retailtag.images.header import IMAGE_SUFFIXES
from retailtag.images.sources import ImageSource


class NearMisses:
    """Finds the files of a source that paths miss by their form only."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._normal: dict[str, tuple[dict[str, str], dict[str, str]]] = {}

    def find(self, path: str) -> str:
        """The file that is there and how `path` differs from it; empty if there is none."""
        for form, ways in _forms(path):
            found = self._walk(form)
            if found:
                differences = [*ways, *_differences(form, found)]
                return f"{found} is there (differs in {' and '.join(differences)})"
        return ""

    def _walk(self, path: str) -> str:
        """The path as it is spelled here, folder by folder; empty if it is not here."""
        *folders, name = path.split("/")
        here = ""
        for folder in folders:
            is_there = folder in self._source.names(here)
            spelled = folder if is_there else self._names(here)[0].get(_normal(folder), "")
            if not spelled:
                return ""
            here = f"{here}/{spelled}" if here else spelled
        names, stems = self._names(here)
        found = names.get(_normal(name)) or stems.get(_normal(name))
        found = found or stems.get(_normal(PurePosixPath(name).stem))
        return f"{here}/{found}" if found and here else found or ""

    def _names(self, folder: str) -> tuple[dict[str, str], dict[str, str]]:
        """Names in a folder by their normal form, and by that of their stem."""
        if folder not in self._normal:
            names = sorted(self._source.names(folder), reverse=True)  # the first one wins
            whole = {_normal(name): name for name in names}
            images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
            stems = {_normal(PurePosixPath(name).stem): name for name in images}
            self._normal[folder] = whole, stems
        return self._normal[folder]


def _normal(text: str) -> str:
    """Text without what file systems and tools change: case and the form of its accents."""
    return unicodedata.normalize("NFC", text).casefold()


def _forms(path: str) -> Iterator[tuple[str, list[str]]]:
    """The path as it is, with slashes for backslashes, and with %20 and its like decoded."""
    yield path, []
    slashed = path.replace("\\", "/")
    ways = ["backslashes"] if slashed != path else []
    if ways:
        yield slashed, [*ways]
    decoded = unquote(slashed)
    if decoded != slashed:
        yield decoded, [*ways, "percent-encoding"]


def _differences(path: str, found: str) -> list[str]:
    """How two spellings differ, in words; their folders are the same but for their form."""
    ways = []
    if _normal(path) != _normal(found):
        ways.append("suffix")
        found = found.removesuffix(PurePosixPath(found).suffix)
        stem = path.removesuffix(PurePosixPath(path).suffix)
        path = stem if _normal(stem) == _normal(found) else path
    if path == found:
        return ways
    is_form = unicodedata.normalize("NFC", path) == unicodedata.normalize("NFC", found)
    return [*ways, "Unicode form, NFC or NFD" if is_form else "case"]
