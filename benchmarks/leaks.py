"""What a split without products does to the scores, and what `split --group-by similar` gives back.

    python benchmarks/leaks.py [--catalogue CSV] [--features FOLDER] [--images 4000] [--seeds 3]
        [--synthetic 80000] [--dim 768] [--quick] [--dry]

The catalogue is the demo's, drawn for this run, or one given by `--catalogue` whose column
``group`` (or `--group-column`) is the truth. The column is then removed and the catalogue split at
a fifth by every way: ``random`` (each image is a product), ``similar-thumbnails`` and
``similar-embeddings`` (`split --group-by similar` without and with `--features`), and ``groups``
(the truth). On each split a probe of demo:cnn is fitted, with folds by the same products, and
scored: `macro_f1` and `tail_f1` are means over the seeds. `f1_with` and `f1_without` are what the
finding ``similar-images`` says of test images with and without a similar training image,
`similar_share` how many have one. Pairs are of images: `false_pairs` were put together though
their products differ, `missed_pairs` are of one product and were not. `seconds` and `peak_mib` are
those of the clustering, beyond decoding.

Way ``synthetic`` clusters embeddings drawn from a seed (photographs of products of 1 to 9 images)
for time and memory alone. Appends to ``results/leaks.csv``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import append, stamp

from retailtag.backbones import load_backbone
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.products import joined
from retailtag.catalog.readers import read_catalog
from retailtag.catalog.similar import Look, SimilarImages, similar_images
from retailtag.catalog.split import split
from retailtag.catalog.thumbnails import read_thumbnails
from retailtag.context import RunContext
from retailtag.demo.drawing import write_demo_catalogue
from retailtag.extraction.extract import extract
from retailtag.runs.measure import measured
from retailtag.runs.probe import run_probe
from retailtag.scoring.score import score_predictions
from retailtag.settings import ComputeSettings, ExtractSettings, ProbeSettings
from retailtag.store import FeatureStore

BACKBONE = "demo:cnn"
# A short grid and one head: the ways are compared with each other, not with other figures.
PROBE = ProbeSettings(sweep_C="1e-2:1e-1:2", heads="logistic", folds=3)
COLUMNS = (
    *("catalogue", "images", "products", "way", "macro_f1", "tail_f1", "similar_share"),
    *("f1_with", "f1_without", "by_tags", "clusters", "largest"),
    *("true_pairs", "false_pairs", "missed_pairs", "seconds", "peak_mib"),
)


def some_images(catalog: Catalog, n: int) -> Catalog:
    """Whole products, chosen by a seed, of about `n` images; all if there are no more."""
    names, code = np.unique(catalog.group, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    sizes = np.bincount(code)[order]
    chosen = order[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
    rows = np.flatnonzero(np.isin(code, chosen))
    images = catalog.images
    if len(rows) == len(catalog):
        return catalog
    folder = Path(tempfile.mkdtemp(dir=tempfile.gettempdir()))
    lines = ["image_id,path,tags,group"]
    for row in rows.tolist():
        path = folder / f"{row:06d}{Path(images.paths[row]).suffix}"
        path.write_bytes(images.read(row))
        tags = "|".join(np.array(catalog.table.tags)[catalog.table.labels[row] == 1]) or "-"
        tags = '"' + tags.replace('"', '""') + '"'
        lines.append(f"{row:06d},{path.name},{tags},{catalog.group[row]}")
    (folder / "catalogue.csv").write_text("\n".join(lines), encoding="utf-8")
    return read_catalog(folder / "catalogue.csv")


def pairs_of(cluster: NDArray[np.int64], product: NDArray[np.int64]) -> dict[str, int]:
    """Pairs of one product, and pairs that a clustering has too much and too little."""

    def count(*codes: NDArray[np.int64]) -> int:
        n = np.unique(np.stack(codes), axis=1, return_counts=True)[1]
        return int((n * (n - 1) // 2).sum())

    right = count(cluster, product)
    return {
        "true_pairs": count(product),
        "false_pairs": count(cluster) - right,
        "missed_pairs": count(product) - right,
    }


def cluster(look: Look, labels: NDArray[np.int8]) -> tuple[SimilarImages, dict[str, Any]]:
    """The clusters, and their facts and costs."""
    with measured("cpu") as cost:
        found = similar_images(look, labels)
    members = found.members
    return found, {
        "by_tags": found.by_tags,
        "clusters": len(members),
        "largest": len(members[0]) if members else 1,
        "seconds": round(cost.seconds, 2),
        "peak_mib": round(cost.peak_memory_mib),
    }


def scores(catalog: Catalog, store: FeatureStore, seeds: Sequence[int]) -> dict[str, Any]:
    """Scores of a probe on splits of a catalogue by its products: means over the seeds."""
    if not seeds:
        return {}
    found: list[tuple[float, ...]] = []
    for seed in seeds:
        divided = split(catalog, test=0.2, seed=seed).catalog
        with tempfile.TemporaryDirectory() as folder:
            run = run_probe(RunContext(divided), store, Path(folder), PROBE)
        card = score_predictions(run.predictions, divided, allow_missing=True)
        similar = run.predictions.provenance["similar"]
        test = divided.image_ids[divided.rows("test")].tolist()
        share = sum(i in similar for i in test) / len(test)
        pair = next((f for f in card.findings if f.code == "similar-images"), None)
        words = pair.sentence.partition("macro-F1 is ")[2].split() if pair else []
        apart = (float(words[0]) / 100, float(words[4]) / 100) if words else (np.nan, np.nan)
        summary = card.summaries
        found.append((summary["all"].macro_f1, summary["tail"].macro_f1, share, *apart))
    names = ("macro_f1", "tail_f1", "similar_share", "f1_with", "f1_without")
    means = [np.nanmean(x) if np.isfinite(x).any() else None for x in zip(*found, strict=True)]
    return {n: None if m is None else round(float(m), 4) for n, m in zip(names, means, strict=True)}


def ways(truth: Catalog, store: FeatureStore, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row per way of splitting."""
    product = np.unique(truth.group, return_inverse=True)[1]
    blind = replace(truth, group=truth.image_ids)
    view = store.load(truth.image_ids)
    looks = {
        "similar-thumbnails": Look.of_thumbnails(*read_thumbnails(truth)),
        "similar-embeddings": Look.of_embeddings(view.X, view.found),
    }
    rows = [{"way": "random", **scores(blind, store, seeds)}]
    for way, look in looks.items():
        found, facts = cluster(look, truth.table.labels)
        facts |= pairs_of(found.cluster, product)
        grouped = replace(blind, group=joined(blind.group, found.cluster))
        rows.append({"way": way, **facts, **scores(grouped, store, seeds)})
    rows.append({"way": "groups", **scores(truth, store, seeds)})
    for row in rows:
        row |= {"images": len(truth), "products": int(product.max()) + 1}
    return rows


def synthetic(n: int, dim: int) -> dict[str, Any]:
    """Clustering of `n` embeddings of length `dim`."""
    rng = np.random.default_rng(0)
    product = np.repeat(np.arange(n), rng.integers(1, 10, n))[:n]
    n_products = int(product.max()) + 1
    centre = rng.standard_normal((n_products, dim), np.float32)
    X = centre[product] + rng.standard_normal((n, dim), np.float32)
    # Tags of a product are chosen as in a shop: some frequent ones, a few rare ones.
    rate = np.clip(0.5 / np.arange(1, 251) ** 0.7, 0, 0.5)
    labels = (rng.random((n_products, 250)) < rate).astype(np.int8)[product]
    with measured("cpu") as cost:
        look = Look.of_embeddings(X, np.ones(n, bool))
    found, facts = cluster(look, labels)
    facts["seconds"] = round(facts["seconds"] + cost.seconds, 2)
    facts |= pairs_of(found.cluster, product)
    return {"way": "synthetic", "images": n, "products": n_products, **facts}


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Rows of one catalogue and of synthetic embeddings."""
    seeds = range(args.seeds)
    if args.catalogue is None:
        write_demo_catalogue(folder / "demo", n_images=args.images, seed=0)
        truth = read_catalog(folder / "demo")
    else:
        truth = read_catalog(args.catalogue, group_column=args.group_column or "")
        truth = some_images(truth, args.images)
    compute = ComputeSettings(device="cpu", features=args.features or folder / "features")
    settings = ExtractSettings(engine="eager")
    context = RunContext(truth, compute=compute)
    store = extract(context, load_backbone(BACKBONE), settings).store
    name = "demo" if args.catalogue is None else truth.path.name
    rows = [{"catalogue": args.name or name, **row} for row in ways(truth, store, seeds)]
    if args.synthetic:
        rows.append({"catalogue": "synthetic", **synthetic(args.synthetic, args.dim)})
    return [{column: row.get(column) for column in COLUMNS} for row in rows]


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--catalogue", type=Path, help="with products in its column group")
    parser.add_argument("--group-column", help="another name of that column")
    parser.add_argument("--features", type=Path, help="folder of stores to reuse")
    parser.add_argument("--name", help="of the catalogue in the table")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument(
        "--seeds", type=int, default=3, help="splits to average over; 0: clusters only"
    )
    parser.add_argument("--synthetic", type=int, default=80_000, help="embeddings; 0: none")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--quick", action="store_true", help="toy size; record nothing")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    args = parser.parse_args()
    if args.quick:
        args.images, args.seeds, args.synthetic, args.dim = 300, 1, 3000, 64
    facts = stamp()
    with tempfile.TemporaryDirectory() as folder:
        rows = [{**facts, **row} for row in measure(args, Path(folder))]
    for row in rows:
        print(", ".join(f"{k} {row[k]}" for k in COLUMNS if row[k] is not None))
    if not (args.dry or args.quick):
        append("leaks.csv", rows)


if __name__ == "__main__":
    main()
