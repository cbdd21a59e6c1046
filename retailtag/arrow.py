"""Arrow and Parquet data of any origin: what cannot be read is a sentence with file and column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retailtag.errors import DataError
from retailtag.files import check_kind
from retailtag.remote import RemotePath

# What Cython's conversions raise besides Arrow's own errors; ImportError: a library of time zones.
_CONVERSION = (ValueError, KeyError, TypeError, OverflowError, ImportError)


def open_parquet(path: Path) -> Any:
    """A Parquet file as pyarrow opens it; of a remote one, the parts that are used are fetched."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path.open("rb") if isinstance(path, RemotePath) else path)


@contextmanager
def parquet_faults(path: Path, files: tuple[Path, ...] = ()) -> Iterator[None]:
    """Turn what pyarrow raises for damaged `files` of `path` (default: itself) into `DataError`."""
    import pyarrow as pa

    try:
        yield
    except (OSError, *_CONVERSION, pa.ArrowException) as error:
        for file in files or (path,):
            check_kind(file, "a Parquet file")
        raise DataError(f"{path} cannot be read as Parquet: {_first_line(error)}.") from error


def column_values(where: Path | str, name: str, column: Any) -> list[Any]:
    """Python values of a column of text, numbers, truth values or lists of these.

    Text that is not UTF-8 has surrogates for the wrong bytes, as file names have. `DataError`,
    with `where` and `name`, if the column holds bytes or values that Python cannot hold.
    """
    import pyarrow as pa

    kind = column.type
    if _holds_bytes(kind):
        raise DataError(f"{where}: column {name} holds {kind} instead of text; cast it to string.")
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _texts(column)
        return list(column.to_pylist())
    except (*_CONVERSION, pa.ArrowException) as error:
        raise DataError(
            f"{where}: column {name} ({kind}) cannot be read ({_first_line(error)}); write it as "
            "text."
        ) from error


def _texts(column: Any) -> list[str | None]:
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if v is None else v.decode(errors="surrogateescape") for v in raw]


def _holds_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type are bytes, or lists of bytes."""
    import pyarrow as pa

    is_bytes = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    )
    # lists of every kind, dictionaries and run-end encoded columns have one type of values
    while not any(check(kind) for check in is_bytes):
        kind = getattr(kind, "value_type", None)
        if kind is None:
            return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
