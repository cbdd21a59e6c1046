"""Does pretraining help? Probe the demo backbones against random weights and raw pixels.

    python benchmarks/demo_backbones.py --images 8000

Draws (or reuses) a demo catalogue, fits one ridge probe a tag on each kind of embedding, and
appends a row each to ``results/demo_backbones.csv``. The strength of the ridge and each tag's
threshold come from the training products alone, in three folds that never part a product.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import append, stamp
from sklearn.metrics import average_precision_score

from retailtag.demo.drawing import write_demo_catalogue
from retailtag.demo.drawing.taxonomy import TAGS
from retailtag.demo.networks import DEMO_ARCHITECTURES, build_demo_model

RIDGES = np.logspace(0, 4, 7)
N_FOLDS = 3
N_PIXELS = 256
TAIL = 50


@dataclass(frozen=True)
class Labelled:
    """A catalogue in memory.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (n_images, 64, 64, 3)
        Squashed photographs.
    labels : ndarray of bool, shape (n_images, n_tags)
        The catalogue's tags, noise included.
    test : ndarray of bool, shape (n_images,)
        Held-out photographs.
    fold : ndarray of int64, shape (n_images,)
        0 to 2; the same for all the photographs of a product.
    """

    pixels: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    fold: np.ndarray


def read(folder: Path) -> Labelled:
    """Read a demo catalogue whole."""
    with (folder / "catalogue.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = {tag: number for number, tag in enumerate(TAGS)}
    labels = np.zeros((len(rows), len(TAGS)), dtype=bool)
    pixels = np.empty((len(rows), 64, 64, 3), dtype=np.uint8)
    for number, row in enumerate(rows):
        labels[number, [column[tag] for tag in row["tags"].split("|") if tag]] = True
        with Image.open(folder / row["path"]) as picture:
            pixels[number] = picture.resize((64, 64), Image.Resampling.BICUBIC)
    test = np.array([row["split"] == "test" for row in rows])
    fold = np.array([int(row["group"][1:]) for row in rows]) * 40503 // 16 % N_FOLDS
    return Labelled(pixels, labels, test, fold)


@torch.inference_mode()
def embed(model: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Embeddings, float64 of shape (n_images, dim)."""
    parts = []
    for start in range(0, len(pixels), 256):
        x = torch.from_numpy(pixels[start : start + 256]).permute(0, 3, 1, 2).float()
        parts.append(model(x / 127.5 - 1).numpy())
    return np.concatenate(parts).astype(np.float64)


def raw_pixels(data: Labelled) -> np.ndarray:
    """The 256 leading principal components of the training pixels, at 64 x 64."""
    x = torch.from_numpy(data.pixels.reshape(len(data.pixels), -1)).float()
    x -= x[torch.from_numpy(~data.test)].mean(dim=0)
    generator = torch.Generator().manual_seed(0)
    # A random sketch of the rows is enough: the leading components stand far apart.
    sketch = torch.randn(N_PIXELS + 64, int((~data.test).sum()), generator=generator)
    basis = torch.linalg.svd(sketch @ x[torch.from_numpy(~data.test)], full_matrices=False)[2]
    return (x @ basis[:N_PIXELS].T).numpy().astype(np.float64)


def ridge_scores(x: np.ndarray, y: np.ndarray, x_new: np.ndarray) -> np.ndarray:
    """Scores of ridge regression at every strength, shape (n_ridges, n_new, n_tags).

    Notes
    -----
    One eigendecomposition serves all strengths: with XᵀX = V diag(s) Vᵀ,
    w(λ) = V diag(1 / (s + λ)) Vᵀ Xᵀy.
    """
    mean = y.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    projected = vectors.T @ (x.T @ (y - mean))
    turned = x_new @ vectors
    return np.stack([turned @ (projected / (values + r)[:, None]) + mean for r in RIDGES])


def best_thresholds(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threshold of the best F1 for each tag, and that F1, both of shape (n_tags,)."""
    order = np.argsort(-scores, axis=0)
    ranked = np.take_along_axis(labels, order, axis=0)
    hits = np.cumsum(ranked, axis=0)
    taken = np.arange(1, len(scores) + 1)[:, None]
    f1 = 2 * hits / np.maximum(taken + labels.sum(axis=0), 1)
    best = f1.argmax(axis=0)
    at = np.take_along_axis(scores, np.take_along_axis(order, best[None], axis=0), axis=0)[0]
    return at, f1.max(axis=0)


def standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1 over the training rows."""
    return (x - x[train].mean(axis=0)) / (x[train].std(axis=0) + 1e-6)


def probe(x: np.ndarray, data: Labelled) -> dict[str, float]:
    """Fit on the training products, choose out of fold, score the held-out photographs."""
    train, y = ~data.test, data.labels
    x = standardised(x, train)
    out_of_fold = np.empty((len(RIDGES), int(train.sum()), y.shape[1]))
    fold = data.fold[train]
    for k in range(N_FOLDS):
        inside, held = train & (data.fold != k), train & (data.fold == k)
        out_of_fold[:, fold == k] = ridge_scores(x[inside], y[inside].astype(float), x[held])
    chosen = [best_thresholds(scores, y[train]) for scores in out_of_fold]
    seen = y[train].any(axis=0)
    best = int(np.argmax([f1[seen].mean() for _, f1 in chosen]))
    scores = ridge_scores(x[train], y[train].astype(float), x[data.test])[best]
    return {"ridge": float(RIDGES[best])} | score(scores, chosen[best][0], data)


def score(scores: np.ndarray, threshold: np.ndarray, data: Labelled) -> dict[str, float]:
    """Macro averages over the tags with a held-out positive, and over the tail among them."""
    truth = data.labels[data.test]
    counted = truth.any(axis=0)
    tail = counted & (data.labels[~data.test].sum(axis=0) < TAIL)
    said = scores >= threshold
    f1 = 2 * (said & truth).sum(0) / np.maximum(said.sum(0) + truth.sum(0), 1)
    ap = np.full(len(f1), np.nan)
    for tag in np.flatnonzero(counted):
        ap[tag] = average_precision_score(truth[:, tag], scores[:, tag])
    return {
        "n_tags_scored": int(counted.sum()),
        "macro_f1": f1[counted].mean(),
        "macro_ap": ap[counted].mean(),
        "n_tail_scored": int(tail.sum()),
        "tail_macro_f1": f1[tail].mean(),
        "tail_macro_ap": ap[tail].mean(),
    }


def contenders(weights: Path | None) -> list[tuple[str, str, torch.nn.Module | None]]:
    """Backbone, weights, model; None for the pixels themselves."""
    rows: list[tuple[str, str, torch.nn.Module | None]] = [("pixels", "pca", None)]
    for name in DEMO_ARCHITECTURES:
        torch.manual_seed(0)
        rows.append((name, "random", build_demo_model(name, weights=None)))
        source = weights / f"{name}.safetensors" if weights else "packaged"
        if source == "packaged" or Path(source).exists():
            rows.append((name, "pretrained", build_demo_model(name, weights=source)))
    return rows


def main() -> None:
    """Probe every contender on one demo catalogue."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=Path, help="folder of weights (default: the packaged)")
    parser.add_argument("--dry", action="store_true", help="print alone, publish nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = Path(tempfile.gettempdir()) / f"retailtag-demo-{given.images}-{given.seed}"
    write_demo_catalogue(folder, given.images, given.seed)
    data = read(folder)
    settings = {"n_images": given.images, "seed": given.seed, "threads": given.threads}
    rows: list[dict[str, object]] = []
    for backbone, weights, model in contenders(given.weights):
        begun = time.monotonic()
        x = raw_pixels(data) if model is None else embed(model, data.pixels)
        embedded = time.monotonic()
        found = {key: round(value, 4) for key, value in probe(x, data).items()}
        seconds = {
            "embed_seconds": round(embedded - begun, 1),
            "probe_seconds": round(time.monotonic() - embedded, 1),
        }
        row = {"backbone": backbone, "weights": weights, "dim": x.shape[1]} | found | seconds
        print(row, flush=True)
        rows.append(stamp() | settings | row)
    if not given.dry:
        append("demo_backbones.csv", rows)


if __name__ == "__main__":
    main()
