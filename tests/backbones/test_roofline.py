"""Counted kernels and the roofline: known counts, each bound by itself, and published times."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from retailtag.backbones.cost import cost_of
from retailtag.backbones.operations import (
    CONVOLUTION,
    OTHER,
    PRODUCT,
    Kernels,
    count_kernels,
    embedding_kernels,
    training_kernels,
)
from retailtag.backbones.roofline import T4, Rates, measure_rates


def _count(module, *shape):
    module, x = module.to("meta"), torch.zeros(*shape, device="meta")
    with torch.no_grad():
        return count_kernels(lambda: module(x))


def test_kernels_of_known_layers():
    found = _count(nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU()), 4, 6)
    assert found.kind.tolist() == [PRODUCT, OTHER]
    assert found.operations.tolist() == [2 * 4 * 6 * 5, 0]
    assert found.values.tolist() == [4 * 6 + 6 * 5 + 4 * 5, 2 * 4 * 5]
    assert found.outputs.tolist() == [20, 20]


@pytest.mark.parametrize(("groups", "kind"), [(1, CONVOLUTION), (2, CONVOLUTION), (4, OTHER)])
def test_a_depthwise_convolution_is_bound_by_memory(groups, kind):
    layer = nn.Conv2d(4, 4, 3, groups=groups, bias=False)
    found = _count(layer, 1, 4, 8, 8)
    assert found.kind.tolist() == [kind]
    assert (found.operations[0] > 0) == (kind == CONVOLUTION)


def test_views_start_no_kernel():
    x = torch.zeros(2, 3, device="meta")
    assert len(count_kernels(x.view(3, 2).T[0].detach)) == 0


def test_a_backbone_has_the_operations_that_its_cost_states():
    found = embedding_kernels("demo:dino", 2)
    assert found.operations.sum() == 2 * cost_of("demo:dino").flops
    joint = embedding_kernels("demo:dino+demo:cnn", 2)
    assert len(joint) == len(found) + len(embedding_kernels("demo:cnn", 2))


def test_what_is_trained_costs_a_backward_pass_and_what_is_frozen_does_not():
    forward = embedding_kernels("demo:dino", 4).operations.sum()
    head, two, whole = (
        training_kernels("demo:dino", 4, 10, blocks).operations.sum() for blocks in (0, 2, "all")
    )
    assert forward < head < 1.01 * forward
    assert head < two < whole
    assert whole == pytest.approx(3 * forward, rel=0.1)


def _kernels(kind, operations, values, outputs):
    arrays = np.broadcast_arrays(kind, operations, values, np.asarray(outputs, np.float64))
    return Kernels(*map(np.atleast_1d, arrays))


RATES = Rates(convolution=100.0, product=10.0, bandwidth=8.0, launch=0.5, value_bytes=4)


@pytest.mark.parametrize(
    ("kernels", "seconds"),
    [
        (_kernels(CONVOLUTION, 1000.0, 1.0, 1.0), 10.0),
        (_kernels(PRODUCT, 1000.0, 1.0, 1.0), 100.0),
        (_kernels(PRODUCT, 1000.0, 400.0, 1.0), 200.0),  # 1,600 bytes
        (_kernels(OTHER, 0.0, [2.0, 4.0], 1.0), 3.0),
        (_kernels(OTHER, 0.0, [0.0] * 7, 1.0), 3.5),  # seven launches
    ],
)
def test_each_bound_by_itself(kernels, seconds):
    assert RATES.seconds(kernels) == seconds


def test_a_cpu_waits_for_every_launch():
    kernels = _kernels(OTHER, 0.0, [2.0, 4.0], 1.0)
    assert replace(RATES, launches_ahead=False).seconds(kernels) == 3.0 + 2 * 0.5


def test_the_last_wave_leaves_processors_idle():
    rates = Rates(10.0, 10.0, 1e9, 0.0, 4, processors=4, tile=10)
    times = [rates.seconds(_kernels(PRODUCT, 100.0, 1.0, outputs)) for outputs in (10, 40, 50, 80)]
    assert times == pytest.approx([40.0, 10.0, 16.0, 10.0])


@pytest.mark.parametrize("arithmetic", ["float32", "float16"])
def test_published_times_of_a_t4_lie_in_the_range(monkeypatch, arithmetic, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "benchmarks"))
    import t4

    chosen = [
        row
        for row in t4.published()
        if row[0] in ("resnet50", "bert-base") and row[2] == arithmetic and row[3] in (1, 8)
    ]
    assert len(chosen) == 6
    for name, tokens, _, size, seconds in chosen:
        found = T4[arithmetic].seconds(t4.kernels_of(name, tokens, size))
        assert found.low < seconds < found.high, (name, tokens, size)
        assert 0.7 < found.value / seconds < 1.4
        assert found.high < 10 * found.low


def test_a_larger_batch_takes_longer_and_float16_is_faster():
    small, large = (embedding_kernels("demo:cnn", n) for n in (1, 256))
    slow, fast = (T4[arithmetic].seconds(large) for arithmetic in ("float32", "float16"))
    assert T4["float32"].seconds(small).value < slow.value
    assert all(f < s for f, s in zip(fast, slow, strict=True))
    # one image is bound by launches, in either arithmetic
    assert T4["float32"].seconds(small).value == T4["float16"].seconds(small).value


def test_rates_of_this_machine_are_those_of_a_computer(monkeypatch):
    monkeypatch.setattr("retailtag.backbones.roofline.MEASURE_SECONDS", 0.002)
    rates = measure_rates("cpu")
    assert min(rates.product, rates.convolution, rates.bandwidth) > 1e8
    assert 1e-8 < rates.launch < 1e-2
