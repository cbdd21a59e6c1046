"""One writer at a time, by a lock that the kernel releases when its holder dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from retailtag.errors import Unavailable

if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 20  # beyond the text, which others must stay able to read

    def _try_lock(handle: IO[bytes]) -> None:
        handle.seek(_LOCKED_BYTE)
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(handle: IO[bytes]) -> None:
        # flock, not lockf: it belongs to the open file, so that a second store object in the
        # same process is refused too.
        fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


class WriterLock:
    """An exclusive lock on `path`; the file stays behind, empty of meaning without its holder.

    Parameters
    ----------
    path : Path
        Lock file, made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: IO[bytes] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def acquire(self) -> None:
        """Take the lock or fail at once.

        Raises
        ------
        Unavailable
            If another writer holds it, or the folder cannot be written.
        """
        store = self._path.parent
        try:
            handle = self._path.open("a+b")
        except OSError as error:
            raise Unavailable(
                f"{store} cannot be written ({error.strerror or error}); "
                "choose another folder with --features."
            ) from error
        try:
            _try_lock(handle)
        except OSError:
            holder = _holder(handle)
            handle.close()
            raise Unavailable(
                f"{store} is being written by another process{holder}; wait for it, or stop it, "
                "and run the same command again."
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n".encode())
        handle.flush()
        self._handle = handle

    def release(self) -> None:
        """Give the lock back; closing the file is what releases it."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _holder(handle: IO[bytes]) -> str:
    handle.seek(0)
    pid = handle.read(20).strip().decode("ascii", "replace")
    return f" (pid {pid})" if pid.isdigit() else ""
