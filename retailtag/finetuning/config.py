"""The settings of a fine-tune: what is trained, how, and by what the result is chosen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from retailtag.errors import UsageError, check_seed
from retailtag.finetuning.augment import Augment
from retailtag.finetuning.losses import parse_loss
from retailtag.finetuning.mixing import parse_mix
from retailtag.finetuning.sampling import parse_sampler

Blocks = int | Literal["all", "scratch"]

CHOICES = ("auto", "macro-f1", "macro-f1-free", "macro-ap")
PRECISIONS = ("auto", "float32", "bf16", "fp16")
STATISTICS = ("auto", "stored", "batch")
AUTO = "auto"


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a fine-tune; every one is recorded with the result.

    Parameters
    ----------
    blocks : int, "all" or "scratch"
        How many last blocks are trained; see `Backbone.unfreeze_last`. ``scratch`` trains
        everything from random weights: the honest lower bar.
    epochs : int
        Passes over the fitted images; 0 keeps the probe as it is.
    batch_size : int
        Images of one step of the optimiser, whatever the memory: see `parts`.
    lr : float
        Peak learning rate of the last block (AdamW, linear warm-up, cosine decay to 0).
    head_lr : float
        Peak learning rate of the head.
    weight_decay : float
        Decoupled; not applied to biases and normalisation parameters.
    warmup : float
        Fraction of the steps with a rising rate.
    clip_norm : float
        Largest gradient norm.
    augment : str
        See `retailtag.finetuning.augment`: ``none``, ``light``, ``strong``, ``cached:V``.
    seed : int
        Order of images, augmentation, dropout, and random weights.
    thresholds, objective : str
        How the thresholds of the trained model are tuned on the validation part, and what for.
    layer_decay : float
        Each block's rate is this fraction of the rate of the block after it; 1 for equal rates.
    loss, sampler, mix : str
        See `retailtag.finetuning.losses`, `sampling` and `mixing`.
    ema : float
        Decay of the exponential moving average of the weights that is kept; 0 for none.
    precision : str
        ``float32``, ``bf16``, ``fp16``; ``auto``: what the hardware multiplies fastest.
    parts : int
        Forward passes that a batch is divided into to save memory; gradients are summed. Doubled
        whenever memory runs out.
    recompute : bool
        Gradient checkpointing.
    interpolate : str
        WiSE-FT: ``auto`` chooses the factor on the validation part; a number in 0..1 fixes it
        (1: no interpolation).
    batch_norm : str
        What batch normalisation in trained blocks uses while they are trained: ``stored``, the
        statistics that it came with, which stay; ``batch``, those of each batch, which also moves
        the stored ones. ``auto``: stored, and batch for ``scratch``, which has none.
    choose : str
        What the validation part decides by: see `retailtag.finetuning.validation`.
    refit : bool
        Train again on fitted and validation images together for the chosen number of epochs.
    """

    blocks: Blocks = 4
    epochs: int = 5
    batch_size: int = 64
    lr: float = 3e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip_norm: float = 1.0
    augment: str = "light"
    seed: int = 0
    thresholds: str = AUTO
    objective: str = "f1"
    layer_decay: float = 0.75
    loss: str = "bce"
    sampler: str = "shuffle"
    mix: str = "none"
    ema: float = 0.0
    precision: str = AUTO
    parts: int = 1
    recompute: bool = False
    interpolate: str = AUTO
    batch_norm: str = AUTO
    choose: str = AUTO
    refit: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise UsageError("--epochs must be at least 0 and --batch-size at least 1.")
        if not (0 < self.lr < math.inf and 0 < self.head_lr < math.inf):
            raise UsageError("--lr and --head-lr must be positive and finite.")
        if not 1 <= self.parts <= self.batch_size:
            raise UsageError(f"--parts {self.parts} must be 1 to --batch-size, {self.batch_size}.")
        for option, value in (("layer-decay", self.layer_decay), ("clip-norm", self.clip_norm)):
            if not value > 0:
                raise UsageError(f"--{option} {value} must be positive.")
        if self.layer_decay > 1 or not 0 <= self.ema < 1 or not 0 <= self.warmup < 1:
            raise UsageError(
                "--layer-decay must be at most 1, --ema and --warmup at least 0 and below 1."
            )
        _check_one_of("choose-epoch", self.choose, CHOICES)
        _check_one_of("amp", self.precision, PRECISIONS)
        _check_one_of("batch-norm", self.batch_norm, STATISTICS)
        self.factors()
        for parse, text in (
            (parse_loss, self.loss),
            (parse_sampler, self.sampler),
            (parse_mix, self.mix),
            (Augment.parse, self.augment),
        ):
            parse(text)
        check_seed(self.seed)

    def factors(self) -> tuple[float, ...]:
        """Interpolation factors to try, the trained weights (1) first.

        Raises
        ------
        UsageError
            If `interpolate` is neither ``auto`` nor in 0..1.
        """
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
    def keeps_statistics(self) -> bool:
        """Whether batch normalisation in trained blocks keeps to its stored statistics.

        The head starts from a probe on embeddings that were made with them: on other images than
        the pretraining's, those of a batch move every embedding at the first step.
        """
        auto = "batch" if self.blocks == "scratch" else "stored"
        return (auto if self.batch_norm == AUTO else self.batch_norm) == "stored"

    @property
    def repeats(self) -> bool:
        """Whether the frozen part is shown the same pixels again and again.

        Mixed images are not among them: mixing activations would be another training than mixing
        pixels.
        """
        frozen = isinstance(self.blocks, int) and self.blocks > 0
        return frozen and self.mix == "none" and Augment.parse(self.augment).cacheable

    @property
    def trained(self) -> int | Literal["all"]:
        """How many last blocks receive gradients."""
        return "all" if self.blocks == "scratch" else self.blocks

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of the settings."""
        return asdict(self)


def _check_one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"--{option} {value} is unknown; use one of {', '.join(known)}.")
