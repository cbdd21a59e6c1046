"""What a fit of the text prior costs against one of logistic regression.

    python benchmarks/text_prior.py [--images 20000] [--dim 512] [--tags 60] [--strengths 9]

The workload of `probe_sweep.py`, with the mean of a tag's images plus noise as its text. Times are
those of the processor, by one thread, so that other programs hardly count. Appends to
``results/text_prior.csv``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from probe_data import make_features, make_labels
from record import append, stamp

from retailtag.probes.heads.text_prior import WEIGHTS, TextPriorHead
from retailtag.probes.solver.fit import make_solver


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--tags", type=int, default=60)
    parser.add_argument("--strengths", type=int, default=9, help="values of C from 1e-4 to 1e2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(args.seed)
    X = make_features(args.images, args.dim, rng)
    Y = make_labels(X, args.tags, rng)
    C = np.geomspace(1e-4, 1e2, args.strengths)
    means = np.stack([X[labels == 1].mean(axis=0) for labels in Y.T])
    text = (means + 0.3 * rng.standard_normal(means.shape)).astype(np.float32)
    solver = make_solver("torch", "cpu")
    solver(X[:500], Y[:500], C[:1])  # libraries start before the clock
    n_fits = args.tags * args.strengths
    logistic = processor_seconds(lambda: solver(X, Y, C))
    head = TextPriorHead(text, C, solver)
    prior = processor_seconds(lambda: head.fit(X, Y))
    row = {
        **stamp(),
        **{name: getattr(args, name) for name in ("images", "dim", "tags", "strengths", "seed")},
        "weights": len(WEIGHTS),
        "logistic_ms_per_fit": round(1000 * logistic / n_fits, 3),
        "text_ms_per_fit": round(1000 * prior / n_fits / len(WEIGHTS), 3),
        "ratio": round(prior / len(WEIGHTS) / logistic, 3),
    }
    print(f"a fit of the text prior costs {row['ratio']:.2f} fits of logistic regression")
    if not args.dry:
        append("text_prior.csv", [row])


if __name__ == "__main__":
    main()
