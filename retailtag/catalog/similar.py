"""Near-duplicates and photographs of one product, found without a product column.

Two images belong together if they look nearly the same, or if they carry the same tags and the
catalogue's tags identify products (see `tags_name_products`). Photographs of one product from
several angles differ as much as photographs of different products do, so looks alone seldom find
them; tags that a merchandiser gives to a product are the same on all its photographs.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE
from retailtag.errors import DataError
from retailtag.memory import empty_rows
from retailtag.neighbours import directions, mean_embedding, row_blocks

Pairs = NDArray[np.int64]  # (n_pairs, 2), image numbers

# Of the pairs above this cosine of centred embeddings 86 % showed one product on 9,000 images of a
# real shop, and half on all its 43,294: chance pairs grow with the square (results/leaks.csv).
NEAR_COSINE = 0.99
# Lower 1 % of the pairs of one product have less; tells it from chance when tags agree too.
TAGGED_COSINE = 0.3
NEAR_RMS = 3.0  # of thumbnails, in levels of 255: 93 % of the pairs there, and 75 % of those of all
MAX_PHOTOS = 50  # images of one product; a larger cluster is only made of equal images
MIN_TAGS = 3  # a set of fewer tags says nothing about the product
MIN_SIGN = 5  # nearest neighbours with equal tags before tags count as identifying products
N_ANCHORS = 2_000  # images whose nearest neighbour is looked at for that
BLOCK = 2_048  # images on each side of one matrix product
QUERIES = 256  # images whose neighbours a tree is asked for at once
AXES = 16  # of the tree
MAX_SHARE = 0.05  # of all pairs that the tree may leave; above, all are compared
ROUNDING = 1e-4  # of a radius
MAX_MEAN_PAIRS = 100  # near neighbours of an image on average; with more, vectors tell nothing


@dataclass(frozen=True, eq=False)
class Look:
    """What images look like: i and j are as close as ``v_i @ v_j - half_i - half_j`` is large."""

    vectors: NDArray[np.float32]  # (n_images, k)
    half: NDArray[np.float32]  # (n_images,), half of the squared length, or 0 where that is 1
    seen: NDArray[np.bool_]  # (n_images,), whether the image has a vector; the others match nothing
    near: float  # closeness of near-duplicates
    radius: float  # distance of the vectors of two images that are as close
    tagged: float  # closeness that images with the same tags must have

    @classmethod
    def of_embeddings(cls, X: NDArray[np.float32], seen: NDArray[np.bool_]) -> Look:
        """Closeness by cosine; `X` (n_seen, dim) are the embeddings of the images `seen`."""
        mean = mean_embedding(X)
        Z = empty_rows((len(seen), X.shape[1]))
        Z[~seen] = 0
        places = np.flatnonzero(seen)
        for rows in row_blocks(len(X)):
            Z[places[rows]] = directions(X[rows], mean)
        radius = (2 - 2 * NEAR_COSINE) ** 0.5  # |a - b|^2 = 2 - 2ab, and less if one is 0
        return cls(Z, np.zeros(len(seen), np.float32), seen, NEAR_COSINE, radius, TAGGED_COSINE)

    @classmethod
    def of_thumbnails(cls, pixels: NDArray[np.uint8], seen: NDArray[np.bool_]) -> Look:
        """Closeness by mean squared difference; `pixels` are uint8 (n_images, side, side, 3)."""
        T = pixels.reshape(len(pixels), -1).astype(np.float32)
        T -= T.mean(axis=0)  # smaller numbers, smaller rounding errors
        half = np.einsum("ij,ij->i", T, T) / 2  # ab - |a|^2/2 - |b|^2/2 = -|a - b|^2/2
        radius = T.shape[1] ** 0.5 * NEAR_RMS
        # Other angles of a product have quite other thumbnails: with the same tags, all count.
        return cls(T, half, seen, -(radius**2) / 2, radius, -np.inf)

    def between(self, i: NDArray[np.intp], j: NDArray[np.intp]) -> NDArray[np.float32]:
        """Closeness of each of the images i to each of the images j, (len(i), len(j))."""
        close: NDArray[np.float32] = self.vectors[i] @ self.vectors[j].T
        close -= self.half[i][:, None]
        close -= self.half[j]
        return close

    def closeness(self, pairs: Pairs) -> NDArray[np.float32]:
        """Closeness of each pair (n_pairs,)."""
        found = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), BLOCK * 8):
            i, j = pairs[start : start + BLOCK * 8].T
            product = np.einsum("ij,ij->i", self.vectors[i], self.vectors[j])
            found[start : start + BLOCK * 8] = product - self.half[i] - self.half[j]
        return found


def near_pairs(look: Look, rows: NDArray[np.intp]) -> Pairs:
    """Near-duplicates among images, given by ascending numbers; pairs ascend, smaller number first.

    Raises
    ------
    DataError
        If images have over `MAX_MEAN_PAIRS` near-duplicates on average: such vectors are alike for
        all images.
    """
    found = [np.empty((0, 2), np.int64)]
    n_found = 0
    for pairs in _candidates(look, rows):
        found.append(pairs[look.closeness(pairs) >= look.near])
        n_found += len(found[-1])
        if n_found > MAX_MEAN_PAIRS * len(rows):
            raise DataError(
                f"Images have over {MAX_MEAN_PAIRS} near-duplicates on average, so these "
                "embeddings or thumbnails do not tell images apart; use other features."
            )
    pairs = np.concatenate(found)
    return pairs[np.lexsort(pairs.T[::-1])]


def _candidates(look: Look, rows: NDArray[np.intp]) -> Iterator[Pairs]:
    """Pairs of images with all near-duplicates among them, in parts that fit into memory.

    Images near each other are near on every set of axes too. A tree of the vectors on their
    `AXES` leading axes finds these in about n log n steps; where it would give more than
    `MAX_SHARE` of all pairs, and for few images, all are compared, in blocks of a matrix product.
    """
    from scipy.spatial import KDTree

    if len(rows) <= BLOCK:
        yield from _near_in_blocks(look, rows)
        return
    some = look.vectors[rows[:: max(len(rows) // BLOCK, 1)]].astype(np.float64)
    _, axes = np.linalg.eigh(np.atleast_2d(np.cov(some, rowvar=False)))
    axes = axes[:, -AXES:].astype(np.float32)
    places = np.concatenate([look.vectors[rows[at]] @ axes for at in row_blocks(len(rows))])
    tree = KDTree(places)
    radius = look.radius * (1 + ROUNDING)
    asked = places[:: max(len(rows) // QUERIES, 1)]
    n_near = tree.query_ball_point(asked, radius, return_length=True)
    if n_near.mean() > MAX_SHARE * len(rows):
        yield from _near_in_blocks(look, rows)
        return
    for start in range(0, len(rows), QUERIES):
        near = tree.query_ball_point(places[start : start + QUERIES], radius)
        i = np.repeat(np.arange(start, start + len(near)), list(map(len, near)))
        j = np.fromiter(itertools.chain.from_iterable(near), np.intp, len(i))
        yield np.stack([rows[i], rows[j]], axis=1)[i < j]


def _near_in_blocks(look: Look, rows: NDArray[np.intp]) -> Iterator[Pairs]:
    """Near-duplicates by comparing every two images."""
    for a in range(0, len(rows), BLOCK):
        i = rows[a : a + BLOCK]
        for b in range(a, len(rows), BLOCK):
            j = rows[b : b + BLOCK]
            inside, other = np.nonzero(look.between(i, j) >= look.near)
            pairs = np.stack([i[inside], j[other]], axis=1)
            yield pairs[pairs[:, 0] < pairs[:, 1]]


def tags_name_products(look: Look, labels: NDArray[np.int8]) -> bool:
    """Whether images with the very same tags show one product, by the images that look alike most.

    Photographs of one product have equal tags if tags are given to products. If a catalogue has
    one photograph per product, or if tags are given to photographs, an image's nearest neighbour
    has nearly the same tags more often than exactly the same. `labels` are int8 (n_images, n_tags).
    """
    has = labels == POSITIVE
    size = has.sum(axis=1)
    usable = np.flatnonzero(look.seen & (size >= MIN_TAGS))
    anchors = usable[:: max(len(usable) // N_ANCHORS, 1)]
    # An image and copies of its pixels have the same tags in any catalogue: they do not count.
    nearest, _ = _nearest(look, anchors, np.flatnonzero(look.seen), below=look.near)
    anchors = anchors[nearest >= 0]
    nearest = nearest[nearest >= 0]
    # |A| + |B| - 2 |A and B|: tags that one of the two images has and the other has not
    differ = size[anchors] + size[nearest] - 2 * (has[anchors] & has[nearest]).sum(axis=1)
    n_equal = int((differ == 0).sum())
    n_close = int(((differ == 1) | (differ == 2)).sum())
    return n_equal >= MIN_SIGN and n_equal >= 2 * n_close


def _nearest(
    look: Look, rows: NDArray[np.intp], columns: NDArray[np.intp], below: float = np.inf
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The image of `columns` closest to each of `rows`, and how close it is (n_rows,).

    Only images less close than `below` count; -1 where there is none.
    """
    best = np.full(len(rows), -np.inf, np.float32)
    found = np.full(len(rows), -1, np.intp)
    for a in range(0, len(rows), BLOCK):
        i = slice(a, a + BLOCK)
        for b in range(0, len(columns), BLOCK):
            j = columns[b : b + BLOCK]
            closeness = look.between(rows[i], j)
            closeness[closeness >= below] = -np.inf
            here = closeness.argmax(axis=1)
            value = closeness[np.arange(len(here)), here]
            closer = value > best[i]
            best[i][closer] = value[closer]
            found[i][closer] = j[here[closer]]
    return found, best


def tagged_pairs(look: Look, labels: NDArray[np.int8]) -> Pairs:
    """Images with the very same tags, at least `MIN_TAGS`, that look somewhat alike."""
    pairs = [rows[_every_two(len(rows))] for rows in _same_tags(labels, look.seen)]
    found = np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)
    return found[look.closeness(found) >= look.tagged]


def _every_two(n: int) -> NDArray[np.intp]:
    """Every two of n positions, (n (n - 1) / 2, 2)."""
    return np.stack(np.triu_indices(n, 1), axis=1)


def _same_tags(labels: NDArray[np.int8], seen: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Images that share all their tags, from 2 to `MAX_PHOTOS` together, ascending."""
    has = labels == POSITIVE
    usable = np.flatnonzero(seen & (has.sum(axis=1) >= MIN_TAGS))
    packed = np.packbits(has[usable], axis=1)
    by_tags: dict[bytes, list[int]] = {}
    for row, key in zip(usable.tolist(), packed, strict=True):
        by_tags.setdefault(key.tobytes(), []).append(row)
    for rows in by_tags.values():
        if 2 <= len(rows) <= MAX_PHOTOS:
            yield np.array(rows, np.int64)


@dataclass(frozen=True, eq=False)
class SimilarImages:
    """Images in clusters that show one product each, as far as looks and tags tell."""

    cluster: NDArray[np.int64]  # (n_images,), numbered by the first image of each cluster
    by_tags: bool  # whether equal tags counted; see `tags_name_products`
    n_unseen: int  # images without a vector, each a cluster of its own

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        members = self.members
        return {
            "images": sum(map(len, members)),
            "clusters": len(members),
            "by_tags": self.by_tags,
            "not_compared": self.n_unseen,
        }

    @property
    def members(self) -> list[NDArray[np.intp]]:
        """Images of each cluster of two or more, the largest cluster first."""
        order = np.argsort(self.cluster, kind="stable")
        starts = np.flatnonzero(np.diff(self.cluster[order], prepend=-1))
        found = [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
        return sorted(found, key=lambda rows: (-len(rows), rows[0]))


def similar_images(look: Look, labels: NDArray[np.int8]) -> SimilarImages:
    """Cluster images so that every two of a cluster are similar; `labels` (n_images, n_tags).

    Complete linkage: the closest pairs are joined first, and two clusters only where all their
    images are similar to each other and at most `MAX_PHOTOS` together, so that no chain of similar
    images swallows a catalogue. Images with equal vectors are always together.
    """
    first = _first_equal(look)
    distinct = np.flatnonzero((first == np.arange(len(first))) & look.seen)
    pairs = near_pairs(look, distinct)
    by_tags = tags_name_products(look, labels)
    if by_tags:
        tagged = tagged_pairs(look, labels)
        # Pairs of copies become pairs of the images that stand for them.
        tagged = np.sort(first[tagged], axis=1)
        pairs = np.concatenate([pairs, tagged[tagged[:, 0] < tagged[:, 1]]])
    pairs = np.unique(pairs, axis=0)
    pairs = pairs[np.argsort(-look.closeness(pairs), kind="stable")]
    cluster = _complete_linkage(len(first), pairs)[first]
    return SimilarImages(cluster, by_tags, int((~look.seen).sum()))


def _first_equal(look: Look) -> NDArray[np.int64]:
    """The first image with the same vector as each image (n_images,)."""
    first = np.arange(len(look.seen))
    known: dict[bytes, int] = {}
    for row in np.flatnonzero(look.seen).tolist():
        key = hashlib.blake2b(look.vectors[row].tobytes(), digest_size=16).digest()
        first[row] = known.setdefault(key, row)
    return first


def _complete_linkage(n: int, pairs: Pairs) -> NDArray[np.int64]:
    """Cluster (n,) of each image, named by its first one; `pairs` are the closest first."""
    similar: dict[int, set[int]] = {}
    for i, j in pairs.tolist():
        similar.setdefault(i, set()).add(j)
        similar.setdefault(j, set()).add(i)
    cluster = list(range(n))
    members = {i: [i] for i in similar}
    for i, j in pairs.tolist():
        a, b = sorted((cluster[i], cluster[j]))
        if a == b or len(members[a]) + len(members[b]) > MAX_PHOTOS:
            continue
        if all(similar[x].issuperset(members[b]) for x in members[a]):
            for x in members[b]:
                cluster[x] = a
            members[a] += members.pop(b)
    return np.array(cluster, np.int64)


def similar_in(
    look: Look,
    labels: NDArray[np.int8],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
) -> dict[int, int]:
    """Images of `rows` with a similar image in `columns`, and the closest such image.

    `rows` and `columns` are disjoint image numbers, ascending.
    """
    rows = rows[look.seen[rows]]
    nearest, closeness = _nearest(look, rows, columns[look.seen[columns]])
    near = closeness >= look.near
    pairs = np.stack([rows[near], nearest[near]], axis=1)
    if tags_name_products(look, labels):
        tagged = tagged_pairs(look, labels)
        tagged = np.concatenate([tagged, tagged[:, ::-1]])
        keep = np.isin(tagged[:, 0], rows) & np.isin(tagged[:, 1], columns)
        pairs = np.concatenate([pairs, tagged[keep]])
    # A dictionary keeps the last of equal keys, so the closest pair comes last.
    order = np.argsort(look.closeness(pairs), kind="stable")
    return dict(pairs[order].tolist())
