"""Seconds and memory of every stage from 10^4 images to 10^7 rows, and how they grow.

    python benchmarks/scale.py [--stages read,split,...] [--folder F] [--quick] [--json] [--dry]

Every size of a stage runs in a process of its own, whose peak memory is recorded; `seconds` leaves
out its start and the making of its data. `exponent` is the slope of log seconds over log rows, by
least squares over the sizes of the stage in this run: 1 is linear. The stages:

``read``      a CSV of rows with four of 250 tags: every row checked, every image's file looked for
``split``     of such a catalogue, 6 % of it as test images
``sweep``     three strengths of four tags, two folds, on float16 embeddings of 768 numbers in a
              file: fits outside each fold and average precision of every strength. The labels
              follow a linear score and noise
``neighbours`` the 50 nearest training images of each training image, the one part that compares
              every two images; not run above 100,000
``score``     the scorecard of the test images of such a catalogue, 250 tags
``draw``, ``check``, ``extract``  the demo's pictures: drawing them, decoding and checking them all,
              and their embeddings by ``demo:cnn``

The files of all rows are 1,000, reached through as many links to their folder as are needed, so
that the looking for them costs what it does when the disk's table is in memory. `--folder` keeps
what is drawn; the largest sweep writes 15.4 GB there and 15.4 GB to ``TMPDIR``. Appends to
``results/scale.csv``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

DIM = 768
N_TAGS = 250
TAGS_OF_IMAGE = 4
SWEPT_TAGS = 4
STRENGTHS = (1e-3, 1e-1, 10.0)
TEST_SHARE = 0.06  # of the reference task: 5,000 of 80,000 images
FILES_OF_FOLDER = 1000
AT_ONCE = 100_000  # rows that are made at once
SEED = 0
MANY = (100_000, 1_000_000, 10_000_000)
SIZES = {
    "read": MANY,
    "split": MANY,
    "sweep": MANY,
    "neighbours": (10_000, 30_000, 100_000),
    "score": MANY,
    "draw": (10_000, 100_000),
    "check": (10_000, 100_000),
    "extract": (10_000, 100_000),
}
QUICK = (200, 400)

Stage = Callable[[int, Path], float]


def manifest(n: int, folder: Path) -> Path:
    """Write a CSV of `n` rows and the files that they name, or take those that are there."""
    import numpy as np

    path = folder / f"rows-{n}.csv"
    files = folder / "files"
    if not files.is_dir():
        files.mkdir(parents=True)
        for i in range(FILES_OF_FOLDER):
            (files / f"{i:03d}.jpg").write_bytes(b"never read")
    for number in range(-(-n // FILES_OF_FOLDER)):
        if not (folder / f"{number:05d}").is_symlink():
            (folder / f"{number:05d}").symlink_to("files")
    if path.exists():
        return path
    rng = np.random.default_rng(SEED)
    chance = 1 / np.arange(1, N_TAGS + 1) ** 1.05
    chance /= chance.sum()
    with path.open("w", encoding="utf-8") as file:
        file.write("image_id,path,tags,split\n")
        for start in range(0, n, AT_ONCE):
            size = min(AT_ONCE, n - start)
            tags = rng.choice(N_TAGS, (size, TAGS_OF_IMAGE), p=chance).tolist()
            is_test = (rng.random(size) < TEST_SHARE).tolist()
            for i in range(size):
                number, image = divmod(start + i, FILES_OF_FOLDER)
                names = "|".join(f"tag {t}" for t in sorted(set(tags[i])))
                split = "test" if is_test[i] else "train"
                file.write(f"i{start + i:08d},{number:05d}/{image:03d}.jpg,{names},{split}\n")
    return path


def embeddings(n: int, folder: Path):
    """Float16 embeddings (n, dim) in a file, drawn block by block, and labels (n, 4)."""
    import numpy as np

    dim = DIM
    rng = np.random.default_rng(SEED)
    deviation = np.arange(1, dim + 1, dtype=np.float32) ** -0.45  # as those of trained backbones
    direction = rng.standard_normal((dim, SWEPT_TAGS), np.float32) / deviation[:, None]
    cut = np.array([1.5, 2.0, 2.5, 3.0]) * np.sqrt(dim)  # of a score with variance 2·dim
    with tempfile.TemporaryFile(dir=folder) as file:  # freed with the last view of it
        X = np.memmap(file, np.float16, "w+", shape=(n, dim))
    Y = np.empty((n, SWEPT_TAGS), np.int8)
    for start in range(0, n, AT_ONCE):
        at = slice(start, min(start + AT_ONCE, n))
        block = rng.standard_normal((at.stop - start, dim), np.float32) * deviation
        X[at] = block
        noise = rng.standard_normal((len(block), SWEPT_TAGS), np.float32) * np.sqrt(dim)
        Y[at] = block @ direction + noise > cut
    return X, Y


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def read(n: int, folder: Path) -> float:
    """Read and check a manifest."""
    import retailtag as rt

    return timed(lambda: rt.read_catalog(manifest(n, folder)))


def split(n: int, folder: Path) -> float:
    """Divide a catalogue."""
    import retailtag as rt

    catalog = rt.read_catalog(manifest(n, folder))
    return timed(lambda: rt.split(catalog, test=TEST_SHARE, seed=SEED))


def sweep(n: int, folder: Path) -> float:
    """Sweep C over embeddings that may exceed the memory."""
    import numpy as np

    from retailtag.probes.solver.fit import make_solver
    from retailtag.probes.solver.fits import STEP_LIMIT
    from retailtag.probes.sweep import Sweeper
    from retailtag.scoring.metrics import average_precision_per_tag

    X, Y = embeddings(n, folder)
    fold = np.arange(n) % 2
    sweeper = Sweeper(X, Y, fold, make_solver("torch", "cpu"), average_precision_per_tag)
    found = []
    seconds = timed(lambda: found.append(sweeper.sweep(np.array(STRENGTHS))))
    if (found[0].status == STEP_LIMIT).any():
        raise SystemExit("A fit has not converged.")
    return seconds


def neighbours(n: int, folder: Path) -> float:
    """Search the neighbours of every image among all."""
    from retailtag.probes.heads.knn import KnnBank

    X, Y = embeddings(n, folder)
    bank = KnnBank.build(X, Y)
    return timed(lambda: bank.nearest(X, 50))


def score(n: int, folder: Path) -> float:
    """Score predictions for the test images."""
    from scorer import make_data

    from retailtag.scoring.score import score_predictions

    catalog, predictions = make_data(round(n * TEST_SHARE), N_TAGS)
    return timed(lambda: score_predictions(predictions, catalog))


def command(n: int, folder: Path, name: str) -> float:
    """Run a command of the drawn images."""
    shop = folder / f"shop-{n}"
    words = {
        "draw": ["demo", "--out", str(shop), "--n-images", str(n), "--seed", str(SEED)],
        "check": ["catalog", "check", str(shop / "catalogue.csv")],
        "extract": ["extract", str(shop / "catalogue.csv"), "--backbones", "demo:cnn"],
    }[name]
    more = ["--features", str(folder / f"features-{n}")] if name == "extract" else []
    if name != "draw" and not shop.is_dir():
        raise SystemExit(f"{shop} is not there; run the stage draw before, with the same --folder.")
    from retailtag.cli.main import run

    code = 0

    def do() -> None:
        nonlocal code
        code = run([*words, *more, "--quiet"])

    seconds = timed(do)
    if code not in (0, 3):  # 3: the demo has images that cannot be read
        raise SystemExit(f"{name} ended with {code}")
    return seconds


STAGES: dict[str, Stage] = {
    "read": read,
    "split": split,
    "sweep": sweep,
    "neighbours": neighbours,
    "score": score,
    **{name: partial(command, name=name) for name in ("draw", "check", "extract")},
}


def run(stage: str, n: int, folder: Path) -> tuple[float, float]:
    """Seconds of a stage, and peak MiB of its process."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--one", stage, str(n), "--folder", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as out:
        told = out.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{stage} of {n:,} rows ended with {process.returncode}.")
    return float(told.split()[-1]), usage.ru_maxrss / 1024


def measure(stage: str, sizes: tuple[int, ...], folder: Path) -> Iterator[dict[str, object]]:
    """Rows of one stage, one a size."""
    if stage in ("read", "split"):  # drawn by a process of its own, whose memory is not counted
        for n in sizes:
            words = [sys.executable, __file__, "--one", "manifest", str(n), "--folder", str(folder)]
            subprocess.run(words, check=True)
    found = []
    for n in sizes:
        seconds, peak = run(stage, n, folder)
        found.append((n, seconds, peak))
        print(f"{stage} {n:,}: {seconds:.2f} s, {peak:,.0f} MiB", file=sys.stderr, flush=True)
    slope = exponent([n for n, _, _ in found], [seconds for _, seconds, _ in found])
    for n, seconds, peak in found:
        row = {"stage": stage, "rows": n, "seconds": round(seconds, 2), "peak_mib": round(peak)}
        yield {**row, "exponent": round(slope, 2)}


def exponent(rows: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log rows, by least squares."""
    from math import log
    from statistics import linear_regression

    return linear_regression(list(map(log, rows)), list(map(log, seconds))).slope


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", default=",".join(SIZES))
    parser.add_argument("--folder", type=Path, help="where files go and stay; default: temporary")
    parser.add_argument("--rows", help="sizes instead of those of each stage: 100000,1000000")
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "ROWS"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="toy sizes; record nothing")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    args = parser.parse_args()
    if args.one:
        stage, size = args.one
        print(({"manifest": manifest} | STAGES)[stage](int(size), args.folder))
        return
    stages = args.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        parser.error(f"unknown stages {', '.join(unknown)}; known are {', '.join(STAGES)}")
    given = tuple(map(int, args.rows.split(","))) if args.rows else QUICK if args.quick else ()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        # The peak of a child is at least the size of its parent: no libraries are loaded here.
        for stage in stages:
            rows += list(measure(stage, given or SIZES[stage], folder))
            if not (args.dry or args.quick):
                record = "import json, sys, record; n = json.load(sys.stdin); s = record.stamp(); "
                record += "record.append('scale.csv', [{**s, **r} for r in n])"
                mine = json.dumps([row for row in rows if row["stage"] == stage])
                where = Path(__file__).parent
                subprocess.run(
                    [sys.executable, "-c", record], input=mine, text=True, cwd=where, check=True
                )
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
