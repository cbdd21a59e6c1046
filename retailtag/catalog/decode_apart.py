"""Decode in processes of their own, so that a crash inside a codec costs one image.

Image codecs are C code that reads strangers' bytes: one of them may crash, run out of memory or
never return. Each thread that decodes talks to a process of its own, so the image at fault is
known at once; the others are not touched, and neither is the run.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from math import prod
from multiprocessing import Pipe

import numpy as np

from retailtag.catalog.decode import MAX_PIXELS, decode_image
from retailtag.catalog.decode_worker import (
    DEFECT,
    PIXELS,
    READY,
    SHAPE,
    UNREADABLE,
    Job,
    PixelFn,
    Pixels,
    command,
)
from retailtag.errors import Unavailable, UnreadableImage

TIME_LIMIT = 120.0  # seconds; the largest image allowed takes a few
_START_LIMIT = 120.0
_END_LIMIT = 5.0
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
    travels = getattr(last_step, "__module__", "").startswith("retailtag.")
    job = (data, max_pixels, allow_truncated, last_step if travels else None)
    try:
        pixels = _on(_borrow(), job)
    except _Died:
        with _alone:
            try:
                pixels = _on(_Decoder(), job)
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


class _Died(Exception):
    """The decoding process ended or was ended over an image; the message says how."""


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    """Start a process that serves the socket end `descriptor`; one thread each is enough."""
    try:
        return subprocess.Popen(
            [sys.executable, *command(sys.path, descriptor)],
            pass_fds=[descriptor],
            process_group=0,  # Ctrl-C is for this process, which then hangs up
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # which is for --json
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise Unavailable(_NO_START.format(error.strerror)) from error


class _Decoder:
    """A decoding process and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = Pipe()
        with theirs:
            self._process = _start(theirs.fileno())
        if not self._hears(READY):
            self._process.kill()
            self.end()
            raise Unavailable(_NO_START.format(f"it ended at once, {self._how()}"))

    def ask(self, job: Job) -> bytes:
        """The answer to one job; raises `_Died`."""
        try:
            self._socket.send(job)
            if not self._socket.poll(TIME_LIMIT):
                self._process.kill()
                raise _Died(f"took more than {TIME_LIMIT:g} s to decode")
            return self._socket.recv_bytes()
        except (EOFError, OSError):
            self.end()
            raise _Died(f"crashed its decoder ({self._how()})") from None

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Hang up, which an idle process takes as its end."""
        self._socket.close()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hears(self, word: bytes) -> bool:
        try:
            return self._socket.poll(_START_LIMIT) and self._socket.recv_bytes() == word
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


def _borrow() -> _Decoder:
    """A process that waits for a job, started if there is none."""
    idle = _idle.setdefault(os.getpid(), [])
    with suppress(IndexError):  # asking whether one is left would race with other threads
        while True:
            decoder = idle.pop()
            if decoder.is_alive():
                return decoder
            decoder.end()
    return _Decoder()


def _on(decoder: _Decoder, job: Job) -> Pixels:
    """The pixels of one job; the process is kept if it answered and ended if it did not."""
    try:
        answer = decoder.ask(job)
        if not _is_answer(answer):
            raise _Died("crashed its decoder (a wrong answer)")
    except BaseException:
        decoder.end()
        raise
    _idle.setdefault(os.getpid(), []).append(decoder)
    if answer.startswith(UNREADABLE):
        raise UnreadableImage(answer[1:].decode(errors="replace"))
    if answer.startswith(DEFECT):
        raise RuntimeError(f"In a decoding process:\n{answer[1:].decode(errors='replace')}")
    shape = SHAPE.unpack_from(answer, 1)
    return np.frombuffer(answer, np.uint8, offset=1 + SHAPE.size).reshape(shape)


def _is_answer(answer: bytes) -> bool:
    if not answer.startswith(PIXELS):
        return answer[:1] in (UNREADABLE, DEFECT)
    size = len(answer) - 1 - SHAPE.size
    return size >= 0 and prod(SHAPE.unpack_from(answer, 1)) == size


@atexit.register
def end_idle() -> None:
    """End the processes that wait for a job."""
    idle = _idle.pop(os.getpid(), [])
    while idle:
        idle.pop().end()
