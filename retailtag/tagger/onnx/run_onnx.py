"""Tag images without torch: ``python run_onnx.py IMAGE... [--model model.int8.onnx]``."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print the tags of each image, likeliest first; 3 if an image could not be read."""
    import onnxruntime
    from preprocess import decode, pixels_of

    parser = argparse.ArgumentParser(description="Tag images.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", default="model.onnx", help="model.onnx or model.int8.onnx")
    args = parser.parse_args()
    about = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
    rules = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    never = float("inf")
    thresholds = np.array([never if t is None else t for t in about["thresholds"]], np.float32)
    session = onnxruntime.InferenceSession(HERE / args.model)
    failed = 0
    for path in args.images:
        try:
            image = decode(path)
        except (OSError, ValueError) as error:
            print(f"{path} could not be read: {error}", file=sys.stderr)  # noqa: T201
            failed = 3
            continue
        feed = {name: pixels_of(image, rule)[None] for name, rule in rules["inputs"].items()}
        if rules["in_graph"]:
            feed = {"image": np.asarray(image)[None]}
        logits = session.run(["logits"], feed)[0][0]
        given = logits >= thresholds
        for own in about["exclusive"]:  # attributes with one value an image
            best = np.argmax(logits[own["columns"]] - np.array(own["taken_off"], np.float32))
            wins = np.arange(len(own["columns"])) == best
            given[own["columns"]] = wins if own["exactly"] else wins & given[own["columns"]]
        order = np.argsort(-logits, kind="stable")
        print(f"{path}: {', '.join(about['tags'][j] for j in order if given[j]) or '-'}")  # noqa: T201
    return failed


if __name__ == "__main__":
    sys.exit(main())
