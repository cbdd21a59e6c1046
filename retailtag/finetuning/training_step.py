"""One step of the optimiser: parts of a batch, mixed precision, clipping, running out of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from retailtag.errors import DataError, Unavailable
from retailtag.finetuning.batch_loader import BatchLoader, Rows
from retailtag.finetuning.learning_rates import make_optimiser, set_learning_rates
from retailtag.finetuning.losses import TagLoss
from retailtag.finetuning.network import Network
from retailtag.finetuning.precision import is_out_of_memory
from retailtag.progress import SILENT, Progress

_LOOK_EVERY = 16  # batches between two looks at the losses on a GPU, which must be waited for


class MicroBatches:
    """How many images go through the model at once; halved whenever memory runs out.

    Parameters
    ----------
    at_once : int
    progress : Progress
        Told about every halving.
    """

    def __init__(self, at_once: int, progress: Progress = SILENT) -> None:
        self.at_once = max(1, at_once)
        self._progress = progress

    def slices(self, n: int) -> Iterator[slice]:
        """Consecutive slices of n images."""
        return (slice(start, start + self.at_once) for start in range(0, n, self.at_once))

    def until_it_fits(self, work: Callable[[], Tensor]) -> Tensor:
        """Result of `work`, begun anew with half as many images at once when memory runs out.

        Raises
        ------
        Unavailable
            If a single image is too much.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # outside the handler: the error's traceback holds what filled the memory
            self._halve()

    def _halve(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.at_once == 1:
            raise Unavailable(
                "Memory runs out with a single image at a time; train fewer --blocks, add "
                "--checkpoint-gradients, or take a smaller size or backbone."
            )
        self.at_once = max(1, self.at_once // 2)
        self._progress.say(
            f"memory ran out: {self.at_once} images at once from here on; the batch of the "
            "optimiser stays as it is"
        )


class TrainingStep:
    """What one training carries from step to step.

    Parameters
    ----------
    network : Network
        With its parameters unfrozen.
    feed : BatchLoader
    loss : TagLoss
    progress : Progress
    """

    def __init__(
        self, network: Network, feed: BatchLoader, loss: TagLoss, progress: Progress = SILENT
    ) -> None:
        self.network, self.feed, self.loss = network, feed, loss
        config = network.config
        self.parts = MicroBatches(math.ceil(config.batch_size / config.micro_batches), progress)
        self.optimiser = make_optimiser(network.backbone, network.head, config)
        self.scaler = network.precision.scaler()
        self._parameters = network.parameters()

    def step(self, batch: Tensor, targets: Tensor, factor: float) -> Tensor:
        """One step at `factor` of the peak rates; the mean loss over the batch's known cells.

        Parameters
        ----------
        batch : Tensor
            As the feed gives it.
        targets : Tensor, shape (n, n_tags)
            1, 0, -1 (unknown), or in between (mixed images).
        factor : float

        Notes
        -----
        Losses of the parts are summed over cells and divided by all known cells of the batch, so
        that the gradient is that of the undivided batch. Only batch normalisation by the
        statistics of the batch sees the parts.
        """
        loss = self.parts.until_it_fits(lambda: self._gradients(batch, targets))
        self.scaler.unscale_(self.optimiser)
        clip_grad_norm_(self._parameters, self.network.config.clip_norm)
        if loss.device.type == "cuda" or math.isfinite(loss.item()):
            set_learning_rates(self.optimiser, factor)
            self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss

    def _gradients(self, batch: Tensor, targets: Tensor) -> Tensor:
        """Sum the gradients of all parts anew; the mean loss."""
        self.optimiser.zero_grad(set_to_none=True)
        device = self.network.device
        targets = targets.to(device, non_blocking=True)
        known = (targets >= 0).sum().clamp_min(1)
        total = torch.zeros((), device=device)
        for part in self.parts.slices(len(batch)):
            logits = self.network.logits(self.feed.enter(batch[part]))
            loss = self.loss.cells(logits, targets[part]).sum() / known
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total


def predict(
    network: Network, feed: BatchLoader, rows: Rows, parts: MicroBatches
) -> NDArray[np.float32]:
    """Logits (n_rows, n_tags) in evaluation mode, in the order of `rows`."""
    network.eval()
    found = [np.empty((0, network.head.linear.out_features), np.float32)]
    for _, batch in feed.batches(rows, parts.at_once):
        found.append(parts.until_it_fits(partial(_logits, network, feed, batch, parts)).numpy())
    return np.concatenate(found)


@torch.inference_mode()
def _logits(network: Network, feed: BatchLoader, batch: Tensor, parts: MicroBatches) -> Tensor:
    some = [network.logits(feed.enter(batch[part])) for part in parts.slices(len(batch))]
    return torch.cat(some).cpu()


class LossMonitor:
    """Mean loss of an epoch, and an end to it when a batch's loss is not finite.

    Parameters
    ----------
    epoch : int
    total : float
        Sum of losses times images so far, of an epoch that goes on.
    """

    def __init__(self, epoch: int, total: float = 0.0) -> None:
        self._epoch, self._total = epoch, total
        self._waiting: list[tuple[int, int, Tensor]] = []

    def add(self, index: int, n: int, loss: Tensor) -> None:
        """Note the loss of batch `index` of `n` images.

        Raises
        ------
        DataError
            If it, or one that was noted and not looked at before, is not finite.
        """
        self._waiting.append((index, n, loss))
        if loss.device.type == "cpu" or len(self._waiting) >= _LOOK_EVERY:
            self.total()

    def total(self) -> float:
        """Sum of losses times images; looks at every batch noted.

        Raises
        ------
        DataError
            As `add`.
        """
        for index, n, loss in self._waiting:
            value = loss.item()
            if not math.isfinite(value):
                raise DataError(
                    f"The loss is {value} at batch {index} of epoch {self._epoch}; lower --lr and "
                    "--head-lr. The model is not written; the last whole epoch is kept in --out."
                )
            self._total += n * value
        self._waiting.clear()
        return self._total
