"""The choice of an engine, on simulated embeddings and a simulated clock."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retailtag.backbones.engines import EAGER, EngineName
from retailtag.backbones.engines.trial import (
    BUILD_SECONDS,
    EXPECTED_SAVING,
    Bench,
    Parity,
    Trial,
    fastest,
    pays,
)
from retailtag.errors import Unavailable

OPENVINO, ONNX = EngineName("openvino"), EngineName("onnxruntime")
COMPILE = EngineName("compile")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Made:
    """Embeds by a fixed projection, off by `noise` of its spread, `seconds` an image."""

    def __init__(self, clock, seconds, noise=0.0, error=None):
        self.clock, self.seconds, self.noise, self.error = clock, seconds, noise, error
        self.built = 0
        self.released = 0

    def embed(self, pixels):
        if self.error is not None:
            raise self.error
        self.built = 1
        self.clock.now += self.seconds * len(pixels)
        rng = np.random.default_rng(0)
        rows = 5 + pixels.flatten(1).double().numpy() @ rng.normal(size=(12, 6)) / 255
        off = self.noise * rows.std(axis=0) * np.random.default_rng(1).normal(size=rows.shape)
        return torch.from_numpy((rows + off).astype(np.float32))

    def release(self):
        self.released += self.built
        self.built = 0


@pytest.fixture
def clock():
    return Clock()


def bench(clock, precision="exact", eager_seconds=0.1):
    pixels = torch.randint(0, 256, (20, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    return Bench(pixels.byte(), Made(clock, eager_seconds), precision, clock)


def test_the_fastest_engine_that_is_close_enough_is_chosen(clock):
    engines = {
        OPENVINO: Made(clock, 0.02),
        ONNX: Made(clock, 0.01, noise=0.1),
        COMPILE: Made(clock, 0.05),
    }
    trials = bench(clock).try_all(engines, 10_000)
    assert [t.name for t in trials] == [OPENVINO, ONNX, COMPILE, EAGER]
    assert [t.rate for t in trials] == [
        pytest.approx(50),
        None,
        pytest.approx(20),
        pytest.approx(10),
    ]
    assert "below 0.99999" in trials[1].problem
    assert fastest(trials).name == OPENVINO


def test_only_the_fastest_so_far_stays_built(clock):
    slow, quick, quickest = (Made(clock, s) for s in (0.05, 0.02, 0.01))
    bench(clock).try_all({OPENVINO: slow, ONNX: quick, COMPILE: quickest}, 100_000)
    assert [e.built for e in (slow, quick, quickest)] == [0, 0, 1]
    first, second = Made(clock, 0.01), Made(clock, 0.02)
    bench(clock).try_all({OPENVINO: first, ONNX: second}, 100_000)
    assert (first.built, second.built, second.released) == (1, 0, 1)


def test_fast_allows_what_exact_refuses(clock):
    near, far = Made(clock, 0.01, noise=0.05), Made(clock, 0.01, noise=0.5)
    for precision, taken in (("exact", EAGER), ("fast", OPENVINO)):
        trials = bench(clock, precision).try_all({OPENVINO: near, ONNX: far}, 10_000)
        assert fastest(trials).name == taken
        assert "centred" in trials[1].problem or precision == "exact"


def test_an_engine_that_cannot_be_built_is_rejected_with_the_reason(clock):
    broken = Made(clock, 0.01, error=Unavailable("Engine openvino-float32 cannot compute x: no."))
    trials = bench(clock).try_all({OPENVINO: broken, ONNX: Made(clock, 0.02)}, 10_000)
    assert fastest(trials).name == ONNX
    assert trials[0].problem.endswith("cannot compute x: no")
    assert str(trials[0]).startswith("openvino-float32 rejected (Engine")


def test_eager_is_chosen_if_no_engine_is_worth_building(clock):
    engine = Made(clock, 1e-2)
    few = int(BUILD_SECONDS["openvino"] / EXPECTED_SAVING / 0.1)
    trials = bench(clock).try_all({OPENVINO: engine}, few)
    assert fastest(trials).name == EAGER
    assert (engine.built, engine.released) == (0, 0)
    assert "not worth building" in trials[0].problem
    assert fastest(bench(clock).try_all({OPENVINO: engine}, few + 10)).name == OPENVINO


def test_eager_is_chosen_if_it_is_the_fastest(clock):
    trials = bench(clock).try_all({OPENVINO: Made(clock, 0.2)}, 10_000)
    assert fastest(trials).name == EAGER
    assert str(trials[-1]) == "eager-float32 10.0 images/s"


def test_more_images_pay_for_more_building():
    assert not pays(COMPILE, 60)
    assert pays(COMPILE, 3600)
    assert pays(OPENVINO, 60)
    assert not pays(EngineName("unheard-of"), 1e9)


@given(
    st.lists(st.tuples(st.floats(0.1, 1e4), st.booleans()), min_size=1, max_size=6),
    st.floats(0.1, 1e4),
)
def test_the_choice_is_the_largest_rate_without_a_problem(made, eager):
    trials = [
        Trial(EngineName(f"e{i}"), rate if good else None, problem="" if good else "far")
        for i, (rate, good) in enumerate(made)
    ]
    trials.append(Trial(EAGER, eager))
    taken = fastest(trials)
    assert not taken.problem
    assert taken.rate == max(t.rate for t in trials if not t.problem)


def test_parity_of_known_embeddings():
    eager = np.array([[10, 1], [10, -1]], np.float32)
    other = np.array([[10, 1], [10, -0.5]], np.float32)
    parity = Parity.of(eager, other)
    assert (parity.centred, parity.centred_mean, parity.n) == (1.0, 1.0, 2)
    assert parity.cosine == pytest.approx(100.5 / math.sqrt(101 * 100.25))
    assert (bool(parity.problem("exact")), parity.problem("fast")) == (True, "")
    swapped = Parity.of(eager, eager[::-1])
    assert (swapped.centred, swapped.centred_mean) == (-1.0, -1.0)
    assert swapped.problem("fast")
    alone = Parity.of(eager[:1], other[:1])
    assert not alone.problem("exact")


def test_what_is_not_finite_is_never_near():
    eager = np.ones((3, 2), np.float32)
    other = np.full((3, 2), np.nan, np.float32)
    parity = Parity.of(eager, other)
    assert parity.problem("exact")
    assert parity.problem("fast")
    assert "not all finite" in parity.problem("fast")


def test_a_trial_as_json():
    told = Trial(OPENVINO, 3.0, Parity(1.0, 0.5, 0.75, 4)).to_json()
    assert told["engine"] == "openvino-float32"
    assert told["parity"] == {"cosine": 1.0, "centred": 0.5, "centred_mean": 0.75, "n": 4}
