"""Products of a catalogue that look most like a query, by stored embeddings: exact search."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.engines.build import same_arithmetic
from retailtag.backbones.engines.names import EngineName
from retailtag.catalog.table import POSITIVE
from retailtag.context import RunContext
from retailtag.errors import DataError, StaleFeatures, UsageError, named
from retailtag.extraction.embed import BlockRequest, Loading, embed_blocks
from retailtag.extraction.forward import Forward
from retailtag.neighbours import directions, fill_directions, mean_embedding, nearest, row_blocks
from retailtag.probes.heads.text_prior import text_embeddings
from retailtag.runs.checks import changed_since_extract
from retailtag.runs.embeddings import open_embeddings
from retailtag.runs.probe import check_rows
from retailtag.settings import ExtractSettings
from retailtag.store import EmbeddingSource, JointStore
from retailtag.store.segment import UNKNOWN_BYTES
from retailtag.store.sources import changed_sentence
from retailtag.tagger.drift.sources import Pictures

if TYPE_CHECKING:
    from retailtag.backbones.backbone import Backbone

# Kinds of queries: images from anywhere, images and products of the catalogue, texts.
IMAGE, ID, PRODUCT, TEXT = "image", "id", "product", "text"
FIRST_LOOK = 32  # images searched beyond the products asked for; more where products have many

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Space:
    """Where embeddings are compared: by cosine, of several backbones by the mean of theirs."""

    means: tuple[Vectors, ...]  # of each backbone (dim,), taken off first

    def directions(self, X: Vectors) -> Vectors:
        """Rows of unit length (n, dim) whose products are the similarities of embeddings X."""
        ends = np.cumsum([0, *(len(mean) for mean in self.means)])
        parts = [
            directions(X[:, start:end], mean)
            for (start, end), mean in zip(pairwise(ends), self.means, strict=True)
        ]
        # one backbone with large numbers would outvote the others in one cosine of all
        return parts[0] if len(parts) == 1 else np.hstack(parts) / np.float32(len(parts) ** 0.5)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images of a catalogue with an embedding: what is searched."""

    context: RunContext
    source: EmbeddingSource
    models: Sequence[Backbone]  # of every component that is not imported
    rows: NDArray[np.intp]  # of the catalogue (n,), ascending
    n_absent: int  # images of the catalogue without an embedding

    @classmethod
    def open(
        cls, context: RunContext, backbone: str, settings: ExtractSettings | None = None
    ) -> Gallery:
        """Open the stored embeddings of a catalogue's images.

        Raises
        ------
        StaleFeatures
            If the store has another identity, or images have changed since they were embedded.
        DataError, ArtefactError
            If no image of the catalogue has an embedding.
        """
        source, models = open_embeddings(context, backbone, settings)
        catalog = context.catalog
        everything = np.arange(len(catalog))
        check_rows(catalog, source, everything, 0)
        known = source.known()
        rows = everything[[i in known for i in catalog.image_ids.tolist()]]
        changed = changed_since_extract(catalog, source, rows.tolist())
        if changed:
            raise StaleFeatures(
                f"{changed_sentence(changed, catalog.path)} Run retailtag extract again, which "
                "computes only these."
            )
        return cls(context, source, models, rows, len(catalog) - len(rows))

    @cached_property
    def _products(self) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
        return np.unique(self.context.catalog.group[self.rows], return_inverse=True)

    @property
    def products(self) -> NDArray[np.str_]:
        """Names of the products, ascending."""
        return self._products[0]

    @property
    def product(self) -> NDArray[np.intp]:
        """Number of each image's product in `products` (n,)."""
        return self._products[1]

    @cached_property
    def n_images(self) -> NDArray[np.intp]:
        """Images of each product, (n_products,)."""
        return np.bincount(self.product)

    @property
    def ids(self) -> NDArray[np.str_]:
        """Ids of the images (n,)."""
        return self.context.catalog.image_ids[self.rows]

    @cached_property
    def sha256(self) -> list[str]:
        """Hash of each image's bytes; empty where it is unknown, as of imported embeddings."""
        known = self.source.known()
        found = (known[i] for i in self.ids.tolist())
        return ["" if sha256 == UNKNOWN_BYTES else sha256 for sha256 in found]

    @property
    def widths(self) -> tuple[int, ...]:
        """Length of the embeddings of every component."""
        is_joint = isinstance(self.source, JointStore)
        stores = self.source.components if is_joint else (self.source,)  # type: ignore[union-attr]
        return tuple(store.spec.dim for store in stores)

    @property
    def notes(self) -> list[str]:
        """Sentence on images that are not searched, if there are any."""
        if not self.n_absent:
            return []
        were = "image has" if self.n_absent == 1 else "images have"
        return [
            f"{self.n_absent:,} {were} no embedding and cannot be found; run retailtag extract "
            "again for those that were added."
        ]

    def to_json(self) -> dict[str, Any]:
        """What was searched, for ``--json``."""
        spec = self.source.spec
        return {
            "catalogue": str(self.context.catalog.path),
            "backbone": spec.backbone,
            "identity": spec.digest,
            "images": len(self.rows),
            "products": len(self.products),
            "not_embedded": self.n_absent,
        }

    def keys(self, *, centred: bool) -> tuple[Space, Vectors]:
        """The space, and the directions of all images in it (n, dim).

        Centred: less the images' mean, which all have in common. Texts lie elsewhere, and are
        compared with images as they are.
        """
        X = self.source.load(self.ids).X
        mean = mean_embedding(X) if centred else np.zeros(X.shape[1], np.float32)
        space = Space(tuple(np.split(mean, np.cumsum(self.widths)[:-1])))
        if len(self.widths) == 1:
            fill_directions(X, mean, X)  # in place: the embeddings may fill half of the memory
        else:
            for rows in row_blocks(len(X)):
                X[rows] = space.directions(X[rows])
        return space, X


@dataclass(frozen=True, eq=False)
class Query:
    """What similar products are searched for."""

    kind: str  # `IMAGE`, `ID`, `PRODUCT` or `TEXT`
    name: str
    embeddings: Vectors  # raw (n_images, dim): of a product all its images
    own: int = -1  # product of the gallery that is left out; -1: none
    sha256: frozenset[str] = frozenset()  # of the bytes of its images
    tags: NDArray[np.bool_] | None = None  # of the catalogue's tags those that its images carry
    read: Callable[[], bytes] | None = None  # bytes of a picture of it

    @property
    def label(self) -> str:
        """What it is, for a heading."""
        return f"{IMAGE if self.kind == ID else self.kind} {self.name}"

    def direction(self, space: Space) -> Vectors:
        """Unit vector (dim,): of several images the direction of their mean direction."""
        found = space.directions(self.embeddings)
        if len(found) == 1:
            return found[0]
        return directions(found.sum(axis=0, keepdims=True), np.zeros(1, np.float32))[0]


@dataclass(frozen=True)
class Hit:
    """A product found, by its image that is most alike."""

    rank: int  # from 1
    similarity: float  # cosine
    product: str
    image_id: str
    path: str
    title: str
    tags: tuple[str, ...]
    n_images: int  # of the product in the catalogue
    same_file: bool  # whether the image's bytes are those of an image of the query
    reranked: float | None  # what the first hits were ordered by anew, larger is better
    row: int  # of the catalogue

    @property
    def lines(self) -> tuple[str, ...]:
        """What to write below its picture."""
        product = (self.product,) if self.product != self.image_id else ()
        same = ("same file as the query",) if self.same_file else ()
        title = (self.title,) if self.title else ()
        return (f"{self.rank}. {self.similarity:.3f}", self.image_id, *product, *title, *same)


@dataclass(frozen=True, eq=False)
class Found:
    """A query and the products found, the most alike first."""

    query: Query
    hits: tuple[Hit, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "kind": self.query.kind,
            "query": self.query.name,
            "own_product_left_out": self.query.own >= 0,
            "hits": [{k: v for k, v in asdict(hit).items() if k != "row"} for hit in self.hits],
        }


def catalogue_queries(
    gallery: Gallery, ids: Sequence[str] = (), products: Sequence[str] = ()
) -> Iterator[Query]:
    """Yield queries for images and products of the catalogue.

    Raises
    ------
    UsageError
        If one is not in the catalogue, or has no embedding.
    """
    catalog = gallery.context.catalog
    for kind, names, column, what in (
        (ID, ids, gallery.ids, catalog.image_ids),
        (PRODUCT, products, gallery.products[gallery.product], catalog.group),
    ):
        for name in names:
            places = np.flatnonzero(column == name)
            if not len(places):
                raise UsageError(_unknown(gallery, kind, name, what))
            embeddings = gallery.source.load(gallery.ids[places]).X
            hashes = frozenset(gallery.sha256[place] for place in places.tolist())
            read = partial(catalog.images.read, int(gallery.rows[places[0]]))
            own = int(gallery.product[places[0]])
            tags = (catalog.table.labels[gallery.rows[places]] == POSITIVE).any(axis=0)
            yield Query(kind, name, embeddings, own, hashes - {""}, tags, read)


def _unknown(gallery: Gallery, kind: str, name: str, column: NDArray[np.str_]) -> str:
    """Sentence for an image or product that cannot be searched for."""
    catalog = gallery.context.catalog
    what = "image" if kind == ID else kind
    if (column == name).any():
        rows = np.flatnonzero(column == name)
        absent = gallery.source.load(catalog.image_ids[rows]).absent
        return (
            f"--{kind} {name}: this {what} of {catalog.path} has no embedding "
            f"({next(iter(absent.values()))}); name another."
        )
    near = difflib.get_close_matches(name, np.unique(column).tolist(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "name one that is in it."
    return f"--{kind} {name} is no {what} of {catalog.path}; {hint}"


def image_queries(
    gallery: Gallery, pictures: Pictures, loading: Loading
) -> tuple[list[Query], list[str]]:
    """Queries for images from anywhere, and sentences on those that cannot be read.

    They are embedded by the backbone and the arithmetic of the store.

    Raises
    ------
    UsageError
        If the embeddings are imported, so that there is no backbone.
    Unavailable
        If the store's engine of reduced precision cannot run here.
    DataError
        If none of the images can be read.
    """
    spec = gallery.source.spec
    engines = [one.engine for one in getattr(spec, "components", (spec,))]
    if len(engines) != len(gallery.models):
        raise UsageError(
            f"The embeddings of {spec.backbone} were imported, and their model is not known here; "
            "search by --id or --product."
        )
    forwards = tuple(
        Forward(same_arithmetic(model, EngineName.parse(engine)), loading.batch_size)
        for model, engine in zip(gallery.models, engines, strict=True)
    )
    requests = [BlockRequest(pictures.rows, forwards)]
    ((*blocks,),) = embed_blocks(pictures.images, requests, loading)
    first = blocks[0][1]
    reasons = [f"{pictures.names[f.row]} is left out: {f.reason}." for f in first.failures]
    if not len(first.rows):
        raise DataError(f"No image to search for can be read: {named(reasons)}")
    embeddings = np.hstack([block.embeddings for _, block in blocks])
    queries = [
        Query(
            IMAGE,
            str(pictures.names[row]),
            embeddings[place : place + 1],
            sha256=frozenset({first.sha256[place]}),
            read=partial(pictures.images.read, row),
        )
        for place, row in enumerate(first.rows.tolist())
    ]
    return queries, reasons


def text_queries(gallery: Gallery, texts: Sequence[str]) -> list[Query]:
    """Queries for texts, embedded as the names of tags are.

    Raises
    ------
    UsageError
        If a text is empty, or the backbone embeds no texts among its images.
    """
    if not texts:
        return []
    backbone = gallery.source.spec.backbone
    for text in texts:
        if not text.strip():
            raise UsageError('--text is empty; give a description, such as --text "red dress".')
    if len(gallery.widths) > 1 or not gallery.models:
        raise UsageError(
            f"{backbone} is no single image-text model, which --text needs; use one such as clip."
        )
    (model,) = gallery.models
    found = text_embeddings(texts, lambda asked: model.encode_text(asked).cpu().numpy())
    if found.shape[1] != model.dim:
        raise UsageError(
            f"{backbone} embeds texts elsewhere than images, as it has no joint projection; use "
            "another image-text model for --text."
        )
    return [Query(TEXT, text, found[i : i + 1]) for i, text in enumerate(texts)]


@dataclass(frozen=True, eq=False)
class Asked:
    """What a user searches for, to be embedded for any gallery of the catalogue."""

    pictures: Pictures | None  # images from anywhere
    loading: Loading
    ids: Sequence[str]
    products: Sequence[str]
    texts: Sequence[str]

    def queries(self, gallery: Gallery) -> tuple[list[Query], list[str]]:
        """Queries in the order of the kinds above, and sentences on what is left out.

        Raises as `image_queries`, `catalogue_queries` and `text_queries` do.
        """
        found: list[Query] = []
        notes = gallery.notes
        if self.pictures is not None:
            found, unreadable = image_queries(gallery, self.pictures, self.loading)
            notes += [*self.pictures.notes, *unreadable]
        found += catalogue_queries(gallery, self.ids, self.products)
        return [*found, *text_queries(gallery, self.texts)], notes


def search(gallery: Gallery, queries: Sequence[Query], top: int) -> list[Found]:
    """The `top` products most alike to each query, each by its image that is most alike.

    The product of a query from the catalogue is left out.
    """
    found: dict[Query, Found] = {}
    for centred in (True, False):
        own = [query for query in queries if (query.kind != TEXT) == centred]
        if not own:
            continue
        space, keys = gallery.keys(centred=centred)
        asked = np.stack([query.direction(space) for query in own])
        left_out = np.array([query.own for query in own])
        hits = nearest_products(keys, asked, gallery.product, left_out, top, gallery.context.device)
        for query, (index, similarity) in zip(own, hits, strict=True):
            found[query] = Found(query, tuple(_hits(gallery, query, index, similarity)))
    return [found[query] for query in queries]


def nearest_products(
    keys: Vectors,
    asked: Vectors,
    product: NDArray[np.intp],
    left_out: NDArray[np.intp],
    top: int,
    device: str = "cpu",
) -> list[tuple[NDArray[np.int64], Vectors]]:
    """For each query the image most alike of each of the `top` nearest products, best first.

    Parameters
    ----------
    keys, asked : ndarray of float32, shape (n_images, dim) and (n_queries, dim)
        Of unit length.
    product : ndarray of int, shape (n_images,)
    left_out : ndarray of int, shape (n_queries,)
        Product that does not count for a query; -1: all count.

    Returns
    -------
    list of (ndarray of int64, ndarray of float32)
        Images and their similarities for each query; fewer than `top` if there are fewer products.
        Of equally similar images the first one comes first.
    """
    found: dict[int, tuple[NDArray[np.int64], Vectors]] = {}
    waiting = np.arange(len(asked))
    k = top + FIRST_LOOK
    while len(waiting):
        blocks = (asked[waiting[rows]] for rows in row_blocks(len(waiting)))
        index, similarity = nearest(keys, blocks, k, device)
        for query, images, values in zip(waiting.tolist(), index, similarity, strict=True):
            order = np.lexsort((images, -values))
            order = order[product[images[order]] != left_out[query]]
            _, first = np.unique(product[images[order]], return_index=True)
            order = order[np.sort(first)[:top]]
            found[query] = images[order], values[order]
        waiting = waiting[[len(found[query][0]) < top for query in waiting.tolist()]]
        if k >= len(keys):
            break
        k *= 4  # products of many photographs took the places
    return [found[query] for query in range(len(asked))]


def _hits(
    gallery: Gallery, query: Query, index: NDArray[np.int64], similarity: Vectors
) -> Iterable[Hit]:
    catalog, table = gallery.context.catalog, gallery.context.catalog.table
    for rank, (place, value) in enumerate(
        zip(index.tolist(), similarity.tolist(), strict=True), start=1
    ):
        row, product = int(gallery.rows[place]), int(gallery.product[place])
        tags = np.flatnonzero(table.labels[row] == POSITIVE)
        yield Hit(
            rank=rank,
            similarity=value,
            product=str(gallery.products[product]),
            image_id=str(catalog.image_ids[row]),
            path=catalog.images.name(row),
            title=str(catalog.title[row]),
            tags=tuple(table.tags[tag] for tag in tags.tolist()),
            n_images=int(gallery.n_images[product]),
            same_file=gallery.sha256[place] in query.sha256,
            reranked=None,
            row=row,
        )
