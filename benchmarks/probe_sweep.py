"""How many probes a second: our whole grid, against scikit-learn and others on a sample of it.

    python benchmarks/probe_sweep.py [--quick] [--folds K] [--rivals R] [--device cuda] [--json]

One run, in turn, on 75,000 x 768 simulated embeddings, 250 tags and 45 C from 1e-6 to 1e5: our
11,250 fits (with ``--folds K`` also the K-fold sweep of ``retailtag probe``); scikit-learn's
``LogisticRegression(solver="lbfgs")`` on pairs (tag, C) at its default tolerance, and at the
loosest of 1e-4, 1e-5, ... 1e-13 that brings the pair within our certificate, in float32 or float64,
whichever is faster (that fit alone counts, not the search for it; where none gets there the
tightest counts, and `within_certificate` says for how many pairs that is not so); liblinear
(which penalises the intercept too), scikit-learn-intelex and, on CUDA, cuML on one pair a stratum;
the joint torch L-BFGS that others use (one BCE over all tags) at one C a range.

Pairs are drawn at random within strata, frequency group x third of the grid. A rival's time for
the grid is the sum over strata of their size times the mean of their pairs, which has no bias;
`speedup` is that time over ours. Relative suboptimality, (objective - optimum) / objective, is
computed in float64 against Newton's method started from the best solution at hand; ``--audit``
bounds it for every fit of ours, and computes it for those with the largest bound. Ours runs in a
process of its own (`probe_ours.py`), so that `peak_rss_mib` is its own peak. Appends to
``results/probe_sweep.csv``; what the figures should be on paper is in ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from probe_check import objective, objectives_and_bounds, optimum
from probe_data import frequency_group, save_workload
from probe_rivals import (
    TOLERANCES,
    Estimator,
    Estimators,
    Timed,
    at_hand,
    fit_timed,
    joint_lbfgs,
    scikit_learn,
)
from probe_sample import RANGES, Measured, Pair, grid_seconds, one_per_stratum, sample_pairs
from record import append, stamp
from threadpoolctl import threadpool_limits

REFERENCE = {"images": 75_000, "dim": 768, "tags": 250, "strengths": 45, "pairs": 24}
QUICK = {"images": 4000, "dim": 128, "tags": 40, "strengths": 15, "pairs": 24}
CERTIFICATE = 1e-4
AUDITED = 5  # fits of ours with the largest bound, solved in float64
ROUNDING = 1e-7  # a stated gap may fall short of the truth by this


Row = dict[str, Any]


@dataclass
class Bench:
    """The workload, what ours took, and the optimum of every sampled pair."""

    X: NDArray[np.float32]
    Y: NDArray[np.int8]
    C: NDArray[np.float64]
    pairs: list[Pair]
    ours: dict[str, Any]
    fits: dict[str, NDArray[Any]]

    def __post_init__(self) -> None:
        self.x = self.X.astype(np.float64)
        self.best: dict[Pair, float] = {}
        for pair in self.pairs:
            self.solve(pair)

    def solve(self, pair: Pair) -> None:
        """Find the optimum of a pair."""
        y, c, head = self.Y[:, pair.tag], float(self.C[pair.k]), self.our_head(pair)
        self.best[pair] = optimum(self.x, y, c, *head)
        say(f"optimum of tag {pair.tag} at C={c:.3g}: {self.best[pair]:.6g}")

    def our_head(self, pair: Pair) -> tuple[NDArray[np.float64], float]:
        """Weights and intercept of our fit."""
        at = pair.k, pair.tag
        return self.fits["weight"][at].astype(np.float64), float(self.fits["bias"][at])

    def suboptimality(self, pair: Pair, w: NDArray[np.float64], b: float) -> float:
        """(objective - optimum) / objective in float64."""
        f = objective(self.x, self.Y[:, pair.tag], float(self.C[pair.k]), w, b)
        return (f - self.best[pair]) / f

    def ours_checked(self, pairs: list[Pair]) -> list[Measured]:
        """Fits of ours; each is charged an equal share of the sweep."""
        each = self.ours["seconds"] / self.ours["n_fits"]
        return [Measured(p, each, self.suboptimality(p, *self.our_head(p))) for p in pairs]

    def audit(self) -> tuple[float, list[Pair]]:
        """Largest float64 bound of all our fits, and the few with the largest, solved."""
        bounds = np.array(
            [
                objectives_and_bounds(self.x, self.Y, c, W.astype(np.float64), b.astype(np.float64))
                for c, W, b in zip(self.C, self.fits["weight"], self.fits["bias"], strict=True)
            ]
        )[:, 1]
        worst = np.argsort(bounds, axis=None)[-AUDITED:]
        pairs = [Pair(int(i % len(bounds[0])), int(i // len(bounds[0])), 0, 0) for i in worst]
        for pair in pairs:
            self.solve(pair)
        return float(bounds.max()), pairs

    def measure(self, pairs: list[Pair], fit: Callable[[Pair], Timed], name: str) -> list[Measured]:
        """Time and check a rival on some pairs."""
        found = []
        for pair in pairs:
            done = fit(pair)
            found.append(Measured(pair, done.seconds, self.suboptimality(pair, *done[:2])))
            say(f"{name}, tag {pair.tag}, C={self.C[pair.k]:.3g}: {done.seconds:.2f} s")
        return found

    def fit_pair(
        self, estimator: Estimator, pair: Pair, X: NDArray[Any] | None = None, **settings: Any
    ) -> Timed:
        """Fit a pair by an estimator of scikit-learn's interface."""
        model = estimator(C=float(self.C[pair.k]), **settings)
        return fit_timed(model, self.X if X is None else X, self.Y[:, pair.tag])

    def matched(self, estimator: Estimator, default: list[Measured], name: str) -> list[Measured]:
        """The fit of each pair at the loosest tolerance that is within the certificate."""
        return [
            first if reached(first) else self._tighter(estimator, first.pair, name)
            for first in default
        ]

    def _tighter(self, estimator: Estimator, pair: Pair, name: str) -> Measured:
        """Bisect the tolerances in float64; the faster of that and float32 at the loosest."""

        def at(tol: float, X: NDArray[Any]) -> Measured:
            label = f"{name} at {tol:g} in {X.dtype}"
            fit = partial(self.fit_pair, estimator, X=X, tol=tol)
            return self.measure([pair], fit, label)[0]

        low, high, best = 0, len(TOLERANCES) - 1, None
        while low <= high:
            middle = (low + high) // 2
            last = at(TOLERANCES[middle], self.x)
            if reached(last):
                best, high = last, middle - 1
            else:
                low = middle + 1
        if best is None:
            return last  # at the tightest: the time that it takes at least
        single = at(TOLERANCES[low], self.X)
        return single if reached(single) and single.seconds < best.seconds else best


def reached(one: Measured) -> bool:
    """Whether a fit is within our certificate."""
    return one.suboptimality <= CERTIFICATE


def say(line: str) -> None:
    """Tell how far a long run is."""
    print(line, file=sys.stderr, flush=True)


def run_ours(folder: Path, C: NDArray[np.float64], args: argparse.Namespace, folds: int) -> dict:
    """Our sweep in a process of its own."""
    job = {"C": C.tolist(), "device": args.device, "threads": args.threads, "folds": folds}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    threads = str(args.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    script = Path(__file__).with_name("probe_ours.py")
    command = [sys.executable, str(script), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict = json.loads(done.stdout.splitlines()[-1])
    say(f"ours, {folds} fold(s): {json.dumps(found)}")
    return found


def row_of(method: str, found: list[Measured], seconds: float, bench: Bench, **more: Any) -> Row:
    """One method as a row of the table; `seconds` is what it takes for the grid."""
    n_fits = bench.ours["n_fits"]
    # without pairs nothing is compared with an optimum
    gaps = np.array([one.suboptimality for one in found] or [float("nan")])
    row = {
        "method": method,
        "pairs": len(found),
        "grid_seconds": seconds,
        "standard_error": 0.0,
        "fits_per_second": n_fits / seconds,
        "speedup_of_ours": seconds / bench.ours["seconds"],
        "median_suboptimality": float(np.median(gaps)),
        "max_suboptimality": float(gaps.max()),
        "within_certificate": float((gaps <= CERTIFICATE + ROUNDING).mean()) if found else gaps[0],
        "false_gaps": 0,
        "peak_rss_mib": float("nan"),
        "peak_device_mib": float("nan"),
        "note": "",
    }
    say(f"{method}: {n_fits / seconds:.4g} fits/s")
    return {**row, **more}


def listed(status: dict[str, int]) -> str:
    """How many fits ended how, in words."""
    return ", ".join(f"{n} {name}" for name, n in status.items())


def our_row(bench: Bench, audit: bool) -> Row:
    """Our grid; `false_gaps` counts the checked fits whose stated gap is below the truth."""
    found, checked = bench.ours_checked(bench.pairs), bench.pairs
    note = f"largest stated gap {np.nanmax(bench.fits['gap']):.3g}"
    note += f"; {bench.ours['iterations']:.1f} iterations a fit; {listed(bench.ours['status'])}"
    if audit:
        bound, worst = bench.audit()
        checked = [*bench.pairs, *worst]
        truth = max(one.suboptimality for one in bench.ours_checked(worst))
        note += f"; largest float64 bound of all fits {bound:.3g}"
        note += f", largest suboptimality of the {len(worst)} with the largest {truth:.3g}"
    stated = [float(bench.fits["gap"][pair.k, pair.tag]) for pair in checked]
    true = [one.suboptimality for one in bench.ours_checked(checked)]
    false = sum(t > g + ROUNDING for t, g in zip(true, stated, strict=True))
    peaks = {name: v for name, v in bench.ours.items() if name.startswith("peak")}
    return row_of(
        "retailtag", found, bench.ours["seconds"], bench, false_gaps=false, note=note, **peaks
    )


def sklearn_rows(bench: Bench, pairs: list[Pair], estimator: Estimator, name: str) -> Iterator[Row]:
    """An estimator of scikit-learn's interface at its default and at the matched tolerance."""
    default = bench.measure(pairs, lambda pair: bench.fit_pair(estimator, pair), name)
    seconds, error = grid_seconds(default)
    yield row_of(f"{name}, default", default, seconds, bench, standard_error=error)
    matched = bench.matched(estimator, default, name)
    seconds, error = grid_seconds(matched)
    yield row_of(f"{name}, matched", matched, seconds, bench, standard_error=error)


def joint_row(bench: Bench, device: str, max_iter: int) -> Row:
    """The joint torch L-BFGS at the middle C of each range; compared with ours, for all tags."""
    starts = np.arange(RANGES) * len(bench.C) // RANGES
    found = []
    for k in starts + len(bench.C) // RANGES // 2:
        c = float(bench.C[k])
        *head, seconds = joint_lbfgs(bench.X, bench.Y, c, device, max_iter)
        say(f"joint torch L-BFGS, C={c:.3g}: {seconds:.1f} s")
        ours = (bench.fits[name][k].astype(np.float64) for name in ("weight", "bias"))
        f, _ = objectives_and_bounds(bench.x, bench.Y, c, head[0], head[1])
        least, _ = objectives_and_bounds(bench.x, bench.Y, c, *ours)
        found += [
            Measured(Pair(tag, int(k), 0, 0), seconds, max(float(excess), 0.0))
            for tag, excess in enumerate((f - least) / f)
        ]
    seconds = float(np.mean([one.seconds for one in found])) * len(bench.C)
    note = f"{max_iter} iterations at {RANGES} C; suboptimality against ours, all tags"
    return row_of("torch L-BFGS, joint", found, seconds, bench, note=note)


def other_rows(bench: Bench, args: argparse.Namespace, libraries: Estimators) -> Iterator[Row]:
    """Everyone but scikit-learn's lbfgs."""
    few = one_per_stratum(bench.pairs)
    fit = partial(bench.fit_pair, scikit_learn, solver="liblinear", max_iter=1000)
    found = bench.measure(few, fit, "liblinear")
    note = "penalises the intercept"
    yield row_of("liblinear, default", found, grid_seconds(found)[0], bench, note=note)
    yield joint_row(bench, args.device, args.joint_iterations)
    for name, estimator in libraries.items():
        yield from sklearn_rows(bench, few, estimator, name)


def fold_row(ours: dict, whole: dict, folds: int) -> Row:
    """The out-of-fold sweep of the product; the note adds the grid on all images, `whole`."""
    note = f"{ours['n_fits']} fits, {ours['seconds_fitting']:.1f} s in the solver, the rest scoring"
    both = {name: ours[name] + whole[name] for name in ("n_fits", "seconds")}
    note += f"; with the grid on all images {both['n_fits']} fits in {both['seconds']:.1f} s"
    note += f"; largest stated gap {ours['gap']:.3g}; {listed(ours['status'])}"
    nothing = float("nan")
    return {
        "method": f"retailtag, {folds} folds",
        "pairs": 0,
        "grid_seconds": ours["seconds"],
        "standard_error": 0.0,
        "fits_per_second": ours["n_fits"] / ours["seconds"],
        "speedup_of_ours": nothing,
        "median_suboptimality": nothing,
        "max_suboptimality": nothing,
        "within_certificate": nothing,
        "false_gaps": 0,
        "peak_rss_mib": ours["peak_rss_mib"],
        "peak_device_mib": ours.get("peak_device_mib", nothing),
        "note": note,
    }


def run(args: argparse.Namespace) -> list[Row]:
    """Make the workload, measure everyone on it."""
    rng = np.random.default_rng(args.seed)
    C = np.geomspace(1e-6, 1e5, args.strengths)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        X, Y = save_workload(folder, args.images, args.dim, args.tags, rng)
        ours = run_ours(folder, C, args, 1)
        many = run_ours(folder, C, args, args.folds) if args.folds > 1 else None
        with np.load(folder / "fits.npz") as file:
            fits = dict(file)
    libraries, absent = at_hand(args.device)
    with threadpool_limits(args.threads):
        torch.set_num_threads(args.threads)
        alone = args.rivals == "none"
        pairs = [] if alone else sample_pairs(frequency_group(Y), len(C), args.pairs, rng)
        bench = Bench(X, Y, C, pairs, ours, fits)
        rows = [our_row(bench, args.audit)]
        rows += [fold_row(many, ours, args.folds)] if many else []
        lbfgs = sklearn_rows(bench, pairs, scikit_learn, "scikit-learn")
        rows += islice(lbfgs, {"none": 0, "default": 1}.get(args.rivals))
        rows += other_rows(bench, args, libraries) if args.rivals == "all" else []
    rows[0]["note"] += "".join(f"; {name} not installed" for name in absent)
    size = {"images": args.images, "dim": args.dim, "tags": args.tags, "strengths": len(C)}
    setting = {**size, "device": args.device, "threads": args.threads, "seed": args.seed}
    return [{**setting, **row} for row in rows]


def summary(rows: list[Row]) -> dict[str, Any]:
    """What the targets speak of."""
    by_method = {row["method"]: row for row in rows}
    ours = by_method["retailtag"]
    speedups = {
        f"speedup_vs_{name}": by_method[method]["speedup_of_ours"]
        for name, method in (
            ("sklearn_matched", "scikit-learn, matched"),
            ("sklearn_default", "scikit-learn, default"),
            ("liblinear", "liblinear, default"),
            ("joint_lbfgs", "torch L-BFGS, joint"),
        )
        if method in by_method
    }
    return {
        **speedups,
        "fits_per_second": ours["fits_per_second"],
        "max_relative_suboptimality": ours["max_suboptimality"],
        "false_gaps": ours["false_gaps"],
        "peak_rss_mib": ours["peak_rss_mib"],
        "rows": rows,
    }


def finite(value: Any) -> Any:
    """The same with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def parse() -> argparse.Namespace:
    """Options; those left out take the size of the reference workload, or of the quick one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small size, under a minute")
    parser.add_argument("--images", type=int)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--tags", type=int)
    parser.add_argument("--strengths", type=int, help="values of C from 1e-6 to 1e5")
    parser.add_argument("--folds", type=int, default=1, help="also sweep out of so many folds")
    parser.add_argument("--pairs", type=int, help="(tag, C) pairs for scikit-learn, about")
    parser.add_argument(
        "--rivals",
        choices=("all", "scikit-learn", "default", "none"),
        default="all",
        help="scikit-learn alone, it at its default tolerance alone, or nobody",
    )
    parser.add_argument("--joint-iterations", type=int, default=100)
    parser.add_argument("--audit", action="store_true", help="bound every fit of ours in float64")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    sizes = QUICK if args.quick else REFERENCE
    for name, value in sizes.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main() -> None:
    """Measure, print and record."""
    args = parse()
    facts = stamp()
    rows = [{**facts, **row} for row in run(args)]
    for row in rows:
        row.update({k: float(f"{v:.5g}") for k, v in row.items() if isinstance(v, float)})
    if args.json:
        print(json.dumps(finite(summary(rows))))
    else:
        shown = ("method", "pairs", "fits_per_second", "speedup_of_ours", "max_suboptimality")
        for line in (dict(zip(shown, shown, strict=True)), *rows):
            print(*(str(line[name]).ljust(24) for name in shown))
    if not args.dry:
        append("probe_sweep.csv", rows)


if __name__ == "__main__":
    main()
