"""Decode in processes of their own, so that a crash inside a codec costs one image.

Image codecs are C code that reads strangers' bytes: one of them may crash, run out of memory or
never return. Each thread that decodes talks to a process of its own, so the image at fault is
known at once; the others are not touched, and neither is the run.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import lru_cache
from math import prod

import numpy as np

from retailtag.catalog.decode import MAX_PIXELS, decode_image
from retailtag.catalog.decode_worker import (
    DEFECT,
    PIXELS,
    READY,
    UNREADABLE,
    Answer,
    Job,
    PixelFn,
    Pixels,
    command,
    get,
    put,
)
from retailtag.errors import Unavailable, UnreadableImage

# Seconds. Generous, for a machine may be busy: the largest image allowed takes a few, a start one.
TIME_LIMIT = 300.0
_START_LIMIT = 600.0
_END_LIMIT = 5.0
_LARGEST_STEP = 4096 * 4096  # pixels of what a preprocessing makes
_MOST_SHARED = 256 << 20  # bytes that a process may keep for the next image
# Freed memory stays for the next image; nothing in a process would use more threads.
_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_NO_START = (
    "A process that decodes images could not be started ({}); free memory or raise the limit on "
    "processes, or give --workers 0 to decode in the main process."
)

# Processes without a job, by the process that owns them: a fork must not share its parent's.
_idle: dict[int, list[_Decoder]] = {}
_alone = threading.Lock()


def decode_apart(
    data: bytes,
    last_step: PixelFn | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
) -> Pixels:
    """Decode an image as `decode_image` does, in another process.

    Parameters
    ----------
    data : bytes
        A whole file.
    last_step : callable, optional
        RGB image to pixels (3, h, w). One of this package runs in the other process, so that
        little comes back; any other runs in the caller's.
    max_pixels, allow_truncated
        As for `decode_image`.

    Returns
    -------
    ndarray of uint8, shape (3, h, w), or (h, w, 3) without `last_step`
        Perhaps read-only.

    Raises
    ------
    UnreadableImage
        If `decode_image` refuses the image, or the process dies or takes longer than
        `TIME_LIMIT` seconds over it, twice: the second time in a fresh process, while no other
        image is on its second attempt, since a want of memory may have been another's fault.
    Unavailable
        If no process can be started.

    Notes
    -----
    A process serves one thread at a time and is kept for the next image, up to a minute. The
    pixels are those of `decode_image` to the last bit.
    """
    travels = str(getattr(last_step, "__module__", "")).startswith("retailtag.")
    step = _pickled(last_step) if last_step is not None and travels else b""
    job = Job(len(data), max_pixels, allow_truncated, step)
    try:
        pixels = _on(_borrow(), job, data)
    except _Died:
        with _alone:
            try:
                pixels = _on(_Decoder(), job, data)
            except _Died as second:
                raise UnreadableImage(f"{second}; save it anew or leave it out") from None
    return pixels if travels or last_step is None else _here(pixels, last_step)


def decode_here(
    data: bytes,
    last_step: PixelFn,
    *,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
) -> Pixels:
    """Decode in this process: `decode_apart` without its protection and its cost."""
    image = decode_image(data, max_pixels=max_pixels, allow_truncated=allow_truncated)
    return last_step(image)


def _here(pixels: Pixels, last_step: PixelFn) -> Pixels:
    from PIL import Image

    return last_step(Image.fromarray(pixels))


@lru_cache(maxsize=8)
def _pickled(last_step: PixelFn) -> bytes:
    return pickle.dumps(last_step)


class _Died(Exception):
    """The decoding process ended or was ended over an image; the message says how."""


def _start(descriptor: int, shared: int) -> subprocess.Popen[bytes]:
    """Start a process that serves a socket end and a shared file; one thread each is enough."""
    try:
        return subprocess.Popen(
            [sys.executable, *command(sys.path, descriptor, shared)],
            pass_fds=[descriptor, shared],
            process_group=0,  # Ctrl-C is for this process, which then hangs up
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # which is for --json
            env=os.environ | _ENVIRONMENT,
        )
    except OSError as error:
        raise Unavailable(_NO_START.format(error.strerror)) from error


class _Decoder:
    """A decoding process, the socket to it and the file shared with it."""

    def __init__(self) -> None:
        self._shared = _memory_file()
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs.fileno(), self._shared)
        except Unavailable:
            self._hang_up()
            raise
        self._socket.settimeout(_START_LIMIT)
        if not self._is_ready():
            self._process.kill()
            self.end()
            raise Unavailable(_NO_START.format(f"it ended at once, {self._how()}"))
        self._socket.settimeout(TIME_LIMIT)

    def ask(self, job: Job, data: bytes) -> tuple[Answer, bytes]:
        """The answer to one job, and its body; raises `_Died`."""
        try:
            put(self._shared, data)
            job.send(self._socket)
            answer = Answer.receive(self._socket)
        except TimeoutError:
            self._process.kill()
            raise _Died(f"took more than {TIME_LIMIT:g} s to decode") from None
        except (EOFError, ConnectionError):
            self.end()
            raise _Died(f"crashed its decoder ({self._how()})") from None
        except OSError as error:
            raise _Died(f"found no memory to be decoded in ({error.strerror})") from None
        # A codec that was taken over must not make its owner allocate what it likes.
        size = prod(answer.shape) if answer.kind == PIXELS else answer.size
        fits = answer.size == size <= 3 * max(job.max_pixels, _LARGEST_STEP)
        body = get(self._shared, size) if fits else b""
        if answer.kind not in (PIXELS, UNREADABLE, DEFECT) or not fits or len(body) != size:
            raise _Died("crashed its decoder (a wrong answer)")
        return answer, body

    def is_fit(self) -> bool:
        """Whether it lives, and holds no more memory than the next image may need."""
        return self._process.poll() is None and os.fstat(self._shared).st_size <= _MOST_SHARED

    def end(self) -> None:
        """Hang up, which an idle process takes as its end."""
        self._hang_up()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hang_up(self) -> None:
        if self._socket.fileno() >= 0:  # else it was done before
            self._socket.close()
            os.close(self._shared)

    def _is_ready(self) -> bool:
        try:
            return Answer.receive(self._socket).kind == READY
        except (EOFError, OSError):
            return False

    def _how(self) -> str:
        """How the process ended: a signal by name, or its exit code."""
        code = self._process.returncode
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {-code}, {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"


def _memory_file() -> int:
    """Descriptor of a file without a name, in memory where the system has that."""
    create = getattr(os, "memfd_create", None)  # Linux alone
    if create is not None:
        return int(create("retailtag"))
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _borrow() -> _Decoder:
    """A process that waits for a job, started if there is none."""
    while True:
        try:  # asking first whether one is left would race with other threads
            decoder = _idle.setdefault(os.getpid(), []).pop()
        except IndexError:
            return _Decoder()
        if decoder.is_fit():
            return decoder
        decoder.end()


def _on(decoder: _Decoder, job: Job, data: bytes) -> Pixels:
    """The pixels of one job; the process is kept if it answered and ended if it did not."""
    try:
        answer, body = decoder.ask(job, data)
    except BaseException:
        decoder.end()
        raise
    _idle.setdefault(os.getpid(), []).append(decoder)
    if answer.kind == UNREADABLE:
        raise UnreadableImage(body.decode(errors="replace"))
    if answer.kind == DEFECT:
        raise RuntimeError(f"In a decoding process:\n{body.decode(errors='replace')}")
    return np.frombuffer(body, np.uint8).reshape(answer.shape)


@atexit.register
def end_idle() -> None:
    """End the processes that wait for a job."""
    idle = _idle.pop(os.getpid(), [])
    while idle:
        idle.pop().end()
