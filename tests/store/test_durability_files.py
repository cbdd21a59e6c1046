"""Killed and rival writers, cut files and folders that cannot be written, on a real disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retailtag.errors import DamagedFile, Unavailable
from retailtag.store import Absent, FeatureStore
from retailtag.store.journal import Journal

ROOT = Path(__file__).parents[2]

# Writes one row as a command would: a sentence, and the exit code that goes with it.
WRITE = """
import sys
import numpy as np
from retailtag.errors import RetailtagError
from retailtag.store import FeatureStore
def write(folder, image_id):
    try:
        store = FeatureStore.open(folder)
        store.append([image_id], ["00" * 32], np.ones((1, store.spec.dim), np.float32))
    except RetailtagError as error:
        sys.stderr.write(str(error))
        sys.exit(error.exit_code)
"""


def run(code: str, *args: object, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WRITE + code, *map(str, args)]
    env = {**os.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.fixture
def store(tmp_path, world):
    """Two segments of three rows and one absent image."""
    store = FeatureStore.create_or_open(tmp_path / "features", world.spec())
    first, second = world.rows(3, 0, "a"), world.rows(3, 1, "b")
    store.append(first.ids, first.sha256, first.embeddings)
    store.append(second.ids, second.sha256, second.embeddings, [Absent("gone", None, "no file")])
    return store


def benchmark(*options: str) -> dict[str, object]:
    """The one row that ``benchmarks/durability.py`` finds, in a process without threads."""
    done = subprocess.run(
        [sys.executable, "benchmarks/durability.py", "--dry", "--json", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    return row


def test_killed_writers_lose_nothing():
    row = benchmark("--kills", "60", "--flips", "0", "--runs", "0")
    assert (row["trials"], row["harmless"], row["failed"]) == (60, 60, 0)


def test_flipped_bits_are_noticed_or_harmless():
    row = benchmark("--kills", "0", "--flips", "3000", "--runs", "0")
    assert row["noticed"] + row["harmless"] == row["trials"] == 3_000
    assert row["noticed"] > 2_700


def test_a_file_cut_anywhere_is_refused_and_mended(store, world, tmp_path):
    """At every multiple of 512 bytes; what the other files hold is never lost."""
    both = [world.rows(3, 0, "a"), world.rows(3, 1, "b")]
    ids = [image_id for rows in both for image_id in rows.ids]
    names = sorted(path.name for path in store.path.iterdir() if path.name != ".lock")
    cuts = [(n, k) for n in names for k in range(0, (store.path / n).stat().st_size, 512)]
    for name, size in cuts:
        root = tmp_path / f"{name}-{size}"
        path = Path(shutil.copytree(store.path, root / store.path.name)) / name
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(DamagedFile, match=name):
            FeatureStore.open(path.parent)
        writer = FeatureStore.create_or_open(root, world.spec())
        with writer.repairing() as damaged:
            assert damaged == ([] if name == "spec.json" else [name])
            for rows in both:
                lost = rows.ids[0] not in writer.known()
                assert lost == (damaged != [] and rows is both[int(name[11])])
                if lost:
                    writer.append(rows.ids, rows.sha256, rows.embeddings)
        assert FeatureStore.open(path.parent).digest_for(ids) == store.digest_for(ids)
    assert len(cuts) > 10


@pytest.mark.parametrize("setting", ["TRUE", "FALSE"])
def test_a_second_writer_is_refused_whatever_hdf5_does_about_locks(store, setting):
    with store.writing():
        refused = run("write(*sys.argv[1:])", store.path, "z", HDF5_USE_FILE_LOCKING=setting)
        assert refused.returncode == Unavailable.exit_code
        assert f"is being written by another process (pid {os.getpid()})" in refused.stderr
        assert "\n" not in refused.stderr
    assert (
        run("write(*sys.argv[1:])", store.path, "z", HDF5_USE_FILE_LOCKING=setting).returncode == 0
    )
    assert set(FeatureStore.open(store.path).known()) == set(store.known()) | {"z"}


def test_a_worker_that_outlives_its_killed_writer_does_not_hold_the_lock(store):
    """A forked process shares what its parent has open, and with that a lock of the kernel's."""
    code = """
import os, signal
with FeatureStore.open(sys.argv[1]).writing():
    if os.fork() == 0:
        os.write(1, f"{os.getpid()}\\n".encode())
        signal.pause()
    signal.pause()
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE + code, store.path], stdout=subprocess.PIPE
    )
    with writer:
        worker = int(writer.stdout.readline())
        with pytest.raises(Unavailable, match=f"pid {writer.pid}"), store.writing():
            pass
        writer.kill()
        writer.wait()
        try:
            with store.writing():
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_file_system_without_locks_is_refused(store, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(Unavailable, match=r"cannot be locked \(No locks available\).*--features"):
        store.append(["z"], ["00" * 32], store.load(["a-0000"]).X)
    assert FeatureStore.open(store.path).n_rows == 6


def test_a_folder_that_may_not_be_written_is_named_and_goes_on_being_read(store, tmp_path):
    """As another user, where the tests run as one that may write anywhere."""
    leftover = store.path / ".shard-000002.h5.killed.part"
    leftover.write_bytes(b"cut")
    for folder in (tmp_path, store.path.parent):
        folder.chmod(0o755)
    store.path.chmod(0o555)
    code = """
import os
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
assert len(FeatureStore.open(sys.argv[2]).known()) == 6
write(sys.argv[2], "z")
"""
    refused = run(code, store.path.parent, store.path.name)
    assert refused.returncode == Unavailable.exit_code, refused.stderr
    assert refused.stderr.startswith(store.path.name)
    assert "Permission denied" in refused.stderr
    assert "\n" not in refused.stderr
    store.path.chmod(0o755)
    store.append(["z"], ["00" * 32], store.load(["a-0000"]).X)
    assert FeatureStore.open(store.path).n_rows == 7


quick = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LINE = b'{"kind":"shard","seconds":2.5,"shard":"shard-000000.h5"}\n'


@quick
@given(st.integers(0, len(LINE) - 1), st.integers(0, 7))
def test_a_flipped_bit_of_the_journal_costs_at_most_its_times(tmp_path, at, bit):
    flipped = LINE[:at] + bytes([LINE[at] ^ 1 << bit]) + LINE[at + 1 :]
    (tmp_path / "journal.jsonl").write_bytes(flipped + LINE)
    assert Journal(tmp_path / "journal.jsonl").segment_seconds({"shard-000000.h5"}) in {0.0, 2.5}


@quick
@given(st.integers(0, len(LINE)), st.integers(0, 600))
def test_a_journal_torn_by_a_power_failure_goes_on(tmp_path, size, zeros):
    journal = Journal(tmp_path / "journal.jsonl")
    (tmp_path / "journal.jsonl").write_bytes(LINE + LINE[:size] + bytes(zeros))
    journal.append({"kind": "shard", "seconds": 1.0, "shard": "shard-000001.h5"})
    assert journal.segment_seconds({"shard-000000.h5", "shard-000001.h5"}) == 3.5
