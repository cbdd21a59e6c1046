"""Timing in turn, on a clock of its own: what calls are counted, in which order, and stages."""

import numpy as np
import pytest

from retailtag.context import RunContext
from retailtag.runs.probe import run_probe
from retailtag.settings import ProbeSettings
from retailtag.tagger.latency import STAGES, Schedule, tagging, time_in_turn, together
from retailtag.tagger.loading import load_fitted


class _Machine:
    """A clock, and tasks that let it go on."""

    def __init__(self):
        self.now = 0.0
        self.called = []

    def clock(self):
        return self.now

    def task(self, name, seconds):
        def call():
            self.called.append(name)
            took = seconds(self.now) if callable(seconds) else seconds
            self.now += took
            return (0.0, 0.0, took, 0.0)

        return call


def test_every_turn_visits_every_task_and_its_first_call_is_not_counted():
    machine = _Machine()
    tasks = {"a": machine.task("a", 0.001), "b": machine.task("b", 0.002)}
    schedule = Schedule(turns=6, calls=3, warm_up=2, warm_up_seconds=9)
    samples = time_in_turn(tasks, schedule, clock=machine.clock)
    assert machine.called[:4] == list("aabb")
    turns = ["".join(machine.called[i : i + 8]) for i in range(4, len(machine.called), 8)]
    assert set(turns) == {"aaaabbbb", "bbbbaaaa"}
    assert len(turns) == 6
    assert samples["a"].n_calls == 18
    assert samples["b"].typical().value == pytest.approx(0.002)


def test_a_slow_phase_of_the_machine_slows_all_tasks_alike():
    """One after the other, b would seem twice as slow as a; in turn they are equal."""
    machine = _Machine()
    tasks = {name: machine.task(name, lambda now: 0.01 if now < 2 else 0.02) for name in "ab"}
    schedule = Schedule(turns=20, calls=5, warm_up=1, extra_seconds=0)
    samples = time_in_turn(tasks, schedule, clock=machine.clock)
    a, b = samples["a"].medians(), samples["b"].medians()
    assert max(a) > 1.9 * min(a)
    assert sum(x != pytest.approx(y) for x, y in zip(a, b, strict=True)) <= 1


def test_turns_are_added_while_an_interval_is_wide_and_time_is_left():
    rng = np.random.default_rng(0)
    counts = []
    for spread, allowed in ((0.0, 9.0), (0.5, 2.0), (0.5, 9.0)):
        machine = _Machine()
        noisy = machine.task("a", lambda now, s=spread: 0.1 * float(np.exp(s * rng.normal())))
        schedule = Schedule(turns=6, calls=1, warm_up=1, extra_seconds=allowed)
        counts.append(len(time_in_turn({"a": noisy}, schedule, clock=machine.clock)["a"].turns))
    steady, bounded, patient = counts
    assert steady == 6
    assert 6 < bounded < 60
    assert patient > bounded


def test_a_visit_ends_after_its_time():
    machine = _Machine()
    tasks = {"slow": machine.task("slow", 0.4), "fast": machine.task("fast", 0.01)}
    samples = time_in_turn(tasks, Schedule(turns=6, warm_up=1), clock=machine.clock)
    assert {len(turn) for turn in samples["slow"].turns} == {1}
    assert {len(turn) for turn in samples["fast"].turns} == {10}


def test_stages_add_up_and_tags_are_those_of_tag(small, small_store, tmp_path):
    settings = ProbeSettings(sweep_C="0.01", folds=2, heads="logistic")
    run_probe(RunContext(small), small_store, tmp_path, settings)
    tagger = load_fitted(tmp_path)
    images = [small.images.read(i) for i in range(3)]
    call = tagging(tagger, images, 2)
    assert len(call()) == len(STAGES)
    assert all(seconds > 0 for seconds in call())
    pixels = [tagger.preprocessed(tagger.decoded(image)) for image in images]
    given = tagger.given(tagger.head.logits(tagger.embeddings(pixels)))
    assert [list(tags) for tags in given] == tagger.tag(images)


@pytest.mark.parametrize(("free", "groups"), [(100, ["abc"]), (35, ["a", "b", "c"])])
def test_models_that_memory_cannot_hold_at_once_are_loaded_in_groups(monkeypatch, free, groups):
    monkeypatch.setattr("retailtag.tagger.latency.free_bytes", lambda device: free)
    loaders = {name: lambda: 10 for name in "abc"}
    found = ["".join(group) for group in together(loaders, lambda held: held, "cpu")]
    assert found == groups
