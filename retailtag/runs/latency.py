"""Fitted models timed side by side: engines, numeric precisions, batch sizes, stages."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from retailtag.backbones.engines.build import best_name, embedder_of, why_unavailable
from retailtag.backbones.engines.names import ENGINES, EngineName
from retailtag.catalog.manifest import read_csv
from retailtag.errors import ArtefactError, DataError, Unavailable, UsageError
from retailtag.files import file_sha256
from retailtag.progress import SILENT, Progress
from retailtag.runs.machine import describe_machine
from retailtag.runs.measure import measured
from retailtag.scoring.csvs import csv_text, unquoted
from retailtag.statistics.timing import Typical, ratio
from retailtag.tagger.exported import HEADER
from retailtag.tagger.latency import STAGES, Samples, Schedule, tagging, time_in_turn, together
from retailtag.tagger.tagger import Tagger

BATCHES = (1, 8, 32)
MODEL = ("backbone", "head")
PRICE = "price_per_million"
MICRO_BATCH = 16  # images that an engine of a fixed shape takes at once, as an extraction does
LARGEST_ASKED = 1024
LARGEST_BATCH = 256  # that the search for the best one tries
SEARCH_GAIN = 1.05  # of throughput that a doubled batch must bring for the search to go on
SEARCH_MISSES = 2  # doublings in a row without that gain
SEARCH_SECONDS = 4.0  # a batch that takes longer ends the search
CALLS_OF_P95, CALLS_OF_P99 = 20, 100  # fewer calls have no such quantile
SCHEDULE = Schedule(calls=20, warm_up=3)


class _Key(NamedTuple):
    """What one task times."""

    pair: str
    engine: str
    batch_size: int


@dataclass(frozen=True)
class LatencyRow:
    """One model under one engine at one batch size; times of a whole batch, NaN where unknown."""

    pair: str
    model: str  # SHA-256 of the model's header, which binds its tensors
    engine: str  # engine and arithmetic, such as openvino-bfloat16
    batch_size: int
    is_best_batch: bool  # whether no batch that was timed has a higher throughput
    is_fastest: bool  # whether it is, or cannot be told from, the fastest of this batch size
    # from the bytes of the files to the tags, and the model (backbone and head) alone
    tags_ms_p50: float
    tags_ms_p50_low: float
    tags_ms_p50_high: float
    tags_ms_p95: float
    tags_ms_p95_low: float
    tags_ms_p95_high: float
    tags_ms_p99: float
    tags_ms_p99_low: float
    tags_ms_p99_high: float
    model_ms_p50: float
    model_ms_p50_low: float
    model_ms_p50_high: float
    model_ms_p95: float
    model_ms_p95_low: float
    model_ms_p95_high: float
    model_ms_p99: float
    model_ms_p99_low: float
    model_ms_p99_high: float
    decode_ms: float
    preprocess_ms: float
    backbone_ms: float
    head_ms: float
    images_per_second: float
    memory_mib: float  # weights, and what a call allocates beside them
    agreement: float  # tags given as by the model itself, as a share of those given by either
    n_calls: int
    n_turns: int
    machine: str
    threads: int
    date: str
    price_per_million: float = math.nan  # images, on that machine; NaN without its price


@dataclass(frozen=True)
class Asked:
    """What is timed.

    `UsageError` if an engine is unknown or a batch size is out of range.
    """

    engines: tuple[str, ...] = ()  # of `ENGINES`; empty: those that can run here
    batch_sizes: tuple[int, ...] = BATCHES  # the best one is added
    price_per_hour: float | None = None  # of the machine
    schedule: Schedule = field(default_factory=lambda: SCHEDULE)

    def __post_init__(self) -> None:
        for engine in self.engines:
            if engine not in ENGINES:
                raise UsageError(f"--engines {engine} must be some of {', '.join(ENGINES)}.")
        if len(set(self.engines)) < len(self.engines):
            raise UsageError("--engines names an engine twice; name each once.")
        if not self.batch_sizes or not all(1 <= b <= LARGEST_ASKED for b in self.batch_sizes):
            raise UsageError(
                f"--batches must be numbers from 1 to {LARGEST_ASKED}, such as 1,8,32."
            )

    @classmethod
    def parse(cls, engines: Sequence[str], batches: Sequence[str], price: float | None) -> Asked:
        """From settings."""
        sizes = [int(text) if text.isdecimal() and text.isascii() else 0 for text in batches]
        return cls(tuple(engines), tuple(dict.fromkeys(sizes)), price)


def model_digest(folder: Path) -> str:
    """Digest of a model's header, which binds its tensors and the identity of its backbone."""
    names = (HEADER, "checkpoint.json", "probe.json")
    return file_sha256(next(folder / n for n in names if (folder / n).exists()))


def measure(
    models: Mapping[str, Callable[[], Tagger]],
    digests: Mapping[str, str],
    images: Sequence[bytes],
    asked: Asked,
    device: str,
    progress: Progress = SILENT,
) -> list[LatencyRow]:
    """Rows of every model, engine and batch size, all timed in turn.

    `models` loads each by its name. `images`, encoded and at least one, must be readable. Models
    that memory cannot hold together are timed in groups.
    """
    rows: list[LatencyRow] = []
    for taggers in together(models, lambda t: len(variants(t, asked, device)) * t.nbytes, device):
        bench = _Bench(images, asked, device, progress)
        for name, tagger in taggers.items():
            bench.add(name, tagger)
        rows += bench.rows(digests)
    return rows


def variants(tagger: Tagger, asked: Asked, device: str) -> dict[EngineName, str]:
    """Engines in exact and reduced precision, with why one cannot run here (empty: it can)."""
    pairs = [(e, p) for e in asked.engines or ENGINES for p in ("exact", "fast")]
    names = dict.fromkeys(best_name(engine, precision, device) for engine, precision in pairs)
    return {name: why_unavailable(name, device) for name in names}


class _Bench:
    """Models with their engines, built and ready to be timed in turn."""

    def __init__(
        self, images: Sequence[bytes], asked: Asked, device: str, progress: Progress
    ) -> None:
        self.images = images
        self.asked = asked
        self.device = device
        self.progress = progress
        self.tasks: dict[_Key, Callable[[], Sequence[float]]] = {}
        self.facts: dict[_Key, tuple[float, float]] = {}  # memory in MiB, agreement

    def add(self, pair: str, tagger: Tagger) -> None:
        """Build every engine of a model, find its best batch and what it gives."""
        own = [list(tags) for tags in self._tags(tagger, max(self.asked.batch_sizes))]
        for name, problem in variants(tagger, self.asked, self.device).items():
            if problem and self.asked.engines:
                raise Unavailable(f"Engine {name} cannot run here: {problem}.")
            if problem:
                self.progress.say(f"{name} of {pair} is skipped: {problem}")
                continue
            self.progress.say(f"{name} of {pair} is built")
            try:
                self._add(pair, tagger, name, own)
            except Unavailable as error:
                if self.asked.engines:
                    raise
                self.progress.say(f"{name} of {pair} is skipped: {error}")

    def _add(self, pair: str, tagger: Tagger, name: EngineName, own: list[list[str]]) -> None:
        built: dict[int, Tagger] = {}

        def with_batch(size: int) -> Tagger:
            """The model whose engine takes that many images a call, 16 at most, built once."""
            limit = min(size, MICRO_BATCH)
            if limit not in built:
                embedders = [embedder_of(b, name, batch_size=limit) for b in tagger.backbones]
                built[limit] = replace(tagger, embedders=tuple(embedders))
            return built[limit]

        best = _best_batch(lambda size: tagging(with_batch(size), self.images, size))
        given = self._tags(with_batch(best), best)
        agreement = _agreement(own, [list(tags) for tags in given])
        for size in sorted({*self.asked.batch_sizes, best}):
            key = _Key(pair, str(name), size)
            self.tasks[key] = call = tagging(with_batch(size), self.images, size)
            call()
            with measured(self.device, tagger.nbytes) as cost:
                call()
            self.facts[key] = (cost.peak_memory_mib, agreement)

    def _tags(self, tagger: Tagger, batch_size: int) -> list[dict[str, float]]:
        starts = range(0, len(self.images), batch_size)
        batches = [self.images[i : i + batch_size] for i in starts]
        return [tags for batch in batches for tags in tagger.predict(batch)]

    def _price(self, key: _Key, samples: Samples) -> float:
        """Of a million images on this machine; NaN without the price of an hour."""
        price = self.asked.price_per_hour
        seconds = samples.typical().value / key.batch_size
        return math.nan if price is None else 1e6 * seconds / 3600 * price

    def rows(self, digests: Mapping[str, str]) -> list[LatencyRow]:
        """Time all tasks in turn."""
        by_text = {str(i): key for i, key in enumerate(self.tasks)}
        tasks = {text: self.tasks[key] for text, key in by_text.items()}
        with self.progress.task("latency", None, "turns"):
            timed = time_in_turn(tasks, self.asked.schedule)
        samples = {by_text[text]: found for text, found in timed.items()}
        machine = describe_machine(self.device)
        return [
            LatencyRow(
                pair=key.pair,
                model=digests[key.pair],
                engine=key.engine,
                batch_size=key.batch_size,
                is_best_batch=_is_best(key, samples),
                is_fastest=_is_fastest(key, samples),
                **_times(of_key, key.batch_size),
                price_per_million=self._price(key, of_key),
                memory_mib=self.facts[key][0],
                agreement=self.facts[key][1],
                machine="{processor} ({cores} cores), {device}".format_map(machine),
                threads=machine["threads"],
                date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            )
            for key, of_key in samples.items()
        ]


def _best_batch(call_of: Callable[[int], Callable[[], Sequence[float]]]) -> int:
    """Batch size of the highest throughput in a short search by doubling."""
    best, highest, size, misses = 1, 0.0, 1, 0
    # A single doubling may seem to bring nothing because another program ran: two end the search.
    while size <= LARGEST_BATCH and misses < SEARCH_MISSES:
        call = call_of(size)
        call()
        seconds = min(sum(call()), sum(call()))
        rate = size / seconds
        misses = 0 if rate >= SEARCH_GAIN * highest else misses + 1
        if rate > highest:
            best, highest = size, rate
        if seconds > SEARCH_SECONDS:
            break
        size *= 2
    return best


def _agreement(own: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Tags given by both, as a share of those given by either; NaN if none is given.

    Examples
    --------
    >>> _agreement([["a", "b"], ["c"]], [["b", "a"], ["d"]])
    0.5
    """
    cells = [{(i, t) for i, tags in enumerate(given) for t in tags} for given in (own, other)]
    either = cells[0] | cells[1]
    return len(cells[0] & cells[1]) / len(either) if either else math.nan


def _times(samples: Samples, batch_size: int) -> dict[str, Any]:
    """Fields of a row that were timed."""
    fields_of: dict[str, Any] = {}
    for name, stages in (("tags", STAGES), ("model", MODEL)):
        found = {"p50": samples.typical(stages)}
        for p, needed in ((95, CALLS_OF_P95), (99, CALLS_OF_P99)):
            enough = samples.n_calls >= needed
            found[f"p{p}"] = samples.quantile(p / 100, stages) if enough else _UNKNOWN
        for quantile, (value, low, high) in found.items():
            for end, seconds in (("", value), ("_low", low), ("_high", high)):
                fields_of[f"{name}_ms_{quantile}{end}"] = 1000 * seconds
    fields_of |= {f"{stage}_ms": 1000 * samples.typical([stage]).value for stage in STAGES}
    fields_of["images_per_second"] = batch_size / samples.typical().value
    return {**fields_of, "n_calls": samples.n_calls, "n_turns": len(samples.turns)}


_UNKNOWN = Typical(math.nan, math.nan, math.nan)


def _is_best(key: _Key, samples: Mapping[_Key, Samples]) -> bool:
    rates = {
        other.batch_size: other.batch_size / found.typical().value
        for other, found in samples.items()
        if other[:2] == key[:2]
    }
    return rates[key.batch_size] == max(rates.values())


def _is_fastest(key: _Key, samples: Mapping[_Key, Samples]) -> bool:
    """Whether nothing of the same batch size is faster beyond what the turns tell."""
    turns = {k: s.medians() for k, s in samples.items() if k.batch_size == key.batch_size}
    fastest = min(turns, key=lambda k: samples[k].typical().value)
    return ratio(turns[key], turns[fastest]).low <= 1


def to_csv(rows: Sequence[LatencyRow]) -> str:
    """Table with a header; an unknown figure is an empty cell, and no price no column."""
    priced = any(not math.isnan(row.price_per_million) for row in rows)
    columns = [f.name for f in fields(LatencyRow) if priced or f.name != PRICE]
    return csv_text(columns, rows)


def read_rows(path: Path) -> dict[int | str, LatencyRow]:
    """Rows that this command wrote, by line; `DataError` for any other table or kind of cell."""
    table = read_csv(path)
    if problems := table.problems.lines():
        raise DataError(f"{path}, {problems[0]}; {_AGAIN}.")
    columns = [f.name for f in fields(LatencyRow)]
    table.columns.setdefault(PRICE, [""] * len(table))
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path} has no column {missing[0]}; {_AGAIN}.")
    numbers = table.problems.row_numbers
    if not numbers:
        raise DataError(f"{path} holds no row; {_AGAIN}.")
    return {
        number: _parsed(
            {name: str(table.columns[name][i]) for name in columns}, f"{path}, line {number}"
        )
        for i, number in enumerate(numbers)
    }


def read_merged(path: Path, digests: Mapping[str, str]) -> list[LatencyRow]:
    """Rows that this command wrote elsewhere, each under the name that its model has here.

    `digests` gives the digest of every model here by its name. Raises `DataError` as `read_rows`
    does, and `ArtefactError` if a row is of a model that is not here.
    """
    names = {digest: name for name, digest in digests.items()}
    rows = read_rows(path)
    for number, row in rows.items():
        if row.model not in names:
            raise ArtefactError(
                f"{path}, line {number}: {row.pair} there is another model than those here "
                f"({', '.join(names.values())}); time copies of the same files."
            )
    return [replace(row, pair=names[row.model]) for row in rows.values()]


def _parsed(cells: Mapping[str, str], place: str) -> LatencyRow:
    values: dict[str, Any] = {}
    for name, kind in get_type_hints(LatencyRow).items():
        text = unquoted(cells[name])
        try:
            values[name] = _READ[kind](text)
        except (ValueError, KeyError):
            raise DataError(
                f"{place}: {name} is {text[:40]!r}, not {_KINDS[kind]}; {_AGAIN}."
            ) from None
    return LatencyRow(**values)


def _figure(text: str) -> float:
    """A positive figure, NaN for an empty cell."""
    if not text:
        return math.nan
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    """A positive whole number."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ValueError(text)
    return int(text)


_READ: dict[type, Callable[[str], Any]] = {
    str: str,
    int: _count,
    bool: {"true": True, "false": False}.__getitem__,
    float: _figure,
}
_AGAIN = "give a file that retailtag latency --out wrote"
_KINDS = {str: "text", int: "a whole number", bool: "true or false", float: "a figure"}
