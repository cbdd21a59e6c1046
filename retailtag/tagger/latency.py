"""How long taggers take from the bytes of images to their tags, stage by stage, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retailtag.memory import free_bytes
from retailtag.statistics.timing import Typical, quantile, typical
from retailtag.tagger.tagger import Tagger

STAGES = ("decode", "preprocess", "backbone", "head")
ROOM = 4  # times the largest model, for activations and the next model, must stay free
_Model = TypeVar("_Model")
Call = Callable[[], Sequence[float]]  # seconds of each of `STAGES`


@dataclass(frozen=True)
class Schedule:
    """How often, how long and in which order tasks are timed."""

    turns: int = 10  # visits of every task; at least 6 for a 95 % interval
    calls: int = 10  # timed calls of a visit at most
    visit_seconds: float = 0.3  # after which a visit ends
    warm_up: int = 10  # calls before the first turn at most
    warm_up_seconds: float = 1.0
    width: float = 0.05  # turns are added while half an interval is a larger share of its time,
    extra_seconds: float = 3.0  # for at most this long per task
    seed: int = 0  # of the order within a turn


SINGLE = Schedule()
# A batch takes long: fewer turns of one call, none added.
BATCHES = Schedule(turns=6, calls=1, warm_up=1, extra_seconds=0.0)


@dataclass(frozen=True, eq=False)
class Samples:
    """The timed calls of one task; each turn (n_calls, n_stages), in seconds."""

    turns: list[NDArray[np.float64]] = field(default_factory=list)

    def medians(self, stages: Sequence[str] = STAGES) -> list[float]:
        """Median seconds of these stages together, one per turn."""
        return [float(np.median(seconds)) for seconds in self._of(stages)]

    def typical(self, stages: Sequence[str] = STAGES) -> Typical:
        """Typical seconds of these stages, with the interval of `retailtag.statistics.timing`."""
        return typical(self.medians(stages))

    def quantile(self, q: float, stages: Sequence[str] = STAGES) -> Typical:
        """Quantile of the seconds of these stages over all calls, with its interval."""
        return quantile(self._of(stages), q)

    def _of(self, stages: Sequence[str]) -> list[NDArray[np.float64]]:
        columns = [STAGES.index(stage) for stage in stages]
        return [turn[:, columns].sum(axis=1) for turn in self.turns]

    @property
    def n_calls(self) -> int:
        """Timed calls."""
        return sum(map(len, self.turns))


def time_in_turn(
    tasks: Mapping[str, Call],
    schedule: Schedule | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Samples]:
    """Time every task in every turn, in an order drawn anew, after a warm-up.

    Another program that slows the machine down for seconds then slows all tasks alike: tasks timed
    one after the other would differ by what else ran at the time.
    """
    schedule = schedule or Schedule()
    for call in tasks.values():
        _repeat(call, schedule.warm_up, schedule.warm_up_seconds, clock)
    samples = {name: Samples() for name in tasks}
    order = np.random.default_rng(schedule.seed)
    start, allowed = clock(), schedule.extra_seconds * len(tasks)
    done = 0
    while done < schedule.turns or (_is_wide(samples, schedule) and clock() - start < allowed):
        for name in order.permutation(list(tasks)).tolist():
            # Untimed: the tasks before this one have emptied the processor's caches.
            tasks[name]()
            calls = _repeat(tasks[name], schedule.calls, schedule.visit_seconds, clock)
            samples[name].turns.append(np.array(calls, np.float64))
        done += 1
        if done == schedule.turns:
            start = clock()
    return samples


def _repeat(
    call: Call, n: int, seconds: float, clock: Callable[[], float]
) -> list[Sequence[float]]:
    """Up to `n` calls, at least one, the last begun within `seconds`."""
    start = clock()
    made = [call()]
    while len(made) < n and clock() - start < seconds:
        made.append(call())
    return made


def _is_wide(samples: Mapping[str, Samples], schedule: Schedule) -> bool:
    return any(s.typical().width > schedule.width for s in samples.values())


def together(
    loaders: Mapping[str, Callable[[], _Model]], held: Callable[[_Model], int], device: str
) -> Iterator[dict[str, _Model]]:
    """Models loaded in groups that memory can hold at once: one group, unless it is short.

    `held` gives a model's bytes. Each group is dropped before the next is loaded.
    """
    group: dict[str, _Model] = {}
    for n_loaded, (name, load) in enumerate(loaders.items(), start=1):
        group[name] = load()
        largest = max(map(held, group.values()))
        if n_loaded == len(loaders) or free_bytes(device) < ROOM * largest:
            yield group
            group.clear()


def tagging(tagger: Tagger, images: Sequence[bytes], batch_size: int = 1) -> Call:
    """A call that tags `batch_size` images and gives the seconds of each stage.

    The images, at least one, come in turn: a call takes up where the last one left off.
    """
    place = 0

    def call() -> tuple[float, ...]:
        nonlocal place
        batch = [images[(place + i) % len(images)] for i in range(batch_size)]
        place += batch_size
        times = [time.perf_counter()]
        decoded = [tagger.decoded(data) for data in batch]
        times.append(time.perf_counter())
        pixels = [tagger.preprocessed(image) for image in decoded]
        times.append(time.perf_counter())
        embeddings = tagger.embeddings(pixels)  # in main memory: a GPU has finished
        times.append(time.perf_counter())
        tagger.given(tagger.head.logits(embeddings))
        times.append(time.perf_counter())
        return tuple(np.diff(times).tolist())

    return call
