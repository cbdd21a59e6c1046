"""Manifests as columns of text: CSV, JSON lines, Parquet in; CSV out."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retailtag.errors import DataError

Cell = str | tuple[str, ...]
SEPARATOR = "|"
NO_TAGS = "-"
COLUMNS = ("path", "tags", "image_id", "split", "group", "title", "tags_unknown")


@dataclass
class Problems:
    """Complaints about rows, gathered so that all of them are told at once.

    Parameters
    ----------
    row_numbers : sequence of int
        What the user calls each row: line of a CSV or JSON-lines file (a CSV's header is row 1,
        as a spreadsheet shows it), 1, 2, ... in Parquet files and folders.
    """

    row_numbers: Sequence[int]
    _by_row: dict[int, list[str]] = field(default_factory=dict)
    _broken: set[int] = field(default_factory=set)

    def add(self, row: int, sentence: str, *, broken: bool = False) -> None:
        """Note what is wrong with a row; a broken row's later complaints would be echoes."""
        if row not in self._broken:
            self._by_row.setdefault(row, []).append(sentence)
        if broken:
            self._broken.add(row)

    def lines(self) -> list[str]:
        """One line a row, in row order."""
        return [
            f"row {self.row_numbers[row]}: {'; '.join(dict.fromkeys(said))}"
            for row, said in sorted(self._by_row.items())
        ]


@dataclass(frozen=True)
class Manifest:
    """A manifest's cells by column, before anything is made of them.

    Parameters
    ----------
    path : Path
        The file or folder.
    columns : dict of str to list of (str or tuple of str)
        Cells of each column, stripped; lists are tuples; nothing is ''.
    problems : Problems
        Rows that could not be parsed; more is added while the rows are understood.
    shards : tuple of Path
        Parquet files in row order; empty for other manifests.
    image_column : str
        Parquet column of image bytes; empty where there is none.
    nested : dict of str to list of int
        Rows of each column that hold an object, or lists within a list, instead of text.
    """

    path: Path
    columns: dict[str, list[Cell]]
    problems: Problems
    shards: tuple[Path, ...] = ()
    image_column: str = ""
    nested: dict[str, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.problems.row_numbers)


def cell(value: Any) -> Cell:
    """Text of a value: null is '', a whole float loses its point, a list becomes a tuple."""
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | tuple):
        return tuple(str(cell(v)) for v in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def read_csv(path: Path) -> Manifest:
    """Read a CSV (``.tsv``: tab-separated) with a header, UTF-8.

    Raises
    ------
    DataError
        If there is no header, it repeats a column, or the quoting never closes.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    numbers, rows = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        for number, row in enumerate(reader, start=2):
            if row:
                numbers.append(number)
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path} breaks off as CSV at line {reader.line_num}: {error}.") from error
    _check_delimiter(path, header, delimiter)
    if len(set(header)) != len(header) or not header:
        raise DataError(f"{path} needs a first line that names each column once.")
    problems = Problems(numbers)
    width = len(header)
    for i, row in enumerate(rows):
        if len(row) != width:
            problems.add(i, f"has {len(row)} cells where the header has {width}", broken=True)
            rows[i] = (row + [""] * width)[:width]
    columns: dict[str, list[Cell]] = {
        name: [row[i].strip() for row in rows] for i, name in enumerate(header)
    }
    return Manifest(path, columns, problems)


def read_json_lines(path: Path) -> Manifest:
    """Read one JSON object a line; a line that is none is a bad row."""
    numbered = [(n, t) for n, t in enumerate(_text(path).split("\n"), start=1) if t.strip()]
    problems = Problems([n for n, _ in numbered])
    records: list[dict[str, Any]] = []
    for i, (_, line) in enumerate(numbered):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            value, what = {}, f"is not JSON ({error})"
            problems.add(i, what, broken=True)
        if not isinstance(value, dict):
            value = {}
            problems.add(i, "is no JSON object", broken=True)
        records.append(value)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {n: [cell(r.get(n)) for r in records] for n in names}
    nested = {n: _nested_rows([r.get(n) for r in records]) for n in names}
    return Manifest(path, columns, problems, nested=nested)


def read_parquet(path: Path, shards: Sequence[Path]) -> Manifest:
    """Read Parquet files as one table, all columns but the image bytes.

    Class labels that Hugging Face datasets store as numbers become their names.

    Raises
    ------
    DataError
        If a file is no Parquet or the shards' columns differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(shards[0])
        image = next((f.name for f in schema if _holds_bytes(f.type)), "")
        plain = [f.name for f in schema if f.name != image]
        nested = [f"{image}.path"] if image and _has_path(schema.field(image).type) else []
        # Not pq.read_table: it flattens a nested column, and guesses partitions from folders.
        table = pa.concat_tables([pq.ParquetFile(s).read(columns=plain + nested) for s in shards])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}.") from error
    columns: dict[str, list[Cell]] = {}
    nested_rows: dict[str, list[int]] = {}
    names = _class_names(schema.metadata or {})
    for name in plain:
        values = table.column(name).to_pylist()
        nested_rows[name] = _nested_rows(values)
        columns[name] = [cell(_named(v, names[name]) if name in names else v) for v in values]
    n = table.num_rows
    if image:
        stored = table.column(image).to_pylist() if nested else [None] * n
        inner = [cell(v["path"]) if v else "" for v in stored]
        if len(set(filter(None, inner))) < len(list(filter(None, inner))):
            inner = [""] * n  # names that repeat name nothing
        columns.setdefault("path", [p or f"row-{i:09d}" for i, p in enumerate(inner, start=1)])
    return Manifest(path, columns, Problems(range(1, n + 1)), tuple(shards), image, nested_rows)


def _nested_rows(values: Sequence[Any]) -> list[int]:
    """Rows whose value is neither text, number, nothing, nor a list of these."""
    return [
        row
        for row, value in enumerate(values)
        if isinstance(value, dict)
        or (isinstance(value, list | tuple) and any(isinstance(v, list | dict) for v in value))
    ]


def _text(path: Path) -> str:
    """Content of a text file; bytes that are not UTF-8 become lone surrogates.

    Surrogates name their rows later on; a file that as a whole is UTF-16 or UTF-32 is refused.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    # UTF-32's little-endian mark begins with UTF-16's.
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise DataError(f"{path} is UTF-32; save it as UTF-8.")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16; save it as UTF-8.")
    if b"\0" in data.partition(b"\n")[0]:
        raise DataError(
            f"{path} has NUL bytes in its first line, as UTF-16 and UTF-32 have; save it as UTF-8."
        )
    return data.decode("utf-8-sig", errors="surrogateescape")


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


def _has_path(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind) and any(f.name == "path" for f in kind))


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes of each column, from Hugging Face's note in the schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    found = {}
    for column, feature in features.items():
        inner = feature[0] if isinstance(feature, list) and feature else feature
        while isinstance(inner, dict) and isinstance(inner.get("feature"), dict):
            inner = inner["feature"]
        if isinstance(inner, dict) and isinstance(inner.get("names"), list):
            found[column] = [str(name) for name in inner["names"]]
    return found


def _named(value: Any, names: Sequence[str]) -> Any:
    """Class numbers to names, -1 (Hugging Face's "no label") to nothing."""
    if isinstance(value, list):
        return [_named(v, names) for v in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """CSV as every spreadsheet reads it, lines ended by a line feed."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
