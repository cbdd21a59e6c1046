"""Averages of weights: along a training run (EMA), and between it and the frozen model (WiSE-FT).

Both work on plain dictionaries of tensors, so that a head takes part by being in the dictionary:
``{**{f"backbone.{k}": v ...}, **{f"head.{k}": v ...}}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from retailtag.errors import UsageError

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # interpolations worth trying on a validation part


class Ema:
    """Exponential moving average of parameters, kept in float32 on their device.

    After step t the average is ``θ̄ ← d·θ̄ + (1 - d)·θ`` with ``d = min(decay, (1 + t)/(10 + t))``:
    the warm-up keeps the start from weighing for thousands of steps in a short run.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Live parameters, by name; those that are trained suffice. Where normalisation statistics
        are trained too (from scratch), their float buffers belong in as well.
    decay : float
        In [0, 1); 0.999 remembers about the last thousand steps.

    References
    ----------
    Polyak & Juditsky (1992), Acceleration of Stochastic Approximation by Averaging; the warm-up is
    that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"--ema {decay:g} is out of range; give 0 up to below 1, as 0.999.")
        self.decay = decay
        self.step = 0
        self._live = dict(tensors)
        self._mean = {
            name: value.detach().float().clone()  # half precision would swallow 0.001 of a change
            for name, value in self._live.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the live values in, after a step of the optimiser."""
        self.step += 1
        keep = min(self.decay, (1 + self.step) / (10 + self.step))
        live = [self._live[name].detach().float() for name in self._mean]
        torch._foreach_lerp_(list(self._mean.values()), live, 1 - keep)

    def state(self) -> dict[str, Any]:
        """``{"step": int, "mean": {name: float32 tensor}}`` for a checkpoint: copies on the CPU."""
        mean = {name: value.to("cpu", copy=True) for name, value in self._mean.items()}
        return {"step": self.step, "mean": mean}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
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
    frozen: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Weights between the frozen and the tuned model: ``(1 - alpha)·frozen + alpha·tuned``.

    Parameters
    ----------
    frozen, tuned : mapping of str to Tensor
        State of the model before training, its head the one that training started from, and
        after it; the same names and shapes. Neither is changed.
    alpha : float
        0 is the frozen model and 1 the tuned one, bit for bit; in [0, 1].

    Returns
    -------
    dict of Tensor
        In the dtypes of `tuned`. Whole numbers (counters) are those of `tuned`.

    Notes
    -----
    Linear in the weights, not in the scores: it holds up because fine-tuning from the same start
    stays in one basin. It costs nothing at inference, unlike an ensemble.

    References
    ----------
    Wortsman et al. (2022), Robust Fine-Tuning of Zero-Shot Models, section 3.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, not in [0, 1]")
    if frozen.keys() != tuned.keys():
        raise ValueError("the two models have different tensors")
    return {name: _between(frozen[name], tuned[name], alpha) for name in tuned}


def _between(frozen: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    if not tuned.is_floating_point() or alpha == 1:
        return tuned.detach().clone()
    start, end = frozen.detach().to(tuned.device).float(), tuned.detach().float()
    return torch.lerp(start, end, alpha).to(tuned.dtype)
