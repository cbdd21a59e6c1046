"""The exceptions that a user can cause, and the exit code that each one becomes.

Every message is one clear sentence that names the file, row or option at fault, followed by the
remedy. The command line prints the message alone; a traceback means a defect of retailtag.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

# 2 is what typer itself ends with on wrong usage; 130 is 128 + SIGINT, as shells have it.
EXIT_DONE = 0
EXIT_DEFECT = 1
EXIT_USAGE = 2
EXIT_BAD_DATA = 3
EXIT_STALE = 4
EXIT_GATE = 5
EXIT_UNAVAILABLE = 6
EXIT_INTERRUPTED = 130

LONGEST_LINE = 2000  # characters of a line of a message

# What a disk says that takes no more: full, over quota, at its limit for one file, read-only, or
# failing. Such an `OSError` ends the program with EXIT_UNAVAILABLE, whichever file it is about.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})

# How a lack of memory reads where it is no MemoryError: PyTorch and C++, the loader of libraries,
# Python's threads, CUDA.
_NO_MEMORY = ("allocate memory", "bad_alloc", "map segment", "start new thread", "out of memory")


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, or room for addresses, ran out.

    Examples
    --------
    >>> lacks_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    kinds = (ImportError, OSError, RuntimeError)
    text = str(error)
    told = isinstance(error, kinds) and any(words in text for words in _NO_MEMORY)
    return isinstance(error, MemoryError) or told


def named(items: Sequence[str], shown: int = 3) -> str:
    """The first few of `items`, for a message, and how many more there are.

    Examples
    --------
    >>> named(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more} more" if more > 0 else "")


class RetailtagError(Exception):
    """Base of everything retailtag raises on purpose.

    A line of over `LONGEST_LINE` characters, which quotes a cell or name of any length, loses its
    middle: the file at its beginning and the remedy at its end stay.
    """

    exit_code = EXIT_DEFECT

    def __init__(self, message: str = "") -> None:
        super().__init__("\n".join(map(_shortened, message.split("\n"))))


def _shortened(line: str) -> str:
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


class UsageError(RetailtagError):
    """An option or argument that cannot be used as given."""

    exit_code = EXIT_USAGE


def check_seed(seed: int) -> None:
    """Raise `UsageError` unless NumPy and PyTorch both take `seed`: 0 to 2**32 - 1."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed {seed} is out of range; use 0 to {2**32 - 1}.")


class DataError(RetailtagError):
    """Input data (a catalogue, an image, predictions) that cannot be used as it is."""

    exit_code = EXIT_BAD_DATA


class BadCatalogue(DataError):
    """A catalogue with rows that cannot be used; lists all of them at once (``row 17: ...``)."""

    def __init__(self, source: str, problems: Sequence[str], n_rows: int | None = None) -> None:
        self.source = source
        self.problems = tuple(problems)
        n = len(self.problems) if n_rows is None else n_rows  # a line may be about several rows
        head = f"{source} has {n} row{'' if n == 1 else 's'} that cannot be used; fix or drop them"
        super().__init__("\n  ".join([head + ":", *self.problems]))


class UnreadableImage(DataError):
    """Bytes that do not decode to an image within the limits; the message is the reason."""


class ArtefactError(RetailtagError):
    """A file that retailtag wrote and that does not fit what it is used for."""

    exit_code = EXIT_STALE


class DamagedFile(ArtefactError):
    """A file whose bytes are not those that retailtag wrote."""


class StaleFeatures(ArtefactError):
    """A feature store whose identity differs from the one asked for."""


class SplitOverlap(ArtefactError):
    """Predictions that were fitted on images of the split being scored."""


class GateUnmet(RetailtagError):
    """A score that misses a condition; everything was written and printed before."""

    exit_code = EXIT_GATE

    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = tuple(sentences)
        super().__init__("\n  ".join(self.sentences))


class Mismatch(ArtefactError):
    """Two artefacts that should be equal and are not; the result was printed before."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n  ".join(sentences))


class Interrupted(RetailtagError):
    """Work that Ctrl-C or SIGTERM ended; the message says what is left of it."""

    exit_code = EXIT_INTERRUPTED


class Unavailable(RetailtagError):
    """Something that is needed is not available: weights, an extra, a device."""

    exit_code = EXIT_UNAVAILABLE
