"""A feature store and commands under SIGKILL, and a store under flipped bits.

    python benchmarks/durability.py [--kills 1000] [--flips 10000] [--runs 50] [--seed 0] [--dry]

Kills: a process fills a store of 96 images in blocks of eight and is killed after a random time;
the next one continues where it stopped, and a store that is complete is compared with one that was
written in one go, byte for byte, before a new one is begun. After every kill the store must open,
and serve every block that its writer was told of and nothing but whole, right blocks. Flips: one
bit of one file of a store is changed; either reading refuses that file by name (`noticed`), or all
that is served, times aside, is as before (`harmless`). Runs: `extract`, `probe`, `finetune`,
`bakeoff` and `export` are killed and given again until they end; see `killed_runs.py`. Any other
outcome counts as `failed`, and the exit code is 1. Appends to ``results/durability.csv``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from killed_runs import COMMANDS, kill_runs
from record import append, stamp

from retailtag.errors import RetailtagError
from retailtag.store import Absent, FeatureSpec, FeatureStore

N_IMAGES, BLOCK, DIM = 96, 8, 16
BROKEN = 21  # the image that cannot be read
IDS = [f"image-{i:03d}" for i in range(N_IMAGES)]
SHA256 = [hashlib.sha256(i.encode()).hexdigest() for i in IDS]
X = np.random.default_rng(0).normal(size=(N_IMAGES, DIM)).astype(np.float32)
SPEC = FeatureSpec("demo:none", "ab" * 32, "{}", "avg", DIM, "{}")


def write(root: Path, told: int | None = None) -> FeatureStore:
    """Store what is missing, block by block, as extraction does; tell each block's number."""
    store = FeatureStore.create_or_open(root, SPEC)
    with store.repairing():
        done = store.known() | store.absent()
        for first in range(0, N_IMAGES, BLOCK):
            if IDS[first] in done:
                continue
            rows = [i for i in range(first, first + BLOCK) if i != BROKEN]
            gone = [Absent(IDS[BROKEN], None, "no file")] if len(rows) < BLOCK else []
            name = store.append([IDS[i] for i in rows], [SHA256[i] for i in rows], X[rows], gone)
            if told is not None:
                os.write(told, bytes([first // BLOCK]))
            store.journal.append({"kind": "shard", "shard": name, "seconds": 0.01})
    return store


def segments(store: FeatureStore) -> dict[str, bytes]:
    """Bytes of every segment by name."""
    return {path.name: path.read_bytes() for path in store.path.glob("shard-*.h5")}


@dataclass
class Killing:
    """Writers that are killed, and what they left.

    Parameters
    ----------
    folder : Path
        Where the stores are.
    seed : int
        Of the moments.
    """

    folder: Path
    seed: int
    killed: int = 0
    stores: int = 0
    leftovers: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, n: int) -> None:
        """Kill `n` writers."""
        start = time.perf_counter()
        self._whole = segments(write(self.folder / "whole"))
        longest = (time.perf_counter() - start) / 3
        moments = random.Random(self.seed)
        while self.killed < n:
            self._kill(moments.uniform(0, longest))
        write(self._root)
        self._compare()

    @property
    def _root(self) -> Path:
        return self.folder / f"store-{self.stores}"

    def _kill(self, seconds: float) -> None:
        """Start a writer and kill it after `seconds`, unless it ends before."""
        reader, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._be_killed(told)
        os.close(told)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as pipe:
            blocks = pipe.read()
        if os.WIFSIGNALED(status):
            self.killed += 1
            self._check(set(blocks))
        elif os.WEXITSTATUS(status):
            self.failures.append(f"a writer of {self._root} failed")
        else:
            self._compare()
            self.stores += 1

    def _be_killed(self, told: int) -> None:
        """Write in the child, which must not return into its parent's program."""
        try:
            write(self._root, told)
            os._exit(0)
        finally:
            os._exit(1)

    def _check(self, told: set[int]) -> None:
        """What the store serves is whole blocks with their own rows, those told of among them."""
        try:
            store = FeatureStore.find(self._root, SPEC)
            served = np.array([i in store.known() for i in IDS])
            right = np.array_equal(store.load(IDS).X, X[served])
            served[BROKEN] = IDS[BROKEN] in store.absent()
        except RetailtagError as error:
            if told or any(self._root.glob("*/spec.json")):
                self.failures.append(str(error))
            return
        self.leftovers += any(store.path.glob(".*.part"))
        blocks = served.reshape(-1, BLOCK)
        whole = set(np.flatnonzero(blocks.all(axis=1)).tolist())
        if not right or whole != set(np.flatnonzero(blocks.any(axis=1)).tolist()):
            self.failures.append(f"{store.path} serves rows that were not committed")
        if not told <= whole:
            self.failures.append(f"{store.path} lost blocks {sorted(told - whole)}")

    def _compare(self) -> None:
        store = FeatureStore.find(self._root, SPEC)
        if segments(store) != self._whole:
            self.failures.append(f"{store.path} ends with other bytes than an uninterrupted run")


def kill(n: int, seed: int) -> tuple[dict[str, object], list[str]]:
    """Row of the table, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        killing = Killing(Path(folder), seed)
        killing.run(n)
    counts = {"noticed": 0, "harmless": n - len(killing.failures)}
    note = f"{killing.stores + 1} stores; {killing.leftovers} kills left a temporary file"
    return {"harm": "SIGKILL", "trials": killing.killed, **counts, "note": note}, killing.failures


def answers(path: Path) -> tuple[object, ...]:
    """All that a store serves, freshly opened; its times are read too."""
    store = FeatureStore.open(path)
    view = store.load(IDS[:12])
    assert store.seconds >= 0
    return store.known(), store.absent(), view.digest


def flip(n: int, seed: int) -> tuple[dict[str, object], list[str]]:
    """Row of the table, and what went wrong."""
    failures, counts = [], {"noticed": 0, "harmless": 0}
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        store = small_store(Path(folder))
        whole = answers(store.path)
        files = sorted(path for path in store.path.iterdir() if path.stat().st_size)
        sizes = [path.stat().st_size for path in files]
        for _ in range(n):
            (file,) = moments.choices(files, sizes)
            at, bit = moments.randrange(file.stat().st_size), 1 << moments.randrange(8)
            flip_bit(file, at, bit)
            outcome = judge(store.path, file.name, whole)
            flip_bit(file, at, bit)
            if outcome in counts:
                counts[outcome] += 1
            else:
                failures.append(f"bit {bit} of byte {at} of {file.name}: {outcome}")
    note = ", ".join(f"{f.name} {size} bytes" for f, size in zip(files, sizes, strict=True))
    return {"harm": "bit flip", "trials": n, **counts, "note": note}, failures


def flip_bit(file: Path, at: int, bit: int) -> None:
    """Change one bit in place."""
    with file.open("r+b") as handle:
        handle.seek(at)
        (byte,) = handle.read(1)
        handle.seek(at)
        handle.write(bytes([byte ^ bit]))


def small_store(root: Path) -> FeatureStore:
    """One segment, so that no sound one is parsed 10,000 times, with an absent image; a journal."""
    store = FeatureStore.create_or_open(root, SPEC)
    name = store.append(IDS[:12], SHA256[:12], X[:12], [Absent("gone", None, "no file")])
    store.journal.append({"kind": "shard", "shard": name, "seconds": 0.01})
    return store


def judge(path: Path, name: str, whole: tuple[object, ...]) -> str:
    """What came of a flipped bit in the file `name`."""
    try:
        return "harmless" if answers(path) == whole else "other rows were served"
    except RetailtagError as error:
        return "noticed" if name in str(error) else f"refused without its name: {error}"


def main() -> None:
    """Try, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="writers to kill")
    parser.add_argument("--flips", type=int, default=10_000, help="bits to flip")
    parser.add_argument("--runs", type=int, default=50, help="kills of each command")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="which of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    args = parser.parse_args()
    facts = {} if args.dry else stamp()
    rows, failures = [], []
    found = [harm(n, args.seed) for harm, n in ((kill, args.kills), (flip, args.flips)) if n]
    found += kill_runs(args.runs, args.seed, args.commands.split(",")) if args.runs else []
    for row, failed in found:
        rows.append({**facts, "seed": args.seed, **row, "failed": len(failed)})
        failures += failed
    if args.json:
        print(json.dumps(rows))
    else:
        shown = ("harm", "trials", "noticed", "harmless", "failed", "note")
        for row in rows:
            print(*(f"{name} {row[name]}" for name in shown), sep="; ")
    if rows and not args.dry:
        append("durability.csv", rows)
    sys.exit("\n".join(failures[:20]) or 0)


if __name__ == "__main__":
    main()
