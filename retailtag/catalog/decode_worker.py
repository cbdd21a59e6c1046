"""What a decoding process does: take bytes, answer with pixels, until its owner is gone.

The answer is plain bytes, never a pickle: a codec that a hostile file took over can send wrong
pixels, but nothing that the owner would run.
"""

from __future__ import annotations

import json
import resource
import struct
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.decode import decode_image
from retailtag.errors import UnreadableImage

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
PixelFn = Callable[["Image.Image"], Pixels]
Job = tuple[bytes, int, bool, PixelFn | None]  # bytes, max_pixels, allow_truncated, last step

READY = b"ready"
SHAPE = struct.Struct("<3I")
PIXELS, UNREADABLE, DEFECT = b"p", b"u", b"d"  # first byte of an answer

IDLE_SECONDS = 60.0  # without a job for so long, the process makes room


def serve(descriptor: int) -> None:
    """Answer jobs on a socket until it closes or nothing comes for `IDLE_SECONDS`.

    Parameters
    ----------
    descriptor : int
        File descriptor of this process's end.

    Notes
    -----
    A job is a pickled `Job`. An answer is one byte that says what follows: the shape as three
    little-endian uint32 and the pixels; or, in UTF-8, why the image cannot be read; or the
    traceback of a defect.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
    warnings.simplefilter("ignore")  # of Pillow, about what it can read all the same
    _first_to_be_killed()
    with Connection(descriptor) as owner, suppress(EOFError, ConnectionError):
        owner.send_bytes(READY)
        while owner.poll(IDLE_SECONDS):
            owner.send_bytes(_answer(owner.recv()))


def _first_to_be_killed() -> None:
    """Have Linux, when memory runs out, kill this process and not the run that owns it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _answer(job: Job) -> bytes:
    data, max_pixels, allow_truncated, last_step = job
    try:
        image = decode_image(data, max_pixels=max_pixels, allow_truncated=allow_truncated)
        pixels = np.asarray(image) if last_step is None else last_step(image)
    except UnreadableImage as error:
        return UNREADABLE + str(error).encode(errors="replace")
    except Exception:  # noqa: BLE001 - the owner raises it
        return DEFECT + traceback.format_exc().encode(errors="replace")
    return PIXELS + SHAPE.pack(*pixels.shape) + pixels.tobytes()


def command(path: list[str], descriptor: int) -> list[str]:
    """Arguments after the interpreter that start `serve` with the owner's module path."""
    start = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    run = f"from {__name__} import serve; serve(int(sys.argv[2]))"
    return ["-c", start + run, json.dumps(path), str(descriptor)]
