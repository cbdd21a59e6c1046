"""Extraction stopped at every operation on the disk, by a kill, a power failure or an error.

One history is recorded: a first extraction that is interrupted, what a killed writer leaves, the
same command again, an extraction after images changed, and one that computes everything again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import pytest
import reference_disk
from reference_disk import Failing, Op, Recorder, State
from reference_extraction import COMMANDS, Served, command, segments

from retailtag.errors import DamagedFile, Unavailable
from retailtag.store import FeatureSpec, FeatureStore
from retailtag.store import store as store_module
from retailtag.store.segment import Segment, read_segment


@dataclass(frozen=True)
class Whole:
    """Where an uninterrupted command ends."""

    served: Served
    segments: dict[str, bytes]
    state: State


@pytest.fixture(scope="module")
def wholes(tmp_path_factory) -> list[Whole]:
    """Ends of the three commands, run one after the other on one disk."""
    root, ends = tmp_path_factory.mktemp("whole"), []
    for number in range(len(COMMANDS)):
        command(root, number)
        ends.append(Whole(Served.by(root), segments(root), reference_disk.read_state(root)))
    return ends


@dataclass(frozen=True)
class Moment:
    """The record up to some operation.

    Parameters
    ----------
    ops : list of Op
        What was done.
    number : int
        Which command was running.
    told : int
        Segments that `append` had returned.
    visible : int
        Segments that had got their name; `told` or one more.
    """

    ops: list[Op]
    number: int
    told: int
    visible: int


@dataclass(frozen=True)
class History:
    """The recorded operations, and what was served after each segment, from none on."""

    ops: list[Op]
    commands: list[tuple[int, int]]  # number of operations before a command, and which
    told: list[int]  # number of operations when the append of each segment returned
    served: list[Served]
    disk: State  # what was there in the end

    @cached_property
    def moments(self) -> list[Moment]:
        """The record stopped before the first operation, and after each."""
        named = [
            i + 1 for i, op in enumerate(self.ops) if op.kind == "rename" and ".h5" in op.target
        ]
        return [
            Moment(
                self.ops[:n],
                max((k for at, k in self.commands if at <= n), default=0),
                sum(at <= n for at in self.told),
                sum(at <= n for at in named),
            )
            for n in range(len(self.ops) + 1)
        ]


@contextmanager
def told_of_segments(note: Callable[[Path], None]) -> Iterator[None]:
    """Note every segment when `append` has returned, which is when it counts as committed."""
    append = FeatureStore.append

    def noted(store: FeatureStore, *args: object) -> str:
        name = append(store, *args)
        note(store.path / name)
        return name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureStore, "append", noted)
        yield


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> History:
    """Record the three commands, the first of them interrupted and run again."""
    recorder = Recorder(tmp_path_factory.mktemp("disk"))
    told, served, commands = [], [Served.none()], []

    def note(segment: Path) -> None:
        told.append(len(recorder.ops))
        served.append(served[-1].with_segment(segment))

    def run(number: int, stop_at: int = -1) -> None:
        commands.append((len(recorder.ops), number))
        command(recorder.root, number, stop_at)

    with recorder.recording(), told_of_segments(note):
        with pytest.raises(KeyboardInterrupt):
            run(0, stop_at=2)
        (folder,) = (recorder.root / "f").iterdir()
        with (folder / ".shard-000002.h5.killed.part").open("ab") as leftover:
            leftover.write(b"cut sho")
        for number in range(len(COMMANDS)):
            run(number)
    return History(recorder.ops, commands, told, served, reference_disk.read_state(recorder.root))


def test_the_record_is_complete_and_has_every_kind_of_operation(history, wholes):
    """Replaying it gives the disk; without that the tests below would prove nothing."""
    assert reference_disk.state_after(history.ops) == history.disk
    assert {op.kind for op in history.ops} >= {
        *("create", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "sync", "close")
    }
    assert len(history.told) == 9
    assert history.served[-1] == wholes[2].served


@pytest.fixture
def hasty(monkeypatch):
    """Bring nothing to the real disk, and parse no segment's bytes twice."""
    parsed: dict[bytes, Segment] = {}

    def parse(path: Path, spec: FeatureSpec) -> Segment:
        content = path.read_bytes()
        if content not in parsed:
            parsed[content] = read_segment(path, spec)
        return parsed[content]

    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(store_module, "read_segment", parse)


def is_lock(op: Op) -> bool:
    return op.path.endswith(".lock")


def lay_out(state: State, roots: Iterator[Path]) -> Path:
    root = next(roots)
    reference_disk.lay_out(state, root)
    return root


@pytest.fixture
def roots(tmp_path) -> Iterator[Path]:
    """Give empty disks."""

    def fresh() -> Iterator[Path]:
        for i in count():
            (tmp_path / f"{i}").mkdir()
            yield tmp_path / f"{i}"

    return fresh()


def check_served(root: Path, moment: Moment, history: History) -> None:
    """Every row that was told committed, and of the next segment all or nothing."""
    assert Served.by(root) in history.served[moment.told : moment.visible + 1]


def check_continues(root: Path, number: int, whole: Whole) -> None:
    """The same command ends where an uninterrupted one does."""
    command(root, number)
    assert Served.by(root) == whole.served
    if not COMMANDS[number][1]:  # one that computes everything again numbers its segments on
        assert segments(root) == whole.segments
    assert not list(root.glob("f/*/.shard-*.part"))


@pytest.mark.usefixtures("hasty")
def test_a_kill_at_every_operation_loses_nothing(history, wholes, roots):
    """And once the same command has ended, a power failure finds what it ended with."""
    for moment in history.moments:
        root = lay_out(reference_disk.state_after(moment.ops), roots)
        check_served(root, moment, history)
        recorder = Recorder(root, moment.ops)
        with recorder.recording():
            check_continues(root, moment.number, wholes[moment.number])
        durable = reference_disk.state_after(recorder.ops, reference_disk.unsynced(recorder.ops))
        assert {Path(p).name: c for p, c in durable.items() if p.endswith(".h5")} == segments(root)
        assert [c for p, c in durable.items() if p.endswith("spec.json")]


@pytest.mark.usefixtures("hasty")
def test_a_power_failure_at_every_operation_loses_nothing_committed(history, wholes, roots):
    seen_served, seen_continued = set(), set()
    for moment in history.moments:
        for state in reference_disk.states_after_power_loss(moment.ops, is_lock):
            bare = frozenset((p, c) for p, c in state.items() if "journal" not in p)
            if (moment.told, bare) in seen_served:
                continue
            seen_served.add((moment.told, bare))
            root = lay_out(state, roots)
            check_served(root, moment, history)
            # What a leftover holds is never read.
            alike = frozenset((p, None if ".part" in p else c) for p, c in bare)
            if (moment.number, alike) not in seen_continued:
                seen_continued.add((moment.number, alike))
                check_continues(root, moment.number, wholes[moment.number])
    assert len(seen_served) > 150


def check_sentence(error: Unavailable, root: Path) -> None:
    """One line that names what could not be written and says what to do."""
    message = str(error)
    assert "\n" not in message
    assert message.startswith(str(root / "f"))
    assert "again" in message or "--features" in message
    assert any(os.strerror(e) in message for e in (errno.ENOSPC, errno.EIO, errno.EROFS))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_disk_that_fails_in_any_operation_keeps_what_was_committed(number, wholes, roots):
    """Full from that operation on, write cut in half, or an I/O error where no room is needed."""
    state = wholes[number - 1].state if number else {}
    root, served = lay_out(state, roots), [wholes[number - 1].served if number else Served.none()]
    clean = Recorder(root, reference_disk.ops_of(state))
    before = len(clean.ops)
    with clean.recording(), told_of_segments(lambda p: served.append(served[-1].with_segment(p))):
        command(root, number)
    for n in range(len(clean.ops) - before):
        root, told, disk = lay_out(state, roots), [], Failing(n)
        recorder = Recorder(root, reference_disk.ops_of(state), disk)
        with recorder.recording(), told_of_segments(told.append):
            try:
                command(root, number)
            except Unavailable as error:
                check_sentence(error, root)
            else:
                assert is_lock(disk.failed), "only the pid in the lock may be missing"
        assert Served.by(root) in served[len(told) : len(told) + 2]
        check_continues(root, number, wholes[number])


@pytest.mark.usefixtures("hasty")
def test_a_read_only_disk_is_named_and_goes_on_being_read(wholes, roots):
    for state, served in (({}, Served.none()), (wholes[0].state, wholes[0].served)):
        root = lay_out(state, roots)
        disk = Recorder(root, reference_disk.ops_of(state), Failing(0, read_only=True))
        with disk.recording(), pytest.raises(Unavailable) as refusal:
            command(root, 1)
        check_sentence(refusal.value, root)
        assert Served.by(root) == served


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """Content with one bit in its last third changed, among the rows."""
    at = 2 * len(content) // 3
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("damage", [cut, flip, lambda content: b""])
@pytest.mark.parametrize("name", ["shard-000000.h5", "shard-000003.h5", "spec.json"])
def test_the_same_command_mends_a_damaged_file(name, damage, wholes, roots):
    """Readers refuse it by name until then, also while the repairing is interrupted."""
    root = lay_out(wholes[1].state, roots)
    (file,) = root.glob(f"f/*/{name}")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DamagedFile, match=rf"{name} is damaged .*run .*extract again"):
        Served.by(root)
    if name != "spec.json":
        with pytest.raises(KeyboardInterrupt):
            command(root, 1, stop_at=0)
        with pytest.raises(DamagedFile, match=name):
            Served.by(root)
    command(root, 1)
    assert Served.by(root) == wholes[1].served
    assert file.with_name(f"{name}.damaged").exists() == (name != "spec.json")


@pytest.mark.usefixtures("hasty")
def test_a_mending_stopped_at_any_operation_serves_nothing_old(wholes, roots):
    """The store is refused until all is computed again; then it serves all, and never less."""
    damaged = wholes[1].state | {
        path: cut(content)
        for path, content in wholes[1].state.items()
        if path.endswith(("shard-000000.h5", "shard-000003.h5"))
    }
    start = reference_disk.ops_of(damaged)
    recorder = Recorder(lay_out(damaged, roots), start)
    with recorder.recording():
        command(recorder.root, 1)
    seen = set()
    for n in range(len(start), len(recorder.ops) + 1):
        for state in reference_disk.states_after_power_loss(recorder.ops[:n], is_lock):
            bare = frozenset((p, None if ".part" in p else c) for p, c in state.items())
            if bare not in seen:
                seen.add(bare)
                root = lay_out(state, roots)
                with suppress(DamagedFile):
                    assert Served.by(root) == wholes[1].served
                command(root, 1)
                assert Served.by(root) == wholes[1].served
    assert len(seen) > 20
