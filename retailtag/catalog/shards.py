"""Tar shards of WebDataset and img2dataset: each image lies beside its JSON and text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retailtag.catalog.folders import SPLIT_WORDS, split_of_name
from retailtag.catalog.manifest import Manifest, Problems, record_columns
from retailtag.errors import DataError, UnreadableImage
from retailtag.files import parse_json
from retailtag.images.header import IMAGE_SUFFIXES
from retailtag.images.sources import TarImages

MAX_NUMBERED = 1_000_000
_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
TEXTS = (".txt", ".cls")  # each becomes a column of its name


def find_shards(folder: Path) -> list[Path]:
    """Tar files of samples in a folder, or in its folders named like splits; empty: none."""
    files = sorted(folder.glob("*.tar"))
    files = files or [f for f in sorted(folder.glob("*/*.tar")) if _split_of_folder(f, folder)]
    if not files:
        return []
    first = TarImages(files[0], ())
    texts = {".json", *TEXTS}
    is_shard = any(
        sample.keys() & texts and sample.keys() & set(IMAGE_SUFFIXES)
        for sample in _samples(first).values()
    )
    return files if is_shard else []


def numbered_files(path: Path) -> list[Path]:
    """The files of ``train-{0000..0099}.tar``, as WebDataset writes a range; else none.

    Examples
    --------
    >>> [file.name for file in numbered_files(Path("a/{08..10}.tar"))]
    ['08.tar', '09.tar', '10.tar']
    """
    found = _RANGE.search(path.name)
    if found is None:
        return []
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > MAX_NUMBERED:
        raise DataError(f"{path} names {len(numbers):,} files, more than {MAX_NUMBERED:,}.")
    start, end = path.name[: found.start()], path.name[found.end() :]
    return [path.with_name(f"{start}{number:0{len(first)}}{end}") for number in numbers]


def read_shards(root: Path, files: Sequence[Path]) -> Manifest:
    """One row per image: its member's name as ``path``, the keys of its JSON, ``txt`` and ``cls``.

    The split comes from a shard's name (``train-000000.tar``) or its folder, if all have one.

    Raises
    ------
    DataError
        If a shard cannot be read.
    """
    records: list[dict[str, Any]] = []
    rows: list[str] = []
    faults: dict[int, str] = {}
    splits = [_split_of_folder(file, root) or split_of_name(file.stem) for file in files]
    without = 0
    for file, split in zip(files, splits, strict=True):
        source = TarImages(file, ())
        for key, members in _samples(source).items():
            images = [m for suffix, m in members.items() if suffix in IMAGE_SUFFIXES]
            if not images:
                without += 1
                continue
            row = len(records)
            try:
                record = _record(source, members)
            except ValueError as error:
                record = {}
                faults[row] = f"{members['.json']} is no JSON object ({error})"
            if len(images) > 1:
                faults[row] = f"has several images ({', '.join(images)})"
            if split and all(splits):
                record.setdefault("split", split)
            records.append({**record, "path": images[0]})
            rows.append(f"{file.name}/{key}")
    problems = Problems(rows)
    for row, fault in faults.items():
        problems.add(row, fault, broken=True)
    notes = [f"{root}: samples without an image left out: {without:,}."] if without else []
    return Manifest(root, record_columns(records, root), problems, places=tuple(files), notes=notes)


def _split_of_folder(file: Path, root: Path) -> str:
    return SPLIT_WORDS.get(file.parent.name.lower(), "") if file.parent != root else ""


def _samples(source: TarImages) -> dict[str, dict[str, str]]:
    """Member of each suffix by key: the name up to the first point of its last part."""
    samples: dict[str, dict[str, str]] = {}
    for member in source.members():
        folder, slash, name = member.rpartition("/")
        stem, point, suffix = name.partition(".")
        if stem:
            samples.setdefault(f"{folder}{slash}{stem}", {})[point + suffix.lower()] = member
    return samples


def _record(source: TarImages, members: dict[str, str]) -> dict[str, Any]:
    """What the texts beside an image say; `ValueError` if its JSON is none."""
    record: dict[str, Any] = dict(_texts(source, members))
    if ".json" in members:
        value = parse_json(_bytes(source, members[".json"]))
        if not isinstance(value, dict):
            raise ValueError("it holds a list or a value")
        record |= value
    return record


def _texts(source: TarImages, members: dict[str, str]) -> Iterator[tuple[str, str]]:
    for suffix in TEXTS:
        if suffix in members:
            data = _bytes(source, members[suffix])
            yield suffix[1:], data.decode("utf-8-sig", errors="surrogateescape")


def _bytes(source: TarImages, member: str) -> bytes:
    try:
        return source.member(member)
    except UnreadableImage as error:
        raise DataError(f"{source.root}/{member} {error}.") from error
