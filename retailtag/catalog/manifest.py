"""Manifests as columns of text: CSV, JSON lines, Parquet, tables and records in; CSV out."""

from __future__ import annotations

import csv
import gzip
import io
import math
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from retailtag.arrow import column_values, open_parquet, parquet_faults
from retailtag.errors import DataError, named
from retailtag.files import HEAD_BYTES, other_kind, parse_json
from retailtag.memory import check_fits

GZIP = b"\x1f\x8b"
MIN_UNPACKED = 1 << 30  # bytes that a table may unpack to however small it is
CELL_BYTES = 16  # of an empty cell: its places in a row and in a column
MAX_EXPANSION = 100  # text hardly shrinks to less than a hundredth

Cell = str | tuple[str, ...]
SEPARATOR = "|"
NO_TAGS = "-"
# Cell of an object, of bytes or of lists within a list. No text that is taken has a NUL.
NESTED = "\0nested"
COLUMNS_SHOWN = 20  # of a manifest, in a message
COLUMNS = ("path", "tags", "image_id", "split", "group", "title", "tags_unknown")


class Wanted(NamedTuple):
    """Which columns of a table have a meaning."""

    names: Collection[str]
    or_plain: bool = False  # and all others of text and numbers: tags may be columns of 0 and 1


Use = Callable[[Sequence[str]], Wanted]  # of the names of all columns


@dataclass
class Problems:
    """Complaints about rows, gathered so that all of them are told at once."""

    # What the user calls each row: the line of a CSV or JSON-lines file (a CSV's header is row 1,
    # as a spreadsheet shows it), with the file's name where there are several; 1, 2, ... elsewhere.
    row_numbers: Sequence[int | str]
    _by_row: dict[int, list[str]] = field(default_factory=dict)
    _broken: set[int] = field(default_factory=set)
    _shared: list[tuple[list[int], str]] = field(default_factory=list)

    def add(self, row: int, sentence: str, *, broken: bool = False) -> None:
        """Note what is wrong with a row; a broken row's later complaints would be echoes."""
        if row not in self._broken:
            self._by_row.setdefault(row, []).append(sentence)
        if broken:
            self._broken.add(row)

    def joined(self, groups: Sequence[Sequence[int]]) -> Problems:
        """The same complaints where each of `groups` of rows has become one row."""
        joined = Problems([self.row_numbers[group[0]] for group in groups])
        for row, group in enumerate(groups):
            for old in group:
                for sentence in self._by_row.get(old, ()):
                    joined.add(row, sentence, broken=old in self._broken)
        return joined

    def add_all(self, rows: Sequence[int], sentence: str) -> None:
        """Note what is wrong with several rows, in one line for all of them."""
        rows = [row for row in rows if row not in self._broken]
        if len(rows) == 1:
            self.add(rows[0], sentence)
        elif rows:
            self._shared.append((rows, sentence))

    def broken(self) -> list[tuple[int, str]]:
        """Rows that could not be parsed, and why."""
        return [(row, "; ".join(self._by_row[row])) for row in sorted(self._broken)]

    @property
    def n_rows(self) -> int:
        """Number of rows with a complaint."""
        return len(self._by_row.keys() | {row for rows, _ in self._shared for row in rows})

    def lines(self) -> list[str]:
        """One line a row, and one for what several rows share, in order of the first row."""
        said = [
            (row, f"row {self.row_numbers[row]}: {'; '.join(dict.fromkeys(sentences))}")
            for row, sentences in self._by_row.items()
        ]
        for rows, sentence in self._shared:
            numbers = [str(self.row_numbers[row]) for row in rows]
            said.append((rows[0], f"rows {named(numbers)}: {sentence}"))
        return [line for _, line in sorted(said, key=lambda one: one[0])]


@dataclass(frozen=True)
class Manifest:
    """A manifest's cells by column, before anything is made of them."""

    path: Path  # of a table in memory what it is called in messages
    columns: dict[str, list[Cell]]
    problems: Problems  # rows that could not be parsed; more is added while they are understood
    files: tuple[Path, ...] = ()  # of Parquet, in row order
    image_column: str = ""  # Parquet column of image bytes, if there is one
    in_memory: bool = False  # whether it is a table or a list of records
    images: list[Any] = field(default_factory=list)  # bytes or PIL images of a table in memory
    places: tuple[Path, ...] = ()  # archives of the images, if the manifest was read from these
    notes: list[str] = field(default_factory=list)  # sentences on what was left out or assumed

    def __len__(self) -> int:
        return len(self.problems.row_numbers)


def is_clean(text: str) -> bool:
    """Whether text can be encoded, and arrays of text keep it: they drop a NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


_NO_TEXT = (Mapping, bytes, bytearray, memoryview)  # bytes would become "b'red'"
_NO_ITEM = (*_NO_TEXT, list, tuple, set, frozenset, np.ndarray)


def cell(value: Any) -> Cell:
    """Stripped text of a value: null is '', a whole float loses its point, a list is a tuple."""
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    is_list = isinstance(value, list | tuple)
    # Text of a list within a list doubles in length with every level.
    if isinstance(value, _NO_TEXT) or (is_list and any(isinstance(v, _NO_ITEM) for v in value)):
        return NESTED
    if is_list:
        return tuple(str(cell(v)) for v in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def read_csv(path: Path) -> Manifest:
    """Read a CSV (``.tsv``: tab-separated) with a header, UTF-8; `DataError` if it is none."""
    delimiter = "\t" if table_suffix(path) == ".tsv" else ","
    # Not pyarrow's reader: it names no line numbers, guesses types and refuses a whole file for
    # one cell that is not UTF-8.
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    numbers, rows = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        for number, row in enumerate(reader, start=2):
            if row:
                numbers.append(number)
                rows.append(row)
    except csv.Error as error:
        raise DataError(
            f"{path} breaks off as CSV at line {reader.line_num}: {error}; look for a quote that "
            "is not closed."
        ) from error
    _check_delimiter(path, header, delimiter)
    if len(set(header)) != len(header) or not header:
        raise DataError(f"{path} needs a first line that names each column once.")
    problems = Problems(numbers)
    width = len(header)
    check_cells(path, len(rows), width)
    for i, row in enumerate(rows):
        if len(row) != width:
            problems.add(i, f"has {len(row)} cells where the header has {width}", broken=True)
            rows[i] = (row + [""] * width)[:width]  # the other checks need a full row
    columns: dict[str, list[Cell]] = {
        name: [row[i].strip() for row in rows] for i, name in enumerate(header)
    }
    return Manifest(path, columns, problems)


def table_suffix(path: Path) -> str:
    """Suffix of a table in lower case, without the ``.gz`` of a compressed one."""
    name = path.name.lower().removesuffix(".gz")
    return PurePath(name).suffix


def read_json(path: Path) -> Manifest:
    """Read a list of JSON objects, or a table as pandas writes it; or objects line by line.

    Raises
    ------
    DataError
        If it is not JSON, or an object of another kind.
    """
    text = _text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        lines = text.strip().split("\n")
        if len(lines) > 1 and lines[0].strip().startswith("{") and _is_json(lines[0]):
            return read_json_lines(path)
        raise DataError(f"{path} is not JSON: {error}.") from error
    rows = _json_rows(value)
    if rows is None:
        keys = named([str(key) for key in value]) if isinstance(value, dict) else "none"
        raise DataError(
            f"{path} is no list of objects, one per image (its keys are {keys}); write it so, or "
            "as one object per line."
        )
    problems = Problems(range(1, len(rows) + 1))
    records = [row if isinstance(row, dict) else {} for row in rows]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.add(i, "is not a JSON object", broken=True)
    return Manifest(path, record_columns(records, path), problems)


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _json_rows(value: Any) -> list[Any] | None:
    """Rows of a JSON value: a list, or what pandas makes of a table; None if it is neither."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return None
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list):  # orient="split"
        is_table = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        is_table = is_table and all(isinstance(row, list) for row in data)
        return [dict(zip(names, row, strict=False)) for row in data] if is_table else None
    if value.keys() == {"schema", "data"}:  # orient="table"
        return data if isinstance(data, list) else None
    # orient="columns", the default of pandas: {column: {row: value}}; or lists
    columns = {k: [*v.values()] if isinstance(v, dict) else v for k, v in value.items()}
    indices = {tuple(v) if isinstance(v, dict) else () for v in value.values()}
    is_table = all(isinstance(v, list) for v in columns.values()) and len(indices) == 1
    if not is_table or len({len(v) for v in columns.values()}) > 1:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def read_json_lines(path: Path) -> Manifest:
    """Read one JSON object per line; any other line is a bad row."""
    numbered = [(n, t) for n, t in enumerate(_text(path).split("\n"), start=1) if t.strip()]
    problems = Problems([n for n, _ in numbered])
    records: list[dict[str, Any]] = []
    for i, (_, line) in enumerate(numbered):
        try:
            value = parse_json(line)
        except ValueError as error:
            value = {}
            problems.add(i, f"is not JSON ({error})", broken=True)
        if not isinstance(value, dict):
            value = {}
            problems.add(i, "is not a JSON object", broken=True)
        records.append(value)
    return Manifest(path, record_columns(records, path), problems)


def read_records(records: Sequence[Any]) -> Manifest:
    """Understand a list of dictionaries; an ``image`` that is a path counts as ``path``."""
    problems = Problems(range(1, len(records) + 1))
    rows: list[dict[str, Any]] = []
    images: list[Any] = []
    for i, record in enumerate(records):
        row: dict[str, Any] = {}
        if isinstance(record, Mapping):
            row = {str(name): value for name, value in record.items()}
        else:
            problems.add(i, f"is not a dict but {type(record).__name__}", broken=True)
        image = row.pop("image", None)
        if isinstance(image, str | PurePath):
            row.setdefault("path", str(image))
            image = None
        rows.append(row)
        images.append(image)
    what = Path("records")
    manifest = Manifest(what, record_columns(rows, what), problems, in_memory=True)
    return _with_images(manifest, images)


def read_table(
    table: Any,
    what: str,
    use: Use,
    images: Sequence[Any] | None = None,
    unread: Sequence[str] = (),
) -> Manifest:
    """Understand a pyarrow table.

    Of a data frame, `images` are those that Arrow cannot hold, and `unread` the names of columns
    that were left out.
    """
    plan = _Plan.of(what, table.schema, use)
    notes: list[str] = []
    columns = _arrow_columns(what, table, plan, notes)
    columns |= dict.fromkeys(unread, [NESTED] * len(table))
    if plan.image:
        values = table[plan.image].to_pylist()
        images = [v.get("bytes") if isinstance(v, dict) else v for v in values]
    problems = Problems(range(1, len(table) + 1))
    if images and all(isinstance(v, str | PurePath) for v in images):
        columns.setdefault("path", [str(v) for v in images])
        images = None
    manifest = Manifest(Path(what), columns, problems, in_memory=True, notes=notes)
    return _with_images(manifest, images or [])


def _is_image(value: Any) -> bool:
    if isinstance(value, bytes | bytearray | memoryview):
        return True
    # Nobody has a PIL image without PIL being loaded.
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _with_images(manifest: Manifest, images: Sequence[Any]) -> Manifest:
    """The manifest with its images in memory, named by their paths or their row numbers."""
    if all(image is None for image in images):
        return manifest
    for row, image in enumerate(images):
        if not (image is None or _is_image(image)):
            fault = f"image is {type(image).__name__}, not a path, bytes or a PIL image"
            manifest.problems.add(row, fault, broken=True)
    images = [image if _is_image(image) else None for image in images]
    given = manifest.columns.get("path", [""] * len(manifest))
    manifest.columns["path"] = _names([str(path) for path in given])
    return replace(manifest, images=images)


def _names(given: Sequence[str]) -> list[Cell]:
    """Names of images that lie in a table: the given ones, or row numbers if one repeats."""
    known = [name for name in given if name]
    unique = len(set(known)) == len(known)
    return [(unique and name) or f"row-{i:09d}" for i, name in enumerate(given, start=1)]


def read_parquet(path: Path, files: Sequence[Path], use: Use) -> Manifest:
    """Read those columns of Parquet files that `use` wants, as one table, without the images.

    Raises `DataError` if a file is not Parquet, or one of these columns is there twice, holds
    something else than text and numbers, or differs between the files.
    """
    import pyarrow as pa

    notes: list[str] = []
    with parquet_faults(path, tuple(files)):
        opened = [open_parquet(file) for file in files]
        schema = opened[0].schema_arrow
        plan = _Plan.of(path, schema, use)
        image = plan.image
        kind = schema.field(image).type if image else pa.null()
        has_path = pa.types.is_struct(kind) and any(f.name == "path" for f in kind)
        stored_path = [f"{image}.path"] if has_path else []
        # Not pq.read_table: it flattens a nested column, and guesses partitions from folders.
        table = pa.concat_tables([f.read(columns=[*plan.used, *stored_path]) for f in opened])
        n = sum(file.metadata.num_rows for file in opened)
        table = table.replace_schema_metadata(schema.metadata)
        columns = _arrow_columns(path, table, plan, notes, n)
        if image and "path" not in columns:
            stored = table.column(image).to_pylist() if stored_path else [None] * n
            columns["path"] = _names([str(cell(v["path"])) if v else "" for v in stored])
    problems = Problems(range(1, n + 1))
    return Manifest(path, columns, problems, tuple(files), image, notes=notes)


@dataclass(frozen=True)
class _Plan:
    """Which columns of an Arrow table are read."""

    names: tuple[str, ...]  # all but the image's, each once
    used: tuple[str, ...]  # those of `names` that are read
    needed: frozenset[str]  # those of `used` that have a meaning
    image: str  # column of image bytes; empty: none

    @classmethod
    def of(cls, where: Path | str, schema: Any, use: Use) -> _Plan:
        """Columns of a schema; raises `DataError` if one that is used is there twice."""
        names = tuple(dict.fromkeys(schema.names))
        wanted = use(names)
        # A column `image` may hold paths; any other one with a meaning holds no images.
        free = (f for f in schema if f.name not in wanted.names or f.name.lower() == "image")
        image = next((f.name for f in free if _holds_bytes(f.type)), "")
        plain = {f.name for f in schema if wanted.or_plain and _is_plain(f.type)}
        found = plain.union(wanted.names) - {image}
        used = tuple(name for name in names if name in found)
        for name in (*used, *filter(None, [image])):
            if (n := schema.names.count(name)) > 1:
                raise DataError(f"{where} has {n} columns {name}; rename all but one.")
        needed = frozenset(used).intersection(wanted.names)
        return cls(tuple(name for name in names if name != image), used, needed, image)


def record_columns(records: Sequence[Mapping[str, Any]], path: Path) -> dict[str, list[Cell]]:
    """Cells of records by column; a key that a record lacks is an empty cell.

    Raises `DataError`, which names `path`, if so many columns of so many records do not fit.
    """
    names = dict.fromkeys(name for record in records for name in record)
    check_cells(path, len(records), len(names))
    columns: dict[str, list[Cell]] = {name: [""] * len(records) for name in names}
    for row, record in enumerate(records):
        for name, value in record.items():
            columns[name][row] = cell(value)
    return columns


def check_cells(path: Path, n_rows: int, n_columns: int) -> None:
    """Raise `DataError` if the cells of so many rows and columns do not fit into memory."""
    check_fits(
        n_rows * n_columns * CELL_BYTES,
        f"{path}: the cells of {n_rows:,} rows and {n_columns:,} columns",
        "keep the columns that name the images and their tags, and write tags as lists in one",
    )


def _arrow_columns(
    where: Path | str, table: Any, plan: _Plan, notes: list[str], n_rows: int | None = None
) -> dict[str, list[Cell]]:
    """Cells of an Arrow table by column; class numbers become names.

    Columns that are not read keep their place, for messages that list the columns.
    """
    class_names = _class_names(where, table.schema.metadata or {}, notes)
    unread: list[Cell] = [NESTED] * (len(table) if n_rows is None else n_rows)
    columns = dict.fromkeys(plan.names, unread)
    for name in plan.used:
        try:
            values = column_values(where, name, table.column(name))
        except DataError:
            if name in plan.needed:
                raise
            continue  # no column of 0 and 1
        if name in class_names:
            values = _with_names(where, name, values, class_names[name])
        columns[name] = [cell(value) for value in values]
    return columns


def _text(path: Path) -> str:
    """Content of a text file; bytes that are not UTF-8 become surrogates, reported by row later."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if path.suffix.lower() == ".gz" and data.startswith(GZIP):
        data = _unpacked(path, data)
    if kind := other_kind(data[:HEAD_BYTES], "a table", but=("JSON",)):
        raise DataError(f"{path} {kind}.")
    # UTF-16 and UTF-32, with or without a byte order mark, spell every ASCII character with NULs.
    if b"\0" in data.partition(b"\n")[0]:
        raise DataError(
            f"{path} has NUL bytes in its first line, as UTF-16 and UTF-32 have; save it as UTF-8."
        )
    return data.decode("utf-8-sig", errors="surrogateescape")


def _unpacked(path: Path, data: bytes) -> bytes:
    """Content of a gzip file, as far as it is not a bomb."""
    limit = max(MIN_UNPACKED, MAX_EXPANSION * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}); fetch it again.") from error
    if len(unpacked) > limit:
        raise DataError(
            f"{path} unpacks to over {limit / 2**30:.1f} GiB; if that is right, unpack it yourself."
        )
    return unpacked


def _check_delimiter(path: Path, header: Sequence[str], delimiter: str) -> None:
    """Refuse a header of a single cell in which another delimiter would find ``path``."""
    names = {",": "commas", ";": "semicolons", "\t": "tabs"}
    only = header[0] if len(header) == 1 else ""
    other = next((d for d in names if d in only), "")
    if other and "path" in [name.strip(' "') for name in only.split(other)]:
        raise DataError(
            f"{path} divides its cells by {names[other]} where {names[delimiter]} are expected; "
            "save it with commas as .csv, or with tabs as .tsv."
        )


def _holds_bytes(kind: Any) -> bool:
    """Whether an Arrow type is bytes, or a struct with a field ``bytes``."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_plain(kind: Any) -> bool:
    """Whether an Arrow type is text, a number or a truth value, or codes of these."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    return any(check(kind) for check in checks)


def _class_names(
    where: Path | str, metadata: Mapping[bytes, bytes], notes: list[str]
) -> dict[str, list[str]]:
    """Names of the classes of each column, from Hugging Face's note in the schema.

    A note of another form is said in `notes`: class numbers then stay numbers.
    """
    if b"huggingface" not in metadata:
        return {}
    try:
        features = parse_json(metadata[b"huggingface"])["info"]["features"]
        items = features.items()
    except (KeyError, ValueError, TypeError, AttributeError):
        notes.append(f"{where}: its Hugging Face metadata cannot be read; class numbers stay so.")
        return {}
    found = {}
    for column, feature in items:
        inner = feature[0] if isinstance(feature, list) and feature else feature
        while isinstance(inner, dict) and isinstance(inner.get("feature"), dict):
            inner = inner["feature"]
        names = inner.get("names") if isinstance(inner, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[column] = names
    return found


def _with_names(
    where: Path | str, column: str, values: Sequence[Any], names: Sequence[str]
) -> list[Any]:
    """Values with names in place of class numbers; `DataError` for a number without a name."""
    try:
        return [_named(value, names) for value in values]
    except IndexError as error:
        raise DataError(
            f"{where}: column {column} holds class {error}, and its Hugging Face metadata has "
            f"names of {len(names):,} classes; write these names in the column."
        ) from error


def _named(value: Any, names: Sequence[str]) -> Any:
    """Class numbers to names, -1 (Hugging Face's "no label") to nothing."""
    if isinstance(value, list):
        return [_named(v, names) for v in value]
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise IndexError(value)
    return names[value]


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """CSV as every spreadsheet reads it, lines ended by a line feed."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
