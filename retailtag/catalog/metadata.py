"""Hugging Face's image folders: a file ``metadata`` beside the images names each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from retailtag.catalog.columns import PATH_NAMES
from retailtag.catalog.folders import SPLIT_WORDS, visible_files
from retailtag.catalog.locate import is_relative
from retailtag.catalog.manifest import Cell, Manifest, Problems, check_cells
from retailtag.errors import DataError
from retailtag.images.header import IMAGE_SUFFIXES

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def find_metadata(root: Path) -> list[Path]:
    """Metadata files of a folder: its own, or those of its folders."""
    for depth in ("", "*/", "data/*/"):
        found = [file for name in METADATA for file in sorted(root.glob(depth + name))]
        visible = [f for f in found if not any(p.startswith(".") for p in _inner(f, root))]
        if visible:
            return sorted(visible)
    return []


def read_metadata(root: Path, files: Sequence[Path], read: Callable[[Path], Manifest]) -> Manifest:
    """Read metadata files as one manifest, with paths relative to `root`.

    The split is that of a folder named like one, and metadata of other folders are then left out
    and noted. Images beside a metadata file that it does not name are noted.

    Raises
    ------
    DataError
        If a folder has several metadata files, or a file does not name the images.
    """
    splits = {file: _split(file, root) for file in files}
    used = [file for file in files if splits[file]] or list(files)
    notes = [f"{root}: {_name(f, root)} left out; its folder is no split." for f in files]
    notes = [note for note, file in zip(notes, files, strict=True) if file not in used]
    if len({file.parent for file in used}) < len(used):
        several = ", ".join(_name(file, root) for file in used)
        raise DataError(f"{root} has several metadata files in one folder ({several}); keep one.")
    manifests = [read(file) for file in used]
    tables = [_with_folder(f, root, m, notes) for f, m in zip(used, manifests, strict=True)]
    columns: dict[str, list[Cell]] = {name: [] for table in tables for name in table}
    check_cells(root, sum(len(manifest) for manifest in manifests), len(columns))
    split: list[Cell] = []
    rows: list[str] = []
    faults: list[tuple[int, str]] = []
    for file, manifest, table in zip(used, manifests, tables, strict=True):
        for name in columns:
            columns[name] += table.get(name, [""] * len(manifest))
        faults += [(len(rows) + row, text) for row, text in manifest.problems.broken()]
        rows += [f"{number} of {_name(file, root)}" for number in manifest.problems.row_numbers]
        split += [splits[file]] * len(manifest)
    if all(split) and "split" not in columns:
        columns["split"] = split
    problems = Problems(rows)
    for row, text in faults:
        problems.add(row, text, broken=True)
    return Manifest(root, columns, problems, notes=notes)


def _with_folder(
    file: Path, root: Path, manifest: Manifest, notes: list[str]
) -> dict[str, list[Cell]]:
    """Columns of a metadata file, whose paths are put below its folder."""
    names = ("file_name", *PATH_NAMES)
    column = next((c for n in names for c in manifest.columns if c.lower() == n), "")
    if not column:
        raise DataError(f"{file} has no column file_name; it names the images beside the file.")
    inner = file.parent.relative_to(root).as_posix()
    given = [str(cell) for cell in manifest.columns[column]]
    unnamed = {n for n in visible_files(file.parent) if n.lower().endswith(IMAGE_SUFFIXES)}
    unnamed -= set(given)
    if unnamed:
        notes.append(
            f"{root}: images that {_name(file, root)} does not name left out: {len(unnamed):,}, "
            f"such as {min(unnamed)}."
        )
    below = "" if inner == "." else f"{inner}/"
    paths: list[Cell] = [below + path if path and is_relative(path) else path for path in given]
    others = {name: cells for name, cells in manifest.columns.items() if name.lower() != "path"}
    return {**others, **({column: paths} if column in others else {}), "path": paths}


def _inner(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _split(file: Path, root: Path) -> str:
    """Split that a folder of the file is named like; empty: none."""
    words = [SPLIT_WORDS.get(part.lower(), "") for part in _inner(file, root)[:-1]]
    return next(filter(None, words), "")
