"""A disk that keeps a record of every change, fails on demand, and is rebuilt as a crash leaves it.

What a process is killed at is the state after some operation. What a power failure leaves is less:
bytes that no fsync of their file followed may be lost, cut short or zeros, and names that no fsync
of their folder followed may or may not have changed, each on its own. This is more than any file
system in use does to a program, as in Pillai et al. 2014 (ALICE, OSDI), section 3.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

DATA = {"write", "truncate"}
NAMES = {"create", "rename", "unlink", "mkdir"}
# What a full disk refuses; the other operations fail as a broken one.
GROWS = {"create", "write", "mkdir"}


@dataclass(frozen=True)
class Op:
    """One operation; `file` numbers what an inode would, paths are relative to the disk."""

    kind: str
    path: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    target: str = ""


Fault = Callable[[Op], None]
State = dict[str, bytes | None]  # path to content, None for a folder


class Recorder:
    """Records what is done under `root` to `ops`; `before` may raise what the disk would.

    Parameters
    ----------
    root : Path
        Folder that stands for the disk.
    ops : sequence of Op
        What was done before; the record goes on from there.
    before : callable
        Told of every operation before it is done.
    """

    def __init__(self, root: Path, ops: Sequence[Op] = (), before: Fault = lambda op: None) -> None:
        self.root = root
        self.ops = list(ops)
        self._before = before
        self._next = 1 + max((op.file for op in ops), default=-1)
        self._names = _apply(ops)[0]
        self._open: dict[int, Op] = {}  # descriptor to its creation: file and path

    def do(self, op: Op, act: Callable[[], object]) -> object:
        """Do and record, or fail and record nothing."""
        self._before(op)
        result = act()
        self.ops.append(op)
        return result

    def inside(self, path: object) -> str | None:
        """Path relative to the disk, None for one outside."""
        whole = Path(os.fsdecode(path)) if isinstance(path, str | os.PathLike) else None
        if whole is None or not whole.is_relative_to(self.root):
            return None
        return whole.relative_to(self.root).as_posix()

    def file_at(self, path: str) -> int:
        """Number of the file at `path`, a new one if there is none."""
        if self._names.get(path, -1) < 0:
            self._names[path], self._next = self._next, self._next + 1
        return self._names[path]

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Stand between Python and the disk inside the block."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in (
                (io, "open"),
                (os, "open"),
                (os, "fsync"),
                (os, "replace"),
                (os, "unlink"),
                (os, "mkdir"),
            ):
                stand_in = getattr(self, f"_{owner.__name__}_{name}")
                patch.setattr(owner, name, _calling(stand_in, getattr(owner, name)))
            yield self

    def _os_open(self, real, path, flags, *args, **kwargs):
        where = self.inside(path)
        if where is None:
            fd = real(path, flags, *args, **kwargs)
            self._open.pop(fd, None)  # a number that a file of this disk had before
            return fd
        if not flags & os.O_CREAT:
            fd = real(path, flags, *args, **kwargs)
            self._open[fd] = Op("open", where)
            return fd
        assert flags & os.O_EXCL, "only new files are made this way"
        op = Op("create", where, self._next)
        fd = self.do(op, lambda: real(path, flags, *args, **kwargs))
        self._open[fd] = Op("open", where, self.file_at(where))
        return fd

    def _io_open(self, real, file, mode="r", buffering=-1, *args, **kwargs):
        if isinstance(file, int):
            opened = self._open.get(file)
        else:
            where = self.inside(file)
            opened = (
                None if where is None or mode in {"r", "rb"} else self._appended(real, file, where)
            )
        if opened is None:
            return real(file, mode, buffering, *args, **kwargs)
        raw = _Raw(file, mode, self, opened)
        self._open[raw.fileno()] = opened
        if buffering == 0:
            return raw
        return (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)

    def _appended(self, real, file, where: str) -> Op:
        """Make the file to append to, if there is none, as opening it would."""
        if not Path(file).exists():
            self.do(Op("create", where, self._next), lambda: real(file, "xb").close())
        return Op("open", where, self.file_at(where))

    def _os_fsync(self, real, fd):
        opened = self._open[fd]
        kind = "sync" if opened.file < 0 else "fsync"
        self.do(Op(kind, opened.path, opened.file), lambda: real(fd))

    def _os_replace(self, real, src, dst, **kwargs):
        a, b = self.inside(src), self.inside(dst)
        self.do(Op("rename", a, self._names[a], target=b), lambda: real(src, dst, **kwargs))
        self._names[b] = self._names.pop(a)

    def _os_unlink(self, real, path, **kwargs):
        where = self.inside(path)
        if where is None or not Path(path).exists():
            real(path, **kwargs)
        else:
            self.do(Op("unlink", where), lambda: real(path, **kwargs))
            del self._names[where]

    def _os_mkdir(self, real, path, *args, **kwargs):
        where = self.inside(path)
        if where is None or Path(path).exists():
            real(path, *args, **kwargs)
        else:
            self.do(Op("mkdir", where), lambda: real(path, *args, **kwargs))
            self._names[where] = -1


class Failing:
    """A disk that is full from its n-th operation on, or that breaks in it if that needs no room.

    Parameters
    ----------
    n : int
        Operations that succeed before; a read-only disk lets none.
    kind : str
        Count operations of this kind alone; empty: all.
    """

    def __init__(self, n: int, read_only: bool = False, kind: str = "") -> None:
        self._left = n
        self._kind = kind
        self._refuses = GROWS | {"truncate", "rename", "unlink"} if read_only else set()
        self._says = errno.EROFS if read_only else errno.ENOSPC
        self.failed: Op | None = None

    def __call__(self, op: Op) -> None:
        counts = op.kind == self._kind or not self._kind
        self._left -= counts
        if counts and self._left == -1 and not self._refuses:
            self.failed = op
            self._refuses = GROWS & {op.kind} and GROWS
            self._raise(self._says if self._refuses else errno.EIO)
        if op.kind in self._refuses:
            self._raise(self._says)

    @staticmethod
    def _raise(code: int) -> None:
        raise OSError(code, os.strerror(code))


def _calling(method, real):
    return lambda *args, **kwargs: method(real, *args, **kwargs)


class _Raw(io.FileIO):
    """An unbuffered file whose writes are recorded where they land."""

    def __init__(self, file, mode: str, recorder: Recorder, opened: Op) -> None:
        super().__init__(file, mode.replace("b", ""))
        self._recorder, self._opened, self._appends = recorder, opened, "a" in mode

    def write(self, data) -> int:
        at = os.fstat(self.fileno()).st_size if self._appends else self.tell()
        op = Op("write", self._opened.path, self._opened.file, at, bytes(data))
        try:
            return self._recorder.do(op, lambda: super(_Raw, self).write(data))
        except OSError:
            super().write(op.data[: len(op.data) // 2])  # a disk fills in the middle of a write
            raise

    def truncate(self, size=None) -> int:
        op = Op("truncate", self._opened.path, self._opened.file, size)
        return self._recorder.do(op, lambda: super(_Raw, self).truncate(size))

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._recorder.do(Op("close", self._opened.path), lambda: None)
        finally:
            super().close()


def _apply(
    ops: Sequence[Op],
    dropped: Collection[int] = (),
    torn: Mapping[int, bytes] | None = None,
) -> tuple[dict[str, int], dict[int, bytearray]]:
    """Names (path to file, -1 for a folder) and contents after `ops`, without those `dropped`."""
    names: dict[str, int] = {}
    contents: dict[int, bytearray] = {}
    for i, op in enumerate(ops):
        if i in dropped:
            continue
        content = contents.setdefault(op.file, bytearray())
        if op.kind == "write":
            data = (torn or {}).get(i, op.data)
            content.extend(bytes(max(0, op.offset - len(content))))
            content[op.offset : op.offset + len(data)] = data
        elif op.kind == "truncate":
            del content[op.offset :]
        elif op.kind in {"create", "mkdir"}:
            names[op.path] = op.file
        elif op.kind == "rename":
            names.pop(op.path, None)
            names[op.target] = op.file
        elif op.kind == "unlink":
            names.pop(op.path, None)
    return names, contents


def state_after(
    ops: Sequence[Op], dropped: Collection[int] = (), torn: Mapping[int, bytes] | None = None
) -> State:
    """What the disk holds; names whose folder was lost are lost with it."""
    names, contents = _apply(ops, dropped, torn)
    state: State = {
        path: None if file < 0 else bytes(contents.get(file, b"")) for path, file in names.items()
    }
    folders = {path for path, content in state.items() if content is None} | {"."}
    return {
        path: content
        for path, content in state.items()
        if all(parent.as_posix() in folders for parent in Path(path).parents)
    }


def unsynced(ops: Sequence[Op]) -> list[int]:
    """Operations that a power failure after `ops` may undo, in order."""
    synced_files, synced_folders, pending = set(), set(), []
    for i in range(len(ops) - 1, -1, -1):
        op = ops[i]
        if op.kind == "fsync":
            synced_files.add(op.file)
        elif op.kind == "sync":
            synced_folders.add(op.path)
        elif (op.kind in DATA and op.file not in synced_files) or (
            op.kind in NAMES and Path(op.path).parent.as_posix() not in synced_folders
        ):
            pending.append(i)
    return pending[::-1]


def states_after_power_loss(ops: Sequence[Op], idle: Callable[[Op], bool]) -> Iterator[State]:
    """What a power failure after `ops` may leave; of `idle` operations nothing is left.

    Every subset of the operations that no fsync followed is undone, and every such write that
    is kept in part: cut short, and with zeros in place of the rest.
    """
    pending = unsynced(ops)
    always = {i for i in pending if idle(ops[i])}
    free = [i for i in pending if i not in always]
    assert len(free) <= 10, "too many to undo in every combination"
    for n in range(len(free) + 1):
        for undone in combinations(free, n):
            yield state_after(ops, always | set(undone))
    for i in free:
        if ops[i].kind == "write":
            for part in _torn(ops[i].data):
                yield state_after(ops, always, {i: part})


def _torn(data: bytes) -> Iterator[bytes]:
    for cut in sorted({1, 511, 512, 513, len(data) // 2, len(data) - 1}):
        if 0 < cut < len(data):
            yield data[:cut]
            yield data[:cut].ljust(len(data), b"\0")


def lay_out(state: State, root: Path) -> None:
    """Put a state on a real disk, in an empty folder."""
    for path, content in sorted(state.items()):
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def ops_of(state: State) -> list[Op]:
    """Operations that make a state and bring it to the disk, for a record to go on from."""
    ops = []
    for file, (path, content) in enumerate(sorted(state.items())):
        if content is None:
            ops.append(Op("mkdir", path))
        else:
            ops += [Op("create", path, file), Op("write", path, file, data=content)]
            ops.append(Op("fsync", path, file))
    folders = sorted({Path(path).parent.as_posix() for path in state})
    return ops + [Op("sync", folder) for folder in folders]


def read_state(root: Path) -> State:
    """What a folder holds."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }
