"""Averages of weights: along a training (EMA), and between it and its start (WiSE-FT).

Both work on dictionaries of tensors by name, so that the head is averaged with the backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Ema:
    """Exponential moving average of parameters, kept in float32 on their device.

    `tensors` are the live parameters by name and, where normalisation statistics are trained too
    (from scratch), their float buffers. `decay` is in [0, 1); 0.999 remembers about the last
    thousand steps.

    References
    ----------
    Polyak & Juditsky (1992), Acceleration of Stochastic Approximation by Averaging; the warm-up is
    that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.999) -> None:
        self.decay = decay
        self.step = 0
        self._live = dict(tensors)
        # float32 even for half-precision parameters: they round a change of 0.001 away.
        self._mean = {name: value.detach().float().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the live values into the average, after a step of the optimiser."""
        self.step += 1
        # θ̄ ← d·θ̄ + (1 - d)·θ with d = min(decay, (1 + t)/(10 + t)): without the warm-up the
        # start would still weigh decay^t, which is 0.37 after a thousand steps at 0.999.
        d = min(self.decay, (1 + self.step) / (10 + self.step))
        live = [self._live[name].detach().float() for name in self._mean]
        torch._foreach_lerp_(list(self._mean.values()), live, 1 - d)

    def state(self) -> dict[str, Any]:
        """``{"step": int, "mean": {name: float32 tensor}}`` for a snapshot: copies on the CPU."""
        mean = {name: value.to("cpu", copy=True) for name, value in self._mean.items()}
        return {"step": self.step, "mean": mean}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        if set(state["mean"]) != set(self._mean):
            raise ValueError("the state belongs to other parameters")
        self.step = int(state["step"])
        for name, value in state["mean"].items():
            self._mean[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The live parameters hold the average inside the block, and their own values after it."""
        own = {name: value.detach().clone() for name, value in self._live.items()}
        self._write(self._mean)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, live in self._live.items():
            live.copy_(values[name])


def interpolate(
    start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], factor: float
) -> dict[str, Tensor]:
    """Weights between the start and the tuned model: ``(1 - factor)·start + factor·tuned``.

    The two are states of the model before and after training, head included; neither is changed. A
    factor of 0 is the start and 1 the tuned model, bit for bit. Dtypes are those of `tuned`, and so
    are whole numbers (counters).

    Linear in the weights, not in the scores: it works because a model fine-tuned from the start
    stays in the same basin of the loss. Unlike an ensemble it costs nothing at inference.

    References
    ----------
    Wortsman et al. (2022), Robust Fine-Tuning of Zero-Shot Models, section 3.
    """
    return {name: _between(start[name], tuned[name], factor) for name in tuned}


def _between(start: Tensor, tuned: Tensor, factor: float) -> Tensor:
    if not tuned.is_floating_point() or factor == 1:
        return tuned.detach().clone()
    low = start.detach().to(tuned.device).float()
    return torch.lerp(low, tuned.detach().float(), factor).to(tuned.dtype)
