"""Image files that a user names: files, folders, and lists of paths in text files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from retailtag.errors import DataError, named
from retailtag.images.header import IMAGE_SUFFIXES, file_is_image
from retailtag.remote import as_path

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
            others: list[str] = []
            images = list(images_below(place, others))
            if not images:
                raise without_images(place)
            notes += left_out(place, others)
            found += images
        elif place.suffix.lower() == LIST_SUFFIX:
            found += listed_images(place)
        else:
            found.append(place)
    once = list(dict.fromkeys(found))
    if len(once) < len(found):
        notes.append(f"{len(found) - len(once):,} images are named more than once.")
    return once, notes


def images_below(folder: Path, others: list[str] | None = None) -> Iterator[Path]:
    """Yield the images below a folder, sorted within each; `others` gets names of other files.

    Raises `DataError` for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}.") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            if name.lower().endswith(IMAGE_SUFFIXES) or file_is_image(path):
                yield path
            elif others is not None:
                others.append(name)


def without_images(folder: Path) -> DataError:
    """What to raise for a folder without images."""
    return DataError(f"{folder} holds no images; name image files, or a folder of them.")


def left_out(folder: Path, others: Sequence[str]) -> list[str]:
    """A sentence on files of a folder that are no images, if there are any."""
    if not others:
        return []
    return [f"{len(others):,} files of {folder} are no images and are left out ({named(others)})."]


def listed_images(file: Path) -> list[Path]:
    """Paths in a text file, one per line; `DataError` if it names none or none of them exists."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{file} is not UTF-8 text; write one path per line.")
    paths = [as_path(line.strip()) for line in text.splitlines() if line.strip()]
    if not paths:
        raise DataError(f"{file} lists no images; write one path per line.")
    if not any(path.exists() for path in paths):
        raise DataError(
            f"None of the {len(paths):,} paths of {file} is there ({paths[0]}); write them "
            f"relative to the working directory, {Path.cwd()}."
        )
    return paths
