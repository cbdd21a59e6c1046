"""Options and arguments that several commands share, and what their values mean."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retailtag.backbones.ids import components_of
from retailtag.errors import Unavailable, UsageError

GRID = "1e-5:10:13"
HEADS = "logistic,ridge,knn,text"
FULL_GRID = "1e-6:1e5:45"  # what a bare --sweep-C means
CUTOFFS = "50,500"
MAX_PIXELS = 100_000_000
MAX_BYTES = 256 << 20
REPLICATES = 2000
PERMUTATIONS = 2000

CatalogArgument = Annotated[
    Path,
    typer.Argument(metavar="CATALOGUE", help="Manifest (CSV, Parquet, JSON lines) or folder."),
]
AttributesOption = Annotated[
    str,
    typer.Option(
        "--attributes", help="Columns that become tags, comma-separated: gender,articleType."
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option("--images", help="Folder, tar/zip or Parquet of the images, if not beside it."),
]
CutoffsOption = Annotated[
    str,
    typer.Option(
        "--cutoffs",
        metavar="TAIL,FREQUENT",
        help="Training images that bound tail and frequent tags; or lvis, or coco-mlt.",
    ),
]
NewCutoffsOption = Annotated[
    str | None,
    typer.Option(
        "--cutoffs",
        metavar="TAIL,FREQUENT",
        help="Group the tags by these training counts; default: as the predictions record.",
    ),
]
BackboneOption = Annotated[str, typer.Option("--backbone", metavar="ID", help="Backbone id.")]
BackbonesOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        metavar="ID[+ID]",
        help="Backbone id, or several joined by +: their embeddings side by side.",
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="[ID=]PATH",
        help="Local weights (file or folder) of a backbone; repeat as ID=PATH for several.",
    ),
]
FeaturesOption = Annotated[
    Path, typer.Option("--features", help="Folder of the feature stores, shared by all runs.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Embeddings stored as float32, or float16 at half the size.")
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        help="auto: that of the store, else the fastest on a sample; or eager, compile, "
        "openvino, onnxruntime.",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision", help="exact: float32; fast: bfloat16 or float16 where it is near enough."
    ),
]
StoredEngineOption = Annotated[
    str, typer.Option("--engine", help="Read the features of this engine; auto: of any.")
]
StoredPrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision", help="Read exact features alone, or fast ones first; default: exact first."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", help="Processes that decode images; default: one a core; 0: only this one."
    ),
]
MaxPixelsOption = Annotated[
    int, typer.Option("--max-pixels", min=1, help="Larger images count as unreadable.")
]
AllowTruncatedOption = Annotated[
    bool,
    typer.Option(
        "--allow-truncated", help="Accept JPEG files that end early; their features lie apart."
    ),
]
MaxBytesOption = Annotated[
    int, typer.Option("--max-bytes", min=1, help="Larger image files count as unreadable.")
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", help="Images a forward pass.")]
AutoBatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        help="Images a forward pass; default: what suits the device, less where memory runs out.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]

SweepOption = Annotated[
    str,
    typer.Option(
        "--sweep-C",
        metavar="START:STOP:N",
        help="Inverse L2 strengths C, logarithmically spaced, or a comma-separated list; bare: the "
        f"45 of {FULL_GRID}. The grid is widened where its end is chosen.",
    ),
]
FoldsOption = Annotated[int, typer.Option("--folds", help="Folds of the out-of-fold scores.")]
ChooseOption = Annotated[
    str,
    typer.Option("--choose-C", help="One C per-group of tags, per-tag (shrunk to it), or global."),
]
HeadsOption = Annotated[
    str,
    typer.Option(
        "--heads",
        help="logistic, then any of ridge, knn (unasked up to 100,000 images) and text (tag "
        "names, of clip alone): the first within one standard error of the best cross-fit "
        "macro-F1.",
    ),
]
ScaleOption = Annotated[
    str,
    typer.Option(
        "--scale",
        help="standardise, l2, l2-standardise or none; of a list, the best out of fold is taken.",
    ),
]
ThresholdsOption = Annotated[
    str,
    typer.Option(
        "--thresholds",
        metavar="RULE",
        help="fixed, global, group, per-tag, shrunk, bagged; auto: by cross-fit.",
    ),
]
ValidationThresholdsOption = Annotated[
    str,
    typer.Option(
        "--thresholds",
        metavar="RULE",
        help="As for a probe; auto: shrunk, or group where the tail has too few positives.",
    ),
]
ObjectiveOption = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="WHAT",
        help="What thresholds aim at: f1, fbeta:B, or at least precision:P for every tag.",
    ),
]
SolverOption = Annotated[str, typer.Option("--solver", help="torch, cuml or sklearn.")]

BlocksOption = Annotated[
    str,
    typer.Option(
        "--blocks",
        help="How many last blocks a fine-tune retrains, or all, or scratch: all, from random "
        "weights.",
    ),
]
EpochsOption = Annotated[int, typer.Option("--epochs", help="Epochs of a fine-tune.")]
LrOption = Annotated[float, typer.Option("--lr", help="Peak learning rate of the last block.")]
HeadLrOption = Annotated[float, typer.Option("--head-lr", help="Peak learning rate of the head.")]
AugmentOption = Annotated[
    str,
    typer.Option(
        "--augment",
        help="What an epoch shows: light or strong changes, none, or cached:V (V views in turn). "
        "With none and cached:V the frozen blocks run once an image and view.",
    ),
]
LossOption = Annotated[
    str, typer.Option("--loss", help="bce, asl, focal, db or la, with settings: asl:gamma_neg=2.")
]
SamplerOption = Annotated[
    str,
    typer.Option("--sampler", help="shuffle, or repeat:t=0.001: images of rare tags more often."),
]
CacheGbOption = Annotated[
    float | None,
    typer.Option(
        "--cache-gb",
        help="Disk for activations of frozen blocks; 0: none. Default: half of what is free, at "
        "most 100.",
    ),
]

RunsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Predictions files, or folders of runs or bake-offs."),
]
ScoredCatalogOption = Annotated[
    Path | None,
    typer.Option("--catalog", help="Catalogue; default: the one the predictions record."),
]
WithAttributesOption = Annotated[
    str, typer.Option("--attributes", help="With --catalog: columns that become tags.")
]
ScoredSplitOption = Annotated[str, typer.Option("--split", help="Split to score.")]
AllowMissingOption = Annotated[
    bool, typer.Option("--allow-missing", help="Score without images that lack predictions.")
]
ReplicatesOption = Annotated[
    int, typer.Option("--replicates", min=100, help="Bootstrap replicates.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of everything random.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and --json).")
]


def with_bare_sweep(args: Sequence[str]) -> list[str]:
    """Give a bare ``--sweep-C`` the full grid, so that its value is optional.

    It is bare at the end of the line, before another option, and before what exists or is named
    like a file.

    Examples
    --------
    >>> with_bare_sweep(["probe", "--sweep-C", "shop.csv", "--sweep-C"])
    ['probe', '--sweep-C', '1e-6:1e5:45', 'shop.csv', '--sweep-C', '1e-6:1e5:45']
    >>> with_bare_sweep(["probe", "--sweep-C", "0.1,1", "shop.csv"])
    ['probe', '--sweep-C', '0.1,1', 'shop.csv']
    """
    given: list[str] = []
    for word, following in zip(args, [*args, ""][1:], strict=True):
        given.append(word)
        path = Path(following)
        bare = following[:1] in ("", "-") or path.exists() or path.suffix[1:].isalpha()
        if word == "--sweep-C" and bare:
            given.append(FULL_GRID)
    return given


def split_list(text: str) -> list[str]:
    """Split a comma-separated option into its non-empty parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def weights_by_backbone(values: list[str] | None, backbones: list[str]) -> dict[str, Path]:
    """Resolve ``--weights`` values to one path per backbone id, those of ``A+B`` one by one.

    Raises
    ------
    UsageError
        If a value names a backbone that is not asked for, or is bare with several backbones.
    """
    found: dict[str, Path] = {}
    backbones = list(dict.fromkeys(part for b in backbones for part in components_of(b)))
    for value in values or []:
        name = next((b for b in backbones if value.startswith(f"{b}=")), None)
        if name is not None:
            found[name] = Path(value[len(name) + 1 :])
        elif len(backbones) == 1 and not value.startswith(("timm:", "open_clip:", "demo:")):
            found[backbones[0]] = Path(value)
        else:
            raise UsageError(
                f"--weights {value} names none of the backbones {', '.join(backbones)}; "
                "write --weights ID=PATH with one of these ids."
            )
    return found


def resolve_device(name: str) -> str:
    """Turn ``auto`` into ``cuda`` or ``cpu``.

    Raises
    ------
    UsageError
        If the name is unknown.
    Unavailable
        If CUDA is asked for and this machine has none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name} is unknown; use auto, cpu or cuda.")
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        # cuBLAS reads it when it starts; without it the same products may differ between runs
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return "cuda"
    if name == "cuda":
        raise Unavailable("--device cuda: PyTorch sees no CUDA device here; use --device cpu.")
    return "cpu"


def provenance_of(
    catalogue: Path, attributes: list[str], images: Path | None, cutoffs: str
) -> dict[str, Any]:
    """How the catalogue was read, as predictions record it so that `score` can read it again."""
    return {
        "catalog": str(catalogue),
        "catalog_args": {
            "attributes": attributes,
            "images": None if images is None else str(images),
            "cutoffs": cutoffs,
        },
    }


def default_workers(workers: int | None) -> int:
    """``--workers``, or one a core up to 16.

    Raises
    ------
    UsageError
        If the number is negative.
    """
    if workers is not None and workers < 0:
        raise UsageError(f"--workers {workers} is out of range; use 0 or more.")
    return min(os.cpu_count() or 1, 16) if workers is None else workers


def parse_blocks(text: str) -> int | Literal["all", "scratch"]:
    """``--blocks``: a positive number, ``all`` or ``scratch``.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if text == "all":
        return "all"
    if text == "scratch":
        return "scratch"
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"--blocks {text} is neither a positive number nor all nor scratch.")
