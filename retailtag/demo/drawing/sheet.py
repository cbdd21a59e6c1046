"""A contact sheet of a demo catalogue."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

_GAP = 4


def contact_sheet(out: Path, columns: int = 12, rows: int = 6) -> Image.Image:
    """Arrange one photograph of each of the first products in a grid.

    Parameters
    ----------
    out : Path
        Folder that `retailtag.demo.drawing.write_demo_catalogue` wrote.
    columns, rows : int
        Products across and down.

    Returns
    -------
    PIL image, RGB
        96 x 128 pixels to a product and 4 between them; empty places stay white.
    """
    paths = _one_of_each(Path(out), columns * rows)
    sheet = Image.new("RGB", (columns * (96 + _GAP) + _GAP, rows * (128 + _GAP) + _GAP), "white")
    for place, path in enumerate(paths):
        row, column = divmod(place, columns)
        with Image.open(path) as picture:
            sheet.paste(picture, (_GAP + column * (96 + _GAP), _GAP + row * (128 + _GAP)))
    return sheet


def _one_of_each(out: Path, wanted: int) -> list[Path]:
    """The first photograph of each of the first products."""
    firsts: dict[str, Path] = {}
    with (out / "catalogue.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            firsts.setdefault(row["group"], out / row["path"])
    return list(firsts.values())[:wanted]
