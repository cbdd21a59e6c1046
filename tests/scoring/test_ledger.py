import json
from pathlib import Path

import pytest

from retailtag.scoring.findings import often_scored
from retailtag.scoring.ledger import NAME, record_scored, state_folder


def test_distinct_predictions_count_once_per_catalogue_and_split(state):
    assert record_scored("c1", "test", ["a"]) == 1
    assert record_scored("c1", "test", ["a"]) == 1
    assert record_scored("c1", "test", ["a", "b", "b"]) == 2
    assert record_scored("c1", "val", ["a"]) == 1
    assert record_scored("c2", "test", ["a"]) == 1
    lines = [json.loads(line) for line in (state / NAME).read_text().splitlines()]
    assert len(lines) == 4
    assert set(lines[0]) == {"catalogue", "split", "predictions", "date"}


def test_damaged_lines_are_passed_over(state):
    record_scored("c", "test", ["a"])
    with (state / NAME).open("ab") as handle:
        handle.write(b'{"catalogue": "c"\n[1]\n\xff\n')
    assert record_scored("c", "test", ["b"]) == 2


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert record_scored("c", "test", ["a"], blocked / "inside") is None


def test_what_is_known_counts_where_nothing_can_be_added(state, monkeypatch):
    record_scored("c", "test", ["a"])
    plain_open = Path.open

    def read_only(self, mode="r", *args, **kwargs):
        if "a" in mode:
            raise OSError(30, "Read-only file system")
        return plain_open(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    assert record_scored("c", "test", ["b"]) == 2


def test_the_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RETAILTAG_STATE", str(tmp_path / "own"))
    assert state_folder() == tmp_path / "own"
    monkeypatch.delenv("RETAILTAG_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "retailtag"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local/state/retailtag"


@pytest.mark.parametrize(("n", "split"), [(None, "test"), (1, "test"), (9, "val")])
def test_a_first_or_unknown_or_other_split_is_no_finding(n, split):
    assert often_scored(n, 1, split) is None


def test_reuse_is_said_with_its_remedy():
    finding = often_scored(12, 1, "test")
    assert "12 different models have been scored on the test split" in finding.sentence
    assert "fresh split" in finding.remedy
