"""Training of the last blocks and the head: epochs, snapshots, and the state that is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.finetuning.batch_loader import BatchLoader, Rows
from retailtag.finetuning.learning_rates import warmup_cosine
from retailtag.finetuning.logs import Logs
from retailtag.finetuning.losses import LabelCounts, parse_loss
from retailtag.finetuning.mixing import parse_mix
from retailtag.finetuning.network import Network, State
from retailtag.finetuning.sampling import epoch_order, parse_sampler
from retailtag.finetuning.snapshots import Snapshots
from retailtag.finetuning.training_step import LossMonitor, TrainingStep, predict
from retailtag.finetuning.validation import Measured, ModelSelector
from retailtag.finetuning.weight_averaging import Ema, interpolate
from retailtag.progress import SILENT, Progress

Labels = NDArray[np.int8]
Logits = NDArray[np.float32]
# epoch and the criterion; True ends the training there
Report = Callable[[int, float], bool]
# last epoch that is known already, None for none, to the log that continues after it
OpenLog = Callable[[int | None], Logs]


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """The model that is kept.

    `history` has one row per epoch, from 0 (the start): ``epoch``, ``loss`` (mean training loss,
    None at 0), ``criterion`` and the other figures of `ModelSelector.row`, ``kept_tail`` (whether
    the constraint on the tail is met), ``images_per_second``, ``seconds``.
    """

    history: list[dict[str, Any]]
    best_epoch: int  # that is kept
    val_logits: Logits  # (n_val, n_tags), by the model that is kept
    factor: float  # share of its weights in the interpolation with the start; 1: none
    factors: list[dict[str, Any]]  # figures of each interpolation tried, with its factor
    earlier_seconds: float  # of epochs that an earlier, interrupted run did


@dataclass(frozen=True)
class _Candidate:
    """A state with its scores on the validation set."""

    epoch: int
    measured: Measured
    state: State
    logits: Logits

    def saved(self) -> dict[str, Any]:
        """What a snapshot holds of it."""
        return {
            "epoch": self.epoch,
            "measured": [torch.from_numpy(self.measured.f1), torch.from_numpy(self.measured.ap)],
            "state": self.state,
            "logits": torch.from_numpy(self.logits),
        }

    @classmethod
    def of(cls, saved: dict[str, Any]) -> _Candidate:
        """What `saved` gave."""
        f1, ap = saved["measured"]
        measured = Measured(f1.numpy(), ap.numpy())
        return cls(saved["epoch"], measured, saved["state"], saved["logits"].numpy())


def train(
    network: Network,
    loader: BatchLoader,
    labels: Labels,
    train_rows: Rows,
    val_rows: Rows,
    selector: ModelSelector,
    *,
    snapshots: Snapshots | None = None,
    open_log: OpenLog | None = None,
    report: Report | None = None,
    progress: Progress = SILENT,
) -> FinetuneResult:
    """Retrain the last blocks and the head; leave the network at the state that is kept.

    The head of `network` starts from a probe fitted on the images of `train_rows` alone: one that
    has seen the validation images would make its choice of epoch worthless. `labels` are those of
    the whole catalogue, int8 (n_images, n_tags); only `train_rows` and `val_rows` are read.

    Training continues from a state found in `snapshots`, to the same result. `open_log` opens the
    log, which gets every row of the history. `report` is called after every epoch, those of an
    interrupted run included; True ends the training. Raises `DataError`, which names epoch and
    batch, if the loss stops being finite.

    References
    ----------
    Kumar et al. (2022), Fine-Tuning can Distort Pretrained Features (start from the probe).
    Wortsman et al. (2022), Robust Fine-Tuning of Zero-Shot Models (interpolation).
    """
    training = Training(network, loader, labels, train_rows, progress)
    selection = _Selection(training, val_rows, selector, snapshots)
    earlier = selection.resume()
    known = len(selection.history)
    with open_log(known - 1 if known else None) if open_log else Logs() as log:
        for epoch in range(network.config.epochs + 1):
            row = selection.history[epoch] if epoch < known else selection.epoch(epoch)
            if epoch >= known:
                progress.say(epoch_line(row, network.config.epochs))
                log.metrics(epoch, {name: row[name] for name in row if name != "epoch"})
            if report and epoch and report(epoch, row["criterion"]):
                break
    return selection.conclude(earlier)


def refit(
    network: Network,
    loader: BatchLoader,
    labels: Labels,
    rows: Rows,
    epochs: int,
    factor: float,
    *,
    snapshots: Snapshots | None = None,
    progress: Progress = SILENT,
) -> None:
    """Train on `rows` for the first `epochs` epochs of the schedule, then interpolate.

    Nothing is chosen here: epochs and factor come from a training with a validation set.
    """
    training = Training(network, loader, labels, rows, progress)
    start = network.state()
    saved = snapshots.load() if snapshots else None
    first = training.load(saved) if saved else 1
    for epoch in range(first, epochs + 1):
        training.epoch(epoch, snapshots)
        if snapshots:
            snapshots.save(training.state(epoch + 1))
    with training.averaged():
        tuned = network.state()
    network.load(interpolate(start, tuned, factor))
    network.eval()


class Training:
    """Epochs over the training images; its state suffices to continue from any batch.

    Order of images, views, mixtures, steps and dropout are functions of (seed, epoch, batch).
    Together with weights, moments of the optimiser, loss scale and average, a resumed training
    therefore ends in the same bits.

    Several processes (`Network.ranks`) divide every batch; all hold the same state.
    """

    def __init__(
        self,
        network: Network,
        loader: BatchLoader,
        labels: Labels,
        rows: Rows,
        progress: Progress = SILENT,
    ) -> None:
        config = network.config
        self.network = network
        self.loader = loader
        self.progress = progress
        self.rows = rows
        self.labels = torch.from_numpy(labels)
        self._factors = parse_sampler(config.sampler).factors(labels[rows])
        self._mix = parse_mix(config.mix)
        loss = parse_loss(config.loss).build(LabelCounts.of(labels[rows]))
        self.stepper = TrainingStep(network, loader, loss, progress)
        floats = {n: t for n, t in network.live().items() if t.is_floating_point()}
        self._ema = Ema(floats, config.ema) if config.ema else None
        self._resumed: tuple[int, float] | None = None  # batch and sum of losses to continue from

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the network holds the averaged weights, if there is an average."""
        return self._ema.applied() if self._ema else nullcontext()

    def epoch(
        self,
        epoch: int,
        snapshots: Snapshots | None = None,
        more: Callable[[], dict[str, Any]] = dict,
    ) -> tuple[float, int]:
        """One pass over the images that the sampler draws; mean loss, and images shown now.

        Epochs count from 1. A snapshot that is due is written, of the state and what `more` gives.
        """
        config = self.network.config
        order = self.rows[epoch_order(self._factors, config.seed, epoch)]
        batch, total = self._resumed or (0, 0.0)
        self._resumed = None
        monitor = LossMonitor(epoch, total)
        start = batch * config.batch_size
        starts = range(0, len(order), config.batch_size)
        batches = [order[k : k + config.batch_size] for k in starts]
        self.network.train()
        with self.progress.task(f"epoch {epoch}/{config.epochs}", len(order)) as advance:
            advance(start)
            shown = self._shown(batches[batch:], epoch, batch)
            for some, inputs in zip(batches[batch:], shown, strict=True):
                loss = self._step(epoch, batch, len(batches), some, inputs)
                monitor.add(batch, len(some), loss)
                batch += 1
                advance(len(some))
                if snapshots is not None and snapshots.is_due:
                    snapshots.save(self.state(epoch, batch, monitor.total()) | more())
        return monitor.total() / max(len(order), 1), len(order) - start

    def _shown(self, batches: list[Rows], epoch: int, batch: int) -> Iterator[Tensor]:
        """What this process needs of every one of `batches`, the first of which is `batch`."""
        size = self.network.config.batch_size
        if self.network.ranks.size > 1:
            batches = [self._part(some, epoch, k) for k, some in enumerate(batches, batch)]
            size = max(map(len, batches), default=size)
        # All batches but the last are of one size, so the loader cuts their rows where they end.
        rows = np.concatenate([*batches, self.rows[:0]])
        return (inputs for _, inputs in self.loader.batches(rows, size, epoch))

    def _part(self, rows: Rows, epoch: int, batch: int) -> Rows:
        """Rows of a batch that this process computes, then those that they are mixed with."""
        own = self.network.ranks.places(len(rows))
        partners = self._mix.partners(len(rows), self._key(epoch, batch))
        return np.concatenate([rows[own], rows[partners[own]]])

    def _key(self, epoch: int, batch: int) -> tuple[int, int, int]:
        return self.network.config.seed, epoch, batch

    def _step(self, epoch: int, batch: int, n_batches: int, rows: Rows, inputs: Tensor) -> Tensor:
        config = self.network.config
        # A sampler's epochs differ in length; counted in this epoch's batches, step/steps is the
        # fraction of the training that is done, and the schedule ends at 0 all the same.
        step = (epoch - 1) * n_batches + batch
        steps = config.epochs * n_batches
        key, ranks = self._key(epoch, batch), self.network.ranks
        own = None if ranks.size == 1 else ranks.places(len(rows))
        inputs, targets = self._mix(inputs, self.labels[rows], key, own)
        # Dropout; the first process alone draws what a single one would.
        seeds = np.random.SeedSequence([*key, ranks.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        loss = self.stepper.step(inputs, targets, warmup_cosine(step, steps, config.warmup))
        if self._ema:
            self._ema.update()
        return loss

    def state(self, epoch: int, batch: int = 0, total: float = 0.0) -> dict[str, Any]:
        """All that the training depends on before batch `batch` of `epoch`."""
        return {
            "epoch": epoch,
            "batch": batch,
            "total": total,
            "network": self.network.state(),
            "optimiser": self.stepper.optimiser.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "ema": self._ema.state() if self._ema else None,
            "at_once": self.stepper.micro_batches.size,
        }

    def load(self, state: dict[str, Any]) -> int:
        """Continue from what `state` returned; the epoch to do next."""
        self.network.load(state["network"])
        self.stepper.optimiser.load_state_dict(state["optimiser"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        if self._ema:
            self._ema.load(state["ema"])
        self.stepper.micro_batches.size = state["at_once"]
        self._resumed = state["batch"], state["total"]
        return int(state["epoch"])

    def predict(self, rows: Rows) -> Logits:
        """Logits (n_rows, n_tags) in evaluation mode, in the order of `rows`."""
        return predict(self.network, self.loader, rows, self.stepper.micro_batches)


class _Selection:
    """Epochs of a training, each measured on the validation set; the start and the best of them."""

    def __init__(
        self,
        training: Training,
        val_rows: Rows,
        selector: ModelSelector,
        snapshots: Snapshots | None,
    ) -> None:
        self.training = training
        self.val_rows = val_rows
        self.selector = selector
        self.snapshots = snapshots
        self._from_first = training.network.ranks.from_first
        self.history: list[dict[str, Any]] = []
        self.start: _Candidate | None = None
        self.best: _Candidate | None = None  # of the trained epochs

    def resume(self) -> float:
        """Continue from a snapshot if there is one; seconds of the epochs that it has."""
        saved = self.snapshots.load() if self.snapshots else None
        if saved is None or self.snapshots is None:
            return 0.0
        self.training.load(saved)
        self.history = saved["history"]
        self.start = _Candidate.of(saved["start"])
        self.best = _Candidate.of(saved["best"]) if saved["best"] else None
        self.training.progress.say(f"continuing from {self.snapshots.path}, epoch {saved['epoch']}")
        return float(sum(row["seconds"] for row in self.history))

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train (except for epoch 0, the start), measure, keep the better; the history's row."""
        began = time.perf_counter()
        loss, shown = None, 0
        if epoch:
            loss, shown = self.training.epoch(epoch, self.snapshots, self._more)
        trained = time.perf_counter() - began
        with self.training.averaged():
            logits = self.training.predict(self.val_rows)
            measured = self._measure(logits)
            if self.start is None:
                self.start = _Candidate(epoch, measured, self.training.network.state(), logits)
            elif self._is_best(measured):
                self.best = _Candidate(epoch, measured, self.training.network.state(), logits)
            kept_tail = self._rank(measured)[0]
        row = {
            "epoch": epoch,
            "loss": loss,
            **self.selector.row(measured),
            "kept_tail": kept_tail,
            "images_per_second": shown / trained if shown else None,
            "seconds": time.perf_counter() - began,
        }
        self.history.append(row)
        if self.snapshots and epoch:
            self.snapshots.save(self.training.state(epoch + 1) | self._more())
        return row

    # One process decides: where another's last digits differ, so might its choice.
    def _measure(self, logits: Logits) -> Measured:
        return self._from_first(lambda: self.selector.measure(logits))

    def _is_best(self, measured: Measured) -> bool:
        best = self.best
        if best is None:
            return True
        return self._from_first(lambda: self._rank(measured) > self._rank(best.measured))

    def _rank(self, measured: Measured) -> tuple[bool, float]:
        """What of two states the better has the larger: the tail is kept, then the criterion."""
        assert self.start is not None
        kept_tail = self.selector.keeps_tail(measured, self.start.measured)
        return kept_tail, self.selector.value(measured)

    def _more(self) -> dict[str, Any]:
        """What a snapshot holds besides the state of the training."""
        assert self.start is not None
        return {
            "history": list(self.history),
            "start": self.start.saved(),
            "best": self.best.saved() if self.best else None,
        }

    def conclude(self, earlier: float) -> FinetuneResult:
        """Choose between the start, the best epoch and their interpolations; load it, report."""
        assert self.start is not None
        network = self.training.network
        tried: list[dict[str, Any]] = []
        candidates, shares = [self.start], [1.0]
        # From the start outwards. An epoch that is behind the start is tried too: halfway between
        # the two is often ahead of both.
        for factor in sorted(network.config.factors) if self.best else ():
            assert self.best is not None
            state = interpolate(self.start.state, self.best.state, factor)
            network.load(state)
            logits = self.best.logits if factor == 1 else self.training.predict(self.val_rows)
            measured = self._measure(logits)
            tried.append({"factor": factor, **self.selector.row(measured)})
            candidates.append(_Candidate(self.best.epoch, measured, state, logits))
            shares.append(factor)
        measures = [c.measured for c in candidates]
        place = self._from_first(lambda: self.selector.choose_from(measures))
        chosen, share = candidates[place], shares[place]
        network.load(chosen.state)
        network.eval()
        return FinetuneResult(self.history, chosen.epoch, chosen.logits, share, tried, earlier)


_SHOWN = {
    "macro_ap": "macro-AP",
    "tail_macro_ap": "tail macro-AP",
    "macro_f1": "macro-F1",
    "tail_macro_f1": "tail macro-F1",
}


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch in words: loss, scores on the validation set, speed, time left."""
    words = [] if row["loss"] is None else [f"loss {row['loss']:.4f}"]
    words += [f"{shown} {row[name]:.4f}" for name, shown in _SHOWN.items() if row[name] is not None]
    if row["images_per_second"]:
        left = (epochs - row["epoch"]) * row["seconds"] / 60
        words += [f"{row['images_per_second']:,.0f} images/s", f"{left:,.1f} min left"]
    return f"epoch {row['epoch']}/{epochs}: {', '.join(words)}"
