"""Decode in separate processes, so that a crash inside a codec costs one image.

Image codecs are C code that reads untrusted bytes: they may crash, run out of memory or never
return. Each decoding thread has a process of its own, so the image at fault is known at once, and
neither the other images nor the run are affected.
"""

from __future__ import annotations

import atexit
import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import numpy as np

from retailtag.errors import Unavailable, UnreadableImage
from retailtag.images.decode import MAX_PIXELS, Pixels, decode_pixels
from retailtag.images.decode_worker import PIXELS, UNREADABLE, Answer, Job, command, get, put
from retailtag.images.header import one_image

Result = TypeVar("Result")

# Generous, because a machine may be busy: the largest image allowed takes a few seconds.
TIME_LIMIT = 300.0  # seconds
_START_SECONDS = 600.0
_END_SECONDS = 5.0
_MAX_MESSAGE_BYTES = 1 << 20
_MAX_SHARED_BYTES = 256 << 20  # that a process may hold for the next image
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


def decode_in_subprocess(
    data: bytes,
    use: Callable[[Pixels], Any] = np.array,
    *,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    time_limit: float | None = None,
) -> Any:
    """Decode an image in another process, and return what `use` makes of its pixels.

    The pixels are those of `decode_pixels` to the last bit. They lie in memory shared with the
    process and serve the next image after the call: `use` must keep no view of them and change
    nothing. By default they are copied.

    Raises
    ------
    UnreadableImage
        If `decode_pixels` refuses the image, `use` fails on its pixels, or a process dies or takes
        longer than `time_limit` seconds over it (by default `TIME_LIMIT`), twice.
    Unavailable
        If no process can be started.
    """
    job = Job(len(data), max_pixels, allow_truncated)
    with one_image():
        try:
            return _on(_borrow(), job, data, use, time_limit)
        except _Died:
            # Once more in a fresh process, and no two second attempts at the same time: the first
            # process may have died for memory that another image used up.
            with _alone:
                try:
                    return _on(_Decoder(), job, data, use, time_limit)
                except _Died as second:
                    raise UnreadableImage(f"{second}; save it anew or leave it out") from None


def decode_in_process(
    data: bytes,
    use: Callable[[Pixels], Result],
    *,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
) -> Result:
    """Decode in this process: `decode_in_subprocess` without its protection and its cost."""
    with one_image():
        return use(decode_pixels(data, max_pixels=max_pixels, allow_truncated=allow_truncated))


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
        self._shared, self._keeps_its_size = _memory_file()
        self._mapped: mmap.mmap | None = None
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs.fileno(), self._shared)
        except Unavailable:
            self._hang_up()
            raise
        self._socket.settimeout(_START_SECONDS)
        try:
            Answer.receive(self._socket)  # READY
        except (EOFError, OSError):
            self._process.kill()
            self.end()
            raise Unavailable(_NO_START.format(f"it ended at once, {self._how()}")) from None

    def ask(self, job: Job, data: bytes, time_limit: float | None) -> tuple[Answer, Pixels]:
        """The answer to one job and its body, bytes that last until the next; raises `_Died`."""
        seconds = TIME_LIMIT if time_limit is None else time_limit
        self._socket.settimeout(seconds)
        try:
            put(self._shared, data)
            job.send(self._socket)
            answer = Answer.receive(self._socket)
        except TimeoutError:
            self._process.kill()
            raise _Died(f"took more than {seconds:g} s to decode") from None
        except (EOFError, ConnectionError):
            self.end()
            raise _Died(f"crashed its decoder ({self._how()})") from None
        except OSError as error:
            raise _Died(f"found no memory to be decoded in ({error.strerror})") from None
        # A hostile file may have taken over the codec: check the answer, never trust it.
        if not _is_possible(answer, job.max_pixels) or answer.size > self._shared_size:
            raise _Died("crashed its decoder (a wrong answer)")
        return answer, self._body(answer.size)

    @property
    def _shared_size(self) -> int:
        return os.fstat(self._shared).st_size

    def _body(self, size: int) -> Pixels:
        """The first `size` bytes of the shared file: in place where no process can take them."""
        if not self._keeps_its_size:
            return np.frombuffer(bytearray(get(self._shared, size)), np.uint8)
        if self._mapped is None or len(self._mapped) < size:
            self._mapped = mmap.mmap(self._shared, self._shared_size)
        return np.frombuffer(self._mapped, np.uint8, size)

    def is_fit(self) -> bool:
        """Whether it lives, and holds no more memory than the next image may need."""
        return self._process.poll() is None and self._shared_size <= _MAX_SHARED_BYTES

    def end(self) -> None:
        """Hang up, which an idle process takes as its end."""
        self._hang_up()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hang_up(self) -> None:
        if self._socket.fileno() >= 0:  # else it was done before
            self._socket.close()
            os.close(self._shared)
            self._mapped = None

    def _how(self) -> str:
        """How the process ended: a signal by name, or its exit code."""
        code = self._process.returncode
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {-code}, {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"


def _is_possible(answer: Answer, max_pixels: int) -> bool:
    if answer.kind == PIXELS:
        is_rgb = min(answer.shape) > 0 and answer.shape[2] == 3
        return is_rgb and answer.size == prod(answer.shape) <= 3 * max_pixels
    return answer.kind == UNREADABLE and answer.size <= _MAX_MESSAGE_BYTES


def _memory_file() -> tuple[int, bool]:
    """Descriptor of a file without a name, in memory where the system has that.

    Also whether it is certain never to shrink: reading mapped bytes beyond the end would end this
    process, and the other one may be in the hands of a hostile file.
    """
    if not hasattr(os, "memfd_create"):  # Linux alone has it
        with tempfile.TemporaryFile() as unnamed:
            return os.dup(unnamed.fileno()), False
    file = os.memfd_create("retailtag", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:  # a kernel without seals
        return file, False
    return file, True


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


def _on(
    decoder: _Decoder,
    job: Job,
    data: bytes,
    use: Callable[[Pixels], Result],
    time_limit: float | None,
) -> Result:
    """What `use` makes of the pixels; the process is reused if it answered, ended if not."""
    try:
        answer, body = decoder.ask(job, data, time_limit)
    except BaseException:
        decoder.end()
        raise
    try:
        if answer.kind == UNREADABLE:
            raise UnreadableImage(_text(body))
        return use(body.reshape(answer.shape))
    finally:  # not before `use` is done with the memory
        del body
        _idle.setdefault(os.getpid(), []).append(decoder)


def _text(body: Pixels) -> str:
    return body.tobytes().decode(errors="replace")


@atexit.register
def end_idle() -> None:
    """End the processes that wait for a job."""
    idle = _idle.pop(os.getpid(), [])
    while idle:
        idle.pop().end()
