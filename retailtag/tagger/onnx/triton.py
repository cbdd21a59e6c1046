"""A model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from retailtag.errors import DataError
from retailtag.files import write_text

MAX_BATCH = 64  # images of one call that Triton puts together
QUEUE_MICROSECONDS = 2000  # that a request waits for others at most
LABELS = "tags.txt"


def config_text(name: str, inputs: Mapping[str, Sequence[int]], n_tags: int) -> str:
    """Text of ``config.pbtxt``.

    `inputs` are names with their shapes without the batch; -1 is an axis of any length.

    Examples
    --------
    >>> print(config_text("tagger", {"pixels": (3, 224, 224)}, 250))  # doctest: +ELLIPSIS
    name: "tagger"
    backend: "onnxruntime"
    max_batch_size: 64
    input [
      { name: "pixels" data_type: TYPE_UINT8 dims: [3, 224, 224] }
    ]
    ...
    """
    given = ",\n".join(
        f"  {{ name: {json.dumps(name)} data_type: TYPE_UINT8 dims: {list(shape)} }}"
        for name, shape in inputs.items()
    )
    outputs = ",\n".join(
        f'  {{ name: "{output}" data_type: TYPE_FP32 dims: [{n_tags}] label_filename: "{LABELS}" }}'
        for output in ("logits", "probabilities")
    )
    return (
        f"name: {json.dumps(name)}\n"
        'backend: "onnxruntime"\n'
        f"max_batch_size: {MAX_BATCH}\n"
        f"input [\n{given}\n]\n"
        f"output [\n{outputs}\n]\n"
        f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}\n"
    )


def check_labels(tags: Sequence[str]) -> None:
    """Raise `DataError` if a tag cannot be a line of the file of labels."""
    for tag in tags:
        if len(tag.splitlines()) != 1:
            raise DataError(
                f"Tag {tag!r} has a line break, and Triton reads one tag a line; rename it in the "
                "catalogue and fit again, or export with --format onnx."
            )


def write_model(folder: Path, inputs: Mapping[str, Sequence[int]], tags: Sequence[str]) -> Path:
    """Write the configuration and labels of the model `folder`; returns the folder of version 1."""
    check_labels(tags)
    write_text(folder / "config.pbtxt", config_text(folder.name, inputs, len(tags)))
    write_text(folder / LABELS, "".join(f"{tag}\n" for tag in tags))
    version = folder / "1"
    version.mkdir(parents=True)
    return version
