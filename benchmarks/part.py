"""Write the manifest of a part of the training images, whole products, with all other splits whole.

python benchmarks/part.py catalogue.csv --train 12000 --out part12000.csv

The part lies beside the manifest, since its paths are relative to it.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from peer_catalogue import draw

from retailtag.catalog.readers import read_catalog
from retailtag.files import write_text


def part(manifest: Path, train: int) -> str:
    """CSV of the manifest's rows, less the training images that are not drawn; same columns."""
    catalog = read_catalog(manifest)
    drawn = {catalog.image_ids[row] for row in draw(catalog, "train", train)}
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        rows = [row for row in reader if row["split"] != "train" or row["image_id"] in drawn]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> None:
    """Read the options and write the part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path, help="CSV with the columns image_id and split")
    parser.add_argument("--train", type=int, required=True, help="training images to keep")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, beside the manifest")
    args = parser.parse_args()
    if args.out.resolve().parent != args.manifest.resolve().parent:
        parser.error(f"--out must lie in {args.manifest.parent}: paths are relative to it.")
    write_text(args.out, part(args.manifest, args.train))


if __name__ == "__main__":
    main()
