"""The text prior: tag names, through the text tower, as training rows of a logistic regression.

A contrastive model puts an image near the text that describes it, so the name of a tag is an
example of it before any image is. Where a tag has few images the example weighs much, where it
has many it is outvoted; how much one row counts is chosen out of fold, zero included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.memory import empty_rows
from retailtag.neighbours import FeatureRows
from retailtag.probes.scaling import Standardiser, row_blocks, unit_rows
from retailtag.probes.solver.fits import LinearFits
from retailtag.probes.solver.interface import Solver
from retailtag.progress import Advance, nobody

WEIGHTS = (0.0, 1.0, 10.0, 100.0)  # images that one row counts as
PLAIN = ("a photo of {value}", "a product photo of {value}", "{value}")
WITH_ATTRIBUTE = ("a photo of {value}", "a product photo, {attribute}: {value}", "{value}")

EncodeText = Callable[[list[str]], NDArray[np.float32]]


def prompts(tag: str) -> tuple[str, ...]:
    """Three sentences about a tag for the text tower.

    ``attribute:value`` is taken apart; underscores and hyphens are read as spaces.

    Examples
    --------
    >>> prompts("sleeve:long_sleeve")[:2]
    ('a photo of long sleeve', 'a product photo, sleeve: long sleeve')
    >>> prompts("polka-dots")
    ('a photo of polka dots', 'a product photo of polka dots', 'polka dots')
    """
    attribute, colon, value = tag.rpartition(":")
    words = {"attribute": _words(attribute), "value": _words(value) if value.strip() else tag}
    return tuple(t.format(**words) for t in (WITH_ATTRIBUTE if colon and attribute else PLAIN))


def text_embeddings(tags: Sequence[str], encode: EncodeText) -> NDArray[np.float32]:
    """One direction per tag in the joint space, float32 (n_tags, dim) of unit length.

    `encode` gives float32 (n_texts, dim), as `Backbone.encode_text` does.

    References
    ----------
    Radford et al. (2021), CLIP, §3.1.4: prompts and the mean of their directions.
    """
    asked = [prompts(tag) for tag in tags]
    encoded = unit_rows(encode([text for texts in asked for text in texts]))
    return unit_rows(encoded.reshape(len(asked), len(PLAIN), -1).mean(axis=1))


@dataclass(frozen=True, eq=False)
class TextPriorHead:
    """Logistic regression on the images and one row per tag name.

    References
    ----------
    Lin, Yu, Kuang, Pathak & Ramanan (2023), Multimodality helps unimodality: texts as training
    rows of a linear probe.
    """

    # `text_embeddings` (n_tags, dim) of the tags, from the backbone whose embeddings are fitted
    text: NDArray[np.float32]
    # Ascending; a few around the choice without text suffice, as every weight solves all of them
    C: NDArray[np.float64]
    solver: Solver
    weights: tuple[float, ...] = WEIGHTS  # 0 is logistic regression without text
    name: str = "text"

    @property
    def candidates(self) -> tuple[str, ...]:
        """Settings as text, such as ``text=10 C=0.1``, the weights outermost."""
        return tuple(f"text={s:g} C={c:.3g}" for s in self.weights for c in self.C)

    def fit(self, X: FeatureRows, Y: NDArray[np.int8], advance: Advance = nobody) -> LinearFits:
        """Solve every (weight, C, tag); see `retailtag.probes.heads.head.Head.fit`."""
        scaler = Standardiser.fit(X)
        n, n_tags = Y.shape
        Z = empty_rows((n + n_tags, X.shape[1]))
        for rows in row_blocks(n):
            Z[rows] = scaler.transform(X[rows])
        Z[n:] = place_among_images(self.text, scaler)
        # The row of a tag is a positive of that tag and unknown for every other.
        rows_of_text = np.where(np.eye(n_tags, dtype=bool), 1, -1).astype(np.int8)
        labels = np.concatenate([Y, rows_of_text])
        heads = []
        start = None  # of each weight, at its smallest C: the solution of the weight before
        for s in self.weights:
            if s == 0:
                fits = self.solver(Z[:n], Y, self.C, advance)
            else:
                counts = np.concatenate([np.ones(n), np.full(n_tags, s)])
                fits = self.solver(Z, labels, self.C, advance, sample_weight=counts, start=start)
            start = fits.weight[0], fits.bias[0]
            heads.append(scaler.unscale(fits.weight, fits.bias))
        weight, bias = zip(*heads, strict=True)
        return LinearFits(np.concatenate(weight), np.concatenate(bias))


def place_among_images(text: NDArray[np.float32], scaler: Standardiser) -> NDArray[np.float32]:
    """Text directions (n_tags, dim) as rows among standardised images.

    A single tag, of which nothing is left after centring, gets the images' mean (zeros).

    References
    ----------
    Liang, Zhang, Kwon, Yeung & Zou (2022), Mind the gap.
    """
    # Images and texts lie apart in the joint space (the modality gap), so texts are centred by
    # their own mean; then the images' standard deviations, and one factor that gives them the mean
    # squared length of standardised images, dim.
    rows = (text - text.mean(axis=0, dtype=np.float64)) / scaler.scale
    mean_square = float((rows * rows).sum(axis=1).mean())
    factor = np.sqrt(rows.shape[1] / mean_square) if mean_square > 0 else 1.0
    return (rows * factor).astype(np.float32)


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split())
