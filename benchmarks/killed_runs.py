"""Runs of the program under SIGKILL at random moments; used by `durability.py`.

Each command runs in a process that is killed after a random part of the time that it takes, and is
given again until it ends. What it leaves is compared with what one undisturbed run leaves, byte for
byte: stores, models, predictions, tables and scorecards. Times, and what is made of them (latencies
and the report of a bake-off, which is a placeholder here), are left out.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from retailtag.demo.drawing import write_demo_catalogue

N_IMAGES = 150
N_TAGS = 12  # the most frequent: a command then takes seconds
HERE = ["catalogue/catalogue.csv", "--device", "cpu", "--set", "compute.workers=0", "--quiet"]
TRAIN = ["--epochs", "2", "--augment", "none", "--refit", "--choose-epoch", "macro-ap"]
COMMANDS = {
    "extract": [*HERE, "--backbones", "demo:cnn,demo:clip"],
    "probe": [*HERE, "--backbones", "demo:clip", "--sweep-C", "1e-6:1e-4:5", "--folds", "3"],
    "finetune": [*HERE, "--backbones", "demo:cnn", *TRAIN, "--checkpoint-minutes", "1e-6"],
    "bakeoff": [*HERE, "--backbones", "demo:cnn", "--epochs", "1", "--replicates", "100"],
    "export": ["runs/demo-cnn/probe", "--out", "tagger", "--device", "cpu", "--quiet"],
}
# Made before: stores that a probe reads, the probe that a fine-tune or an export starts from.
_PROBED = [
    ["extract", *HERE, "--backbones", "demo:cnn"],
    ["probe", *HERE, "--backbones", "demo:cnn", "--sweep-C", "0.1", "--heads", "logistic"],
]
BEFORE = {
    "probe": [["extract", *HERE, "--backbones", "demo:clip"]],
    "finetune": _PROBED,
    "export": _PROBED,
}
TIMED = (
    "journal.jsonl",
    "log.jsonl",
    "bakeoff.json",
    "report.html",
    "scored.jsonl",
    ".lock",
    "writer.lock",
)
TIMES = ("seconds", "images_per_second")


@dataclass
class KilledRuns:
    """A command that is killed and given again.

    Parameters
    ----------
    verb : str
        One of `COMMANDS`.
    folder : Path
        Where it runs; holds the folder ``catalogue``.
    """

    verb: str
    folder: Path
    killed: int = 0
    ended: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, n: int, seed: int) -> float:
        """Kill `n` times; seconds of an undisturbed run."""
        self._root.mkdir(parents=True)
        for words in BEFORE.get(self.verb, ()):
            self._finish(self._start(words))
        shutil.copytree(self._root, self._base)
        begun = time.perf_counter()
        self._finish(self._start(self._words))
        longest = time.perf_counter() - begun
        whole = left(self._root)
        self._afresh()
        moments = random.Random(seed)
        while self.killed < n:
            pid = self._start(self._words)
            time.sleep(moments.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                self.killed += 1
            else:
                self._compare(status, whole)
        self._compare(os.waitpid(self._start(self._words), 0)[1], whole)
        return longest

    @property
    def _words(self) -> list[str]:
        return [self.verb, *COMMANDS[self.verb]]

    @property
    def _root(self) -> Path:
        return self.folder / self.verb

    @property
    def _base(self) -> Path:
        return self.folder / f"{self.verb}.before"

    def _afresh(self) -> None:
        shutil.rmtree(self._root)
        shutil.copytree(self._base, self._root)

    def _compare(self, status: int, whole: dict[str, bytes]) -> None:
        """Compare what a run left that has ended, and begin another."""
        self.ended += 1
        found = left(self._root)
        differing = sorted(name for name in whole | found if whole.get(name) != found.get(name))
        if status:
            said = (self._root / "said").read_text(errors="replace")
            self.failures.append(f"{self.verb} failed: {said[-300:]}")
        elif differing:
            self.failures.append(f"{self.verb} ended with other {', '.join(differing[:5])}")
        self._afresh()

    def _start(self, words: list[str]) -> int:
        """Start the program in a process that has the libraries loaded."""
        pid = os.fork()
        if pid == 0:
            try:
                self._be_killed(words)
            finally:  # never return into the parent's program
                os._exit(1)
        return pid

    def _be_killed(self, words: list[str]) -> None:
        import torch

        from retailtag.bakeoffs import stages
        from retailtag.cli.main import run
        from retailtag.extraction import extract
        from retailtag.finetuning import activation_cache
        from retailtag.report import write
        from retailtag.tagger import latency

        os.chdir(self._root)
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ["RETAILTAG_STATE"] = "state"
        torch.set_num_threads(1)
        # Several blocks and segments, as larger catalogues have; a latency of few images.
        extract.IMAGES_PER_BLOCK = 16
        activation_cache.SEGMENT_BYTES = 1 << 20
        latency.SINGLE = latency.BATCHES = latency.Schedule(2, 1, warm_up=1, extra_seconds=0)
        stages.measure_rates = stages.t4_cost = lambda *given: {}
        write.PICTURES.update(dict.fromkeys(write.PICTURES, lambda *given: None))
        write.to_png = lambda figure: b"picture"
        write.render_page = lambda *given: "page"
        words = ["../catalogue/catalogue.csv" if w == HERE[0] else w for w in words]
        os._exit(run(words))

    def _finish(self, pid: int) -> None:
        if os.waitpid(pid, 0)[1]:
            sys.exit((self._root / "said").read_text(errors="replace"))


def left(root: Path) -> dict[str, bytes]:
    """Content of every file that a command left, times aside."""
    found = {}
    for path in root.rglob("*"):
        aside = path.name in TIMED or path.suffix == ".png" or path.parent == root
        # a killed export leaves the hidden folder in which it wrote
        aside |= path.relative_to(root).parts[0].endswith(".part")
        if path.is_file() and not aside:
            found[path.relative_to(root).as_posix()] = _without_times(path)
    return found


def _without_times(path: Path) -> bytes:
    if path.name == "history.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
        return json.dumps(rows).encode()
    if path.name == "stage.json":
        # Its hashes of outputs are those of files that are compared themselves.
        record = json.loads(path.read_text())
        model = (path.parent / "predictions.npz").exists()
        return json.dumps([record["inputs"], record["facts"]] if model else "").encode()
    return path.read_bytes()


def kill_runs(n: int, seed: int, verbs: Iterable[str]) -> list[tuple[dict[str, object], list[str]]]:
    """Rows of the table, one a command, and what went wrong."""
    preload()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "catalogue")
        for verb in verbs:
            runs = KilledRuns(verb, Path(folder))
            seconds = runs.run(n, seed)
            failed = len(runs.failures)
            note = f"{runs.ended} runs ended; one undisturbed takes {seconds:.1f} s"
            row = {"harm": f"SIGKILL of {verb}", "trials": runs.killed, "noticed": 0}
            rows.append((row | {"harmless": n - failed, "note": note}, runs.failures))
    return rows


def draw(folder: Path) -> None:
    """The smallest demo catalogue, with a few tags."""
    path = write_demo_catalogue(folder, n_images=N_IMAGES, workers=1).catalogue
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counts = Counter(tag for row in rows for tag in row["tags"].split("|"))
    kept = {tag for tag, _ in counts.most_common(N_TAGS)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            tags = [tag for tag in row["tags"].split("|") if tag in kept]
            writer.writerow(row | {"tags": "|".join(tags)})


def preload() -> None:
    """Import what the commands use, so that their processes begin with the work."""
    import retailtag.api
    import retailtag.bakeoffs.stages
    import retailtag.demo.backbones
    import retailtag.demo.networks
    import retailtag.runs.embeddings
    import retailtag.runs.export
    import retailtag.tagger.latency  # noqa: F401
