import numpy as np
import pytest
import torch
from torch import nn

from retailtag.finetuning.weight_averaging import Ema, interpolate


def _walk(ema, live, steps, seed=0):
    """Move `live` at random, updating after each step; the values that it had."""
    generator, seen = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        live["w"].add_(torch.randn(3, generator=generator))
        seen.append(live["w"].clone())
        ema.update()
    return seen


def test_average_equals_the_recurrence():
    live = {"w": torch.zeros(3)}
    ema = Ema(live, decay=0.8)
    seen, mean = _walk(ema, live, 60), np.zeros(3)
    for step, value in enumerate(seen, start=1):
        keep = min(0.8, (1 + step) / (10 + step))
        mean = keep * mean + (1 - keep) * value.numpy()
    assert (1 + 60) / (10 + 60) > 0.8 > 2 / 11  # both sides of the minimum took part
    np.testing.assert_allclose(ema.state()["mean"]["w"].numpy(), mean, rtol=1e-5)


def test_average_of_an_unmoved_model_is_the_model():
    live = {"w": torch.tensor([0.1, -3.0])}
    ema = Ema(live)
    for _ in range(20):
        ema.update()
    assert torch.equal(ema.state()["mean"]["w"], live["w"])


def test_average_of_half_precision_is_kept_in_float32():
    live = {"w": torch.ones(1, dtype=torch.bfloat16)}
    ema = Ema(live, decay=0.999)
    ema.step = 100_000  # past the warm-up
    live["w"].add_(1)
    ema.update()
    mean = ema.state()["mean"]["w"]
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(1.001)


def test_applied_swaps_in_and_out_and_survives_an_error():
    layer = nn.Linear(2, 1)
    ema = Ema(dict(layer.named_parameters()), decay=0.5)
    own = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    ema.update()
    inside = []

    def fail_inside():
        with ema.applied():
            inside.append(layer.weight.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert not torch.equal(inside[0], own + 1)
    assert torch.equal(layer.weight, own + 1)
    assert layer.weight.requires_grad


def test_state_goes_on_where_it_was():
    live = {"w": torch.zeros(3)}
    whole = Ema(live, 0.9)
    _walk(whole, live, 10)
    again = Ema(live, 0.9)
    again.load(whole.state())
    for ema in (whole, again):
        ema.update()
    assert again.step == whole.step == 11
    assert torch.equal(again.state()["mean"]["w"], whole.state()["mean"]["w"])


def test_state_is_a_copy_and_belongs_to_its_parameters():
    live = {"w": torch.zeros(3)}
    ema = Ema(live, 0.0)
    state = ema.state()
    _walk(ema, live, 1)
    assert torch.equal(state["mean"]["w"], torch.zeros(3))
    with pytest.raises(ValueError, match="other parameters"):
        Ema({"v": torch.zeros(3)}).load(state)


def _models(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    make = lambda: torch.randn(50, generator=generator).to(dtype)  # noqa: E731
    frozen = {"backbone.w": make(), "head.bias": make(), "seen": torch.tensor(3)}
    return frozen, {"backbone.w": make(), "head.bias": make(), "seen": torch.tensor(9)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_interpolation_ends_are_the_models_bit_for_bit(dtype):
    frozen, tuned = _models(dtype)
    for factor, model in ((0.0, frozen), (1.0, tuned)):
        mixed = interpolate(frozen, tuned, factor)
        for name in ("backbone.w", "head.bias"):
            assert mixed[name].dtype == dtype
            assert torch.equal(mixed[name], model[name])
    assert mixed["seen"].item() == 9


def test_interpolation_lies_between_and_changes_neither_model():
    frozen, tuned = _models()
    before = [{k: v.clone() for k, v in m.items()} for m in (frozen, tuned)]
    mixed = interpolate(frozen, tuned, 0.3)
    np.testing.assert_allclose(
        mixed["head.bias"].numpy(),
        0.7 * frozen["head.bias"].numpy() + 0.3 * tuned["head.bias"].numpy(),
        rtol=1e-5,
        atol=1e-6,
    )
    mixed["head.bias"].zero_()
    for model, copy in zip((frozen, tuned), before, strict=True):
        assert all(torch.equal(model[name], copy[name]) for name in model)


def test_what_training_left_alone_stays_bit_for_bit():
    frozen, _ = _models()
    for factor in (0.1, 0.25, 0.7):
        mixed = interpolate(frozen, {k: v.clone() for k, v in frozen.items()}, factor)
        assert torch.equal(mixed["backbone.w"], frozen["backbone.w"])
