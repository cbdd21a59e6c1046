"""How long counted kernels take on a device that is not here: a roofline with its range.

The time of a kernel is the longer of its operations at the rate of its kind and its values at the
memory bandwidth. The multiprocessors of a GPU work in waves of output tiles, and the last wave of
a small kernel leaves some of them idle: that fraction of the rate is lost. A pass takes the sum of
its kernels, but not less than launching them one by one takes the host (small batches):

    seconds = max( sum_k max( operations_k / (rate_k * busy_k), bytes_k / bandwidth ),
                   n_kernels * launch )

A CPU launches nothing ahead: there the launches are added.

References
----------
S. Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model for
multicore architectures. Communications of the ACM 52 (4), 2009.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import conv2d

from retailtag.backbones.backbone import full_float32
from retailtag.backbones.operations import CONVOLUTION, PRODUCT, Kernels


@dataclass(frozen=True)
class Rates:
    """What a device reaches in one arithmetic."""

    convolution: float  # operations per second
    product: float  # operations per second of matrix products
    bandwidth: float  # bytes per second
    launch: float  # seconds per kernel
    value_bytes: int
    processors: int = 1  # that share the tiles of a kernel
    tile: int = 1  # outputs that one processor computes at a time
    launches_ahead: bool = True  # while earlier kernels run

    def seconds(self, kernels: Kernels) -> float:
        """Time of a pass."""
        rates = np.full(len(kernels), np.inf)
        rates[kernels.kind == CONVOLUTION] = self.convolution
        rates[kernels.kind == PRODUCT] = self.product
        if self.processors > 1:
            tiles = np.maximum(kernels.outputs / self.tile, 1)
            rates *= tiles / (self.processors * np.ceil(tiles / self.processors))
        compute = kernels.operations / rates
        memory = kernels.values * self.value_bytes / self.bandwidth
        work, launches = np.maximum(compute, memory).sum(), len(kernels) * self.launch
        return float(max(work, launches) if self.launches_ahead else work + launches)


class Estimated(NamedTuple):
    """An estimate with the range in which a measurement should lie; no interval of confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Device:
    """Rates of a device: calibrated ones, and both ends of what software reaches."""

    name: str
    usual: Rates
    fast: Rates
    slow: Rates
    slow_training: float = 1.0  # share of the slow rates that a step with gradients reaches

    def seconds(self, kernels: Kernels) -> Estimated:
        """Time of a pass."""
        return Estimated(*(r.seconds(kernels) for r in (self.usual, self.fast, self.slow)))

    def step_seconds(self, kernels: Kernels) -> Estimated:
        """Time of a training step."""
        found = self.seconds(kernels)
        return found._replace(high=found.high / self.slow_training)


# Data sheet of the T4 (TU104, compute capability 7.5): 8.1 TFLOP/s in float32, 65 in float16 by
# tensor cores, 320 GB/s, 40 multiprocessors.
PEAK = {"float32": 8.1e12, "float16": 65e12}
BANDWIDTH = 320e9
PROCESSORS = 40
# Outputs of the cuBLAS kernels: 64 x 64, and 128 x 64 with tensor cores.
TILE = {"float32": 64 * 64, "float16": 128 * 64}
# Shares of the peaks, fitted by benchmarks/t4.py to published times of ResNet-50 (convolutions)
# and BERT (products) in the software of 2020 and 2021.
CONVOLUTION_SHARE = {"float32": 0.67, "float16": 0.30}
PRODUCT_SHARE = {"float32": 0.30, "float16": 0.14}
BANDWIDTH_SHARE = 0.88
LAUNCH_SECONDS = 70e-6
# The range: rates by this factor to either side, which the published times stay within. Software
# has become faster since, so its fast end goes further by assumption: products in float16 at 0.35
# of the peak, and kernels that PyTorch 2 launches in 15 us on a fast host.
FACTOR = 1.4
NEWER_PRODUCT_SHARE = {"float32": 0.30 * FACTOR, "float16": 0.35}
NEWER_LAUNCH_SECONDS = 15e-6
SLOW_LAUNCH_SECONDS = 100e-6
# Training in float16: the one published step that can be counted, of 2019, takes 1.51 times the
# estimate (results/t4.csv); in float32 it takes 0.89 of it.
SLOW_TRAINING = {"float32": 1.0, "float16": 0.85}


def _t4(arithmetic: str) -> Device:
    def rates(factor: float, product_share: float, launch: float) -> Rates:
        return Rates(
            convolution=PEAK[arithmetic] * CONVOLUTION_SHARE[arithmetic] * factor,
            product=PEAK[arithmetic] * product_share,
            bandwidth=BANDWIDTH * min(BANDWIDTH_SHARE * factor, 1.0),
            launch=launch,
            value_bytes=4 if arithmetic == "float32" else 2,
            processors=PROCESSORS,
            tile=TILE[arithmetic],
        )

    share = PRODUCT_SHARE[arithmetic]
    return Device(
        f"T4 {arithmetic}",
        usual=rates(1.0, share, LAUNCH_SECONDS),
        fast=rates(FACTOR, NEWER_PRODUCT_SHARE[arithmetic], NEWER_LAUNCH_SECONDS),
        slow=rates(1 / FACTOR, share / FACTOR, SLOW_LAUNCH_SECONDS),
        slow_training=SLOW_TRAINING[arithmetic],
    )


T4 = {arithmetic: _t4(arithmetic) for arithmetic in PEAK}


MEASURE_SECONDS = 0.2  # of each measurement of `measure_rates`
COPY_VALUES = 16 << 20  # float32, 64 MiB: more than the caches hold


def measure_rates(device: str) -> Rates:
    """Rates of this machine in float32, by a product, a convolution, a copy and tiny kernels."""

    def per_second(call: Callable[[], torch.Tensor]) -> float:
        """Calls per second; reading a value waits for the device."""
        call().flatten()[0].item()
        start, n_calls = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < MEASURE_SECONDS:
            call().flatten()[0].item()
            n_calls += 1
        return n_calls / passed

    with torch.inference_mode(), full_float32(torch.device(device)):
        a = torch.ones(1024, 1024, device=device)
        # A layer from the middle of a ResNet, in the layout that backbones use.
        x = torch.ones(8, 256, 14, 14, device=device).to(memory_format=torch.channels_last)
        w = torch.ones(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
        source = torch.ones(COPY_VALUES, device=device)
        target = torch.empty_like(source)
        few, mask = x[:1, :8, :4, :4], w[:8, :8]
        return Rates(
            product=2 * 1024**3 * per_second(lambda: a @ a),
            convolution=2 * x.numel() * 9 * 256 * per_second(lambda: conv2d(x, w, padding=1)),
            bandwidth=2 * source.nbytes * per_second(lambda: target.copy_(source)),
            # a convolution and an addition of a few values
            launch=0.5 / per_second(lambda: conv2d(few, mask, padding=1).add(1)),
            value_bytes=4,
            launches_ahead=device == "cuda",
        )
