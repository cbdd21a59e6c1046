"""Products and their tags, sampled without drawing anything.

Every product comes from its own generator, ``default_rng([seed, index])``, so that a
product is the same whoever samples it, in whatever order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from retailtag.demo.drawing.articles import ARTICLES, Article
from retailtag.demo.drawing.look import Look
from retailtag.demo.drawing.taxonomy import ARTICLE, FACETS, LAWS, TAGS, zipf
from retailtag.demo.drawing.words import BRANDS, COLOURS, DETAILS, PATTERNS, RGB

NOISE_DROP = 0.02
NOISE_SWAP = 0.012
# Every third product shows a tag that chance alone would seldom show, until each of
# these has had three of them; the natural products around them keep the Zipf shape.
COVER_EVERY = 3
COVER_TIMES = 3
_ROUNDS = ("article", "pattern", "brand", "colour", "neck", "sleeve", "material", "detail")
_CHILDREN = ("Girls", "Boys")


@dataclass(frozen=True)
class Product:
    """One product: its look, the tags a merchandiser gave it, and its title.

    Parameters
    ----------
    index : int
        Position in the world; with the seed it determines everything else.
    look : Look
        What is drawn.
    tags : tuple of str
        ``facet:value``, noise included, in the taxonomy's order.
    title : str
        Text shown in the shop.
    n_photos : int
        How many photographs the shop has of it, 2 to 9.
    """

    index: int
    look: Look
    tags: tuple[str, ...]
    title: str
    n_photos: int


@dataclass(frozen=True)
class _Draft:
    """True facet values of a product while it is sampled; empty for facets that it lacks."""

    values: dict[str, str]
    second_colour: str
    details: list[str]


def sample_product(seed: int, index: int) -> Product:
    """Sample one product, independently of every other.

    Parameters
    ----------
    seed : int
        Seed of the world, 0 or more.
    index : int
        Which product, from 0.

    Returns
    -------
    Product
        The same for the same pair, on any machine and in any process.
    """
    rng = np.random.default_rng([seed, index])
    draft = _sample_values(rng, _covered(index))
    look = _sample_look(rng, draft)
    tags = _noisy_tags(rng, draft)
    return Product(index, look, tags, _title(rng, draft), int(2 + rng.binomial(7, 0.43)))


def sample_products(seed: int, n_images: int) -> list[Product]:
    """Enough products for `n_images` photographs.

    Parameters
    ----------
    seed : int
        Seed of the world.
    n_images : int
        Photographs wanted, at least 1.

    Returns
    -------
    list of Product
        Their ``n_photos`` sum to `n_images` exactly: the last product may lose some.
    """
    products: list[Product] = []
    left = n_images
    while left > 0:
        product = sample_product(seed, len(products))
        kept = min(product.n_photos, left)
        products.append(replace(product, n_photos=kept))
        left -= kept
    return products


def split_products(products: Sequence[Product], seed: int, n_test: int) -> np.ndarray:
    """Choose the products held out, so that a tag with two products has both sides.

    Parameters
    ----------
    products : sequence of Product
        All the products.
    seed : int
        Seed of the world.
    n_test : int
        Photographs wanted in the test split.

    Returns
    -------
    ndarray of bool, shape (n_products,)
        True for test. The photographs held out reach `n_test` within one product.

    Notes
    -----
    The rarest tags choose first: each takes one of its products into the test split as
    long as no tag loses its last training product. Chance fills the rest.
    """
    owners: dict[str, list[int]] = {}
    for row, product in enumerate(products):
        for tag in product.tags:
            owners.setdefault(tag, []).append(row)
    in_train = {tag: len(rows) for tag, rows in owners.items()}
    order = np.random.default_rng([seed, 1, 2**20]).permutation(len(products))
    rank = np.argsort(order)
    test = np.zeros(len(products), dtype=bool)
    left = n_test

    def hold_out(row: int) -> None:
        """Move a product to the test split if every tag of it stays in training."""
        nonlocal left
        if left > 0 and not test[row] and all(in_train[tag] > 1 for tag in products[row].tags):
            test[row] = True
            left -= products[row].n_photos
            for tag in products[row].tags:
                in_train[tag] -= 1

    for tag in sorted(owners, key=lambda tag: (len(owners[tag]), tag)):
        for row in sorted(owners[tag], key=rank.__getitem__):
            if test[owners[tag]].any():
                break
            hold_out(row)
    for row in order:
        hold_out(int(row))
    return test


def _covered(index: int) -> tuple[str, str] | None:
    """The (facet, value) that product `index` must show, or None."""
    turn, rest = divmod(index, COVER_EVERY)
    if rest != COVER_EVERY - 1 or turn >= COVER_TIMES * len(_RARE):
        return None
    return _RARE[turn % len(_RARE)]


def _pick(
    rng: np.random.Generator, values: Sequence[str], exponent: float, offset: float = 0.0
) -> str:
    """One of `values`, by their rank (see `retailtag.demo.drawing.taxonomy.zipf`)."""
    edges = _edges(len(values), exponent, offset)
    return values[min(int(np.searchsorted(edges, rng.random())), len(values) - 1)]


@lru_cache(maxsize=256)
def _edges(n: int, exponent: float, offset: float) -> np.ndarray:
    return np.cumsum(zipf(n, exponent, offset))


def _articles_with(facet: str, value: str) -> list[Article]:
    """Articles that can show the value; all of them if any article can show the facet."""
    field = {"neck": "necks", "sleeve": "sleeves", "material": "materials", "detail": "details"}
    if facet == "article":
        return [ARTICLE[value]]
    if facet not in field:
        return list(ARTICLES)
    return [article for article in ARTICLES if value in getattr(article, field[facet])]


def _sample_values(rng: np.random.Generator, cover: tuple[str, str] | None) -> _Draft:
    """Facet values, sampled from the article on, so that they fit together."""
    names = [a.name for a in (_articles_with(*cover) if cover else ARTICLES)]
    article = ARTICLE[_pick(rng, names, *LAWS["article"])]
    values = {
        "master": article.master,
        "article": article.name,
        "gender": _pick(rng, article.genders, 1.1),
        "season": _pick(rng, article.seasons, 0.6),
        "material": _pick(rng, article.materials, *LAWS["material"]),
        "neck": _pick(rng, article.necks, *LAWS["neck"]) if article.necks else "",
        "sleeve": _pick(rng, article.sleeves, *LAWS["sleeve"]) if article.sleeves else "",
        "pattern": _sample_pattern(rng, article),
        "brand": _pick(rng, BRANDS, *LAWS["brand"]) if rng.random() < 0.6 else "",
    }
    values["colour"] = _sample_colour(rng, values)
    forced = dict([cover]) if cover else {}
    forced_detail = forced.pop("detail", "")
    values |= forced
    _reconcile(values)
    values["usage"] = _pick(rng, article.usages, 0.9)
    details = _sample_details(rng, article)
    plain = values["pattern"] == "Plain"
    second = "" if plain else _sample_colour(rng, values | {"material": ""})
    return _Draft(values, second, [forced_detail] if forced_detail else details)


def _reconcile(values: dict[str, str]) -> None:
    """Replace combinations that no shop sells."""
    if values["neck"] in ("Halter", "Off Shoulder", "Sweetheart") and values["gender"] != "Girls":
        values["gender"] = "Women"
    if values["neck"] == "Halter" and values["sleeve"]:
        values["sleeve"] = "Sleeveless"


def _sample_pattern(rng: np.random.Generator, article: Article) -> str:
    """Footwear, bags and small things are mostly plain."""
    printed = 0.75 if article.master in ("Tops", "Dresses") else 0.35
    if article.name in ("Scarf", "Tie", "Socks", "Shirt", "Mini Skirt", "Umbrella"):
        printed = 0.9
    if article.materials == ("Metal",) or rng.random() > printed:
        return "Plain"
    return _pick(rng, PATTERNS, *LAWS["pattern"])


_USUAL = {
    "Denim": ("Blue", "Light Blue", "Navy", "Black", "White"),
    "Metal": ("Silver", "Gold", "Black"),
    "Straw": ("Beige", "Tan", "Cream"),
    "Leather": ("Black", "Brown", "Tan", "White", "Burgundy"),
    "Suede": ("Brown", "Tan", "Beige", "Grey"),
    "Tweed": ("Grey", "Brown", "Charcoal"),
}


def _sample_colour(rng: np.random.Generator, values: dict[str, str]) -> str:
    """The material decides in most cases; girls' articles are lighter."""
    usual = _USUAL.get(values["material"])
    if usual and rng.random() < 0.85:
        return _pick(rng, usual, 0.9)
    if values["gender"] == "Girls" and rng.random() < 0.4:
        return _pick(rng, ("Pink", "White", "Lavender", "Yellow", "Mint", "Coral"), 0.7)
    return _pick(rng, tuple(COLOURS), *LAWS["colour"])


def _sample_details(rng: np.random.Generator, article: Article) -> list[str]:
    """None, one or two of those the article allows, frequent ones first."""
    if not article.details:
        return []
    n_details = int(rng.choice(3, p=[0.5, 0.38, 0.12]))
    ranked = sorted(article.details, key=DETAILS.index)
    chosen = {_pick(rng, ranked, *LAWS["detail"]) for _ in range(n_details)}
    return sorted(chosen, key=DETAILS.index)


def _sample_look(rng: np.random.Generator, draft: _Draft) -> Look:
    """Measures for the drawing: the article's own, varied by gender and at random."""
    values = draft.values
    article = ARTICLE[values["article"]]
    shape = {key: value * rng.normal(1, 0.04) for key, value in article.shape.items()}
    shape["size"] = rng.normal(1.16, 0.03) * (0.86 if values["gender"] in _CHILDREN else 1.0)
    shape["build"] = {"Men": 1.1, "Boys": 1.1, "Women": 0.94}.get(values["gender"], 1.0)
    shown = values["brand"] and rng.random() < 0.92
    return Look(
        family=article.family,
        shape=shape,
        colours=_palette(rng, draft),
        pattern=values["pattern"],
        material=values["material"],
        neck=values["neck"],
        sleeve=values["sleeve"],
        scale=float(rng.uniform(7, 13)),
        mark=BRANDS.index(values["brand"]) if shown else -1,
        details=tuple(draft.details),
    )


def _palette(rng: np.random.Generator, draft: _Draft) -> tuple[RGB, RGB, RGB]:
    """Base, accent, third: dyed a little off, the accent kept apart from the base."""
    base = _dye(rng, COLOURS[draft.values["colour"]])
    spare = _pick(rng, tuple(COLOURS), 1.2)
    accent = _dye(rng, COLOURS[draft.second_colour or spare])
    if np.abs(np.subtract(base, accent)).sum() < 110:
        accent = (238, 236, 230) if sum(base) < 380 else (38, 40, 52)
    third = _dye(rng, COLOURS[_pick(rng, tuple(COLOURS), 0.8)])
    return base, accent, third


def _dye(rng: np.random.Generator, colour: RGB) -> RGB:
    red, green, blue = np.clip(rng.normal(colour, 7), 0, 255).astype(int)
    return int(red), int(green), int(blue)


def _true_tags(rng: np.random.Generator, draft: _Draft) -> list[str]:
    """The tags of a careful merchandiser, who names a second colour half of the time."""
    found = [f"{facet}:{value}" for facet, value in draft.values.items() if value]
    found += [f"detail:{detail}" for detail in draft.details]
    if draft.second_colour and rng.random() < 0.5:
        found.append(f"colour:{draft.second_colour}")
    return found


def _noisy_tags(rng: np.random.Generator, draft: _Draft) -> tuple[str, ...]:
    """Tags as given: a few forgotten, a few confused with another value of their facet."""
    kept = set()
    for tag in _true_tags(rng, draft):
        facet = tag.partition(":")[0]
        chance = rng.random()
        if chance < NOISE_SWAP and facet not in ("master", "article"):
            kept.add(f"{facet}:{_pick(rng, FACETS[facet], 2.5)}")
        elif chance < NOISE_SWAP or chance > NOISE_DROP + NOISE_SWAP:
            kept.add(tag)
    return tuple(sorted(kept, key=_TAG_ORDER.__getitem__))


def _title(rng: np.random.Generator, draft: _Draft) -> str:
    """Shop title: some of the values, in the usual order of English."""
    values = draft.values
    possessive = {"Women": "Women's", "Men": "Men's", "Girls": "Girls'", "Boys": "Boys'"}
    pattern = "" if values["pattern"] == "Plain" else values["pattern"]
    optional = [
        possessive.get(values["gender"], ""),
        values["colour"],
        pattern,
        values["material"],
        f"{values['neck']} Neck".replace("Neck Neck", "Neck") if values["neck"] else "",
        f"{values['sleeve']} Sleeve" if values["sleeve"] else "",
    ]
    words = [word for word in optional if word and rng.random() < 0.7]
    named = [values["brand"], *words, values["article"]]
    if draft.details and rng.random() < 0.5:
        named.append(f"with {draft.details[0]}")
    return " ".join(word for word in named if word)


def _rare_values() -> list[tuple[str, str]]:
    """Values that chance alone would show in fewer than about one product in 200."""
    keep_first = {"article": 24, "pattern": 6, "brand": 6, "colour": 14, "neck": 5}
    keep_first |= {"sleeve": 3, "material": 8, "detail": 4}
    return [(facet, value) for facet in _ROUNDS for value in FACETS[facet][keep_first[facet] :]]


_RARE = _rare_values()
_TAG_ORDER = {tag: column for column, tag in enumerate(TAGS)}
