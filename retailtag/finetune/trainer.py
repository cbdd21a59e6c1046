"""Training of the last blocks and the head, with the epoch chosen on a validation part."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from retailtag.backbones.backbone import Backbone
from retailtag.errors import DataError, UsageError, check_seed
from retailtag.finetune.augment import flip_and_shift
from retailtag.finetune.head import Head, HeadInit
from retailtag.finetune.losses import masked_bce
from retailtag.finetune.pixels import PixelSource
from retailtag.progress import SILENT, Progress

Blocks = int | Literal["all"]
Criterion = Callable[[NDArray[np.float32], NDArray[np.int8]], float]
Labels = NDArray[np.int8]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a fine-tune; every one is recorded with the result.

    Parameters
    ----------
    blocks : int or "all"
        How many last blocks are trained; see `Backbone.unfreeze_last`.
    epochs : int
        Passes over the fitted images; 0 keeps the probe as it is.
    batch_size : int
    lr : float
        Peak learning rate of the blocks (AdamW, linear warm-up, cosine decay to 0).
    head_lr : float
        Peak learning rate of the head.
    weight_decay : float
        Decoupled; not applied to biases and normalisation parameters.
    warmup : float
        Fraction of the steps with a rising rate.
    clip_norm : float
        Largest gradient norm.
    augment : bool
        Mirror and shift (`flip_and_shift`).
    seed : int
        Order of images and augmentation.
    thresholds, objective : str
        How the thresholds of the trained model are tuned on the validation part, and what for.
    """

    blocks: Blocks = 4
    epochs: int = 5
    batch_size: int = 64
    lr: float = 3e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip_norm: float = 1.0
    augment: bool = True
    seed: int = 0
    thresholds: str = "auto"
    objective: str = "f1"

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise UsageError("--epochs must be at least 0 and --batch-size at least 1.")
        if not (0 < self.lr < math.inf and 0 < self.head_lr < math.inf):
            raise UsageError("--lr and --head-lr must be positive and finite.")
        check_seed(self.seed)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of the settings."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """The model at its best epoch.

    Parameters
    ----------
    head : Head
        Trained head; the backbone that was passed in carries the trained blocks.
    history : list of dict
        One row an epoch, from 0 (the probe on frozen blocks): ``epoch``, ``loss`` (mean training
        loss, None at 0), ``criterion``, ``seconds``.
    best_epoch : int
        Row of `history` with the largest criterion; of equals the earliest.
    val_logits : ndarray of float32, shape (n_val, n_tags)
        Scores of the validation images at the best epoch.
    """

    head: Head
    history: list[dict[str, Any]]
    best_epoch: int
    val_logits: NDArray[np.float32]


def train(
    backbone: Backbone,
    start: HeadInit,
    pixels: PixelSource,
    labels: Labels,
    fit_rows: Rows,
    val_rows: Rows,
    criterion: Criterion,
    config: FinetuneConfig,
    progress: Progress = SILENT,
) -> FinetuneResult:
    """Retrain the last blocks and the head; leave the backbone at its best epoch.

    Parameters
    ----------
    backbone : Backbone
        Trained in place.
    start : HeadInit
        A probe fitted on the images of `fit_rows` alone: one that has seen the validation part
        would make its choice of epoch worthless.
    pixels : PixelSource
    labels : ndarray of int8, shape (n_images, n_tags)
        Of the whole catalogue; only `fit_rows` and `val_rows` are read.
    fit_rows, val_rows : ndarray of int
        Rows of the catalogue, disjoint.
    criterion : callable
        ``(logits, labels) -> float`` on the validation part; larger is better, NaN if undefined.
    config : FinetuneConfig
    progress : Progress

    Returns
    -------
    FinetuneResult

    Raises
    ------
    DataError
        If the loss stops being finite; names epoch and batch.

    References
    ----------
    Kumar et al. (2022), Fine-Tuning can Distort Pretrained Features (start from the probe).
    """
    torch.manual_seed(config.seed)
    head = Head(start).to(backbone.device)
    run = _Run(backbone, head, pixels, labels, config, len(fit_rows))
    history: list[dict[str, Any]] = []
    best_value, best_epoch = -math.inf, 0
    best_state, best_logits = run.state(), np.empty((0, 0), np.float32)
    for epoch in range(config.epochs + 1):
        began = time.perf_counter()
        loss = run.epoch(epoch, fit_rows, progress) if epoch else None
        logits = predict(backbone, head, pixels, val_rows, config.batch_size)
        value = criterion(logits, labels[val_rows])
        value = value if math.isfinite(value) else -1.0
        if value > best_value:
            best_value, best_epoch = value, epoch
            best_state, best_logits = run.state(), logits
        seconds = time.perf_counter() - began
        history.append({"epoch": epoch, "loss": loss, "criterion": value, "seconds": seconds})
        progress.say(_epoch_line(history[-1], config.epochs))
    run.restore(best_state)
    return FinetuneResult(head, history, best_epoch, best_logits)


def predict(
    backbone: Backbone, head: Head, pixels: PixelSource, rows: Rows, batch_size: int
) -> NDArray[np.float32]:
    """Logits (n_rows, n_tags) in evaluation mode, in the order of `rows`."""
    backbone.module.eval()
    head.eval()
    with torch.inference_mode():
        parts = [
            head(backbone.forward(batch.to(backbone.device))).float().cpu().numpy()
            for _, batch in pixels.batches(rows, batch_size)
        ]
    n_tags = head.linear.out_features
    return np.concatenate(parts) if parts else np.empty((0, n_tags), np.float32)


class _Run:
    """What one training run carries from step to step."""

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        pixels: PixelSource,
        labels: Labels,
        config: FinetuneConfig,
        n_fit: int,
    ) -> None:
        self.backbone, self.head, self.pixels = backbone, head, pixels
        self.labels, self.config = torch.from_numpy(labels), config
        self.generator = torch.Generator().manual_seed(config.seed)
        body = backbone.unfreeze_last(config.blocks)
        self.parameters = [*body, *head.parameters()]
        self.optimiser = torch.optim.AdamW(
            [
                *_decay_groups(body, config.lr, config.weight_decay),
                *_decay_groups(list(head.parameters()), config.head_lr, config.weight_decay),
            ]
        )
        steps = max(1, config.epochs * math.ceil(n_fit / config.batch_size))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: warm_cosine(step, steps, config.warmup)
        )

    def epoch(self, epoch: int, rows: Rows, progress: Progress) -> float:
        """One pass over `rows` in random order; the mean loss."""
        self.backbone.train_last(self.config.blocks)
        self.head.train()
        order = rows[torch.randperm(len(rows), generator=self.generator).numpy()]
        total = 0.0
        with progress.task(f"epoch {epoch}/{self.config.epochs}", len(rows)) as advance:
            for i, (some, batch) in enumerate(self.pixels.batches(order, self.config.batch_size)):
                loss = self._step(some, batch)
                if not math.isfinite(loss):
                    raise DataError(
                        f"The loss is {loss} at batch {i} of epoch {epoch}; lower --lr and "
                        "--head-lr, nothing was written."
                    )
                total += loss * len(some)
                advance(len(some))
        return total / max(len(rows), 1)

    def _step(self, rows: Rows, batch: Tensor) -> float:
        if self.config.augment:
            batch = flip_and_shift(batch, self.generator)
        device = self.backbone.device
        logits = self.head(self.backbone.forward(batch.to(device)))
        loss = masked_bce(logits, self.labels[rows].to(device))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimiser.step()
        self.schedule.step()
        return loss.item()

    def state(self) -> list[dict[str, Tensor]]:
        """Copies of the parameters and buffers of backbone and head, on the CPU."""
        modules = (self.backbone.module, self.head)
        return [
            {k: v.detach().to("cpu", copy=True) for k, v in m.state_dict().items()} for m in modules
        ]

    def restore(self, state: list[dict[str, Tensor]]) -> None:
        for module, values in zip((self.backbone.module, self.head), state, strict=True):
            module.load_state_dict(values)
            module.eval()


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the peak rate: linear up over ``warmup * steps``, then a half cosine to 0.

    Examples
    --------
    >>> [round(warm_cosine(s, 10, 0.2), 2) for s in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))


def _decay_groups(
    parameters: list[torch.nn.Parameter], lr: float, decay: float
) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay, biases and normalisation parameters do not."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "lr": lr, "weight_decay": decay},
        {"params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    loss = "" if row["loss"] is None else f"loss {row['loss']:.4f}, "
    return (
        f"epoch {row['epoch']}/{epochs}: {loss}validation macro-AP {row['criterion']:.4f}, "
        f"{row['seconds']:.1f} s"
    )
