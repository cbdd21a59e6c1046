"""The decoding process: takes bytes and answers with pixels until its owner ends.

Owner and process share a file in memory for what is long and a socket for what is short. The
answer holds no pickle: a codec that a hostile file took over can send wrong pixels, but nothing
that the owner would run.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import socket
import struct
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retailtag.errors import UnreadableImage
from retailtag.images.decode import Pixels, decode_pixels
from retailtag.images.header import one_image

READY, PIXELS, UNREADABLE = range(3)  # what an answer is
IDLE_SECONDS = 60.0  # without a job for so long, the process makes room
_JOB = struct.Struct("<QQ?")
_ANSWER = struct.Struct("<BQ3I")


class Job(NamedTuple):
    """A file to decode: the first `size` bytes of the shared file."""

    size: int
    max_pixels: int
    allow_truncated: bool

    def send(self, to: socket.socket) -> None:
        """Send it to the process."""
        to.sendall(_JOB.pack(*self))

    @classmethod
    def receive(cls, source: socket.socket) -> Job:
        """Wait for one; raises `EOFError` or `TimeoutError`."""
        return cls(*_JOB.unpack(_receive(source, _JOB.size)))


class Answer(NamedTuple):
    """What became of a file: the first `size` bytes of the shared file, and what they are."""

    kind: int
    size: int = 0
    shape: tuple[int, ...] = (0, 0, 0)  # of pixels

    def send(self, to: socket.socket) -> None:
        """Send it to the owner."""
        to.sendall(_ANSWER.pack(self.kind, self.size, *self.shape))

    @classmethod
    def receive(cls, source: socket.socket) -> Answer:
        """Wait for one; raises `EOFError` or `TimeoutError`."""
        kind, size, *shape = _ANSWER.unpack(_receive(source, _ANSWER.size))
        return cls(kind, size, tuple(shape))


def _receive(source: socket.socket, size: int) -> bytes:
    data = source.recv(size, socket.MSG_WAITALL)  # so short a message is never divided
    if len(data) < size:
        raise EOFError
    return data


def put(shared: int, body: bytes | memoryview) -> int:
    """Write a body at the start of the shared file; its size in bytes."""
    view = memoryview(body).cast("B")
    at = 0
    while at < len(view):
        at += os.pwrite(shared, view[at:], at)
    return at


def get(shared: int, size: int) -> bytes:
    """The first `size` bytes of the shared file, or fewer if there are fewer."""
    data = os.pread(shared, size, 0)
    while len(data) < size and (more := os.pread(shared, size - len(data), len(data))):
        data += more  # above 2 GiB, which is all that one call reads
    return data


class Room:
    """The shared file as memory, for a decoder that writes to a given buffer."""

    def __init__(self, shared: int) -> None:
        self._shared = shared
        self._memory: mmap.mmap | None = None

    def take(self, size: int) -> memoryview:
        """The first `size` bytes."""
        if self._memory is None or len(self._memory) < size:
            if os.fstat(self._shared).st_size < size:
                os.truncate(self._shared, size)
            self._memory = mmap.mmap(self._shared, os.fstat(self._shared).st_size)
        return memoryview(self._memory)[:size]

    def holds(self, pixels: Pixels) -> bool:
        """Whether pixels lie in it already."""
        memory = self._memory
        return memory is not None and np.may_share_memory(pixels, np.frombuffer(memory, np.uint8))


def serve(descriptor: int, shared: int) -> None:
    """Answer jobs until the socket closes or nothing comes for `IDLE_SECONDS`.

    The arguments are the file descriptors of this process's end of the socket and of the shared
    file.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
    warnings.simplefilter("ignore")  # of Pillow, about what it can read all the same
    with suppress(OSError):  # when memory runs out, Linux is to kill this process, not the run
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    room = Room(shared)
    owner_ended = (EOFError, ConnectionError, TimeoutError)
    with socket.socket(fileno=descriptor) as owner, suppress(*owner_ended):
        owner.settimeout(IDLE_SECONDS)
        Answer(READY).send(owner)
        while True:
            _answer(Job.receive(owner), shared, room).send(owner)


def _answer(job: Job, shared: int, room: Room) -> Answer:
    try:
        with one_image():
            pixels = decode_pixels(
                get(shared, job.size),
                max_pixels=job.max_pixels,
                allow_truncated=job.allow_truncated,
                room=room.take,
            )
            size = pixels.nbytes if room.holds(pixels) else put(shared, pixels.data)
    except UnreadableImage as error:
        return Answer(UNREADABLE, put(shared, str(error).encode(errors="replace")))
    return Answer(PIXELS, size, pixels.shape)


def command(path: list[str], descriptor: int, shared: int) -> list[str]:
    """Arguments after the interpreter that start `serve` with the owner's module path.

    Isolated (``-I``), so that no module is taken from the folder that the owner runs in: it may
    be a stranger's catalogue.
    """
    start = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    run = f"from {__name__} import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
    return ["-I", "-c", start + run, json.dumps(path), str(descriptor), str(shared)]
