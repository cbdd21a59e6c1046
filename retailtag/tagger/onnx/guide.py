"""How to run an ONNX export, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retailtag.tagger.onnx.triton import MAX_BATCH

BEST_BATCH = 8  # TensorRT optimises for it


def guide(about: Mapping[str, Any], rules: Mapping[str, Any], repository: str) -> str:
    """What the files are, how to run them, and what was measured.

    `about` and `rules` are the contents of ``model.json`` and ``preprocessing.json``; `repository`
    is the name of Triton's model, empty without one.
    """
    shapes = ", ".join(f"`{name}` {' x '.join(map(str, s))}" for name, s in about["inputs"].items())
    files = f"{repository}/1/model.onnx" if repository else "model.onnx"
    parts = [
        f"`{files}` (ONNX, opset {about['opset']}) takes {shapes}, uint8, with a batch of any "
        f"size. It gives `logits` and `probabilities`, float32, batch x {len(about['tags']):,}. A "
        "tag is given where its logit is at least its threshold. `model.json` holds tags and "
        "thresholds, `preprocessing.json` how images are decoded and resized; the metadata of the "
        "model hold both.",
        *(_triton(about, repository) if repository else _runner(about)),
        *_tensorrt(about, rules, files),
        "## Measured against PyTorch",
        "\n".join(f"- {sentence}" for sentence in measured(about)),
    ]
    return "\n\n".join(parts)


def _runner(about: Mapping[str, Any]) -> list[str]:
    more = " `--model model.int8.onnx` runs int8." if "int8" in about else ""
    points = ", ".join(f"`{name}`" for name in about["operating_points"])
    return [
        "## Run",
        "```sh\npip install numpy pillow onnxruntime\npython run_onnx.py shirt.jpg\n```",
        "`run_onnx.py` needs neither torch nor retailtag. `preprocess.py` makes the pixels that "
        f"the tagger was fitted on, byte for byte. `--operating-point` takes {points}.{more}",
    ]


def _triton(about: Mapping[str, Any], repository: str) -> list[str]:
    names = f"`{repository}`" + (f" and `{repository}_int8`" if "int8" in about else "")
    return [
        "## Serve with Triton",
        f"This folder is a model repository with the model {names}:",
        "```sh\ndocker run --rm -p 8000:8000 -p 8001:8001 -v $PWD:/models "
        "nvcr.io/nvidia/tritonserver:25.10-py3 tritonserver --model-repository=/models\n```",
        f"Triton puts requests together to batches of up to {MAX_BATCH}. The labels of `logits` "
        "and `probabilities` are the tags.",
    ]


def _tensorrt(about: Mapping[str, Any], rules: Mapping[str, Any], file: str) -> list[str]:
    if rules["in_graph"]:
        return [
            "## TensorRT",
            "TensorRT has no antialiased Resize, so it cannot read this model; export without "
            "`--with-preprocessing` for it.",
        ]
    ranges = []
    for which, n in (("min", 1), ("opt", BEST_BATCH), ("max", MAX_BATCH)):
        shapes = ",".join(
            f"{name}:{'x'.join(map(str, (n, *shape[1:])))}"
            for name, shape in about["inputs"].items()
        )
        ranges.append(f"--{which}Shapes={shapes}")
    lines = [f"--onnx={file}", "--saveEngine=model.plan", *ranges, "--noTF32"]
    return [
        "## TensorRT",
        "```sh\ntrtexec " + " \\\n  ".join(lines) + "\n```",
        "This keeps float32. `--fp16` instead of `--noTF32` is faster and changes logits: compare "
        "its tags with those of `model.onnx` first.",
    ]


def measured(about: Mapping[str, Any]) -> tuple[str, ...]:
    """What was measured, in sentences."""
    parity = about["parity"]
    found = [
        f"ONNX Runtime and PyTorch on {parity['images']} images: all tags identical, largest "
        f"difference of a logit {parity['largest_logit_difference']:.1e}."
    ]
    if own := about.get("arithmetic"):
        found.append(
            f"The probe was fitted on {own['fitted_on']}, this model computes in float32: "
            f"{own['cells_that_differ']:,} of {own['cells']:,} cells differ, logits by up to "
            f"{own['largest_logit_difference']:.1e}."
        )
    if resized := about.get("resizing"):
        found.append(
            f"Resizing in the graph: pixels differ by at most "
            f"{resized['largest_pixel_difference']} of 255 "
            f"({resized['mean_pixel_difference']:.4f} on average), "
            f"{resized['cells_that_differ']:,} of {resized['cells']:,} cells, and logits by up to "
            f"{resized['largest_logit_difference']:.1e}."
        )
    if int8 := about.get("int8"):
        scores = ", ".join(
            f"{name.replace('_', ' ')} {100 * int8['scores']['float32'][name]:.1f} to "
            f"{100 * int8['scores']['int8'][name]:.1f}"
            for name in int8["loss"]
        )
        found.append(
            f"int8 against float32 on the {int8['images']:,} images of the test split: {scores}; "
            f"{int8['cells_that_differ']:,} of {int8['cells']:,} cells differ. Ranges from "
            f"{int8['calibration_images']} training images."
        )
    return tuple(found)
