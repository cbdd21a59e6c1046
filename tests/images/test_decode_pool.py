"""A codec that crashes, hangs or lies costs its own image and no other."""

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from retailtag.backbones.preprocess import Preprocess
from retailtag.catalog.check import check_catalog
from retailtag.catalog.readers import read_catalog
from retailtag.errors import Unavailable, UnreadableImage
from retailtag.images import decode_pool as module
from retailtag.images.decode import decode_image
from retailtag.images.decode_pool import decode_in_subprocess, end_idle
from retailtag.images.loader import load_batches

# The real process with a decoder that obeys the last bytes of a file.
CRASHING = """
import ctypes, json, os, signal, sys, time
from pathlib import Path
sys.path[:] = json.loads(sys.argv[1])
from retailtag.images import decode_worker as worker
decode, answer = worker.decode_pixels, worker._answer
ACTS = {
    b"ABORT": os.abort,
    b"SEGV": lambda: ctypes.string_at(0),
    b"KILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"EXIT": lambda: os._exit(3),
    b"SLEEP": lambda: time.sleep(3600),
    b"DEFECT": lambda: 1 / 0,
    b"MEMORY": lambda: [None] * (1 << 60),
}
def crash(data, **limits):
    for word, act in ACTS.items():
        if data.endswith(word):
            act()
    if data.endswith(b"ONCE") and not Path(FLAG).exists():
        Path(FLAG).touch()
        os.abort()
    return decode(data, **limits)
def lie(job, shared, room):
    data = worker.get(shared, job.size)
    if data.endswith(b"LIE"):
        return worker.Answer(worker.PIXELS, 9, (9, 9, 3))
    if data.endswith(b"GREY"):
        return worker.Answer(worker.PIXELS, 9, (3, 3, 1))
    if data.endswith(b"BOAST"):
        return worker.Answer(worker.PIXELS, 3 * 2**60, (2**31, 2**29, 3))
    if data.endswith(b"SHORT"):
        return worker.Answer(worker.PIXELS, 3 * 2**22, (2**11, 2**11, 3))
    return answer(job, shared, room)
worker.decode_pixels, worker._answer = crash, lie
worker.serve(int(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def _own_processes():
    """No test inherits another's processes."""
    end_idle()
    yield
    end_idle()


@pytest.fixture
def crashing(monkeypatch, tmp_path):
    """Make every decoding process one that obeys its files."""
    command = module.command
    program = CRASHING.replace("FLAG", repr(str(tmp_path / "crashed once")))
    monkeypatch.setattr(module, "command", lambda *ends: ["-c", program, *command(*ends)[3:]])


class Images:
    def __init__(self, data):
        self.data = data

    def read(self, index):
        return self.data[index]

    def name(self, index):
        return f"row {index}"


def test_pixels_are_those_of_decoding_here(picture):
    last_step = Preprocess((16, 16))
    for kind in ("JPEG", "PNG", "WEBP"):
        data = picture(70, kind)
        image = decode_image(data)
        assert (decode_in_subprocess(data) == np.asarray(image)).all()
        assert (decode_in_subprocess(data, last_step.of_pixels) == last_step(image)).all()
        assert decode_in_subprocess(data, lambda pixels: pixels.sum()) == np.asarray(image).sum()


def test_limits_and_refusals_are_those_of_decoding_here(picture):
    with pytest.raises(UnreadableImage, match=r"48 x 40 .* limit of 100"):
        decode_in_subprocess(picture(), max_pixels=100)
    cut = picture(50, size=(200, 200))[:-500]
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_in_subprocess(cut)
    assert decode_in_subprocess(cut, allow_truncated=True).shape == (200, 200, 3)


def test_a_process_serves_one_image_after_another(picture):
    decode_in_subprocess(picture(1))
    (first,) = module._idle[os.getpid()]
    decode_in_subprocess(picture(2))
    assert module._idle[os.getpid()] == [first]


def test_a_process_that_holds_much_memory_makes_room(picture, monkeypatch):
    decode_in_subprocess(picture(1))
    (first,) = module._idle[os.getpid()]
    monkeypatch.setattr(module, "_MAX_SHARED_BYTES", 48 * 40 * 3 - 1)
    decode_in_subprocess(picture(2))
    (second,) = module._idle[os.getpid()]
    assert second is not first
    assert first._process.returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks where Linux shows it")
def test_a_process_is_out_of_the_way(picture):
    """It is killed before its owner when memory runs out, not by Ctrl-C, and leaves no core."""
    decode_in_subprocess(picture())
    (idle,) = module._idle[os.getpid()]
    about = Path("/proc", str(idle._process.pid))
    assert (about / "oom_score_adj").read_text() == "500\n"
    assert re.search(r"Max core file size +0 +0 ", (about / "limits").read_text())
    assert os.getpgid(idle._process.pid) != os.getpgid(0)


@pytest.mark.usefixtures("crashing")
@pytest.mark.parametrize(
    ("word", "how"),
    [
        (b"ABORT", r"signal 6, SIGABRT"),
        (b"SEGV", r"signal 11, SIGSEGV"),
        (b"KILL", r"signal 9, SIGKILL"),
        (b"EXIT", r"exit code 3"),
        (b"LIE", r"a wrong answer"),
        (b"GREY", r"a wrong answer"),
        (b"BOAST", r"a wrong answer"),
        (b"SHORT", r"a wrong answer"),
    ],
)
def test_a_crash_is_the_reason_of_its_image_alone(picture, word, how):
    data = [picture(v) for v in range(12)]
    data[4] += word
    last_step = Preprocess((8, 8))
    batches = list(load_batches(Images(data), range(12), last_step, batch_size=5, workers=2))
    (failure,) = [f for b in batches for f in b.failures]
    assert failure.row == 4
    assert failure.sha256 == hashlib.sha256(data[4]).hexdigest()
    assert failure.reason == f"crashed its decoder ({how}); save it anew or leave it out"
    assert np.concatenate([b.rows for b in batches]).tolist() == [0, 1, 2, 3, *range(5, 12)]
    expected = [last_step(decode_image(data[row])) for row in range(12) if row != 4]
    assert (np.concatenate([b.pixels for b in batches]) == np.stack(expected)).all()


@pytest.mark.usefixtures("crashing")
def test_what_crashes_once_is_decoded_the_second_time(picture):
    data = picture(3) + b"ONCE"
    assert (decode_in_subprocess(data) == np.asarray(decode_image(data))).all()


@pytest.mark.usefixtures("crashing")
def test_a_decoder_that_never_returns_is_stopped(picture):
    with pytest.raises(UnreadableImage, match=r"took more than 0\.5 s to decode; save it anew"):
        decode_in_subprocess(picture() + b"SLEEP", time_limit=0.5)
    assert decode_in_subprocess(picture()).shape == (40, 48, 3)


@pytest.mark.usefixtures("crashing")
def test_a_check_goes_on_after_a_crash(shop, picture):
    (shop / "images" / "2.jpg").write_bytes(picture(80) + b"ABORT")
    lines = ["path,tags", *(f"images/{i}.jpg,red" for i in range(4))]
    (shop / "catalogue.csv").write_text("\n".join(lines), encoding="utf-8")
    (found,) = check_catalog(read_catalog(shop / "catalogue.csv"), workers=2).unreadable
    assert found.image_id == "images/2"
    assert "SIGABRT" in found.reason


def test_a_process_that_went_away_is_replaced(picture):
    decode_in_subprocess(picture())
    (idle,) = module._idle[os.getpid()]
    os.kill(idle._process.pid, signal.SIGKILL)
    assert decode_in_subprocess(picture()).shape == (40, 48, 3)


@pytest.mark.usefixtures("crashing")
def test_whatever_fails_after_decoding_is_the_reason_of_its_image_alone(picture):
    data = [picture(v) for v in range(6)]
    data[1] += b"DEFECT"
    data[3] += b"MEMORY"

    def step(image):
        value = int(np.asarray(image).sum())
        return {}[value] if value == fourth else Preprocess((8, 8))(image)

    fourth = int(np.asarray(decode_image(picture(4))).sum())
    (batch,) = load_batches(Images(data), range(6), step, batch_size=6, workers=1)
    assert {f.row: f.reason for f in batch.failures} == {
        1: "cannot be used (ZeroDivisionError: division by zero); convert it to JPEG or PNG, or "
        "leave it out",
        3: "does not fit into memory; scale it down",
        4: f"cannot be used (KeyError: {fourth}); convert it to JPEG or PNG, or leave it out",
    }
    assert len(module._idle[os.getpid()]) == 1  # none of them cost the process


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_not_the_fault_of_an_image(picture, workers):
    def step(image):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(load_batches(Images([picture()]), range(1), step, batch_size=1, workers=workers))


def test_a_process_cannot_take_memory_away_that_its_owner_reads(picture):
    decode_in_subprocess(picture())
    (idle,) = module._idle[os.getpid()]
    if not idle._keeps_its_size:
        pytest.skip("no seals here: pixels are copied")
    with pytest.raises(PermissionError):
        os.ftruncate(idle._shared, 0)


def test_where_memory_can_be_taken_away_pixels_are_copied(picture, monkeypatch):
    create = module._memory_file
    monkeypatch.setattr(module, "_memory_file", lambda: (create()[0], False))
    for value in (70, 80):
        data = picture(value)
        assert (decode_in_subprocess(data) == np.asarray(decode_image(data))).all()


def test_a_process_that_cannot_start_says_what_to_do(picture, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "command", lambda *ends: ["-c", "raise SystemExit(3)"])
        with pytest.raises(Unavailable, match=r"exit code 3.*--workers 0"):
            decode_in_subprocess(picture())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match=r"No such file.*--workers 0"):
        decode_in_subprocess(picture())


def test_no_module_comes_from_the_folder_of_the_images(picture, tmp_path, monkeypatch):
    for name in ("json", "numpy", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert decode_in_subprocess(picture()).shape == (40, 48, 3)


OWNER = """
import os, signal, sys
from retailtag.images import decode_pool as module
module.decode_in_subprocess(open(sys.argv[1], "rb").read())
print(module._idle[os.getpid()][0]._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_their_owner(picture, tmp_path):
    (tmp_path / "x.jpg").write_bytes(picture())
    program = [sys.executable, "-c", OWNER, str(tmp_path / "x.jpg")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    process = int(done.stdout)
    for _ in range(3000):
        if not _runs(process):
            return
        time.sleep(0.01)
    pytest.fail("the decoding process outlived its owner")


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
