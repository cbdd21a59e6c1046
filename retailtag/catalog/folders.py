"""Folders of images whose names are the tags, also below folders named like splits."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from retailtag.catalog.catalog import SPLITS
from retailtag.catalog.manifest import Cell, Manifest, Problems
from retailtag.errors import DataError, named
from retailtag.images.header import IMAGE_SUFFIXES, file_is_image

# Annotations and tables, often one per image, are not opened to see whether they are images.
TEXT_SUFFIXES = (
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".db",
    ".ini", ".npy", ".npz",
)  # fmt: skip
SPLIT_WORDS = {name: name for name in SPLITS} | {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "testing": "test",
}
# Hugging Face writes train-00000-of-00004, WebDataset train-000000.
_SPLIT_FILE = re.compile(rf"({'|'.join(SPLIT_WORDS)})([-_]\d+(-of-\d+)?)?$", re.IGNORECASE)
JUNK = ("__macosx", "@eadir")  # what macOS and Synology leave; they mirror the real folders


@dataclass
class _Files:
    """What lies below one folder of the root: paths relative to the root."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # no image by name or by content


def read_tag_folders(root: Path, allowed: Sequence[Path] = ()) -> Manifest:
    """List ``tag/**/image`` or ``split/tag/**/image``; what is left out is noted.

    Files count as images by their suffix, or by their content where the suffix is unusual.
    Hidden files are skipped. A link to a folder is followed if it leads into one of `allowed`.

    Raises
    ------
    DataError
        If there are no tag folders, a folder cannot be listed or is a link that may not be
        followed, or it is unclear whether a folder is a split or a tag.
    """
    tops = {name: _files(root, name, allowed) for name in _folders(root)}
    splits = [name for name in tops if name.lower() in SPLIT_WORDS]
    _check_splits(root, tops, splits)
    _check_tags(root, {name: tops[name] for name in splits or tops})
    depth = 1 if splits else 0
    inside = [path for name in splits or tops for path in tops[name].images]
    paths = [path for path in inside if path.count("/") > depth]
    if not paths:
        raise DataError(_nothing(root, splits))
    manifest = _manifest(root, paths, depth)
    loose = [path for path in inside if path.count("/") <= depth]
    loose += [name for name in visible_files(root) if name.lower().endswith(IMAGE_SUFFIXES)]
    manifest.notes.extend(_left_out(root, tops, splits, loose))
    manifest.notes.extend(_inner(root, paths, depth))
    return manifest


def _manifest(root: Path, paths: list[str], depth: int) -> Manifest:
    parts = [path.split("/") for path in paths]
    columns: dict[str, list[Cell]] = {"path": [*paths], "tags": [(p[depth],) for p in parts]}
    if depth:
        columns["split"] = [p[0] for p in parts]
    return Manifest(root, columns, Problems(range(1, len(paths) + 1)))


def _inner(root: Path, paths: Sequence[str], depth: int) -> Iterator[str]:
    """A sentence on folders below the folder of a tag, which may be finer tags or products."""
    deeper = [path for path in paths if path.count("/") > depth + 1]
    if deeper:
        n = len({path.rpartition("/")[0] for path in deeper})
        yield (
            f"{root}: folders below a tag's folder are not tags: {n:,}; {deeper[0]} has the tag "
            f"{deeper[0].split('/')[depth]} alone. If they are tags, write a manifest; if they are "
            "products, name them with catalog split --group-by path:REGEX."
        )


def split_of_name(stem: str) -> str:
    """Split that a file is named after, as in ``train-00000-of-00004``; empty: none."""
    found = _SPLIT_FILE.match(stem)
    return SPLIT_WORDS[found.group(1).lower()] if found else ""


def visible_files(folder: Path) -> list[str]:
    """Sorted names of the visible files in a folder."""
    return sorted(e.name for e in os.scandir(folder) if not _hidden(e.name) and e.is_file())


def _folders(root: Path) -> list[str]:
    """Sorted names of the visible folders in the root."""
    try:
        return sorted(e.name for e in os.scandir(root) if not _hidden(e.name) and e.is_dir())
    except OSError as error:
        _refuse(error)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _files(root: Path, top: str, allowed: Sequence[Path]) -> _Files:
    """Everything below one folder of the root, in order of the folders."""
    found = _Files()
    if top.lower() in JUNK:
        return found
    for folder, names in _walk(root / top, [os.path.realpath(a) for a in allowed], set()):
        inner = folder.relative_to(root).as_posix()
        for name in names:
            is_one = name.lower().endswith(IMAGE_SUFFIXES) or (
                not name.lower().endswith(TEXT_SUFFIXES) and file_is_image(folder / name)
            )
            (found.images if is_one else found.others).append(f"{inner}/{name}")
    return found


def _walk(
    folder: Path, allowed: Sequence[str], linked: set[str]
) -> Iterator[tuple[Path, list[str]]]:
    """Each visible folder below `folder`, itself included, with its visible files."""
    if folder.is_symlink():
        real = os.path.realpath(folder)
        if not any(real == a or real.startswith(a.rstrip("/") + "/") for a in allowed):
            raise DataError(
                f"{folder} is a link to a folder, which is not followed; name {real} with "
                "--allow-root, or put the images themselves there."
            )
        if real in linked:
            raise DataError(f"{folder} is a link to {real}, which was read already; remove it.")
        linked.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        _refuse(error)
    visible = [e for e in entries if not _hidden(e.name) and e.name.lower() not in JUNK]
    folders = [e.name for e in visible if e.is_dir()]
    yield folder, [e.name for e in visible if not e.is_dir()]
    for name in folders:
        yield from _walk(folder / name, allowed, linked)


def _refuse(error: OSError) -> NoReturn:
    """Stop at a folder that cannot be listed: its tag would be missing without a message."""
    raise DataError(
        f"{error.filename} cannot be listed ({error.strerror}); make it readable or move it away."
    ) from error


def _check_splits(root: Path, tops: dict[str, _Files], splits: list[str]) -> None:
    """Refuse a lone split beside folders that look like tags: the split may be a tag itself."""
    beside = [name for name in tops if name not in splits and _direct(tops[name].images)]
    if beside and len({SPLIT_WORDS[name.lower()] for name in splits}) == 1:
        raise DataError(
            f"{root} holds {' and '.join(splits)}, named like a split, beside folders of images "
            f"({named(beside)}): move these away if it is a split; if it is a tag, rename it or "
            "write a manifest."
        )


def _direct(images: Sequence[str]) -> bool:
    return any(path.count("/") == 1 for path in images)


def _check_tags(root: Path, tops: dict[str, _Files]) -> None:
    """Refuse folders named like splits where tags are expected (``tag/train/1.jpg``)."""
    for name, files in tops.items():
        inner = {p.split("/")[1] for p in files.images if p.count("/") > 1}
        words = sorted(w for w in inner if w.lower() in SPLIT_WORDS)
        if words:
            raise DataError(
                f"{root / name} holds folders named like splits ({', '.join(words)}): give "
                f"{root / name} itself if they hold folders of tags; else put splits above tags, "
                f"as in {words[0]}/{name}/1.jpg."
            )


def _nothing(root: Path, splits: list[str]) -> str:
    """Why a folder is no catalogue."""
    if splits:
        return (
            f"{root} holds {', '.join(splits)}, but no folders of tags in them; put each image "
            f"into a folder of its tag ({splits[0]}/shirt/1.jpg), or write a manifest."
        )
    return f"{root} holds neither catalogue.csv nor folders of images, one per tag."


def _left_out(
    root: Path, tops: dict[str, _Files], splits: list[str], loose: Sequence[str]
) -> Iterator[str]:
    """A sentence for each kind of thing that was not read."""
    ignored = [n for n in tops if (splits and n not in splits) or not tops[n].images]
    if ignored:
        images = sum(len(tops[name].images) for name in ignored)
        what = f"images in them: {images:,}" if images else "no images in them"
        yield f"{root}: folders left out: {named(ignored, 8)} ({what})."
    if loose:
        yield f"{root}: images in no tag's folder left out: {named(loose)}."
    others = [path for name in splits or tops for path in tops[name].others]
    if others:
        suffixes = Counter(Path(path).suffix.lower() or "no suffix" for path in others)
        kinds = [f"{suffix} {n:,}" for suffix, n in suffixes.most_common()]
        yield f"{root}: files that are no images left out: {named(kinds, 8)}."
