"""Image files that a user names: files, folders, and lists of paths in text files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from retailtag.errors import DataError, named
from retailtag.images.header import IMAGE_SUFFIXES, file_is_image

LIST_SUFFIX = ".txt"


def list_images(places: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Image files in the order named, and sentences on what was left out.

    A folder stands for the images below it, by suffix or by content, sorted; hidden files and
    linked folders are left out. A ``.txt`` file lists paths, one per line, relative to the working
    directory. Any other file is taken as it is, and each file once.

    Raises
    ------
    DataError
        If a folder holds no image or cannot be listed, or a list is empty or cannot be read.
    """
    found: list[Path] = []
    notes: list[str] = []
    for place in places:
        if place.is_dir():
            images, others = _below(place)
            if others:
                notes.append(
                    f"{len(others):,} files of {place} are no images and are left out "
                    f"({named(others)})."
                )
            found += images
        elif place.suffix.lower() == LIST_SUFFIX:
            found += _listed(place)
        else:
            found.append(place)
    once = list(dict.fromkeys(found))
    if len(once) < len(found):
        notes.append(f"{len(found) - len(once):,} images are named more than once.")
    return once, notes


def _below(folder: Path) -> tuple[list[Path], list[str]]:
    """Images below a folder, and the names of the other files."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}.") from error

    images: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            is_one = name.lower().endswith(IMAGE_SUFFIXES) or file_is_image(path)
            (images if is_one else others).append(path)
    if not images:
        raise DataError(f"{folder} holds no images; name image files, or a folder of them.")
    return images, [path.name for path in others]


def _listed(file: Path) -> list[Path]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{file} is not UTF-8 text; write one path per line.")
    paths = [Path(line.strip()) for line in text.splitlines() if line.strip()]
    if not paths:
        raise DataError(f"{file} lists no images; write one path per line.")
    if not any(path.exists() for path in paths):
        raise DataError(
            f"None of the {len(paths):,} paths of {file} is there ({paths[0]}); write them "
            f"relative to the working directory, {Path.cwd()}."
        )
    return paths
