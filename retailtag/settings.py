"""Every setting of retailtag, written once: type, default, choices, range and help.

The command-line options, the TOML files, the documentation and the defaults of the Python API all
come from the fields below. Nothing here needs torch, so that ``--help`` starts at once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from retailtag.errors import UsageError
from retailtag.fields import Option, Section, options_of, setting

Blocks = int | Literal["all", "scratch"]

AUTO = "auto"
STRATEGIES = ("probe", "finetune")
FULL_C_GRID = "1e-6:1e5:45"  # what a bare --sweep-C means
# Every number has a range at both ends, beyond which it is a slip of the pen.
MAX_SEED = 2**32 - 1  # the largest that both NumPy and PyTorch accept
MAX_BATCH = 65_536  # images of one step
MAX_DRAWS = 1_000_000  # of a bootstrap or permutation test; a p-value is exact to 0.001 by then


# Options that several sections have: `bakeoff` gives one value to all of them.
THRESHOLDS: dict[str, Any] = {
    "help": (
        "Threshold rule: fixed, global, group, per-tag, shrunk or bagged; auto: the best by "
        "cross-fit (fine-tune: that of its start, moved to give each frequency group as often)."
    ),
    "metavar": "RULE",
    "advanced": True,
}
OBJECTIVE: dict[str, Any] = {
    "help": (
        "What thresholds maximise: f1, fbeta:B, or recall at precision:P or more for every tag."
    ),
    "metavar": "WHAT",
    "advanced": True,
}
SEED: dict[str, Any] = {
    "help": "Seed of everything random.",
    "at_least": 0,
    "at_most": MAX_SEED,
}


@dataclass(frozen=True)
class CatalogSettings(Section):
    """How a catalogue is read."""

    path: Path | None = setting(
        None,
        "Catalogue: a manifest (CSV, Parquet, JSON, JSON lines), a folder or a tar; or its URL.",
        metavar="CATALOGUE",
        aliases=("--catalog",),
        remote=True,
    )
    attributes: tuple[str, ...] = setting(
        (), "Columns that become tags, comma-separated: gender,articleType.", metavar="COLUMN,..."
    )
    one_of: tuple[str, ...] = setting(
        (),
        "Attributes with one value an image: gender,season; default: those that the catalogue "
        "records, and found among --attributes.",
        metavar="NAME,...",
        advanced=True,
    )
    one_hot: tuple[str, ...] = setting(
        (),
        "Columns of 0 and 1 that are a tag each; * stands for any characters.",
        metavar="COLUMN,...",
        advanced=True,
    )
    min_images: int = setting(
        0, "Leave out tags of fewer images.", at_least=0, at_most=10**9, metavar="N", advanced=True
    )
    tag_separator: str = setting(
        "", "What separates the tags in a cell; default: |.", metavar="TEXT", advanced=True
    )
    path_column: str = setting(
        "",
        "Column of the images' paths; default: path, file_name, filename or image.",
        metavar="COLUMN",
        advanced=True,
    )
    tags_column: str = setting(
        "", "Column of the tags; default: tags or labels.", metavar="COLUMN", advanced=True
    )
    id_column: str = setting(
        "", "Column of the image ids; default: image_id.", metavar="COLUMN", advanced=True
    )
    group_column: str = setting(
        "", "Column of the products; default: group.", metavar="COLUMN", advanced=True
    )
    images: tuple[Path, ...] = setting(
        (),
        "Folder, tar/zip or Parquet of the images, if not beside the manifest; repeatable.",
        metavar="PATH",
        remote=True,
    )
    allow_root: tuple[Path, ...] = setting(
        (),
        "Folder or URL that absolute paths, links and URLs may lead to; repeatable.",
        metavar="DIR",
        advanced=True,
        remote=True,
    )
    cutoffs: str = setting(
        "50,500",
        "Training images that bound tail and frequent tags; or lvis, or coco-mlt.",
        metavar="TAIL,FREQUENT",
        advanced=True,
    )


@dataclass(frozen=True)
class ReadingSettings(Section):
    """Which image files are accepted."""

    max_pixels: int = setting(
        100_000_000,
        "Larger images count as unreadable.",
        at_least=1,
        at_most=10**12,
        advanced=True,
    )
    max_bytes: int = setting(
        256 << 20,
        "Larger image files count as unreadable.",
        at_least=1,
        at_most=1 << 40,
        advanced=True,
    )
    allow_truncated: bool = setting(
        False,
        "Accept JPEG files that end early; their features go to a store of their own.",
        advanced=True,
    )


@dataclass(frozen=True)
class ComputeSettings(Section):
    """Where a run computes, and where its features and weights are."""

    device: str = setting(
        AUTO,
        "Where to compute; auto: on the GPU if there is one.",
        choices=(AUTO, "cpu", "cuda"),
        recorded=False,
        environment="RETAILTAG_DEVICE",
    )
    features: Path = setting(
        Path("features"),
        "Folder of the feature stores, shared by all runs.",
        recorded=False,
        environment="RETAILTAG_FEATURES",
    )
    weights: tuple[str, ...] = setting(
        (),
        "Local weights of a backbone: FILE, FILE?branch=NAME or a folder; repeat as ID=PATH for "
        "several.",
        metavar="[ID=]PATH",
        recorded=False,
    )
    workers: int | None = setting(
        None,
        "Processes that decode images; default: one per core, at most 16; 0: none but this one.",
        at_least=0,
        at_most=1024,
        recorded=False,
        advanced=True,
    )


@dataclass(frozen=True)
class LatencySettings(Section):
    """What fitted models are timed with."""

    engines: tuple[str, ...] = setting(
        (),
        "Of eager, compile, onnxruntime, openvino; default: those that can run here.",
        metavar="ENGINE,...",
        recorded=False,
    )
    batches: tuple[str, ...] = setting(
        ("1", "8", "32"),
        "Images at once, comma-separated; the batch of the highest throughput is added.",
        metavar="N,...",
        recorded=False,
    )


@dataclass(frozen=True)
class ExtractSettings(Section):
    """How embeddings are computed and stored, and which of them later stages read."""

    dtype: str = setting(
        "float32",
        "Embeddings stored as float32, or as float16 at half the size.",
        choices=("float32", "float16"),
        advanced=True,
    )
    engine: str = setting(
        AUTO,
        "auto: the engine of the existing store, else the fastest on a sample; or eager, compile, "
        "openvino, onnxruntime.",
        choices=(AUTO, "eager", "compile", "openvino", "onnxruntime"),
        advanced=True,
    )
    precision: str = setting(
        AUTO,
        "Numeric precision. exact: float32; fast: bfloat16 or float16 where it is close enough; "
        "auto: extract exact features, read exact ones first.",
        choices=(AUTO, "exact", "fast"),
        advanced=True,
    )
    batch_size: int | None = setting(
        None,
        "Images per forward pass; default: what suits the device, less where memory runs out.",
        at_least=1,
        at_most=1024,
        recorded=False,
        advanced=True,
    )


@dataclass(frozen=True)
class ProbeSettings(Section):
    """A probe: sweep over C, heads, thresholds."""

    sweep_C: str = setting(
        "1e-5:10:13",
        "Inverse L2 strengths C, logarithmically spaced, or a comma-separated list; without a "
        f"value: the 45 of {FULL_C_GRID}. The grid is extended where its end is chosen.",
        metavar="START:STOP:N",
    )
    folds: int = setting(5, "Folds of the out-of-fold scores.", at_least=2, at_most=1000)
    choose_C: str = setting(
        "per-group",
        "One C per group of tags, per-tag (shrunk towards it), or global.",
        choices=("per-group", "per-tag", "global"),
        advanced=True,
    )
    scale: str = setting(
        "standardise",
        "standardise, l2 or none; of a list, the best out of fold is used.",
        advanced=True,
    )
    heads: str = setting(
        "logistic,ridge,knn,text",
        "logistic, then any of ridge, knn (by default up to 100,000 images) and text (tag names; "
        "CLIP only, by default up to 5,000 tags): the first within one standard error of the best "
        "cross-fit macro-F1.",
        advanced=True,
    )
    thresholds: str = setting(AUTO, **THRESHOLDS)
    objective: str = setting("f1", **OBJECTIVE)
    solver: str = setting(
        "torch",
        "What fits logistic regression: the batched solver, cuML, or scikit-learn as reference.",
        choices=("torch", "cuml", "sklearn"),
        advanced=True,
    )
    seed: int = setting(0, **SEED)


@dataclass(frozen=True)
class FinetuneSettings(Section):
    """A fine-tune: what is trained, how, and how the result is chosen."""

    blocks: Blocks = setting(
        4,
        "How many last blocks to retrain; or all; or scratch: all, from random weights.",
        metavar="N|all|scratch",
        at_least=0,
        at_most=10_000,
    )
    epochs: int = setting(
        5, "Epochs of a fine-tune; 0 keeps the probe as it is.", at_least=0, at_most=100_000
    )
    batch_size: int = setting(
        64, "Images per step of the optimiser, or per forward pass.", at_least=1, at_most=MAX_BATCH
    )
    lr: float = setting(
        3e-4, "Peak learning rate of the last block (AdamW, cosine decay).", above=0, at_most=100
    )
    head_lr: float = setting(
        1e-3, "Peak learning rate of the head.", above=0, at_most=100, advanced=True
    )
    layer_decay: float = setting(
        0.75,
        "Learning rate of a block as a fraction of that of the next block.",
        above=0,
        at_most=1,
        advanced=True,
    )
    weight_decay: float = setting(
        0.05,
        "Decoupled weight decay of AdamW; matrices only.",
        at_least=0,
        at_most=1000,
        advanced=True,
    )
    warmup: float = setting(
        0.1,
        "Fraction of the steps with a rising learning rate.",
        at_least=0,
        below=1,
        advanced=True,
    )
    clip_norm: float = setting(1.0, "Largest gradient norm.", above=0, at_most=1e9, advanced=True)
    loss: str = setting(
        "bce", "bce, asl, focal or db, with settings: asl:gamma_neg=2.", advanced=True
    )
    sampler: str = setting(
        "shuffle",
        "shuffle, or repeat:t=0.001: show images of rare tags more often.",
        advanced=True,
    )
    augment: str = setting(
        "light",
        "light or strong augmentation, none, or cached:V (V views in turn). With none and cached:V "
        "the frozen blocks run once per image and view.",
    )
    mix: str = setting(
        "none", "none, mixup or cutmix, with settings: mixup:alpha=0.2.", advanced=True
    )
    ema: float = setting(
        0.0,
        "Decay of a moving average of the weights, such as 0.999; 0: none.",
        at_least=0,
        below=1,
        advanced=True,
    )
    interpolate: str = setting(
        AUTO,
        "Share of the trained weights, the rest from the start (WiSE-FT); auto: chosen on the "
        "validation set.",
        metavar="SHARE",
        advanced=True,
    )
    batch_norm: str = setting(
        AUTO,
        "Statistics used in trained blocks: stored, which stay unchanged, or those of the batch; "
        "auto: stored, and batch for --blocks scratch.",
        choices=(AUTO, "stored", "batch"),
        advanced=True,
    )
    choose_epoch: str = setting(
        AUTO,
        "By macro-f1 while the tail keeps its F1, macro-f1-free or macro-ap; auto: the first, or "
        "the last for --objective precision.",
        choices=(AUTO, "macro-f1", "macro-f1-free", "macro-ap"),
        advanced=True,
    )
    refit: bool = setting(
        False, "Train again on all training images for the chosen epochs.", advanced=True
    )
    thresholds: str = setting(AUTO, **THRESHOLDS)
    objective: str = setting("f1", **OBJECTIVE)
    mixed_precision: str = setting(
        AUTO,
        "float32, bf16 or fp16 training; auto: what the GPU computes fastest.",
        choices=(AUTO, "float32", "bf16", "fp16"),
        aliases=("--amp",),
        advanced=True,
    )
    micro_batches: int = setting(
        1,
        "Forward passes per batch; doubled when memory runs out.",
        at_least=1,
        at_most=MAX_BATCH,
        aliases=("--parts",),
        advanced=True,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Compute blocks twice to save memory.",
        aliases=("--checkpoint-gradients",),
        advanced=True,
    )
    seed: int = setting(0, **SEED)
    compile: bool = setting(
        False, "Compile the trained part (minutes at the start).", recorded=False, advanced=True
    )
    cache_gb: float | None = setting(
        None,
        "Disk for activations of frozen blocks; 0: none; default: half of what is free, at most "
        "100.",
        at_least=0,
        at_most=1e6,
        recorded=False,
        advanced=True,
    )
    cache_dtype: str = setting(
        AUTO,
        "Cached activations as float32, float16 or bfloat16; auto: float16 where embeddings agree.",
        choices=(AUTO, "float32", "float16", "bfloat16"),
        recorded=False,
        advanced=True,
    )
    checkpoint_minutes: float = setting(
        10.0,
        "Longest time between two snapshots; there is also one per epoch.",
        above=0,
        at_most=1e6,
        recorded=False,
        advanced=True,
    )
    log: tuple[str, ...] = setting(
        (),
        "tensorboard, mlflow, wandb, in addition to log.jsonl.",
        metavar="TRACKER,...",
        recorded=False,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_batches > self.batch_size:
            raise UsageError(
                f"--micro-batches {self.micro_batches} exceeds --batch-size {self.batch_size}; "
                "use at most one micro-batch per image."
            )
        _ = self.factors  # refuses an --interpolate that is neither auto nor a share

    @property
    def factors(self) -> tuple[float, ...]:
        """WiSE-FT interpolation factors to try, the trained weights (1) first."""
        if self.interpolate == AUTO:
            return (1.0,) if self.blocks == "scratch" else (1.0, 0.75, 0.5, 0.25)
        try:
            factor = float(self.interpolate)
        except ValueError:
            factor = math.nan
        if not 0 <= factor <= 1:
            raise UsageError(f"--interpolate {self.interpolate} must be auto or 0 to 1.")
        return (factor,)

    @property
    def uses_stored_statistics(self) -> bool:
        """Whether batch normalisation in trained blocks uses its stored statistics.

        The head starts from a probe on embeddings that were computed with them: batch statistics
        of other images than the pretraining's would shift every embedding at the first step.
        """
        auto = "batch" if self.blocks == "scratch" else "stored"
        return (auto if self.batch_norm == AUTO else self.batch_norm) == "stored"

    @property
    def trained_blocks(self) -> int | Literal["all"]:
        """How many last blocks receive gradients."""
        return "all" if self.blocks == "scratch" else self.blocks


@dataclass(frozen=True)
class ScoreSettings(Section):
    """How predictions are scored and compared."""

    split: str = setting("test", "Split to score.")
    replicates: int = setting(
        2000, "Bootstrap replicates.", at_least=100, at_most=MAX_DRAWS, advanced=True
    )
    permutations: int = setting(
        2000,
        "Random swaps behind each p-value.",
        at_least=100,
        at_most=MAX_DRAWS,
        advanced=True,
    )
    allow_missing: bool = setting(False, "Score without the images that lack predictions.")
    assign: str | None = setting(
        None,
        "Tags given of an attribute with one value: independent (by their thresholds), "
        "at-most-one or exactly-one; default: independent, or what the bake-off was run with; "
        "predict: at-most-one of those recorded with the model or named.",
        choices=("independent", "at-most-one", "exactly-one"),
        metavar="HOW",
    )
    seed: int = setting(0, **SEED)


@dataclass(frozen=True)
class PredictSettings(Section):
    """Which tags a fitted model gives new images, and how they are written."""

    format: str | None = setting(
        None,
        "text, csv (which is a catalogue), jsonl or parquet; default: by the ending of --out, "
        "else text.",
        choices=("text", "csv", "jsonl", "parquet"),
        metavar="FORMAT",
        recorded=False,
    )
    top_k: int | None = setting(
        None,
        "Give the N likeliest tags, whatever their thresholds.",
        at_least=1,
        at_most=10**6,
        metavar="N",
    )
    min_probability: float | None = setting(
        None,
        "Give the tags of at least this probability, whatever their thresholds; with --top-k, of "
        "the N likeliest those.",
        at_least=0,
        at_most=1,
        metavar="P",
    )
    operating_point: str | None = setting(
        None,
        "Thresholds of the model by name; default: those that it was fitted with.",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        other = "--top-k" if self.top_k else "--min-probability"
        if self.operating_point and (self.top_k or self.min_probability is not None):
            raise UsageError(
                f"--operating-point {self.operating_point} names thresholds, which {other} "
                "replaces; drop one."
            )


@dataclass(frozen=True)
class ServeSettings(Section):
    """What the server listens to, and how much it takes."""

    host: str = setting(
        "127.0.0.1",
        "Address to listen on; 0.0.0.0: all of this machine.",
        metavar="ADDRESS",
        recorded=False,
    )
    port: int = setting(
        8000, "Port to listen on; 0: any free one.", at_least=0, at_most=65_535, recorded=False
    )
    api_key_file: Path | None = setting(
        None,
        "File with the key that clients must send; or give it in RETAILTAG_API_KEY.",
        metavar="FILE",
        recorded=False,
    )
    max_batch: int = setting(
        32, "Most images per forward pass.", at_least=1, at_most=1024, recorded=False, advanced=True
    )
    queue: int = setting(
        256,
        "Most images in the server; requests beyond get status 429.",
        at_least=1,
        at_most=100_000,
        recorded=False,
        advanced=True,
    )
    max_images: int = setting(
        64,
        "Most images per request, at most --queue.",
        at_least=1,
        at_most=10_000,
        recorded=False,
        advanced=True,
    )
    max_request_mib: float = setting(
        32.0, "Largest request.", above=0, at_most=4096, recorded=False, advanced=True
    )
    timeout: float = setting(
        30.0,
        "Seconds that a client may take to send a request, and the server to decode an image.",
        above=0,
        at_most=3600,
        recorded=False,
        advanced=True,
    )


@dataclass(frozen=True)
class DecideSettings(Section):
    """The rule behind the recommendation of a bake-off; its steps are in docs/statistics.md."""

    max_latency_ms: float | None = setting(
        None, "Rule out pairs that take longer for one image.", above=0, at_most=1e9
    )
    max_train_hours: float | None = setting(
        None, "Rule out pairs that train longer.", above=0, at_most=1e6, advanced=True
    )
    max_memory_gib: float | None = setting(
        None,
        "Rule out pairs whose training needs more memory.",
        above=0,
        at_most=1e6,
        advanced=True,
    )
    tail_weight: float = setting(
        0.0,
        "Share of the tail's macro-F1 in what ranks the pairs; the rest is that of all tags.",
        at_least=0,
        at_most=1,
        advanced=True,
    )
    price_per_hour: float | None = setting(
        None,
        "Price of this machine; costs are then also shown in money.",
        above=0,
        at_most=1e9,
        advanced=True,
    )


@dataclass(frozen=True)
class DriftSettings(Section):
    """How new images are compared with a reference; see docs/drift.md."""

    alpha: float = setting(
        0.05, "Rate of false alarms of the whole report.", at_least=0.001, at_most=0.5
    )
    sample: int = setting(
        2000,
        "Images of either side that are read and compared, by products drawn at random.",
        at_least=20,
        at_most=5000,
    )
    split: str | None = setting(
        None,
        "Split of a catalogue given as --reference; default: test, else val, else train.",
        choices=("train", "val", "test"),
    )
    permutations: int = setting(
        999, "Permutations behind each p.", at_least=99, at_most=100_000, advanced=True
    )
    seed: int = setting(0, **SEED)


@dataclass(frozen=True)
class SimilarSettings(Section):
    """How similar products are searched; see docs/similar.md."""

    top: int = setting(
        10, "Products to list for each query.", flag="--top", at_least=1, at_most=1000, metavar="N"
    )
    rerank: str | None = setting(
        None,
        "Order the first 100 products anew: by tags shared with --id or --product, or by the "
        "embeddings of another backbone.",
        metavar="tags|ID",
    )


@dataclass(frozen=True)
class ExportSettings(Section):
    """What an export writes; see docs/tagger.md."""

    format: str = setting(
        "folder",
        "folder: what retailtag loads; onnx: an ONNX model with a runner that needs no torch; "
        "triton: a model repository for Triton Inference Server.",
        choices=("folder", "onnx", "triton"),
    )
    with_preprocessing: bool = setting(
        False, "Resize and crop in the ONNX graph, which then takes images of any size."
    )
    int8: bool = setting(
        False, "Also write the ONNX model in int8, and measure what that costs on the test split."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("with_preprocessing", "int8"):
            if getattr(self, name) and self.format == "folder":
                option = name.replace("_", "-")
                raise UsageError(
                    f"--{option} is about an ONNX model; give --format onnx or triton with it."
                )


@dataclass(frozen=True)
class BakeoffSettings(Section):
    """A bake-off: which pairs to compare, and the settings of every stage.

    The TOML file of any command has this shape; a command reads the sections that it uses.
    """

    backbones: tuple[str, ...] = setting(
        ("cnn", "dinov2", "clip"),
        "Backbone ids or presets, comma-separated; A+B: embeddings of A and B side by side.",
        metavar="ID,ID",
        aliases=("--backbone",),
    )
    strategies: tuple[str, ...] = setting(
        STRATEGIES, "probe, finetune or both.", metavar="probe,finetune"
    )
    names: tuple[str, ...] = setting(
        (),
        "Short name of a backbone in tables and pictures; repeatable. Default: the shortest that "
        "only it has.",
        flag="--name",
        metavar="NAME=ID",
        recorded=False,
        advanced=True,
    )
    out: Path | None = setting(None, "Folder of the run.", recorded=False)
    merge: tuple[Path, ...] = setting(
        (),
        "Latencies that `retailtag latency` measured on a T4 for copies of these models, in place "
        "of its estimates; repeatable.",
        metavar="CSV",
        recorded=False,
        advanced=True,
    )
    no_images: bool = setting(
        False, "Embed no pictures of the catalogue in the report.", recorded=False
    )
    catalog: CatalogSettings = CatalogSettings()
    reading: ReadingSettings = ReadingSettings()
    compute: ComputeSettings = ComputeSettings()
    latency: LatencySettings = LatencySettings()
    extract: ExtractSettings = ExtractSettings()
    probe: ProbeSettings = ProbeSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    score: ScoreSettings = ScoreSettings()
    predict: PredictSettings = PredictSettings()
    decide: DecideSettings = DecideSettings()
    serve: ServeSettings = ServeSettings()
    drift: DriftSettings = DriftSettings()
    similar: SimilarSettings = SimilarSettings()
    export: ExportSettings = ExportSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbones:
            raise UsageError("--backbones is empty; name at least one, such as demo:cnn.")
        for name, values in (("backbones", self.backbones), ("strategies", self.strategies)):
            if len(set(values)) < len(values):
                raise UsageError(f"--{name} has an entry twice; give each once.")
        if not self.strategies or not set(self.strategies) <= set(STRATEGIES):
            raise UsageError(f"--strategies must be some of {', '.join(STRATEGIES)}.")


SECTIONS: dict[str, type[Section]] = {
    "catalog": CatalogSettings,
    "reading": ReadingSettings,
    "compute": ComputeSettings,
    "latency": LatencySettings,
    "extract": ExtractSettings,
    "probe": ProbeSettings,
    "finetune": FinetuneSettings,
    "score": ScoreSettings,
    "predict": PredictSettings,
    "decide": DecideSettings,
    "serve": ServeSettings,
    "drift": DriftSettings,
    "similar": SimilarSettings,
    "export": ExportSettings,
}

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "probe.folds": 3,
        "probe.heads": "logistic",
        "finetune.epochs": 2,
        "finetune.augment": "none",
        "score.replicates": 500,
    },
    "default": {},
    "thorough": {
        "probe.sweep_C": FULL_C_GRID,
        "probe.scale": "standardise,l2",
        "finetune.epochs": 15,
        "finetune.refit": True,
        "score.replicates": 10_000,
    },
}


def section_of(key: str) -> tuple[type[Section], str]:
    """Section and field of a dotted key such as ``finetune.layer_decay`` or ``backbones``.

    Raises
    ------
    UsageError
        If there is none; the sentence names the nearest one.
    """
    if key not in keys():
        near = difflib.get_close_matches(key, keys(), n=1, cutoff=0.5) or [
            k for k in keys() if k.rpartition(".")[2] == key.rpartition(".")[2]
        ]
        hint = f"did you mean {near[0]}?" if near else "retailtag init lists them all."
        raise UsageError(f"{key} is not a setting; {hint}")
    section, _, name = key.rpartition(".")
    return (SECTIONS[section] if section else BakeoffSettings), name


@cache
def keys() -> tuple[str, ...]:
    """All settings as dotted keys, in the order of the TOML file."""
    sections = [f"{name}.{field}" for name, kind in SECTIONS.items() for field in options_of(kind)]
    return (*options_of(BakeoffSettings), *sections)


def option_of(key: str) -> Option:
    """What the field of a dotted key says about itself."""
    kind, name = section_of(key)
    return options_of(kind)[name]


def default_of(key: str) -> Any:
    """Default of a dotted key."""
    kind, name = section_of(key)
    return getattr(kind, name)


def build(values: Mapping[str, Any]) -> BakeoffSettings:
    """Settings with the given values by dotted key, defaults elsewhere.

    Examples
    --------
    >>> build({"backbones": "demo:cnn", "probe.folds": "3"}).probe.folds
    3
    """
    # a section is made only where a value is given, so that defaults stay those of its class
    own: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section_of(key)
        section, _, name = key.rpartition(".")
        (parts.setdefault(section, {}) if section else own)[name] = value
    sections = {name: SECTIONS[name](**given) for name, given in parts.items()}
    return BakeoffSettings(**own, **sections)  # type: ignore[arg-type]


def values_of(settings: BakeoffSettings) -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key."""
    for key in keys():
        section, _, name = key.rpartition(".")
        yield key, getattr(getattr(settings, section) if section else settings, name)
