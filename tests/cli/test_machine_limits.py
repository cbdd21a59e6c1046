"""A full disk, a strict umask and too little memory end in one sentence and the documented code."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import reference_disk
from reference_disk import Failing, Recorder, read_state

from retailtag.cli import main as program
from retailtag.cli.main import run
from retailtag.errors import EXIT_UNAVAILABLE

EMBEDS = ["--features", "{root}/features", "--backbone", "demo:cnn", "--device", "cpu", "--quiet"]
FITS = [*EMBEDS, "--sweep-C", "0.1", "--folds", "2", "--heads", "logistic"]
SCORES = ["{root}/probe", "--replicates", "100", "--quiet"]
# Every command that writes, but for those whose training would take too long here.
WRITERS = {
    "extract": ["extract", "{csv}", *EMBEDS],
    "probe": ["probe", "{csv}", *FITS, "--out", "{root}/probe"],
    "init": ["init", "{root}/settings.toml"],
    "split": ["catalog", "split", "{csv}", "--test", "0.2", "--out", "{root}/split.csv"],
    "score": ["score", *SCORES, "--out", "{root}/scores", "--log-file", "{root}/log/news.txt"],
}
AGAIN = {"extract": ["--recompute"], "init": ["--force"], "split": ["--force"]}


def words(name: str, csv, root) -> list[str]:
    return [word.format(csv=csv, root=root) for word in WRITERS[name]]


@contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def shop(small_csv, tmp_path_factory):
    """A folder of all that the commands write, made under umask 027."""
    folder = tmp_path_factory.mktemp("limits")
    with umask(0o027):
        for name in WRITERS:
            assert run(words(name, small_csv, folder)) == 0
    return folder


def test_the_umask_sets_who_may_read_what_is_written(shop):
    modes = {path: path.stat().st_mode & 0o777 for path in shop.rglob("*")}
    assert {path.suffix for path in modes} >= {".h5", ".json", ".npz", ".csv", ".toml", ".parquet"}
    wanted = {path: 0o750 if path.is_dir() else 0o640 for path in modes}
    assert modes == wanted


@pytest.mark.parametrize("kind", ["create", "write", "fsync", "rename"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_has_one_exit_code(name, kind, shop, small_csv, tmp_path, capsys):
    """Full from the first operation of a kind on, or broken in it if that needs no room."""
    root = tmp_path / "shop"
    shutil.copytree(shop, root)
    before = read_state(root)
    with Recorder(root, reference_disk.ops_of(before), Failing(0, kind=kind)).recording():
        assert run([*words(name, small_csv, root), *AGAIN.get(name, [])]) == EXIT_UNAVAILABLE
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"retailtag: {root}")
    assert os.strerror(errno.EIO if kind in ("fsync", "rename") else errno.ENOSPC) in said
    assert "run the same command again" in said
    after = {path: data for path, data in read_state(root).items() if path in before}
    locks = {path for path in before if path.endswith(".lock")}  # which hold a number for people
    assert {path for path in before if before[path] != after[path]} <= locks


LACKS = [
    MemoryError(),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 67 bytes"),
    RuntimeError("can't start new thread"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
]


@pytest.mark.parametrize("error", LACKS, ids=repr)
def test_too_little_memory_is_a_sentence(error, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(program, "app", None)
    monkeypatch.setattr(program.typer.main, "get_command", lambda app: fail)
    assert run(["models"]) == EXIT_UNAVAILABLE
    assert "memory ran out" in capsys.readouterr().err


def test_another_defect_keeps_its_traceback(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a defect")

    monkeypatch.setattr(program.typer.main, "get_command", lambda app: fail)
    with pytest.raises(RuntimeError, match="a defect"):
        run(["models"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its memory as Linux does")
def test_a_limit_on_memory_is_a_sentence():
    limited = "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 30, 1 << 30)); "
    start = "import sys; from retailtag.cli.main import main; sys.argv[1:] = "
    words = ["models", "verify", "demo:cnn"]
    done = subprocess.run(
        [sys.executable, "-c", f"{limited}{start}{words}; main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_UNAVAILABLE, done.stderr
    assert "memory ran out" in done.stderr
    assert "Traceback" not in done.stderr
