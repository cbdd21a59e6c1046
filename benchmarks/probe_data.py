"""The reference workload of the probe benchmarks: embeddings and tags as they occur, simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import GroupCutoffs
from retailtag.probes.scaling import Standardiser

N_TRAIN = 75_000
CLUSTERS = 300
DECAY = 0.9  # eigenvalue j of the covariance falls as j^-0.9
FREEDOM = 8  # degrees of freedom of the heavy tails

Floats = NDArray[np.float32]


def make_features(n: int, dim: int, rng: np.random.Generator) -> Floats:
    """Standardised embeddings (n, dim): power-law spectrum, clusters, heavy tails, one mean.

    An image is one of 300 Zipf-distributed cluster centres plus its own part, about half the
    variance each, both with eigenvalues j^-0.9 in a random basis; its own part is scaled by a draw
    of sqrt(8 / chi²(8)), which makes it Student-t. A mean as long as a typical embedding is added
    before the columns are standardised, which takes it away again but for its rounding.
    """
    deviation = (np.arange(1, dim + 1) ** (-DECAY / 2)).astype(np.float32)
    chance = 1 / np.arange(1, CLUSTERS + 1)
    cluster = rng.choice(CLUSTERS, size=n, p=chance / chance.sum())
    centres = rng.standard_normal((CLUSTERS, dim), np.float32)
    X = rng.standard_normal((n, dim), np.float32)
    X *= np.sqrt(FREEDOM / rng.chisquare(FREEDOM, (n, 1))).astype(np.float32)
    X += centres[cluster]
    X *= deviation
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    X = X @ basis
    mean = rng.standard_normal(dim).astype(np.float32)
    X += mean * np.float32(np.linalg.norm(deviation) / np.linalg.norm(mean))
    return Standardiser.fit(X).transform(X)


def tag_counts(n: int, n_tags: int) -> NDArray[np.int64]:
    """Positives of each tag, Zipf with an exponential tail: 88 of 250 under 50 at 75,000 images."""
    rank = np.arange(1, n_tags + 1) * 250 / n_tags
    count = 16_000 / rank**1.05 * np.exp(-np.maximum(rank - 142, 0) / 48)
    return np.maximum(count * n / N_TRAIN, 4).astype(np.int64)


def make_labels(X: Floats, n_tags: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Labels (n, n_tags): the images with the highest noisy score of each tag.

    The score is linear in X along a direction of its leading components, plus the product of two
    other projections, plus noise, with variances 0.85, 0.07 and 0.08.
    """
    n, dim = X.shape
    sample = X[rng.choice(n, min(n, 4000), replace=False)]
    values, vectors = np.linalg.eigh((sample.T @ sample) / len(sample))
    leading = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)

    def projections() -> Floats:
        z = X @ (leading @ rng.standard_normal((dim, n_tags), np.float32))
        z -= z.mean(axis=0)
        z /= z.std(axis=0)
        return z

    bend = projections() * projections()
    score = np.float32(0.85**0.5) * projections() + np.float32(0.07**0.5) / bend.std(axis=0) * bend
    score += np.float32(0.08**0.5) * rng.standard_normal((n, n_tags), np.float32)
    Y = np.zeros((n, n_tags), np.int8)
    for tag, count in enumerate(tag_counts(n, n_tags)):
        Y[np.argpartition(score[:, tag], -count)[-count:], tag] = 1
    return Y


def frequency_group(Y: NDArray[np.int8], n_reference: int = N_TRAIN) -> NDArray[np.str_]:
    """Group of each tag, its positives counted up to the reference size, (n_tags,)."""
    positives = (Y == 1).sum(axis=0) * n_reference / len(Y)
    return GroupCutoffs().group_of(np.rint(positives).astype(np.int64))


def save_workload(
    folder: Path, images: int, dim: int, n_tags: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int8]]:
    """Draw features (images, dim) and labels (images, n_tags); left as .npy files in `folder`."""
    X = make_features(images, dim, rng)
    Y = make_labels(X, n_tags, rng)
    np.save(folder / "features.npy", X)
    np.save(folder / "labels.npy", Y)
    return X, Y
