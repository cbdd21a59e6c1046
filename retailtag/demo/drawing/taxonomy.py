"""The demo's 250 tags and what goes with what.

Each facet lists its values from the most to the least frequent; `zipf` turns the order
into probabilities. Articles carry what they allow (necks, sleeves, materials, details)
and what they favour (genders, usages, seasons), from which the correlations between tags
come.
"""

from __future__ import annotations

import numpy as np

from retailtag.demo.drawing.articles import ARTICLES
from retailtag.demo.drawing.words import (
    BRANDS,
    COLOURS,
    DETAILS,
    GENDERS,
    MASTERS,
    MATERIALS,
    NECKS,
    PATTERNS,
    SEASONS,
    SLEEVES,
    USAGES,
)

ARTICLE = {article.name: article for article in ARTICLES}

FACETS: dict[str, tuple[str, ...]] = {
    "master": MASTERS,
    "article": tuple(article.name for article in ARTICLES),
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "material": MATERIALS,
    "neck": NECKS,
    "sleeve": SLEEVES,
    "brand": BRANDS,
    "gender": GENDERS,
    "season": SEASONS,
    "usage": USAGES,
    "detail": DETAILS,
}

TAGS: tuple[str, ...] = tuple(
    f"{facet}:{value}" for facet, values in FACETS.items() for value in values
)

# Exponent and offset of each facet's frequencies (see `zipf`): with these, about a third of
# the tags have fewer than 50 training images at 40,000 images.
LAWS = {
    "article": (3.2, 4.0),
    "colour": (3.4, 3.5),
    "pattern": (3.0, 1.5),
    "brand": (3.3, 2.5),
    "material": (1.8, 0.0),
    "neck": (1.5, 0.0),
    "sleeve": (1.2, 0.0),
    "detail": (1.8, 0.0),
}


def zipf(n: int, exponent: float, offset: float = 0.0) -> np.ndarray:
    """Probabilities falling as ``(rank + offset) ** -exponent``: the law of Zipf and Mandelbrot.

    Parameters
    ----------
    n : int
        How many values, at least 1.
    exponent : float
        0 is uniform; larger has a thinner tail.
    offset : float
        0 or more; larger has a flatter head.

    Returns
    -------
    ndarray of float64, shape (n,)
        Sums to 1, in falling order.
    """
    weight = (np.arange(1, n + 1, dtype=np.float64) + offset) ** -exponent
    return weight / weight.sum()
