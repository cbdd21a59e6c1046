"""Figures of drift over the last images of a running server, cheap and bounded in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.tagger.drift.effects import superiority
from retailtag.tagger.drift.properties import OF_PIXELS, pixel_properties
from retailtag.tagger.drift.sample import CONFIDENCES, Sample, confidences_of, given_cells
from retailtag.tagger.drift.two_sample import NEIGHBOURS, NOVEL

if TYPE_CHECKING:
    from retailtag.tagger.tagger import Tagger

WINDOW = 1000  # images
BANK = 1000  # images of the reference that distances are measured to
Floats = NDArray[np.float64]


@dataclass(eq=False)
class _Ring:
    """The last rows of some array."""

    rows: NDArray[Any]  # (size, width)
    n_seen: int = 0

    def add(self, rows: NDArray[Any]) -> None:
        size = len(self.rows)
        rows = rows[-size:]
        self.rows[(self.n_seen + np.arange(len(rows))) % size] = rows
        self.n_seen += len(rows)

    def last(self) -> NDArray[Any]:
        return self.rows[: self.n_seen].copy()


class DriftMonitor:
    """How the last images differ from a reference; safe to use from several threads.

    Parameters
    ----------
    tagger : Tagger
        Gives the tags of an image's logits.
    reference : Sample
        Of the same model; one image of each product is used.
    window : int
        Images that `summary` is about. Memory is bounded by it: a row has a few dozen numbers.

    Notes
    -----
    Gauges are effect sizes, not p-values: a monitor looks again and again, and would raise a false
    alarm sooner or later at any level. ``retailtag drift`` tests a batch once.
    """

    def __init__(self, tagger: Tagger, reference: Sample, window: int = WINDOW) -> None:
        self._tagger = tagger
        one = reference.one_per_group()
        step = max(len(one) // BANK, 1)
        one = one.take(np.arange(0, len(one), step)[:BANK])
        self._mean = one.embeddings.mean(axis=0)
        spread = one.embeddings.std(axis=0)
        self._scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-12)
        self._bank = (one.embeddings - self._mean) * self._scale
        distances = _distances(self._bank, self._bank)
        np.fill_diagonal(distances, np.inf)  # leave-one-out
        self._calibration = np.sort(_kth(distances))
        self._confidences = one.confidences
        self._properties = one.properties[:, : len(OF_PIXELS)]
        self._rates = one.given.mean(axis=0)
        self._n_reference = len(one)
        n_figures = len(CONFIDENCES) + len(OF_PIXELS) + 1
        self._figures = _Ring(np.zeros((window, n_figures)))
        self._given = _Ring(np.zeros((window, len(tagger.tags)), bool))
        self._embeddings = _Ring(np.zeros((window, self._bank.shape[1]), np.float32))
        self._lock = threading.Lock()

    def add(
        self,
        embeddings: NDArray[np.float32],
        logits: NDArray[np.float32],
        images: Sequence[Any] | None = None,
        *,
        properties: NDArray[np.float32] | None = None,
    ) -> None:
        """Note images that were tagged.

        Parameters
        ----------
        embeddings : ndarray of float32, shape (n, dim)
        logits : ndarray of float32, shape (n, n_tags)
        images : sequence of PIL images or arrays (h, w, 3), optional
            Decoded pixels, RGB; without them the properties of these images are unknown.
        properties : ndarray of float32, shape (n, len(OF_PIXELS)), optional
            What `pixel_properties` gives for the images, instead of their pixels.
        """
        if not len(embeddings):
            return
        given = given_cells(self._tagger, logits)
        scaled = (np.asarray(embeddings, np.float32) - self._mean) * self._scale
        far = _kth(_distances(scaled, self._bank))
        as_far = len(self._calibration) - np.searchsorted(self._calibration, far, side="left")
        p = (1 + as_far) / (1 + len(self._calibration))
        pixels = np.full((len(scaled), len(OF_PIXELS)), np.nan)
        if properties is not None:
            pixels[:] = properties
        for row, image in enumerate(images or ()):
            pixels[row] = pixel_properties(np.asarray(image))
        figures = np.concatenate([confidences_of(logits, given), pixels, p[:, None]], axis=1)
        with self._lock:
            self._figures.add(figures)
            self._given.add(given)
            self._embeddings.add(scaled)

    def summary(self) -> dict[str, float]:
        """Gauges over the window; only ``images`` while it is empty.

        ``novel_share`` (expected: 0.05); ``embedding_shift``, the squared distance of the mean
        embedding from that of the reference over what chance gives (expected: about 1);
        ``tags_given`` and ``tags_given_reference``; ``tag_rate_shift``, the largest shift of a
        tag's rate in its standard errors; and ``NAME_superiority`` of confidences and properties:
        the share of pairs in which an image of the window has more than one of the reference
        (expected: 0.5).
        """
        with self._lock:
            figures, given = self._figures.last(), self._given.last()
            embeddings = self._embeddings.last()
        n = len(figures)
        if not n:
            return {"images": 0.0}
        values = {
            "images": float(n),
            "novel_share": float((figures[:, -1] <= NOVEL).mean()),
            "embedding_shift": self._embedding_shift(embeddings),
            "tags_given": float(given.sum(axis=1).mean()),
            "tags_given_reference": float(self._rates.sum()),
            "tag_rate_shift": self._rate_shift(given),
        }
        names = (*CONFIDENCES, *OF_PIXELS)
        reference = np.concatenate([self._confidences, self._properties], axis=1)
        for column, name in enumerate(names):
            own = figures[:, column]
            own = own[~np.isnan(own)]
            if len(own):
                codes = np.arange(self._n_reference), np.arange(len(own))
                found = superiority(reference[:, column], own, codes)
                values[f"{name}_superiority"] = found.value
        return values

    def _embedding_shift(self, embeddings: NDArray[np.float32]) -> float:
        # Coordinates have mean 0 and variance 1 in the reference: without a shift the mean of n
        # images has variance 1/n + 1/n_reference along each.
        live = self._scale > 0
        expected = float(live.sum()) * (1 / len(embeddings) + 1 / self._n_reference)
        return float((embeddings.mean(axis=0, dtype=np.float64)[live] ** 2).sum()) / max(
            expected, 1e-12
        )

    def _rate_shift(self, given: NDArray[np.bool_]) -> float:
        n, m = self._n_reference, len(given)
        rate = given.mean(axis=0)
        # half an image more of either kind, so that a rate of 0 has a standard error
        pooled = (self._rates * n + rate * m + 0.5) / (n + m + 1)
        error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        return float((np.abs(rate - self._rates) / error).max())


def _distances(rows: NDArray[Any], bank: NDArray[Any]) -> NDArray[Any]:
    squared = (rows**2).sum(axis=1)[:, None] + (bank**2).sum(axis=1) - 2 * rows @ bank.T
    return np.sqrt(np.maximum(squared, 0))


def _kth(distances: NDArray[Any]) -> NDArray[Any]:
    """Distance to the `NEIGHBOURS`-th nearest of each row."""
    k = min(NEIGHBOURS, distances.shape[1]) - 1
    return np.asarray(np.partition(distances, k, axis=1)[:, k])
