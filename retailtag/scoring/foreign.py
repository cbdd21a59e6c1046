"""Scores that another tool wrote: read, checked cell by cell, and converted to logits.

The scale of the numbers is declared, never guessed: values in [0, 1] may be probabilities or
small logits.
"""

from __future__ import annotations

import csv
import math
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.arrow import parquet_faults
from retailtag.catalog.indicators import is_index
from retailtag.errors import DataError, UsageError, named
from retailtag.files import check_kind
from retailtag.memory import check_fits
from retailtag.npz import Form, open_npz
from retailtag.scoring.csvs import unquoted
from retailtag.scoring.finding import count
from retailtag.scoring.metrics import Floats

SCALES = ("logits", "probabilities")
SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")
ID = "image_id"
MAX_PROBLEMS_SHOWN = 10
EXACT = 2.0**53  # beyond it float64 skips whole numbers: distinct scores would become ties
# Clipped to this so that logits stay finite: the smallest normal float32, the last float64 below 1.
PROBABILITY_RANGE = (2.0**-126, 1 - 2.0**-53)
_NPZ = (
    "cannot be read as NPZ without pickled objects",
    "write image_ids and tags as arrays of text, scores as numbers (images x tags)",
)


@dataclass(frozen=True, eq=False)
class ForeignScores:
    """Scores as their file holds them."""

    path: Path
    image_ids: NDArray[np.str_]  # (n_images,)
    tags: tuple[str, ...]
    scores: Floats  # (n_images, n_tags), on the file's own scale; no NaN
    thresholds: Floats | None  # (n_tags,), on the same scale; None if the file holds none
    rows: Sequence[int]  # numbers of the rows in the file, for messages (a CSV's header is row 1)
    left_out: tuple[str, ...] = ()  # columns of an index that pandas wrote


class _Columns(NamedTuple):
    """Where a table has its ids and its tags."""

    ids: int
    places: list[int]  # of the tags
    tags: tuple[str, ...]
    left_out: tuple[str, ...]


def is_foreign(path: Path) -> bool:
    """Whether a file is another tool's: CSV, Parquet, or an NPZ without retailtag's header."""
    if path.suffix.lower() != ".npz":
        return path.suffix.lower() in SUFFIXES
    try:
        with open_npz(path, *_NPZ) as file:
            return "header" not in file
    except (FileNotFoundError, DataError):
        return False  # Predictions.load raises with a better message


def read_foreign(path: Path, known: Collection[str] | None = None) -> ForeignScores:
    """Read a table of scores with one row per image and one column per tag.

    The file is CSV (``.tsv``: tab-separated) or Parquet with a column ``image_id`` and one per tag;
    or NPZ with arrays ``image_ids``, ``tags``, ``scores`` and optionally ``thresholds``. Columns
    of an index that pandas wrote are left out, unless they are among the tags `known`.

    Raises `DataError` if it cannot be read, a column is missing, repeated or none of the tags
    `known`, an id repeats, or a cell is not a number; the message lists the first ten such rows.
    """
    kind = path.suffix.lower()
    check_kind(path, "a table of scores", but=("a Parquet file", "a zip archive"))
    try:
        if kind == ".npz":
            return _read_npz(path, known)
        if kind == ".parquet":
            return _read_parquet(path, known)
        return _read_csv(path, "\t" if kind == ".tsv" else ",", known)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def to_logits(scores: Floats, scale: str) -> NDArray[np.float32]:
    """Convert scores on one of `SCALES` to logits; order and ties are kept.

    Finite for probabilities, 0 and 1 included.

    Examples
    --------
    >>> [f"{z:.1f}" for z in to_logits(np.array([0.5, 0.9, 0.0, 1.0]), "probabilities")]
    ['0.0', '2.2', '-87.3', '36.7']
    """
    if scale == "logits":
        return scores.astype(np.float32)
    inside = np.clip(scores, *PROBABILITY_RANGE)
    return (np.log(inside) - np.log1p(-inside)).astype(np.float32)  # log(p / (1 - p))


def threshold_logits(thresholds: Floats, scale: str) -> NDArray[np.float32]:
    """Convert thresholds to logits; ``inf`` (never given) and ``-inf`` (always) stay.

    `DataError` if another threshold of probabilities lies outside [0, 1].
    """
    finite = thresholds[np.isfinite(thresholds)]
    if scale == "probabilities" and ((finite < 0) | (finite > 1)).any():
        raise DataError(
            "A threshold lies outside [0, 1] although the scores are declared as probabilities; "
            "give thresholds on the scale of the scores, inf for a tag that is never given."
        )
    return np.where(np.isinf(thresholds), thresholds, to_logits(thresholds, scale)).astype(
        np.float32
    )


def check_scale(scores: ForeignScores, scale: str) -> None:
    """Raise `UsageError` for an unknown scale, `DataError` for a probability outside [0, 1]."""
    if scale not in SCALES:
        raise UsageError(f"--scores {scale} is unknown; use one of {', '.join(SCALES)}.")
    if scale == "logits":
        return
    outside = np.argwhere((scores.scores < 0) | (scores.scores > 1))
    problems = [  # of all cells, if logits were declared probabilities: write out the first ones
        f"row {scores.rows[i]}, column {scores.tags[j]}: {scores.scores[i, j]:g} is not a "
        "probability"
        for i, j in outside[:MAX_PROBLEMS_SHOWN].tolist()
    ]
    _refuse(scores.path, problems, "use --scores logits if they are logits", len(outside))


def read_thresholds(path: Path, tags: Sequence[str]) -> Floats:
    """Thresholds (n_tags,) from a CSV with columns ``tag`` and ``threshold``, any order.

    A scorecard's ``per_tag.csv`` is such a file. ``inf`` means that the tag is never given.
    `DataError` if a column or a tag is missing, a tag is repeated, or a threshold is no number.
    """
    header, rows = _csv_rows(path, ",")
    if "tag" not in header or "threshold" not in header:
        raise DataError(f"{path} needs the columns tag and threshold; it has {named(header, 10)}.")
    tag_at = header.index("tag")
    value_at = header.index("threshold")
    wanted = set(tags)
    found: dict[str, float] = {}
    problems: list[str] = []
    for number, row in rows:
        cells = row + [""] * len(header)
        tag = cells[tag_at] if cells[tag_at] in wanted else unquoted(cells[tag_at])
        value = _number(cells[value_at])
        if tag in found:
            problems.append(f"row {number}: tag {tag} is repeated")
        elif math.isnan(value):
            cell = reprlib.repr(cells[value_at])
            problems.append(f"row {number}, column threshold: {cell} is not a number")
        found[tag] = value
    problems += [f"tag {tag} is missing" for tag in tags if tag not in found]
    _refuse(path, problems, "fix them")
    return np.array([found[tag] for tag in tags], np.float64)


def _csv_rows(path: Path, delimiter: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and (row number, cells) of every row that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(n, row) for n, row in enumerate(reader, start=2) if row]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 CSV: {error}.") from error
    return header, rows


def _number(text: str) -> float:
    """Float of a cell; NaN if it is not a number, one too large for float64 included."""
    try:
        # Python reads the underscore of 0_5 as nothing, which gives 5
        number = math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan
    return math.nan if math.isinf(number) and any(map(str.isdigit, text)) else number


def _read_csv(path: Path, delimiter: str, known: Collection[str] | None) -> ForeignScores:
    header, rows = _csv_rows(path, delimiter)
    columns = _columns(path, header, known)
    width = len(header)
    problems = []
    scores = np.full((len(rows), len(columns.tags)), np.nan)
    ids = []
    for i, (number, row) in enumerate(rows):
        if len(row) != width:
            problems.append(f"row {number}: {len(row)} cells where the header has {width}")
            row[:] = (row + [""] * width)[:width]
        ids.append(row[columns.ids].strip())
        row[:] = [row[k] for k in columns.places]
        try:
            scores[i] = row  # NumPy parses the whole row of text at once
        except ValueError:
            scores[i] = math.nan
        # what NumPy takes otherwise than `_number`
        if "_" in "".join(row) or not np.isfinite(scores[i]).all():
            scores[i] = [_number(cell) for cell in row]
    _refuse(path, problems, "fix them")
    return _checked(path, ids, columns, scores, [n for n, _ in rows], [row for _, row in rows])


def _read_parquet(path: Path, known: Collection[str] | None) -> ForeignScores:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        header = list(schema.names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}.") from error
    columns = _columns(path, header, known)
    wrong = [
        f"column {name}: holds {kind} instead of {what}"
        for k, what in [(columns.ids, "text"), *((k, "numbers") for k in columns.places)]
        for name, kind in [(header[k], schema.types[k])]
        if not _is_kind(kind, what)
    ]
    _refuse(path, wrong, "write ids as text, scores as numbers")
    names = [ID, *columns.tags]  # what nobody uses is not read
    # three times: Arrow's table, the scores, and what checks them
    n_cells = file.metadata.num_rows * len(names)
    check_fits(24 * n_cells, f"{n_cells:,} cells of {path}", "write fewer rows or columns to it")
    with parquet_faults(path):
        table = file.read(columns=names)
        ids = _ids(table.column(ID).to_pylist())
    scores = np.empty((table.num_rows, len(columns.tags)))
    for j, tag in enumerate(columns.tags):
        # unchecked: integers that float64 rounds are refused by their row later
        scores[:, j] = table.column(tag).cast(pa.float64(), safe=False).to_numpy()
    return _checked(path, ids, columns, scores, range(1, table.num_rows + 1))


def _is_kind(kind: Any, what: str) -> bool:
    """Whether Arrow's type is one of numbers, or of ``text``: ids may be numbers too."""
    from pyarrow import types

    is_number = types.is_floating(kind) or types.is_integer(kind)
    kind = kind.value_type if types.is_dictionary(kind) else kind  # a categorical of pandas
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return is_number or (what == "text" and is_text)


def _ids(values: list[Any]) -> list[str]:
    """Ids as text; empty for None and NaN, with which pandas fills gaps."""
    return ["" if v is None or v != v else str(v) for v in values]  # noqa: PLR0124


def _read_npz(path: Path, known: Collection[str] | None) -> ForeignScores:
    try:
        with open_npz(path, *_NPZ) as file:
            n_images = file.shape("image_ids", Form("USiuf", (None,)))[0]
            n_tags = file.shape("tags", Form("US", (None,)))[0]
            scores = _float64(file.read("scores", Form("fiu", (n_images, n_tags))))
            ids = file.read("image_ids", Form("USiuf", (n_images,)))
            names = file.read("tags", Form("US", (n_tags,)))
            thresholds = None
            if "thresholds" in file:
                thresholds = _float64(file.read("thresholds", Form("fiu", (n_tags,))))
    except FileNotFoundError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if thresholds is not None and np.isnan(thresholds).any():
        tag = names[np.argmax(np.isnan(thresholds))]
        raise DataError(f"{path} has NaN as the threshold of {tag}; give each tag a number.")
    columns = _columns(path, [ID, *names.tolist()], known)
    kept = [k - 1 for k in columns.places]  # the names have no column of ids before them
    found = _checked(path, _ids(ids.tolist()), columns, scores[:, kept], range(1, n_images + 1))
    return replace(found, thresholds=None if thresholds is None else thresholds[kept])


def _float64(array: NDArray[Any]) -> Floats:
    """Numbers as float64; NaN for what is beyond it (NumPy has longer ones)."""
    with np.errstate(over="ignore"):
        found = array.astype(np.float64)
    return np.where(np.isinf(found) & np.isfinite(array), np.nan, found)


def _columns(path: Path, header: list[str], known: Collection[str] | None) -> _Columns:
    """Positions of the ids and the tags; whatever is neither is refused by name."""
    if ID not in header:
        raise DataError(
            f"{path} has no column {ID}; give the column of ids that name (its columns are "
            f"{named(header, 10)})."
        )
    index = {name for name in header if is_index(name) and name not in (known or ())}
    places = [k for k, name in enumerate(header) if name != ID and name not in index]
    tags = [header[k] for k in places]
    counts = Counter(name for name in header if name not in index)
    twice = sorted(name for name, n in counts.items() if n > 1)
    if twice or not tags:
        what = f"column {named(twice, 1)} twice" if twice else "no column of a tag"
        raise DataError(f"{path} has {what}; it needs one column per tag.")
    if any("\0" in tag for tag in tags):
        raise DataError(f"{path} has a NUL character in the name of a column; remove it.")
    if known is not None and (strange := [tag for tag in tags if tag not in known]):
        raise DataError(
            f"{path} has columns that are not tags of the catalogue ({named(strange, 10)}); remove "
            "them, or name the catalogue that has these tags."
        )
    return _Columns(header.index(ID), places, tuple(tags), tuple(sorted(index)))


def _checked(
    path: Path,
    ids: Sequence[str],
    columns: _Columns,
    scores: Floats,
    rows: Sequence[int],
    text: Sequence[Sequence[str]] | None = None,
) -> ForeignScores:
    """The scores; refused if an id is missing or repeated or a cell (`text`) is not a number."""
    problems = list(_bad_ids(ids, rows))
    # infinity is a score, which a finding of the scorecard names
    too_large = np.isfinite(scores) & (np.abs(scores) >= EXACT)
    bad = np.argwhere(np.isnan(scores) | too_large)
    total = len(problems) + len(bad)
    for i, j in bad[:MAX_PROBLEMS_SHOWN].tolist():
        cell = reprlib.repr(text[i][j]) if text is not None else f"{scores[i, j]:.17g}"
        fault = f"{cell} is 2**53 or larger, where float64 skips whole numbers"
        if np.isnan(scores[i, j]):
            fault = f"{'an empty or NaN cell' if text is None else cell} is not a number"
        problems.append(f"row {rows[i]}, column {columns.tags[j]}: {fault}")
    _refuse(path, problems, "fix or drop them", total)
    names = np.array(ids, dtype=np.str_)
    return ForeignScores(path, names, columns.tags, scores, None, rows, columns.left_out)


def _bad_ids(ids: Sequence[str], rows: Sequence[int]) -> Iterable[str]:
    first: dict[str, int] = {}
    for image_id, row in zip(ids, rows, strict=True):
        if not image_id:
            yield f"row {row}, column {ID}: is empty"
        elif "\0" in image_id:
            yield f"row {row}, column {ID}: holds a NUL character"
        elif image_id in first:
            yield f"row {row}, column {ID}: {image_id} is in row {first[image_id]} already"
        else:
            first[image_id] = row


def _refuse(path: Path, problems: Sequence[str], remedy: str, total: int | None = None) -> None:
    """Raise `DataError` with the first of the `problems`, of which there are `total`, if any."""
    total = len(problems) if total is None else total
    if not total:
        return
    lines = [f"{path} has {count(total, 'problem')}; {remedy}:", *problems[:MAX_PROBLEMS_SHOWN]]
    if total > MAX_PROBLEMS_SHOWN:
        lines.append(f"and {total - MAX_PROBLEMS_SHOWN} more")
    raise DataError("\n  ".join(lines))
