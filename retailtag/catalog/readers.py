"""Read a catalogue in any of its forms, with all its bad rows told at once."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.arrow import open_parquet
from retailtag.catalog.attributes import ONE_OF, exclusive_attributes
from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.catalog.columns import name_columns, used_columns
from retailtag.catalog.folders import SPLIT_WORDS, read_tag_folders, split_of_name
from retailtag.catalog.labels import encode_labels
from retailtag.catalog.locate import (
    PARQUET,
    check_files,
    check_paths,
    locate,
    parquet_files,
    remote_roots,
)
from retailtag.catalog.manifest import (
    COLUMNS,
    COLUMNS_SHOWN,
    NESTED,
    NO_TAGS,
    SEPARATOR,
    Cell,
    Manifest,
    Problems,
    Use,
    csv_text,
    is_clean,
    read_csv,
    read_json,
    read_json_lines,
    read_parquet,
    read_records,
    read_table,
    table_suffix,
)
from retailtag.catalog.metadata import find_metadata, read_metadata
from retailtag.catalog.rows import join_rows
from retailtag.catalog.shards import find_shards, numbered_files, read_shards
from retailtag.catalog.table import POSITIVE, UNKNOWN, GroupCutoffs, TagTable
from retailtag.catalog.tag_cells import EMPTY_WORDS, better_separator, parse_cell
from retailtag.catalog.tag_columns import tag_columns
from retailtag.errors import BadCatalogue, DataError, UsageError, named
from retailtag.files import write_text
from retailtag.images.memory import MemoryImages
from retailtag.images.sources import MAX_BYTES, ImageSource
from retailtag.remote import RemotePath, as_path
from retailtag.settings import CatalogSettings

FOLDER_MANIFEST = "catalogue.csv"
_SUFFIX = re.compile(r"(?<=[^/])\.[^./]*$")


def read_catalog(
    source: Any,
    settings: CatalogSettings | None = None,
    *,
    use_split: bool = True,
    max_bytes: int = MAX_BYTES,
    **options: Any,
) -> Catalog:
    """Read a manifest, a folder of images, a table or a list of records.

    Parameters
    ----------
    source : str, Path, pandas.DataFrame, pyarrow.Table, dict of columns or list of dict
        A manifest (``.csv``, ``.tsv``, ``.jsonl``/``.ndjson``, ``.json``, each also as ``.gz``,
        ``.parquet``), a table or records
        with ``path`` and ``tags`` (joined by ``|``, or a list), optionally ``image_id``,
        ``split``, ``group``, ``title``, ``tags_unknown``; other columns are ignored. Tables and
        records may hold the images themselves as ``image``: bytes of a file or a PIL image.
        Or a folder: with a ``catalogue.csv``; with ``metadata.jsonl`` beside the images; of tar
        shards; of Parquet files (``train-00000-of-00004.parquet``), there or in its ``data``; or
        of one folder per tag, optionally under ``train``, ``val`` and ``test``.
    settings : CatalogSettings, optional
        ``attributes`` are columns whose values become tags under their name: column ``gender``
        gives ``gender:Men``. ``one_of`` names attributes with one value an image, by default
        those in a column ``one_of``, and those of ``attributes`` of which no image has two
        values. ``images`` are folders, tar or zip archives of the images, or
        Parquet with their bytes (a file or a folder). Default: files beside the manifest, or, if
        none of them is there, ``images.tar``, ``images.tar.xz``/``.gz``/``.bz2`` or
        ``images.zip`` beside it; the bytes inside a Parquet manifest or a table. Paths of a table
        or of records are relative to the working directory, or all absolute.
    use_split : bool
        Follow the split that is given; without, whatever it says, everything is ``train``.
    max_bytes : int
        Image files larger than this count as unreadable.
    **options
        Fields of `settings` to replace, such as ``attributes=["gender"]``.

    Returns
    -------
    Catalog
        In the manifest's row order, tags sorted.

    Raises
    ------
    BadCatalogue
        With every row that cannot be used: no or unsafe path, missing file, repeated id, unknown
        split, empty tags, a tag with the separator in it, text that is not UTF-8.
    DataError
        If the manifest as a whole cannot be read.
    UsageError
        If `source` is of another type, an attribute names no column, or one of ``one_of`` no
        tag.

    Notes
    -----
    Without a ``split`` column everything is ``train``; ``validation``, ``valid`` and ``dev`` are
    other words for ``val``; an id defaults to the path without its suffix; an image without
    ``group`` is a product of its own. An image without any tag is written ``-``; in an attribute
    column an empty cell means that this attribute was not annotated. ``tags_unknown`` names the
    tags that nobody annotated in that image (-1).

    Examples
    --------
    >>> from PIL import Image
    >>> red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    >>> catalog = read_catalog(
    ...     [{"image": red, "tags": ["red", "shirt"]}, {"image": blue, "tags": "blue|shirt"}]
    ... )
    >>> catalog.table.tags, catalog.image_ids.tolist()
    (('blue', 'red', 'shirt'), ['row-000000001', 'row-000000002'])
    """
    how = replace(settings or CatalogSettings(), **options)
    manifest = _open(source, partial(used_columns, settings=how), how)
    name_columns(manifest, how)
    attributes = how.attributes
    if not use_split:
        manifest.columns.pop("split", None)
    manifest = join_rows(manifest, how)
    problems = manifest.problems
    _check_columns(manifest, attributes)
    cells = tag_columns(manifest, how)
    _check_text(manifest, attributes)
    ids, found = _ids_and_images(manifest, how, max_bytes)
    split = _splits(manifest, problems)
    tags, labels = encode_labels(cells, manifest, how.min_images)
    if lines := problems.lines():
        raise BadCatalogue(str(manifest.path), lines, problems.n_rows)
    exclusive = exclusive_attributes(manifest, tags, labels, attributes, how.one_of)
    table = TagTable.build(tags, labels, split == "train", GroupCutoffs.parse(how.cutoffs))
    groups = [str(g) or i for g, i in zip(_column(manifest, "group"), ids, strict=True)]
    return Catalog(
        path=as_path(source) if isinstance(source, str | Path) else manifest.path,
        image_ids=np.array(ids),
        split=split,
        group=np.array(groups),
        title=np.array([" ".join(str(t).split()) for t in _column(manifest, "title")]),
        table=replace(table, exclusive=exclusive),
        images=found,
        notes=tuple(manifest.notes),
    )


def read_images(
    source: Any, settings: CatalogSettings | None = None, *, max_bytes: int = MAX_BYTES
) -> tuple[list[str], ImageSource, list[str]]:
    """Image ids, the source of the images by row, and notes, of a manifest with or without tags.

    `source` and `settings` are as for `read_catalog`, of which only ``path`` and ``image_id`` are
    understood. An image that is missing is a fault of the source; `BadCatalogue` lists all other
    bad rows, `DataError` is raised if none of the images is there.
    """
    how = settings or CatalogSettings()
    manifest = _open(source, partial(used_columns, settings=how), how)
    name_columns(manifest, how)
    manifest = join_rows(manifest, how)
    _check_columns(manifest, ())
    for name in manifest.columns.keys() - {"path", "image_id"}:
        del manifest.columns[name]
    _check_text(manifest, ())
    ids, found = _ids_and_images(manifest, how, max_bytes, need_all=False)
    if lines := manifest.problems.lines():
        raise BadCatalogue(str(manifest.path), lines, manifest.problems.n_rows)
    return ids, found, manifest.notes


def read_products(source: Any, settings: CatalogSettings | None = None) -> list[str] | None:
    """Product of each row of what `read_images` reads, in its order; None without that column."""
    how = settings or CatalogSettings()
    manifest = _open(source, partial(used_columns, settings=how), how)
    name_columns(manifest, how)
    found = join_rows(manifest, how).columns.get("group")
    return None if found is None else [str(cell) for cell in found]


def _ids_and_images(
    manifest: Manifest, how: CatalogSettings, max_bytes: int, *, need_all: bool = True
) -> tuple[list[str], ImageSource]:
    """Ids and images of the rows; `need_all`: a missing image is a problem of its row."""
    paths = [str(c) for c in manifest.columns["path"]]
    if manifest.in_memory and not how.images and paths and all(map(os.path.isabs, paths)):
        folder = Path(os.path.commonpath([Path(path).parent for path in paths]))
        how = replace(how, images=(folder,))
        paths = [os.path.relpath(path, folder) for path in paths]
    safe = check_paths(paths, remote_roots(manifest, how), manifest.problems)
    found = locate(manifest, safe, how)
    found.max_bytes = max_bytes
    if need_all or len(found.faults) == len(paths):
        check_files(found, safe, manifest, manifest.problems)
    return _ids(manifest, paths, manifest.problems), found


def read_columns(
    source: Any, settings: CatalogSettings | None, names: Sequence[str]
) -> dict[str, list[str]]:
    """Cells of any columns of a manifest, a table or records, as text in row order.

    Raises `UsageError` if there is no such column. `source` and `settings` are as for
    `read_catalog`, which checks the rows.
    """
    how = settings or CatalogSettings()
    manifest = _open(source, partial(used_columns, settings=how, more=names), how)
    given = dict(manifest.columns)
    name_columns(manifest, how)
    manifest.columns.pop("split", None)
    # A column that has another name now may be asked for by the one in the file.
    manifest.columns.update({name: given[name] for name in names if name in given})
    columns = join_rows(manifest, how).columns
    if absent := [name for name in names if name not in columns]:
        raise UsageError(
            f"There is no column {', '.join(absent)} in the catalogue; its columns are "
            f"{named(list(columns), COLUMNS_SHOWN)}."
        )
    return {
        name: [SEPARATOR.join(c) if isinstance(c, tuple) else c for c in columns[name]]
        for name in names
    }


def write_catalogue(catalog: Catalog, path: Path) -> None:
    """Write the canonical CSV manifest, from which `read_catalog` makes an equal catalogue.

    Image paths are relative to the folder or archive that the catalogue was read from; raises
    `DataError` if its images have none.
    """
    if isinstance(catalog.images, MemoryImages):
        raise DataError(f"The images of {catalog.path} have no paths that a manifest could name.")
    present = _tag_texts(catalog, POSITIVE)
    unknown = _tag_texts(catalog, UNKNOWN)
    # Tags alone do not say which attributes have one value: the manifest repeats it in every row.
    one_of = catalog.table.exclusive and (SEPARATOR.join(catalog.table.exclusive),)
    rows = (
        (
            str(catalog.image_ids[i]),
            catalog.images.paths[i],
            present[i] or NO_TAGS,
            unknown[i],
            str(catalog.split[i]),
            str(catalog.group[i]),
            str(catalog.title[i]),
            *one_of,
        )
        for i in range(len(catalog))
    )
    header = ("image_id", "path", "tags", "tags_unknown", "split", "group", "title")
    write_text(path, csv_text((*header, ONE_OF) if one_of else header, rows))


def _tag_texts(catalog: Catalog, state: int) -> list[str]:
    """Each row's tags of a state, joined; as JSON lists if joined they would be read otherwise."""
    tags = np.array(catalog.table.tags, dtype=object)
    rows = [tags[row == state].tolist() for row in catalog.table.labels]
    texts = [SEPARATOR.join(row) for row in rows]
    distinct = dict(zip(texts, rows, strict=True))
    if better_separator(distinct, SEPARATOR, known=catalog.table.tags) is None and all(
        parse_cell(text, SEPARATOR)[0] == row for text, row in distinct.items()
    ):
        return texts
    return [json.dumps(row, ensure_ascii=False) if row else "" for row in rows]


def _open(source: Any, use: Use, settings: CatalogSettings) -> Manifest:
    """Choose the reader by what `source` is; of tables, it reads the columns that `use` wants."""
    if isinstance(source, str | Path):
        return _open_path(as_path(source), use, settings)
    # Nobody has a table without its library being loaded; so neither is imported here.
    arrow = sys.modules.get("pyarrow")
    if arrow is not None and isinstance(source, arrow.Table):
        return read_table(source, "Table", use)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return _open_frame(source, use)
    if isinstance(source, list | tuple):
        return read_records(source)
    if isinstance(source, Mapping):
        return read_records(_rows_of(source))
    if hasattr(source, "__arrow_c_stream__"):  # as polars and other libraries export theirs
        import pyarrow as pa

        return read_table(pa.table(source), type(source).__name__, use)
    raise UsageError(
        "read_catalog takes a path, a pandas or pyarrow table, a dict of columns or a list of "
        f"records, not {type(source).__name__}."
    )


def _rows_of(columns: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    """Records of a dict of columns."""
    sizes = {}
    for name, column in columns.items():
        if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
            raise UsageError(f"Column {name} is {type(column).__name__}; give a list of cells.")
        sizes[name] = len(column)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {n:,}" for name, n in sizes.items())
        raise DataError(f"The columns differ in length ({listed}); give one cell per image.")
    # lists of arrays of NumPy and the like hold scalars of their own
    cells = [c.tolist() if hasattr(c, "tolist") else list(c) for c in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]


def _open_frame(frame: Any, use: Use) -> Manifest:
    """Understand a pandas data frame; Arrow cannot hold the PIL images of its column ``image``."""
    import pyarrow as pa

    images = None
    names = list(map(str, frame.columns))
    wanted = use(names)
    used = [
        wanted.or_plain or name in wanted.names or name == "image" or _is_image_cell(frame, k)
        for k, name in enumerate(names)
    ]
    unread = [name for name, is_used in zip(names, used, strict=True) if not is_used]
    frame = frame.loc[:, used]
    if "image" in frame.columns and frame.columns.is_unique:
        images = frame["image"].tolist()
        frame = frame.drop(columns="image")
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"The DataFrame cannot be read as a table: {error}.") from error
    return read_table(table, "DataFrame", use, images, unread)


def _is_image_cell(frame: Any, k: int) -> bool:
    """Whether column `k` of a data frame begins with the bytes of an image."""
    first = next(iter(frame.iloc[:1, k]), None)
    return isinstance(first, bytes | dict)


def _open_path(path: Path, use: Use, settings: CatalogSettings) -> Manifest:
    if path.is_dir():
        if (path / FOLDER_MANIFEST).is_file():
            return read_csv(path / FOLDER_MANIFEST)
        if files := find_metadata(path):
            return read_metadata(path, files, partial(_open_file, use=use))
        if files := find_shards(path):
            return read_shards(path, files)
        if files := parquet_files(path):
            return _with_splits_of_names(read_parquet(path, files, use))
        if isinstance(path, RemotePath):
            raise DataError(
                f"{path} holds no {FOLDER_MANIFEST}, metadata, tar shards or Parquet files; write "
                "a manifest (folders named like tags are read from local disks only)."
            )
        return read_tag_folders(path, settings.allow_root)
    files = numbered_files(path)
    if not (files or path.exists()):
        raise DataError(f"{path} does not exist; give a manifest or a folder of images.")
    return _open_file(path, use, files)


def _open_file(path: Path, use: Use, files: Sequence[Path] = ()) -> Manifest:
    """Read a file, or the several `files` that `path` stands for: shards or Parquet."""
    suffix = table_suffix(path)
    if files and suffix in PARQUET:
        return _with_splits_of_names(read_parquet(path, files, use))
    if suffix in (".csv", ".tsv"):
        return read_csv(path)
    if suffix in (".jsonl", ".ndjson"):
        return read_json_lines(path)
    if suffix == ".json":
        return read_json(path)
    if suffix in PARQUET:
        return read_parquet(path, [path], use)
    if suffix == ".tar":
        return read_shards(path, files or [path])
    raise UsageError(
        f"{path} is neither a folder nor a manifest of type .csv, .tsv, .jsonl, .json or .parquet, "
        "nor a .tar of images with their JSON."
    )


def _with_splits_of_names(manifest: Manifest) -> Manifest:
    """Take the split from the files' names where Hugging Face's convention gives it."""
    splits = [split_of_name(file.stem) for file in manifest.files]
    if "split" in manifest.columns or not all(splits):
        return manifest
    counts = []
    for file in manifest.files:
        with open_parquet(file) as opened:
            counts.append(opened.metadata.num_rows)
    manifest.columns["split"] = np.repeat(splits, counts).tolist()
    return manifest


def _column(manifest: Manifest, name: str) -> Sequence[Cell]:
    cells = manifest.columns.get(name) or [""] * len(manifest)
    return ["" if cell in EMPTY_WORDS else cell for cell in cells]


def _check_columns(manifest: Manifest, attributes: Sequence[str]) -> None:
    there = manifest.columns
    listed = named(list(there), COLUMNS_SHOWN) or "none"
    if not len(manifest):
        raise DataError(f"{manifest.path} has no rows.")
    if "path" not in there and manifest.problems.n_rows == len(manifest):  # none is a row at all
        problems = manifest.problems
        raise BadCatalogue(str(manifest.path), problems.lines(), problems.n_rows)
    if "path" not in there:
        raise DataError(
            f"{manifest.path} has no column path; name the one that holds the images' paths with "
            f"--path-column (its columns are {listed})."
        )
    if absent := [a for a in attributes if a not in there]:
        raise UsageError(
            f"--attributes {', '.join(absent)}: {manifest.path} has no such column; "
            f"its columns are {listed}."
        )


def _check_text(manifest: Manifest, attributes: Sequence[str]) -> None:
    """Report cells that are no text: objects, wrong bytes, or a NUL (arrays of text drop it).

    Only columns of tags may hold lists.
    """
    lists = {"tags", "tags_unknown", ONE_OF, *attributes}
    for name in [n for n in manifest.columns if n in lists or n in COLUMNS]:
        cells = manifest.columns[name]
        for row, value in enumerate(cells if name not in lists else ()):
            if isinstance(value, tuple):
                manifest.problems.add(row, f"{name} holds a list instead of text", broken=True)
        # One check of the whole column first: nearly always it is clean, and a check per cell
        # takes seconds for a million rows.
        if is_clean("".join("".join(c) for c in cells)):
            continue
        for row, value in enumerate(cells):
            text = "".join(value)
            if not is_clean(text):
                fault = "has the wrong encoding (not UTF-8 text)"
                if value == NESTED:
                    fault = "holds an object or bytes instead of text or a list"
                elif "\0" in text:
                    fault = "holds a NUL character; remove it"
                manifest.problems.add(row, f"{name} {fault}")


def _ids(manifest: Manifest, paths: Sequence[str], problems: Problems) -> list[str]:
    """Image ids; the path without suffix where none is given."""
    given = _column(manifest, "image_id")
    ids = [str(g) or _SUFFIX.sub("", p) for g, p in zip(given, paths, strict=True)]
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name and first.setdefault(name, row) != row:
            earlier = problems.row_numbers[first[name]]
            problems.add(row, f"image id '{name}' repeats that of row {earlier}")
    return ids


def _splits(manifest: Manifest, problems: Problems) -> NDArray[np.str_]:
    if "split" not in manifest.columns:
        return np.full(len(manifest), "train")
    words = [str(s) for s in manifest.columns["split"]]
    split = np.array([SPLIT_WORDS.get(w.lower(), w) for w in words])
    for row in np.flatnonzero(~np.isin(split, SPLITS)):
        problems.add(int(row), f"unknown split '{split[row]}' (expected {', '.join(SPLITS)})")
    return split
