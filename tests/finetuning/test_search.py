import gc
import math
import signal
import sys
from functools import partial

import pytest

from retailtag.errors import ArtefactError, DataError, Unavailable, UsageError
from retailtag.finetuning.losses import parse_loss
from retailtag.finetuning.sampling import parse_sampler
from retailtag.finetuning.search import (
    FACTOR,
    LOSSES,
    SAMPLERS,
    Setting,
    Tried,
    best_of,
    goes_on,
    search,
)

pytest.importorskip("optuna")

EPOCHS = 4


def _end(setting):
    """Criterion that a setting tends to: best at lr = 1e-3 with `repeat`."""
    return (
        0.6
        - 0.1 * abs(math.log10(setting.lr / 1e-3))
        - 0.05 * abs(setting.layer_decay - 0.8)
        + 0.02 * (setting.sampler == "repeat")
    )


def _objective(setting, report, seen=None):
    value = math.nan
    for epoch in range(1, EPOCHS + 1):
        value = _end(setting) * (1 - 0.5**epoch)
        if seen is not None:
            seen.append((setting, epoch))
        if report(epoch, value):
            break
    return value


def test_the_default_is_tried_first_and_the_best_is_found(tmp_path):
    start = Setting(lr=2e-4)
    ranking = search(_objective, 16, tmp_path, start=start)
    assert len(ranking) == 16
    assert next(row for row in ranking if row.number == 0).setting == start
    assert _end(best_of(ranking)) == max(_end(row.setting) for row in ranking)
    assert _end(best_of(ranking)) > _end(start) + 0.02


def test_weak_settings_are_stopped_at_the_rungs(tmp_path):
    seen = []
    ranking = search(partial(_objective, seen=seen), 16, tmp_path)
    spent = {row.setting: 0 for row in ranking}
    for setting, _ in seen:
        spent[setting] += 1
    assert all(spent[row.setting] == row.epochs for row in ranking)
    stopped = [row for row in ranking if row.status == "stopped"]
    assert {row.epochs for row in stopped} <= {1, 3}
    assert len(seen) < 0.7 * 16 * EPOCHS
    # Each was stopped by the rule, against those that had reached the epoch before it.
    rows = sorted(ranking, key=lambda row: row.number)
    for row in rows:
        at_one = [_end(r.setting) * 0.5 for r in rows if r.number < row.number]
        assert (row.epochs > 1) == goes_on(_end(row.setting) * 0.5, at_one)


def test_a_search_is_a_function_of_its_seed(tmp_path):
    runs = [search(_objective, 11, tmp_path / str(i), seed) for i, seed in enumerate((5, 5, 6))]
    assert runs[0] == runs[1]
    assert best_of(runs[0]) != best_of(runs[2])


class _Killed(BaseException):
    """A kill, as far as the files on the disk are concerned."""


def test_killed_at_any_report_it_ends_the_same(tmp_path):
    n = 12  # the last ones are proposed from the results before
    expected, attempts = search(_objective, n, tmp_path / "whole"), 0

    def dies(setting, report):
        def counted(epoch, value):
            answer = report(epoch, value)
            nonlocal left
            left -= 1
            if left == 0:
                raise _Killed
            return answer

        return _objective(setting, counted)

    done = None
    while done is None:
        attempts += 1
        left = 5 + attempts % 7
        try:
            done = search(dies, n, tmp_path / "broken")
        except _Killed:
            continue
        if attempts > 200:
            pytest.fail("no progress")
    assert attempts > 3
    assert done == expected


@pytest.fixture
def writes():
    """How many statements may still write to the database; the next one is a kill."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    writes = {"left": math.inf, "made": 0}

    def before(connection, cursor, statement, *_):
        if statement.lstrip().startswith(("SELECT", "PRAGMA")):
            return
        if writes["left"] <= 0:
            raise _Killed
        writes["left"] -= 1
        writes["made"] += 1

    event.listen(Engine, "before_cursor_execute", before)
    yield writes
    event.remove(Engine, "before_cursor_execute", before)


def _killed(objective, n, folder):
    """A search that is killed; its connections are closed, as the system would."""
    try:
        search(objective, n, folder)
        pytest.fail("it was not killed")
    except _Killed:
        pass
    gc.collect()


def test_killed_before_any_write_it_ends_the_same(tmp_path, writes):
    def objective(setting, report):
        if setting == Setting():
            raise DataError("The loss is nan.")
        return _objective(setting, report)

    expected = search(objective, 3, tmp_path / "whole")
    assert {row.status for row in expected} == {"complete", "stopped", "failed"}
    made = writes["made"]
    assert made > 40
    for left in range(0, made, 11):
        writes["left"] = left
        _killed(objective, 3, tmp_path / str(left))
        writes["left"] = math.inf
        assert search(objective, 3, tmp_path / str(left)) == expected, left


def test_survives_a_real_kill(tmp_path, fork_script):
    program = (
        "import os, signal\nfrom pathlib import Path\n"
        "from retailtag.finetuning.search import search\n"
        "def dies(setting, report):\n"
        "    if setting.lr != 3e-4:\n"
        "        report(1, 0.3)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return 0.5\n"
        f"search(dies, 3, Path({str(tmp_path)!r}))"
    )
    killed = fork_script(program)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    seen = []
    ranking = search(partial(_objective, seen=seen), 3, tmp_path)
    assert len(ranking) == 3
    assert Setting() not in [setting for setting, _ in seen]  # its result was kept
    (first,) = (row for row in ranking if row.number == 0)
    assert first.value == 0.5


def test_a_larger_n_adds_settings(tmp_path):
    few = search(_objective, 4, tmp_path)
    seen = []
    more = search(partial(_objective, seen=seen), 6, tmp_path)
    assert {row.number for row in more} == set(range(6))
    assert not {row.setting for row in few} & {setting for setting, _ in seen}
    again = []
    assert search(partial(_objective, seen=again), 6, tmp_path) == more
    assert again == []


def test_failures_are_rows_and_never_win(tmp_path):
    def objective(setting, report):
        if setting == Setting():
            raise DataError("The loss is nan at batch 3.")
        return math.nan if setting.lr > 1e-3 else _objective(setting, report)

    ranking = search(objective, 8, tmp_path)
    failed = [row for row in ranking if row.status == "failed"]
    assert {row.reason for row in failed} == {
        "The loss is nan at batch 3.",
        "the criterion is nan",
    }
    assert ranking[-len(failed) :] == tuple(failed)
    assert best_of(ranking) not in [row.setting for row in failed]


def test_nothing_completed_is_said_with_the_reasons(tmp_path):
    def objective(setting, report):
        raise DataError("The loss is nan.")

    with pytest.raises(DataError, match=r"No setting .* \(The loss is nan\.\)"):
        best_of(search(objective, 2, tmp_path))


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    search(_objective, 1, tmp_path, inputs={"catalogue": "abc"})
    with pytest.raises(ArtefactError, match="with another catalogue, seed; give another --out"):
        search(_objective, 2, tmp_path, seed=1, inputs={"catalogue": "abd"})


def test_two_searches_in_one_folder_are_refused(tmp_path):
    def second(setting, report):
        with pytest.raises(Unavailable, match="being written by another process"):
            search(_objective, 1, tmp_path)
        return _objective(setting, report)

    assert len(search(second, 1, tmp_path)) == 1


def test_a_damaged_database_is_named(tmp_path):
    (tmp_path / "search.db").write_bytes(b"no database" * 100)
    with pytest.raises(ArtefactError, match=r"search\.db is damaged .* delete it"):
        search(_objective, 1, tmp_path)


def test_odd_folder_names_are_no_obstacle(tmp_path):
    folder = tmp_path / "été 100% #1" / "x"
    assert len(search(_objective, 2, folder)) == 2
    assert (folder / "search.db").exists()
    assert len(search(_objective, 2, folder)) == 2


def test_every_text_of_the_space_can_be_read():
    assert all(parse_loss(text) for text in LOSSES)
    assert all(parse_sampler(text) for text in SAMPLERS)


def test_a_start_outside_the_space_widens_it(tmp_path):
    start = Setting("asl:clip=0.1", "repeat:t=0.02", 1e-6, 0.3)
    rows = search(_objective, 2, tmp_path, start=start)
    assert start in [row.setting for row in rows]


def test_the_rule_keeps_the_best_third_and_the_first():
    values = [0.1, 0.9, 0.5, 0.3, 0.8, 0.2, 0.7, 0.4, 0.6]
    for i, value in enumerate(values):
        rank = sorted(values[: i + 1], reverse=True).index(value)
        assert goes_on(value, values[:i]) == (rank < max(1, (i + 1) // FACTOR))


def test_equal_settings_have_equal_names():
    assert Setting().name == Setting().name
    names = {Setting().name, Setting(loss="asl").name, Setting(lr=1e-3).name}
    assert len(names) == 3
    assert all(len(name) == 12 and name.isalnum() for name in names)


def test_ranking_is_by_completion_then_value_then_order():
    def row(number, status, value, epochs=4):
        return Tried(number, Setting(lr=10.0**-number), status, value, epochs)

    rows = [
        row(0, "stopped", 0.9, 1),
        row(1, "complete", 0.4),
        row(2, "failed", None),
        row(3, "complete", 0.5),
        row(4, "complete", 0.5),
        row(5, "stopped", 0.1, 3),
    ]
    ranking = tuple(sorted(rows, key=lambda row: row.rank))
    assert [r.number for r in ranking] == [3, 4, 1, 5, 0, 2]
    assert best_of(ranking) == rows[3].setting


def test_bad_counts_and_an_absent_package(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--search 0"):
        search(_objective, 0, tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Unavailable, match=r'pip install "retailtag\[search\]"'):
        search(_objective, 1, tmp_path)
