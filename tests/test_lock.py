"""The lock of a folder of runs; that of stores is tested with them."""

import errno
import fcntl

import pytest

from retailtag.errors import Unavailable
from retailtag.lock import WriterLock, only_writer


def test_a_file_system_without_locks_keeps_stores_out_and_lets_runs_in(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(Unavailable, match=r"cannot be locked \(No locks.*with locks with --feat"):
        WriterLock(tmp_path / "lock").acquire()
    part = tmp_path / "run" / ".probe.json.x.part"
    part.parent.mkdir()
    part.touch()
    with only_writer(tmp_path / "run"):
        assert part.exists()  # it may be another writer's
    monkeypatch.undo()
    with only_writer(tmp_path / "run"):
        assert not part.exists()


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path):
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(Unavailable, match=r"cannot be written .* choose another folder with --out"),
        only_writer(tmp_path),
    ):
        pass


def test_an_exception_gives_the_folder_back(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path):
        raise ZeroDivisionError
    with only_writer(tmp_path), pytest.raises(Unavailable, match="being written"):
        only_writer(tmp_path).__enter__()
