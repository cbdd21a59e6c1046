"""How well stored embeddings find photographs of the same product, and products tagged alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE
from retailtag.errors import DataError
from retailtag.neighbours import row_blocks
from retailtag.runs.similar import Gallery
from retailtag.statistics.drift import Estimate
from retailtag.statistics.retrieval import (
    PRODUCT_METRICS,
    TAG_METRIC,
    ndcg,
    product_metrics,
    relevant_ranks,
)
from retailtag.tagger.drift.effects import wilson
from retailtag.tagger.drift.sample import drawn_rows

MAX_QUERIES = 10_000  # of a larger split whole products are drawn
CELLS_AT_ONCE = 1 << 24  # similarities held at once: 64 MiB
SAME_PRODUCT, SHARED_TAGS = "product", "tags"  # what makes an image relevant
ALL, TAIL = "all", "tail"  # scopes
# Of a product in the tail. What is rare about a product is its photographs; that every image of a
# catalogue has some rare tag, as on the demo, says nothing about finding its product.
FEW_PHOTOGRAPHS = 3
NO_PRODUCTS = (
    "No product has two images here, so only shared tags count; name the column of the products "
    "with --group-column."
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A mean over queries with its 95 % interval over products."""

    relevance: str  # `SAME_PRODUCT` or `SHARED_TAGS`
    metric: str
    # `ALL` queries, or those of the `TAIL`: of products of at most `FEW_PHOTOGRAPHS` images, and
    # for shared tags images with a tail tag
    scope: str
    n_queries: int
    n_products: int  # of the queries
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of the search by one backbone's embeddings."""

    searched: Mapping[str, Any]  # see `Gallery.to_json`
    split: str
    n_queries: int
    scores: tuple[Score, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            **self.searched,
            "split": self.split,
            "queries": self.n_queries,
            "scores": [asdict(score) for score in self.scores],
            "notes": list(self.notes),
        }


def evaluate(gallery: Gallery, split: str) -> Evaluation:
    """Search all images for each image of a split, by the similarity of `Gallery.keys`.

    Neither the query nor a file with the same bytes counts as found. Photographs of the query's
    product are what is relevant, or else, where shared tags are, left out: they share them all.

    Raises
    ------
    DataError
        If no image of the split has an embedding, or nothing is relevant for any.
    """
    catalog = gallery.context.catalog
    places = np.flatnonzero(catalog.split[gallery.rows] == split)
    if not len(places):
        raise DataError(
            f"{catalog.path} has no image of the split {split} with an embedding; name another "
            "with --split."
        )
    notes = gallery.notes
    drawn = places[drawn_rows(catalog.group[gallery.rows[places]], MAX_QUERIES, seed=0)]
    if len(drawn) < len(places):
        notes.append(f"Queries are {len(drawn):,} of {len(places):,} images, by whole products.")
    values = _values(gallery, drawn)
    tails = catalog.table.group == "tail"
    has_tail_tag = (catalog.table.labels[gallery.rows[drawn]][:, tails] == POSITIVE).any(axis=1)
    has_few = gallery.n_images[gallery.product[drawn]] <= FEW_PHOTOGRAPHS
    scores = [
        score
        for metric in (*PRODUCT_METRICS, TAG_METRIC)
        for scope, inside in (
            (ALL, np.ones(len(drawn), bool)),
            (TAIL, has_tail_tag if metric == TAG_METRIC else has_few),
        )
        for score in _scores(metric, scope, values[metric], inside, gallery.product[drawn])
    ]
    if not any(score.relevance == SAME_PRODUCT for score in scores):
        notes.append(NO_PRODUCTS)
    if not scores:
        raise DataError(
            f"{catalog.path}: no image of the split {split} has another of its product or one "
            "with a tag in common, so there is nothing to find; name the column of the products "
            "with --group-column."
        )
    return Evaluation(gallery.to_json(), split, len(drawn), tuple(scores), tuple(notes))


def _values(gallery: Gallery, queries: NDArray[np.intp]) -> dict[str, Floats]:
    """Every metric of each query (n_queries,); NaN where nothing is relevant."""
    found = {name: np.full(len(queries), np.nan) for name in (*PRODUCT_METRICS, TAG_METRIC)}
    product, copies = gallery.product, _copies(gallery.sha256)
    with gallery.context.progress.task("evaluate", len(queries)) as advance:
        for number, (query, similarity, gain) in enumerate(_compared(gallery, queries)):
            is_copy = copies == copies[query]
            same = product == product[query]
            similarity[is_copy] = -np.inf
            relevant = same & ~is_copy
            if relevant.any():
                for name, value in product_metrics(relevant_ranks(similarity, relevant)).items():
                    found[name][number] = value
            similarity[same] = -np.inf
            gain[same | is_copy] = 0
            found[TAG_METRIC][number] = ndcg(similarity, gain)
            advance(1)
    return found


def _copies(sha256: Sequence[str]) -> NDArray[np.intp]:
    """A number of each image that it shares with files of the same bytes (n,)."""
    first: dict[str, int] = {}
    numbers = (first.setdefault(one, i) if one else i for i, one in enumerate(sha256))
    return np.fromiter(numbers, np.intp, len(sha256))


def _compared(
    gallery: Gallery, queries: NDArray[np.intp]
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield each query with its similarity to all images, and its share of tags in common (n,)."""
    _, keys = gallery.keys(centred=True)
    table = gallery.context.catalog.table
    has = np.empty((len(keys), len(table.tags)), np.float32)
    for rows in row_blocks(len(keys)):
        has[rows] = table.labels[gallery.rows[rows]] == POSITIVE
    size = has.sum(axis=1)
    block = max(1, CELLS_AT_ONCE // len(keys))
    for start in range(0, len(queries), block):
        some = queries[start : start + block]
        similarity = keys[some] @ keys.T
        shared = has[some] @ has.T
        # Jaccard: tags in common over tags of either, 1 for equal tags, whatever their number
        gain = shared / np.maximum(size[some, None] + size - shared, 1)
        yield from zip(some.tolist(), similarity, gain, strict=True)


def _scores(
    metric: str, scope: str, values: Floats, inside: NDArray[np.bool_], product: NDArray[np.intp]
) -> Iterator[Score]:
    """The score of the queries `inside`, unless nothing is relevant for any of them."""
    inside = inside & np.isfinite(values)
    if inside.any():
        relevance = SHARED_TAGS if metric == TAG_METRIC else SAME_PRODUCT
        estimate = mean_over_products(values[inside], product[inside])
        n_products = len(np.unique(product[inside]))
        yield Score(
            relevance, metric, scope, int(inside.sum()), n_products, *asdict(estimate).values()
        )


def mean_over_products(values: Floats, product: NDArray[np.intp]) -> Estimate:
    r"""Mean of values (n,) from 0 to 1 with a 95 % interval that counts products, not images.

    Notes
    -----
    The standard error of the mean m, a ratio of sums over the G products, is robust to clusters:
    :math:`s^2 = \frac{G}{G-1} \sum_g (\sum_{i \in g} (x_i - m))^2 / n^2`. The interval is Wilson's
    with as many independent images as a share of this variance would have,
    :math:`m (1 - m) / s^2`: near 0 and 1 it keeps to one side, and where all values are 0 or 1 it
    counts each product as one.
    """
    _, code = np.unique(product, return_inverse=True)
    n_products = int(code.max()) + 1
    mean = float(values.mean())
    if n_products == 1:
        return Estimate(mean, 0.0, 1.0)
    sums = np.bincount(code, values - mean)
    variance = n_products / (n_products - 1) * float(sums @ sums) / len(values) ** 2
    spread = mean * (1 - mean)
    n = spread / variance if spread * variance > 0 else float(n_products)
    # Student's quantile instead of the normal one: with few products their variance is uncertain.
    n *= (scipy.stats.norm.ppf(0.975) / scipy.stats.t.ppf(0.975, n_products - 1)) ** 2
    (low,), (high,) = wilson(np.array([mean]), np.array([n]))
    return Estimate(mean, float(low), float(high))
