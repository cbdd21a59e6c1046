"""Training of the last blocks and the head: epochs, snapshots, and the state that is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.finetuning.batch_loader import BatchLoader, Rows
from retailtag.finetuning.head import Head
from retailtag.finetuning.learning_rates import warmup_cosine
from retailtag.finetuning.logs import Logs
from retailtag.finetuning.losses import LabelCounts, parse_loss
from retailtag.finetuning.mixing import parse_mix
from retailtag.finetuning.network import Network, State
from retailtag.finetuning.sampling import parse_sampler
from retailtag.finetuning.snapshots import Snapshots
from retailtag.finetuning.training_step import LossMonitor, TrainingStep, predict
from retailtag.finetuning.validation import Measured, ModelSelector
from retailtag.finetuning.weight_averaging import Ema, interpolate
from retailtag.progress import SILENT, Progress

Labels = NDArray[np.int8]
Logits = NDArray[np.float32]
# epoch and the judge's value; True ends the training there
Report = Callable[[int, float], bool]
# last epoch that is known already, None for none, to the log that goes on after it
OpenLog = Callable[[int | None], Logs]


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """The model that is kept.

    Parameters
    ----------
    head : Head
        Trained head; the backbone of the network carries the trained blocks.
    history : list of dict
        One row an epoch, from 0 (the start): ``epoch``, ``loss`` (mean training loss, None at 0),
        ``criterion`` and the other figures of `ModelSelector.row`, ``kept_tail`` (whether the
        constraint on the tail is met), ``images_per_second``, ``seconds``.
    best_epoch : int
        The epoch that is kept.
    factor : float
        Its weights' share in the interpolation with the start; 1: no interpolation.
    factors : list of dict
        Figures of each interpolation that was tried, with its ``factor``.
    val_logits : ndarray of float32, shape (n_val, n_tags)
        Scores of the validation images by the model that is kept.
    earlier_seconds : float
        Time of epochs that an earlier, interrupted run did.
    """

    head: Head
    history: list[dict[str, Any]]
    best_epoch: int
    val_logits: Logits
    factor: float = 1.0
    factors: list[dict[str, Any]] = field(default_factory=list)
    earlier_seconds: float = 0.0


@dataclass
class _Best:
    """The best state so far."""

    epoch: int
    value: float
    state: State
    logits: Logits
    measured: Measured


def train(
    network: Network,
    feed: BatchLoader,
    labels: Labels,
    fit_rows: Rows,
    val_rows: Rows,
    judge: ModelSelector,
    *,
    snapshots: Snapshots | None = None,
    open_log: OpenLog | None = None,
    report: Report | None = None,
    progress: Progress = SILENT,
) -> FinetuneResult:
    """Retrain the last blocks and the head; leave the network at the state that is kept.

    Parameters
    ----------
    network : Network
        Its head starts from a probe fitted on the images of `fit_rows` alone: one that has seen
        the validation part would make its choice of epoch worthless.
    feed : BatchLoader
    labels : ndarray of int8, shape (n_images, n_tags)
        Of the whole catalogue; only `fit_rows` and `val_rows` are read.
    fit_rows, val_rows : ndarray of int
        Rows of the catalogue, disjoint.
    judge : ModelSelector
    snapshots : Snapshots, optional
        Where the state is kept; a state found there is gone on from, to the same result.
    open_log : callable, optional
        Opens what is told every row of the history once it is known.
    report : callable, optional
        Asked after every epoch, those of an interrupted run included, whether to end.
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
    Wortsman et al. (2022), Robust Fine-Tuning of Zero-Shot Models (interpolation).
    """
    run = Training(network, feed, labels, fit_rows, progress)
    course = _Course(run, val_rows, judge, snapshots)
    origin = network.state()
    earlier = course.resume()
    known = len(course.history)
    with open_log(known - 1 if known else None) if open_log else Logs(()) as log:
        for epoch in range(network.config.epochs + 1):
            row = course.history[epoch] if epoch < known else course.epoch(epoch)
            if epoch >= known:
                progress.say(epoch_line(row, network.config.epochs))
                log.metrics(epoch, {name: row[name] for name in row if name != "epoch"})
            if report and epoch and report(epoch, row["criterion"]):
                break
    return course.conclude(origin, earlier)


def refit(
    network: Network,
    feed: BatchLoader,
    labels: Labels,
    rows: Rows,
    epochs: int,
    factor: float,
    *,
    snapshots: Snapshots | None = None,
    progress: Progress = SILENT,
) -> None:
    """Train on `rows` for the first `epochs` epochs of the schedule, then interpolate.

    Nothing is chosen here: epochs and factor come from a training that held a part back.
    """
    run = Training(network, feed, labels, rows, progress)
    origin = network.state()
    saved = snapshots.load() if snapshots else None
    first = run.load(saved) if saved else 1
    for epoch in range(first, epochs + 1):
        run.epoch(epoch, snapshots)
        if snapshots:
            snapshots.save(run.state(epoch + 1))
    with run.averaged():
        tuned = network.state()
    network.load(interpolate(origin, tuned, factor))
    network.eval()


class Training:
    """Epochs over the fitted images; its state is enough to go on from any batch.

    Parameters
    ----------
    network, feed, labels, rows, progress
        As in `train`; `rows` are those fitted.
    """

    def __init__(
        self,
        network: Network,
        feed: BatchLoader,
        labels: Labels,
        rows: Rows,
        progress: Progress = SILENT,
    ) -> None:
        config, fitted = network.config, labels[rows]
        self.network, self.feed, self.progress = network, feed, progress
        self.labels, self.rows = torch.from_numpy(labels), rows
        self._draws = parse_sampler(config.sampler).build(fitted)
        loss = parse_loss(config.loss).build(LabelCounts.of(fitted))
        self._mix = parse_mix(config.mix)
        self.stepper = TrainingStep(network, feed, loss, progress)
        floats = {n: t for n, t in network.live().items() if t.is_floating_point()}
        self._ema = Ema(floats, config.ema) if config.ema else None
        self._begin: dict[str, Any] | None = None  # where a loaded state stands in its epoch

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the network holds the averaged weights, where an average is kept."""
        return self._ema.applied() if self._ema else nullcontext()

    def epoch(
        self,
        epoch: int,
        snapshots: Snapshots | None = None,
        more: Callable[[], dict[str, Any]] = dict,
    ) -> tuple[float, int]:
        """One pass over the images that the sampler draws; mean loss, and images shown now.

        Parameters
        ----------
        epoch : int
            From 1.
        snapshots : Snapshots, optional
            Written to within the epoch when it is due.
        more : callable
            What a snapshot holds besides the state.
        """
        config = self.network.config
        order = self.rows[self._draws.epoch(config.seed, epoch)]
        batch, done = self._enter_epoch(epoch)
        watch, start = LossMonitor(epoch, done), batch * config.batch_size
        n_batches = math.ceil(len(order) / config.batch_size)
        self.network.train()
        with self.progress.task(f"epoch {epoch}/{config.epochs}", len(order)) as advance:
            advance(start)
            for some, inputs in self.feed.batches(order[start:], config.batch_size, epoch):
                loss = self._step(epoch, batch, n_batches, some, inputs)
                watch.add(batch, len(some), loss)
                batch += 1
                advance(len(some))
                if snapshots is not None and snapshots.is_due:
                    snapshots.save(self.state(epoch, batch, watch.total()) | more())
        return watch.total() / max(len(order), 1), len(order) - start

    def _enter_epoch(self, epoch: int) -> tuple[int, float]:
        """First batch and sum of losses so far; dropout draws depend on seed and epoch alone."""
        begin, self._begin = self._begin, None
        if begin and begin["batch"]:
            torch.set_rng_state(begin["rng"])
            if torch.cuda.is_available() and begin["cuda_rng"] is not None:
                torch.cuda.set_rng_state(begin["cuda_rng"])
            return begin["batch"], begin["total"]
        seeds = np.random.SeedSequence([self.network.config.seed, epoch])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        return 0, 0.0

    def _step(self, epoch: int, batch: int, n_batches: int, rows: Rows, inputs: Tensor) -> Tensor:
        config = self.network.config
        # epochs of a sampler differ in length, so that steps are counted in fractions of one
        step, steps = (epoch - 1) * n_batches + batch, config.epochs * n_batches
        factor = warmup_cosine(step, steps, config.warmup)
        key = (config.seed, epoch, batch)
        inputs, targets = self._mix(inputs, self.labels[rows], key)
        loss = self.stepper.step(inputs, targets, factor)
        if self._ema:
            self._ema.update()
        return loss

    def state(self, epoch: int, batch: int = 0, total: float = 0.0) -> dict[str, Any]:
        """All that the training depends on, about to do batch `batch` of `epoch`."""
        cuda = torch.cuda.get_rng_state() if self.network.device.type == "cuda" else None
        return {
            "epoch": epoch,
            "batch": batch,
            "total": total,
            "network": self.network.state(),
            "optimiser": self.stepper.optimiser.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "ema": self._ema.state() if self._ema else None,
            "at_once": self.stepper.parts.at_once,
            "rng": torch.get_rng_state(),
            "cuda_rng": cuda,
        }

    def load(self, state: dict[str, Any]) -> int:
        """Go on from what `state` gave; the epoch to do next."""
        self.network.load(state["network"])
        self.stepper.optimiser.load_state_dict(state["optimiser"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        if self._ema:
            self._ema.load(state["ema"])
        self.stepper.parts.at_once = state["at_once"]
        self._begin = state
        return int(state["epoch"])

    def predict(self, rows: Rows) -> Logits:
        """Logits (n_rows, n_tags) in evaluation mode, in the order of `rows`."""
        return predict(self.network, self.feed, rows, self.stepper.parts)


class _Course:
    """The epochs of a training that is judged: history, best state, and both in snapshots."""

    def __init__(
        self, run: Training, val_rows: Rows, judge: ModelSelector, snapshots: Snapshots | None
    ) -> None:
        self.run, self.val_rows = run, val_rows
        self.judge, self.snapshots = judge, snapshots
        self.history: list[dict[str, Any]] = []
        self.start: Measured | None = None
        self.best: _Best | None = None

    def resume(self) -> float:
        """Go on from a snapshot if there is one; seconds of the epochs that it has."""
        saved = self.snapshots.load() if self.snapshots else None
        if saved is None:
            return 0.0
        self.run.load(saved)
        self.history = saved["history"]
        self.start = _measured(saved["start"])
        best = saved["best"]
        self.best = _Best(
            best["epoch"],
            best["value"],
            best["state"],
            best["logits"].numpy(),
            _measured(best["measured"]),
        )
        self.run.progress.say(f"going on from {self.snapshots.path}, epoch {saved['epoch']}")  # type: ignore[union-attr]
        return float(sum(row["seconds"] for row in self.history))

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train (but for epoch 0, the start), measure, keep what is better; the history's row."""
        began = time.perf_counter()
        loss, shown = None, 0
        if epoch:
            loss, shown = self.run.epoch(epoch, self.snapshots, self._more)
        trained = time.perf_counter() - began
        with self.run.averaged():
            logits = self.run.predict(self.val_rows)
            measured = self.judge.measure(logits)
            self.start = self.start or measured
            kept_tail = self.judge.admits(measured, self.start)
            self._keep_if_better(epoch, measured, logits, kept_tail)
        row = {
            "epoch": epoch,
            "loss": loss,
            **self.judge.row(measured),
            "kept_tail": kept_tail,
            "images_per_second": shown / trained if shown else None,
            "seconds": time.perf_counter() - began,
        }
        self.history.append(row)
        if self.snapshots and epoch:
            self.snapshots.save(self.run.state(epoch + 1) | self._more())
        return row

    def _keep_if_better(
        self, epoch: int, measured: Measured, logits: Logits, kept_tail: bool
    ) -> None:
        value = self.judge.value(measured)
        if self.best is None or (kept_tail and value > self.best.value):
            self.best = _Best(epoch, value, self.run.network.state(), logits, measured)

    def _more(self) -> dict[str, Any]:
        """What a snapshot holds besides the state of the training."""
        assert self.best is not None
        assert self.start is not None
        best = self.best
        return {
            "history": list(self.history),
            "start": _tensors(self.start),
            "best": {
                "epoch": best.epoch,
                "value": best.value,
                "state": best.state,
                "logits": torch.from_numpy(best.logits),
                "measured": _tensors(best.measured),
            },
        }

    def conclude(self, origin: State, earlier: float) -> FinetuneResult:
        """Choose the interpolation with `origin`, load it, and report."""
        assert self.best is not None
        network, best = self.run.network, self.best
        factors = network.config.factors if best.epoch else (1.0,)
        tried: list[dict[str, Any]] = []
        chosen: _Best | None = None
        for factor in factors:
            state = interpolate(origin, best.state, factor)
            network.load(state)
            logits = best.logits if factor == 1 else self.run.predict(self.val_rows)
            measured = self.judge.measure(logits)
            tried.append({"factor": factor, **self.judge.row(measured)})
            value = self.judge.value(measured)
            kept_tail = self.judge.admits(measured, self.start or measured)
            if chosen is None or (kept_tail and value > chosen.value):
                chosen, share = _Best(best.epoch, value, state, logits, measured), factor
        assert chosen is not None
        network.load(chosen.state)
        network.eval()
        return FinetuneResult(
            network.head, self.history, best.epoch, chosen.logits, share, tried, earlier
        )


def _tensors(measured: Measured) -> list[Tensor]:
    return [torch.from_numpy(measured.f1), torch.from_numpy(measured.ap)]


def _measured(tensors: list[Tensor]) -> Measured:
    return Measured(tensors[0].numpy(), tensors[1].numpy())


_SHOWN = {
    "macro_ap": "macro-AP",
    "tail_macro_ap": "tail macro-AP",
    "macro_f1": "macro-F1",
    "tail_macro_f1": "tail macro-F1",
}


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch in words: loss, what the validation part says, speed, time left."""
    words = [] if row["loss"] is None else [f"loss {row['loss']:.4f}"]
    words += [f"{said} {row[name]:.4f}" for name, said in _SHOWN.items() if row[name] is not None]
    if row["images_per_second"]:
        left = (epochs - row["epoch"]) * row["seconds"] / 60
        words += [f"{row['images_per_second']:,.0f} images/s", f"{left:,.1f} min left"]
    return f"epoch {row['epoch']}/{epochs}: {', '.join(words)}"
