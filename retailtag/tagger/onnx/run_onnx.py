"""Tag images without torch: ``python run_onnx.py IMAGE... [--model model.int8.onnx]``."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print the tags of each image, likeliest first; 3 if an image could not be read."""
    import onnxruntime
    from preprocess import decode, pixels_of

    about = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
    rules = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description="Tag images.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", default="model.onnx", help="model.onnx or model.int8.onnx")
    parser.add_argument("--operating-point", choices=about["operating_points"])
    args = parser.parse_args()
    limits = about["operating_points"].get(args.operating_point, about["thresholds"])
    thresholds = np.array([np.inf if t is None else t for t in limits], np.float32)
    at_most = about["assignment"] == "at-most-one"
    session = onnxruntime.InferenceSession(HERE / args.model)
    failed = 0
    for path in args.images:
        try:
            image = decode(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            print(f"{path} could not be read: {error}", file=sys.stderr)  # noqa: T201
            failed = 3
            continue
        if rules["in_graph"]:
            feed = {"image": np.asarray(image)[None]}
        else:
            feed = {name: pixels_of(image, rule)[None] for name, rule in rules["inputs"].items()}
        logits, probabilities = (x[0] for x in session.run(["logits", "probabilities"], feed))
        given = logits >= thresholds
        for own in about["exclusive"]:  # attributes with one value an image
            columns = own["columns"]
            z, t = logits[columns], about["threshold_share"] * thresholds[columns]
            best = np.argmax(z if np.isposinf(t).all() else z - t)
            wins = np.arange(len(columns)) == best
            given[columns] = wins & given[columns] if at_most else wins
        order = np.lexsort((-logits, -probabilities))
        print(f"{path}: {', '.join(about['tags'][j] for j in order if given[j]) or '-'}")  # noqa: T201
    return failed


if __name__ == "__main__":
    sys.exit(main())
