"""The folder of an ONNX export: the model, its facts, its preprocessing, and a runner."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import Mismatch
from retailtag.files import write_json
from retailtag.progress import SILENT, Progress
from retailtag.statistics.exclusive import (
    INDEPENDENT,
    THRESHOLD_SHARE,
    attribute_columns,
)
from retailtag.tagger.onnx import preprocess, run_onnx, triton
from retailtag.tagger.onnx.graph import (
    OUTPUTS,
    check_extra,
    describe,
    feed_of,
    finite_or_none,
    graph_of,
    inputs_of,
)
from retailtag.tagger.onnx.guide import guide, measured
from retailtag.tagger.onnx.parity import (
    Agreement,
    Pixels,
    agreement,
    batches,
    check_parity,
    logits_in_torch,
)
from retailtag.tagger.onnx.quantise import quantise
from retailtag.tagger.onnx.resizing import (
    IMAGE,
    OPSET,
    PIXEL_TOLERANCE,
    preprocessing_json,
    resizing_graph,
    with_resizing,
)
from retailtag.tagger.onnx.session import OnnxSession, save_model
from retailtag.tagger.tagger import ImageInput, Tagger
from retailtag.version import __version__

FORMAT = 1
MODEL = "model.onnx"
INT8 = "model.int8.onnx"
CALIBRATION_IMAGES = 128  # training images whose activations give the ranges of int8
RUNNER = (run_onnx, preprocess)  # modules that are copied


@dataclass(frozen=True)
class Int8:
    """What a model in int8 is made and measured with."""

    training: Iterable[ImageInput]  # images that give the ranges of activations
    test: Iterable[ImageInput]  # images of the test split, read once
    # Named scores, such as macro_f1, of the logits of `test` (n_images, n_tags)
    scores: Callable[[NDArray[np.float32]], Mapping[str, float]]


@dataclass(frozen=True)
class OnnxExport:
    """What was written and measured."""

    guide: str  # how to run it, and what was measured, as Markdown
    sentences: tuple[str, ...]  # what was measured
    parity: Agreement  # with PyTorch, on the same pixels
    # With resizing in the graph: with PyTorch from the decoded image on, and the largest and mean
    # difference of a pixel
    resizing: Mapping[str, Any] = field(default_factory=dict)
    int8: Mapping[str, Any] = field(default_factory=dict)
    # Of a probe fitted on another arithmetic: its name, and the agreement of float32 with it
    arithmetic: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What was measured, as plain values."""
        parts = {"resizing": self.resizing, "int8": self.int8, "arithmetic": self.arithmetic}
        return {"parity": self.parity.to_json()} | {k: dict(v) for k, v in parts.items() if v}


def write_onnx(
    tagger: Tagger,
    folder: Path,
    images: Mapping[str, ImageInput],
    *,
    with_preprocessing: bool = False,
    int8: Int8 | None = None,
    repository: str = "",
    progress: Progress = SILENT,
) -> OnnxExport:
    """Write a tagger as an ONNX model into an empty folder.

    Parameters
    ----------
    tagger : Tagger
    folder : Path
    images : mapping of str to path, bytes or PIL image
        On which the model is compared with PyTorch, by their names; at least one.
    with_preprocessing : bool
        Resize and crop in the graph: its input is then a decoded image of any size.
    int8 : Int8, optional
        Also write the model in int8.
    repository : str
        Write a model repository of Triton with a model of this name, instead of a folder with a
        runner.

    Returns
    -------
    OnnxExport

    Raises
    ------
    Mismatch
        If ONNX Runtime gives other tags than PyTorch, or a logit differs by more than 1e-3.
    Unavailable
        If the extra ``onnx`` is missing, or a backbone cannot be converted.
    UsageError
        If the resize rule cannot be expressed in ONNX.
    DataError
        If Triton cannot have the name of a tag.
    """
    check_extra("An ONNX model")
    if repository:
        triton.check_labels(tagger.tags)
    inputs = inputs_of(tagger)
    rules = preprocessing_json(inputs, with_preprocessing)
    if with_preprocessing:
        resizing_graph(inputs)  # refuses before minutes of work
    names = {MODEL: repository, INT8: f"{repository}_int8"}
    with TemporaryDirectory(prefix="retailtag-") as temporary:
        network = Path(temporary) / MODEL
        progress.say("Exporting the graph.")
        model = graph_of(tagger)
        save_model(model, network)
        made = _checked(tagger, network, images)
        files = {MODEL: network}
        if int8 is not None:
            files[INT8] = Path(temporary) / INT8
            progress.say("Quantising, and scoring float32 and int8 on the test split.")
            made = replace(made, int8=_quantised(tagger, files, int8))
        targets = {file: folder / file for file in files}
        if repository:
            shapes = _shapes(tagger, with_preprocessing)
            targets = {
                file: triton.write_model(folder / names[file], shapes, tagger.tags) / MODEL
                for file in files
            }
        for file, source in files.items():
            _finish(tagger, source, targets[file], rules)
    if with_preprocessing:
        made = replace(made, resizing=_resized(tagger, targets[MODEL], images))
    about = _facts(tagger, made, with_preprocessing)
    write_json(folder / "model.json", about)
    write_json(folder / "preprocessing.json", rules)
    if not repository:
        for module in RUNNER:
            shutil.copyfile(str(module.__file__), folder / Path(str(module.__file__)).name)
    return replace(made, guide=guide(about, rules, repository), sentences=measured(about))


def _checked(tagger: Tagger, network: Path, images: Mapping[str, ImageInput]) -> OnnxExport:
    """Compare the graph with PyTorch in float32, and that with the tagger's own arithmetic."""
    exact = replace(tagger, embedders=tagger.backbones)
    pixels = [tagger.pixels(image) for image in images.values()]
    expected = logits_in_torch(exact, pixels)
    found = _logits(tagger, OnnxSession(network), pixels)
    made = OnnxExport("", (), check_parity(tagger, expected, found, list(images)))
    if exact.embedders == tagger.embedders:
        return made
    own = agreement(tagger, logits_in_torch(tagger, pixels), found)
    engines = "+".join(str(getattr(e, "name", "eager-float32")) for e in tagger.embedders)
    return replace(made, arithmetic={"fitted_on": engines, **own.to_json()})


def _logits(tagger: Tagger, session: OnnxSession, pixels: Iterable[Pixels]) -> NDArray[np.float32]:
    """Logits (n_images, n_tags) of preprocessed images."""
    return np.concatenate([session.logits(feed_of(tagger, batch)) for batch in batches(pixels)])


def _quantised(tagger: Tagger, files: Mapping[str, Path], int8: Int8) -> dict[str, Any]:
    """Write the model in int8; what was done, and what it costs on the test split."""
    training = batches(tagger.pixels(image) for image in int8.training)
    done = quantise(files[MODEL], files[INT8], (feed_of(tagger, batch) for batch in training))
    sessions = [OnnxSession(files[name]) for name in (MODEL, INT8)]
    rows = [
        [session.logits(feed_of(tagger, batch)) for session in sessions]
        for batch in batches(tagger.pixels(image) for image in int8.test)
    ]
    exact, short = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    scores = {"float32": dict(int8.scores(exact)), "int8": dict(int8.scores(short))}
    loss = {name: scores["float32"][name] - scores["int8"][name] for name in scores["float32"]}
    return {**done, **agreement(tagger, exact, short).to_json(), "scores": scores, "loss": loss}


def _finish(tagger: Tagger, source: Path, target: Path, rules: Mapping[str, Any]) -> None:
    """Write a model to its place, with metadata, and resizing if the rules say so."""
    import onnx

    model = onnx.load(source)
    if rules["in_graph"]:
        model = with_resizing(model, inputs_of(tagger))
    describe(model, tagger, rules)
    save_model(model, target)


def _resized(tagger: Tagger, model: Path, images: Mapping[str, ImageInput]) -> dict[str, Any]:
    """Compare pixels and tags of the graph that resizes with those of the tagger.

    Raises `Mismatch` if a pixel differs by more than `PIXEL_TOLERANCE`.
    """
    session = OnnxSession(model)
    inputs = inputs_of(tagger)
    resizing = OnnxSession(resizing_graph(inputs).SerializeToString())
    largest, total, n_pixels = 0, 0.0, 0
    expected, found = [], []
    for name, image in images.items():
        decoded = tagger.decoded(image)
        own = [tagger.preprocessed(decoded)]
        feed = {IMAGE: np.asarray(decoded)[None]}
        for pixels, (key, ours) in zip(
            resizing.run(feed, list(inputs)), feed_of(tagger, own).items(), strict=True
        ):
            difference = np.abs(pixels.astype(np.int16) - ours)
            largest = max(largest, int(difference.max()))
            total += float(difference.sum())
            n_pixels += difference.size
            if largest > PIXEL_TOLERANCE:
                raise Mismatch(
                    [
                        f"{name}: ONNX Runtime resizes it to {key} that differ from retailtag's "
                        f"by {largest} of 255, above {PIXEL_TOLERANCE}; nothing was written; "
                        "leave --with-preprocessing out."
                    ]
                )
        expected.append(logits_in_torch(replace(tagger, embedders=tagger.backbones), own)[0])
        found.append(session.logits(feed)[0])
    agreed = agreement(tagger, np.array(expected), np.array(found))
    pixels_json = {
        "largest_pixel_difference": largest,
        "mean_pixel_difference": total / n_pixels,
        "pixel_tolerance": PIXEL_TOLERANCE,
    }
    return {**pixels_json, **agreed.to_json()}


def _shapes(tagger: Tagger, with_preprocessing: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs without the batch; -1 is any length."""
    if with_preprocessing:
        return {IMAGE: (-1, -1, 3)}
    return {name: (3, *p.size) for name, p in inputs_of(tagger).items()}


def _named(shape: tuple[int, ...]) -> list[int | str]:
    """A shape (h, w, c) or (c, h, w) with names for the sides of any length."""
    names = ("height", "width", "channels")
    return [name if n == -1 else n for name, n in zip(names, shape, strict=True)]


def _facts(tagger: Tagger, made: OnnxExport, with_preprocessing: bool) -> dict[str, Any]:
    """Content of ``model.json``."""
    shapes = _shapes(tagger, with_preprocessing)
    points = {name: finite_or_none(t) for name, t in tagger.operating_points.items()}
    return {
        "format": FORMAT,
        "retailtag": __version__,
        "model": "+".join(b.id for b in tagger.backbones),
        "strategy": tagger.strategy,
        "head": tagger.head.head,
        "tags": list(tagger.tags),
        "thresholds": finite_or_none(tagger.thresholds),  # on logits; null: never given
        "operating_points": points,
        "calibrated": tagger.calibration is not None,
        "assignment": tagger.assignment,
        # Of an attribute's tags the one with the largest logit less this share of its threshold
        "exclusive": _exclusive(tagger),
        "threshold_share": THRESHOLD_SHARE,
        "opset": OPSET,
        "inputs": {name: ["batch", *_named(shape)] for name, shape in shapes.items()},
        "outputs": {name: ["batch", len(tagger.tags)] for name in OUTPUTS},
        **made.to_json(),
    }


def _exclusive(tagger: Tagger) -> list[dict[str, Any]]:
    """Attributes of which an image is given one tag, with the columns of their tags."""
    if tagger.assignment == INDEPENDENT:
        return []
    found = {name: attribute_columns(tagger.tags, name).tolist() for name in tagger.exclusive}
    return [{"attribute": name, "columns": own} for name, own in found.items() if own]
