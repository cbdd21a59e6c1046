"""Images that were found to show one product, on one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.report.gallery import data_uri
from retailtag.report.templates import environment

N_CLUSTERS = 60  # on the page: the largest half, and an even choice of the others
N_IMAGES = 12  # of one cluster
SIDE = 112  # pixels


def contact_sheet(catalog: Catalog, clusters: Sequence[NDArray[np.intp]], title: str) -> str:
    """HTML of the clusters, each an array of image numbers, the largest cluster first."""
    shown = [*clusters[: N_CLUSTERS // 2]]
    others = clusters[N_CLUSTERS // 2 :]
    shown += [*others[:: max(-(-len(others) // (N_CLUSTERS // 2)), 1)]]
    template = environment().get_template("contact_sheet.html.jinja")
    return template.render(
        title=title,
        n_clusters=len(clusters),
        clusters=[
            {
                "name": str(catalog.group[rows[0]]),
                "n": len(rows),
                "images": [_image(catalog, row) for row in rows[:N_IMAGES].tolist()],
            }
            for rows in shown
        ],
    )


def _image(catalog: Catalog, row: int) -> dict[str, Any]:
    """Name and picture of an image; an empty picture if it cannot be read."""
    name = {"id": str(catalog.image_ids[row]), "split": str(catalog.split[row])}
    return {**name, "source": data_uri(catalog.images, row, SIDE)}
