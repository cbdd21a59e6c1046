"""Whether an exported tagger, alone, gives the tags that its run was scored with.

    python benchmarks/agreement.py RUN CATALOGUE [--pair NAME] [--limit N] [--dry]

The recommended pair of a bake-off (or a fitted pair) is exported. The export alone then tags the
test images twice, in processes that start in an empty folder with neither the catalogue nor the
feature stores: by ``retailtag predict`` and by ``retailtag serve``, ten images a request.
CATALOGUE, the one that the run was made from, names their files here. A row of
``results/agreement.csv`` counts the images whose tags equal those of ``predictions.npz`` to the
last one, and the tags that differ. Attributes with one value are left independent, as they are
scored.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from record import append, stamp
from serve import start

import retailtag as rt
from retailtag.outcomes import recommended_folder
from retailtag.predictions import Predictions

AT_ONCE = 10  # images of a request
BOUNDARY = "retailtag-agreement"

Tags = dict[str, set[str]]


def expected(folder: Path) -> Tags:
    """Tags of each predicted image as the run scored them."""
    predictions = Predictions.load(folder / "predictions.npz")
    given = predictions.logits >= predictions.thresholds
    tags = [{tag for tag, has in zip(predictions.tags, row, strict=True) if has} for row in given]
    return dict(zip(predictions.image_ids.tolist(), tags, strict=True))


def predicted(export: Path, paths: Sequence[Path], place: Path) -> Tags:
    """Tags by ``retailtag predict``, which is told nothing but the export and the images."""
    out = place / "tags.jsonl"
    words = ["predict", str(export), "-", "--out", str(out), "--assign", "independent", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "retailtag", *words],
        input="\n".join(map(str, paths)),
        text=True,
        cwd=place,
        env=_alone(),
        check=True,
    )
    rows = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    return {row["path"]: set(row["tags"]) for row in rows}


def served(export: Path, paths: Sequence[Path]) -> Tags:
    """Tags by ``retailtag serve``, over HTTP."""
    process, ready = start(export, ["--assign", "independent"])
    found: Tags = {}
    try:
        for k in range(0, len(paths), AT_ONCE):
            found |= _posted(ready["url"], paths[k : k + AT_ONCE])
    finally:
        process.terminate()
        process.wait(timeout=30)
    return found


def _posted(url: str, paths: Sequence[Path]) -> Tags:
    body = io.BytesIO()
    for path in paths:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="x.jpg"'
        body.write(f"{head}\r\nContent-Type: image/jpeg\r\n\r\n".encode())
        body.write(path.read_bytes() + b"\r\n")
    body.write(f"--{BOUNDARY}--\r\n".encode())
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    request = urllib.request.Request(f"{url}/predict", body.getvalue(), kind)
    with urllib.request.urlopen(request, timeout=120) as answer:
        images = json.loads(answer.read())["images"]
    return {
        str(path): {one["tag"] for one in image["tags"] or ()}
        for path, image in zip(paths, images, strict=True)
    }


def _alone() -> Mapping[str, str]:
    """The environment without what names features or state of this machine's runs."""
    return {name: value for name, value in os.environ.items() if "RETAILTAG" not in name}


def compared(
    run: str, export: Path, truth: Tags, paths: Mapping[str, Path]
) -> Iterator[dict[str, object]]:
    """One row by command."""
    names = {str(path): name for name, path in paths.items()}
    with tempfile.TemporaryDirectory() as place:
        by_command = {
            "predict": predicted(export, list(paths.values()), Path(place)),
            "serve": served(export, list(paths.values())),
        }
    for command, found in by_command.items():
        tags = {names[path]: own for path, own in found.items()}
        differ = [tags[name] ^ truth[name] for name in tags]
        yield {
            "run": run,
            "command": command,
            "images": len(paths),
            "tagged": len(tags),
            "images_with_all_tags_equal": sum(not d for d in differ),
            "tags": sum(len(truth[name]) for name in tags),
            "tags_that_differ": sum(len(d) for d in differ),
        }


def main() -> None:
    """Export, tag, compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--pair")
    parser.add_argument("--weights", nargs="*", default=[], help="as of retailtag export")
    parser.add_argument("--limit", type=int, help="test images, from the first")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    folder = recommended_folder(args.run)[0] if (args.run / "bakeoff.json").exists() else args.run
    truth, catalog = expected(folder), rt.read_catalog(args.catalogue)
    paths = {
        str(catalog.image_ids[row]): Path(catalog.images.name(row)).absolute()
        for row in catalog.rows("test")[: args.limit].tolist()
        if catalog.image_ids[row] in truth  # those that could be read
    }
    with tempfile.TemporaryDirectory() as place:
        export = Path(place) / "tagger"
        made = rt.export(
            args.run,
            pair=args.pair,
            out=export,
            catalog=args.catalogue,
            weights=args.weights,
            device="cpu",
        )
        backbones = "+".join(backbone.id for backbone in made.tagger.backbones)
        name = f"{args.catalogue}: {backbones} {made.tagger.strategy}"
        found = list(compared(name, export, truth, paths))
    for one in found:
        print(*(f"{key}={value}" for key, value in one.items()))
    if not args.dry:
        append("agreement.csv", [stamp() | one for one in found])


if __name__ == "__main__":
    main()
