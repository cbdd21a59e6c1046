"""One step of the optimiser: micro-batches, mixed precision, gradient clipping, memory."""

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
from retailtag.finetuning.losses import CellLosses
from retailtag.finetuning.mixed_precision import is_out_of_memory
from retailtag.finetuning.network import Network
from retailtag.progress import SILENT, Progress

_CHECK_EVERY = 16  # batches between two checks of the losses on a GPU, each of which waits for it


class MicroBatches:
    """How many images pass through the model at once; halved whenever memory runs out."""

    def __init__(self, size: int, progress: Progress = SILENT) -> None:
        self.size = max(1, size)
        self._progress = progress

    def slices(self, n: int) -> Iterator[slice]:
        """Consecutive slices of n images."""
        return (slice(start, start + self.size) for start in range(0, n, self.size))

    def until_it_fits(self, work: Callable[[], Tensor]) -> Tensor:
        """Result of `work`, started again with half the size when memory runs out.

        Raises `Unavailable` if a single image is too much.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler: the error's traceback holds the tensors that filled the memory.
            self._halve()

    def _halve(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.size == 1:
            raise Unavailable(
                "Memory runs out with a single image at a time; train fewer --blocks, add "
                "--gradient-checkpointing, or take a smaller size or backbone."
            )
        self.size = max(1, self.size // 2)
        self._progress.say(
            f"memory ran out: {self.size} images at once from here on; the batch of the "
            "optimiser stays as it is"
        )


class TrainingStep:
    """The optimiser, the loss scaling and the size of micro-batches, from step to step."""

    def __init__(
        self, network: Network, loader: BatchLoader, loss: CellLosses, progress: Progress = SILENT
    ) -> None:
        config = network.config
        self.network = network
        self.loader = loader
        self.loss = loss
        self.micro_batches = MicroBatches(
            math.ceil(config.batch_size / config.micro_batches), progress
        )
        self.optimiser = make_optimiser(network.backbone, network.head, config)
        self.scaler = network.precision.scaler()
        self._parameters = network.parameters()

    def step(self, batch: Tensor, targets: Tensor, factor: float) -> Tensor:
        """One step at `factor` of the peak learning rates; the mean loss over known cells.

        `targets` (n, n_tags) of the whole batch are as `Loss.build` takes them; `batch`, in the
        form of the loader's, holds those of its images that `Ranks.places` gives this process.
        """
        loss = self.micro_batches.until_it_fits(lambda: self._gradients(batch, targets))
        self._add_up(loss, len(targets))
        # Clipping compares norms, so the scale of the loss has to be divided out first.
        self.scaler.unscale_(self.optimiser)
        clip_grad_norm_(self._parameters, self.network.config.clip_norm)
        # Reading a loss from a GPU would wait for it at every step; `LossMonitor` checks later.
        if loss.device.type == "cuda" or math.isfinite(loss.item()):
            set_learning_rates(self.optimiser, factor)
            self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss

    def _gradients(self, batch: Tensor, targets: Tensor) -> Tensor:
        """Sum the gradients of all micro-batches, from zero; the mean loss."""
        self.optimiser.zero_grad(set_to_none=True)
        device = self.network.device
        # The mean over the batch is Σ_micro Σ_cells loss / known, with the known cells of the
        # whole batch: dividing by those of each micro-batch would weigh images unequally. The
        # gradient is then that of the undivided batch; only batch statistics see the division.
        # Likewise the processes: the sum of their gradients is that of one process.
        known = (targets >= 0).sum().clamp_min(1).to(device, non_blocking=True)
        own = self._own(targets).to(device, non_blocking=True)
        total = torch.zeros((), device=device)
        for some in self.micro_batches.slices(len(batch)):
            logits = self.network.logits(self.loader.activations(batch[some]))
            loss = self.loss(logits, own[some]).sum() / known
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _own(self, targets: Tensor) -> Tensor:
        """Targets of this process's images, of those of the whole batch."""
        ranks = self.network.ranks
        own = targets[ranks.places(len(targets))]
        # A batch with fewer images than processes: one that is left without an image computes
        # another's with unknown labels, whose gradients are zeros.
        return own if ranks.rank < len(targets) else torch.full_like(own, -1)

    def _add_up(self, loss: Tensor, n: int) -> None:
        """Sum the gradients and the loss of a batch of `n` images over the processes."""
        # Not by DistributedDataParallel, whose exchanges begin within the backward pass: a process
        # whose memory runs out starts its pass again, and the others' would no longer match.
        ranks = self.network.ranks
        if ranks.size == 1:
            return
        share = len(range(ranks.rank, n, ranks.size)) / n
        # Each process has the statistics of its own images; weighted, they add up to the mean.
        statistics = [share * statistic for statistic in self.network.batch_statistics()]
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        ranks.add_up([*gradients, loss, *statistics])
        for stored, mean in zip(self.network.batch_statistics(), statistics, strict=True):
            stored.copy_(mean)


def predict(
    network: Network, loader: BatchLoader, rows: Rows, micro_batches: MicroBatches
) -> NDArray[np.float32]:
    """Logits (n_rows, n_tags) in evaluation mode, in the order of `rows`.

    Every process computes a part, and gets the whole.
    """
    network.eval()
    own = rows[network.ranks.stretch(len(rows))]

    @torch.inference_mode()
    def logits_of(batch: Tensor) -> Tensor:
        slices = micro_batches.slices(len(batch))
        return torch.cat([network.logits(loader.activations(batch[s])) for s in slices]).cpu()

    found = [np.empty((0, network.head.linear.out_features), np.float32)]
    for _, batch in loader.batches(own, micro_batches.size):
        found.append(micro_batches.until_it_fits(partial(logits_of, batch)).numpy())
    return network.ranks.whole(np.concatenate(found), len(rows))


class LossMonitor:
    """Mean loss of an epoch; stops it when the loss of a batch is not finite.

    `total` is the sum of losses times images so far, of an epoch that is continued.
    """

    def __init__(self, epoch: int, total: float = 0.0) -> None:
        self._epoch = epoch
        self._total = total
        self._unchecked: list[tuple[int, int, Tensor]] = []

    def add(self, index: int, n: int, loss: Tensor) -> None:
        """Record the loss of batch `index` of `n` images.

        Raises `DataError` if it, or an earlier one that was not yet checked, is not finite.
        """
        self._unchecked.append((index, n, loss))
        if loss.device.type == "cpu" or len(self._unchecked) >= _CHECK_EVERY:
            self.total()

    def total(self) -> float:
        """Sum of losses times images; checks every batch recorded, as `add` does."""
        for index, n, loss in self._unchecked:
            value = loss.item()
            if not math.isfinite(value):
                raise DataError(
                    f"The loss is {value} at batch {index} of epoch {self._epoch}; lower --lr and "
                    "--head-lr. The model is not written; the last whole epoch is kept in --out."
                )
            self._total += n * value
        self._unchecked.clear()
        return self._total
