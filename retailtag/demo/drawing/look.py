"""What the drawing engine needs to know about a product, free of any labelling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retailtag.demo.drawing.words import RGB


@dataclass(frozen=True)
class Look:
    """How one product looks.

    Parameters
    ----------
    family : str
        Silhouette that draws it, a key of `retailtag.demo.drawing.garments.FAMILIES`.
    shape : mapping of str to float
        Numbers for that silhouette, in 96 x 128 picture units.
    colours : tuple of three RGB triples
        Base, accent and third colour, 0-255.
    pattern, material, neck, sleeve : str
        Values of the taxonomy; empty neck or sleeve for an article that has none.
    scale : float
        Period of the pattern, in picture units.
    mark : int
        Which brand's mark is printed on it; -1 for none.
    details : tuple of str
        Values of the facet ``detail``.
    """

    family: str
    shape: Mapping[str, float]
    colours: tuple[RGB, RGB, RGB]
    pattern: str
    material: str
    neck: str
    sleeve: str
    scale: float
    mark: int
    details: tuple[str, ...]
