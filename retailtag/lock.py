"""One writer at a time, by a lock that the kernel releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retailtag.errors import Unavailable
from retailtag.files import make_folder

# What the locking calls of Linux and the BSDs say of a lock that another process holds.
_HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}


class WriterLock:
    """An exclusive lock on the file `path`, which is made if missing and never deleted.

    `option` is the one that chooses the folder of `path`, for messages. Unless it is `needed`, a
    file system without locks is written to without one.
    """

    def __init__(self, path: Path, option: str = "--features", *, needed: bool = True) -> None:
        self._path = path
        self._option = option
        self._needed = needed
        self._handle: io.FileIO | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def acquire(self) -> None:
        """Take the lock or raise `Unavailable` at once."""
        folder = self._path.parent
        try:
            # Unbuffered: what a full disk refuses must not be tried again when the file is closed.
            handle = self._path.open("a+b", buffering=0)
        except OSError as error:
            raise Unavailable(
                f"{folder} cannot be written ({error.strerror or error}); "
                f"choose another folder with {self._option}."
            ) from error
        try:
            # flock, not lockf: it belongs to the open file, so that a second store object in the
            # same process is refused too. The kernel releases it however the process ends; a
            # lock that is a file would stay behind after a kill.
            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            pid = handle.read(20).strip().decode("ascii", "replace")
            _close(handle)
            if error.errno not in _HELD and not self._needed:
                return
            raise Unavailable(self._refusal(error, pid)) from None
        self._handle = handle
        _HOLDING.add(self)
        with suppress(OSError):  # the pid is for people; a full disk may refuse it
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock back; closing the file is what releases it."""
        if self._handle is not None:
            _close(self._handle)
            self._handle = None
            _HOLDING.discard(self)

    def _refusal(self, error: OSError, pid: str) -> str:
        folder = self._path.parent
        if error.errno in _HELD:
            holder = f" (pid {pid})" if pid.isdigit() else ""
            return (
                f"{folder} is being written by another process{holder}; wait for it, or stop it, "
                "and run the same command again."
            )
        return (
            f"{folder} cannot be locked ({error.strerror or error}), so two writers could not be "
            f"kept apart; choose a folder on a file system with locks with {self._option}."
        )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes to the folder of a run, which is made if missing.

    Temporary files that a killed writer left in it are deleted.

    Raises
    ------
    Unavailable
        If another process is writing to it, or it cannot be written.
    """
    make_folder(folder)
    # Every file of a run is replaced whole, and a model's are bound to each other: without locks,
    # as on some clusters' file systems, two writers can do no worse than be refused afterwards.
    lock = WriterLock(folder / ".lock", "--out", needed=False)
    lock.acquire()
    try:
        if lock.held:  # else they may be another writer's
            for part in folder.glob(".*.part"):
                part.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


_HOLDING: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Close a forked child's copies: a worker that outlives a killed writer must not hold it."""
    for lock in list(_HOLDING):
        lock.release()


os.register_at_fork(after_in_child=_leave_to_parent)


def _close(handle: io.FileIO) -> None:
    with suppress(OSError):  # nothing of value was written, and the lock is given back either way
        handle.close()
