"""The training: which weights change, which do not, and that it can be interrupted anywhere."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from retailtag.errors import DataError, Unavailable, UsageError
from retailtag.finetuning import training_step as step_module
from retailtag.finetuning.determinism import deterministic_algorithms
from retailtag.finetuning.learning_rates import make_optimiser, set_learning_rates
from retailtag.finetuning.losses import LabelCounts, parse_loss
from retailtag.finetuning.mixed_precision import MixedPrecision, is_out_of_memory
from retailtag.finetuning.network import Network
from retailtag.finetuning.snapshots import Snapshots
from retailtag.finetuning.trainer import Training, epoch_line, refit
from retailtag.finetuning.training_step import MicroBatches, TrainingStep, predict
from retailtag.finetuning.validation import Measured


def states_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_only_the_last_blocks_and_the_head_move(world, quick):
    network = world.network(replace(quick, blocks=2))
    backbone = network.backbone
    before = {k: v.clone() for k, v in backbone.module.state_dict().items()}
    result = world.train(network=network)
    after, trained = backbone.module.state_dict(), set(backbone.trainable_names(2))
    assert result.best_epoch > 0
    assert all(not torch.equal(before[name], after[name]) for name in trained)
    layers = {name.rsplit(".", 1)[0] for name in trained}
    for name in after:
        if name.rsplit(".", 1)[0] not in layers:
            assert torch.equal(before[name], after[name]), name


def test_it_learns_and_keeps_its_best_epoch(world, quick):
    network = world.network(replace(quick, epochs=3, lr=1e-3))
    result = world.train(network=network)
    values = [row["criterion"] for row in result.history]
    assert values[result.best_epoch] == max(values) > values[0]
    assert result.history[-1]["loss"] < result.history[1]["loss"]
    again = predict(network, world.loader(network), world.val, MicroBatches(16))
    np.testing.assert_allclose(again, result.val_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": "light"},
        {"augment": "strong", "mix": "mixup"},
        {"mix": "cutmix:p=1", "loss": "asl"},
        {"loss": "db", "sampler": "repeat:t=0.3"},
        {"ema": 0.9, "loss": "focal", "blocks": "all"},
    ],
)
def test_same_seed_same_result_and_another_seed_another(world, quick, changes):
    config = replace(quick, epochs=1, **changes)
    runs = [world.train(config).history[-1]["loss"] for _ in range(2)]
    assert runs[0] == runs[1]
    assert world.train(replace(config, seed=1)).history[-1]["loss"] != runs[0]


def test_non_finite_loss_names_the_batch(world, quick, monkeypatch):
    real = TrainingStep.step
    monkeypatch.setattr(TrainingStep, "step", lambda *given: real(*given) * float("inf"))
    with pytest.raises(DataError, match="batch 0 of epoch 1; lower --lr"):
        world.train(replace(quick, epochs=1))


def test_a_diverged_run_leaves_its_last_whole_epoch(world, quick, tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, "key")
    real = TrainingStep.step

    def breaks(self, batch, targets, factor):
        loss = real(self, batch, targets, factor)
        return loss * float("nan") if breaks.calls > 6 else _count(breaks, loss)

    breaks.calls = 0
    monkeypatch.setattr(TrainingStep, "step", breaks)
    with pytest.raises(DataError, match="batch 2 of epoch 2"):
        world.train(quick, snapshots=snapshots)
    saved = Snapshots(tmp_path, "key").load()
    assert saved["epoch"] == 2
    assert all(torch.isfinite(t).all() for t in saved["network"].values() if t.is_floating_point())


def _count(function, value):
    function.calls += 1
    return value


# -- interruptions ---------------------------------------------------------------------------


class Killed(BaseException):
    """Simulates a kill: nothing catches it."""


@contextmanager
def killed_at(n_steps):
    """Kill the block before its step number `n_steps` + 1."""
    killed = False
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, n_steps)
        try:
            yield
        except Killed:
            killed = True
    assert killed


def _kill_at(monkeypatch, n_steps):
    real, done = Training._step, []

    def step(self, *args):
        if len(done) == n_steps:
            raise Killed
        done.append(1)
        return real(self, *args)

    monkeypatch.setattr(Training, "_step", step)


@pytest.mark.parametrize("n_steps", [0, 3, 5, 8])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(world, quick, tmp_path, n_steps):
    """Five batches an epoch: killed before the first, within both epochs, and between them."""
    config = replace(quick, augment="light", ema=0.9, loss="focal", interpolate="auto")
    whole = world.network(config)
    expected = world.train(network=whole)
    always = Snapshots(tmp_path, "key", minutes=1e-9)
    with killed_at(n_steps):
        world.train(config, snapshots=always)
    network = world.network(config)
    reported = []
    found = world.train(
        network=network,
        snapshots=Snapshots(tmp_path, "key"),
        report=lambda epoch, value: reported.append(epoch) or False,
    )
    assert reported == [1, 2]
    np.testing.assert_array_equal(found.val_logits, expected.val_logits)
    assert states_equal(network.state(), whole.state())
    assert [r["loss"] for r in found.history] == [r["loss"] for r in expected.history]
    assert found.factors == expected.factors


def test_a_run_that_had_ended_is_not_trained_again(world, quick, tmp_path, monkeypatch):
    expected = world.train(quick, snapshots=Snapshots(tmp_path, "key"))
    _kill_at(monkeypatch, 0)
    again = world.train(quick, snapshots=Snapshots(tmp_path, "key"))
    np.testing.assert_array_equal(again.val_logits, expected.val_logits)
    assert again.earlier_seconds > 0


def test_a_training_continued_with_other_threads_says_and_records_it(tmp_path, said):
    first = Snapshots(tmp_path, "key")
    first.threads = {64}
    first.save({})
    again = Snapshots(tmp_path, "key", progress=said)
    again.load()
    assert again.threads == {64, torch.get_num_threads()}
    assert "resume.pt was begun with another number of threads" in said.lines[-1]


def test_snapshots_of_something_else_or_damaged_ones_are_ignored(tmp_path, said):
    Snapshots(tmp_path, "key").save({"x": torch.ones(2)})
    assert torch.equal(Snapshots(tmp_path, "key").load()["x"], torch.ones(2))
    assert Snapshots(tmp_path, "other", progress=said).load() is None
    assert "belongs to other settings" in said.lines[-1]
    path = tmp_path / "resume.pt"
    content = bytearray(path.read_bytes())
    for place in (0, 40, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert Snapshots(tmp_path, "key", progress=said).load() is None
        assert "is damaged" in said.lines[-1]
    path.write_bytes(b"")
    assert Snapshots(tmp_path, "key").load() is None
    Snapshots(tmp_path, "key").remove()
    assert list(tmp_path.iterdir()) == []


# -- memory ----------------------------------------------------------------------------------


def test_running_out_of_memory_halves_the_micro_batches_and_changes_nothing_else(
    world, quick, monkeypatch, said
):
    config = replace(quick, epochs=1, blocks=0)  # nothing with batch statistics is trained
    expected = world.train(config)
    real = Network.logits

    def small(self, activations):
        if torch.is_grad_enabled() and len(activations) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, activations)

    monkeypatch.setattr(Network, "logits", small)
    found = world.train(config, progress=said)
    halvings = [line for line in said.lines if "memory ran out" in line]
    assert [line.split(":")[1].split()[0] for line in halvings] == ["4", "2"]
    np.testing.assert_allclose(found.val_logits, expected.val_logits, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(
        Network, "logits", lambda *a: (_ for _ in ()).throw(MemoryError("no memory"))
    )
    with pytest.raises(Unavailable, match="a single image at a time"):
        world.train(config)


def test_other_errors_are_not_mistaken_for_a_lack_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        MicroBatches(4).until_it_fits(lambda: (_ for _ in ()).throw(RuntimeError("shapes")))


@pytest.mark.parametrize("loss", ["bce", "db"])
def test_gradients_of_micro_batches_are_those_of_the_whole_batch(world, quick, loss):
    """With unequal micro-batches and unknown cells; a ViT, because batch statistics differ."""
    world.name = "demo:dino"
    gradients = []
    for parts in (1, 3):
        network = world.network(replace(quick, micro_batches=parts, loss=loss))
        network.eval()
        loader = world.loader(network)
        bound = parse_loss(loss).build(LabelCounts.of(world.labels[world.fit]))
        stepper = TrainingStep(network, loader, bound)
        some, batch = next(loader.batches(world.fit[:16], 16))
        value = stepper._gradients(batch, torch.from_numpy(world.labels[some]))
        gradients.append((value, [p.grad.clone() for p in network.parameters()]))
    assert (world.labels[some] < 0).any()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("blocks", [2, "all"])
@pytest.mark.parametrize("name", ["demo:dino", "demo:cnn"])
def test_gradient_checkpointing_gives_the_same_gradients(world, quick, name, blocks):
    world.name = name
    found = []
    for recompute in (False, True):
        network = world.network(replace(quick, blocks=blocks, gradient_checkpointing=recompute))
        network.eval()
        loader = world.loader(network)
        _, batch = next(loader.batches(world.fit[:4], 4))
        network.logits(loader.activations(batch)).square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_a_model_without_gradient_checkpointing_says_so(world, quick, monkeypatch):
    network = world.network(quick)
    for module in network.backbone.module.modules():
        if hasattr(module, "set_grad_checkpointing"):
            monkeypatch.setattr(type(module), "set_grad_checkpointing", None)
    with pytest.raises(UsageError, match="leave --gradient-checkpointing out"):
        network.backbone.enable_gradient_checkpointing()


# -- learning rates, precision, words --------------------------------------------------------


def test_learning_rates_fall_from_block_to_block_and_only_matrices_decay(world, quick):
    world.name = "demo:dino"
    config = replace(quick, blocks="all", lr=1.0, head_lr=7.0, layer_decay=0.5)
    network = world.network(config)
    optimiser = make_optimiser(network.backbone, network.head, config)
    rate = {id(p): g["peak"] for g in optimiser.param_groups for p in g["params"]}
    decays = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    n = len(network.backbone.blocks)
    for name, parameter in network.backbone.module.named_parameters():
        index = int(name.split("blocks.")[1].split(".")[0]) if "blocks." in name else None
        if index is None:
            index = n - 1 if ".norm." in f".{name}." else -1
        assert rate[id(parameter)] == 0.5 ** (n - 1 - index), name
        assert (decays[id(parameter)] > 0) == (parameter.ndim > 1), name
    assert {rate[id(p)] for p in network.head.parameters()} == {7.0}
    set_learning_rates(optimiser, 0.5)
    assert all(group["lr"] == group["peak"] / 2 for group in optimiser.param_groups)


def test_precision_follows_the_hardware(monkeypatch):
    cuda = torch.device("cuda")
    assert MixedPrecision.choose("auto", torch.device("cpu")).name == "float32"
    for capability, name in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert MixedPrecision.choose("auto", cuda).name == name
    with pytest.raises(UsageError, match="--mixed-precision fp16 needs a CUDA"):
        MixedPrecision.choose("fp16", torch.device("cpu"))


def test_bf16_trains_to_nearly_the_same(world, quick):
    exact = world.train(replace(quick, epochs=1))
    rounded = world.train(replace(quick, epochs=1, mixed_precision="bf16"))
    assert rounded.val_logits.dtype == np.float32
    assert not np.array_equal(rounded.val_logits, exact.val_logits)
    assert abs(rounded.history[1]["loss"] - exact.history[1]["loss"]) < 0.02


def test_the_line_of_an_epoch():
    row = {
        "epoch": 2,
        "loss": 0.5,
        "macro_ap": 0.25,
        "tail_macro_ap": None,
        "macro_f1": 0.5,
        "tail_macro_f1": 0.125,
        "images_per_second": 1234.0,
        "seconds": 60.0,
    }
    said = epoch_line(row, 5)
    assert said == (
        "epoch 2/5: loss 0.5000, macro-AP 0.2500, macro-F1 0.5000, tail macro-F1 0.1250, "
        "1,234 images/s, 3.0 min left"
    )


# -- averages and refit ----------------------------------------------------------------------


def test_the_averaged_weights_are_measured_and_kept(world, quick):
    plain, averaged = (world.network(replace(quick, ema=ema, epochs=1)) for ema in (0.0, 0.99))
    start = averaged.state()
    results = [world.train(network=n, selector=world.rising()) for n in (plain, averaged)]
    assert results[0].history[1]["loss"] == results[1].history[1]["loss"]
    name = f"backbone.{plain.backbone.trainable_names(1)[0]}"
    steps = [(n.state()[name] - start[name]).norm() for n in (plain, averaged)]
    assert 0 < steps[1] < steps[0]


def test_a_fixed_interpolation_lies_on_the_line(world, quick):
    tuned, between = (world.network(replace(quick, interpolate=f)) for f in ("1", "0.75"))
    start = tuned.state()
    for network in (tuned, between):
        assert world.train(network=network, selector=world.rising()).best_epoch > 0
    for name, value in between.state().items():
        if value.is_floating_point():
            point = start[name] + 0.75 * (tuned.state()[name] - start[name])
            torch.testing.assert_close(value, point, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("halfway", "epoch", "factor"), [(0.6, 2, 0.5), (0.5, 0, 1.0)])
def test_an_epoch_behind_the_start_counts_by_its_interpolations(
    world, quick, halfway, epoch, factor
):
    """The values: start, epochs 1 and 2, then four shares of epoch 2; a tie goes to the start."""
    network = world.network(replace(quick, epochs=2, interpolate="auto"))
    start = network.state()
    values = iter([0.5, 0.3, 0.4, 0.35, halfway, 0.45, 0.4])
    selector = world.selector()
    n_tags = world.labels.shape[1]
    selector = replace(selector, measure=lambda _: Measured(*2 * [np.full(n_tags, next(values))]))
    result = world.train(network=network, selector=selector)
    assert (result.best_epoch, result.factor) == (epoch, factor)
    tried = [row["criterion"] for row in result.factors]
    np.testing.assert_allclose(tried, [0.35, halfway, 0.45, 0.4])
    is_start = all(torch.equal(value, start[name]) for name, value in network.state().items())
    assert is_start == (epoch == 0)


def test_the_best_factor_is_kept(world, quick):
    network = world.network(replace(quick, interpolate="auto"))
    result = world.train(network=network)
    values = {row["factor"]: row["criterion"] for row in result.factors}
    assert set(values) == {1.0, 0.75, 0.5, 0.25}
    assert result.best_epoch > 0
    assert values[result.factor] > result.history[0]["criterion"]
    again = predict(network, world.loader(network), world.val, MicroBatches(16))
    np.testing.assert_allclose(again, result.val_logits, rtol=1e-4, atol=1e-4)


def test_a_refit_is_the_same_training_on_more_images(world, quick, tmp_path):
    """On the same images it ends where the training was after as many epochs."""
    config = replace(quick, epochs=3)
    whole, stopped = world.network(config), world.network(config)
    run = Training(whole, world.loader(whole), world.labels, world.fit)
    for epoch in (1, 2):
        run.epoch(epoch)
    network, again = world.network(config), Snapshots(tmp_path, "key")
    with killed_at(7):
        refit(network, world.loader(network), world.labels, world.fit, 2, 1.0, snapshots=again)
    refit(
        stopped,
        world.loader(stopped),
        world.labels,
        world.fit,
        2,
        1.0,
        snapshots=Snapshots(tmp_path, "key"),
    )
    assert states_equal(stopped.state(), whole.state())


def test_a_report_can_end_the_training(world, quick):
    result = world.train(replace(quick, epochs=5), report=lambda epoch, value: epoch == 2)
    assert [row["epoch"] for row in result.history] == [0, 1, 2]


def test_the_state_of_other_blocks_is_refused(world, quick):
    with pytest.raises(UsageError, match="other blocks"):
        world.network(quick).load(world.network(replace(quick, blocks=2)).state())


def test_the_learning_rates_rise_and_fall_once(world, quick, monkeypatch):
    """Rates rise, then fall to nearly nothing, over the whole training."""
    seen = []
    monkeypatch.setattr(
        step_module, "set_learning_rates", lambda optimiser, factor: seen.append(factor)
    )
    world.train(replace(quick, epochs=4, warmup=0.25))
    assert len(seen) == 20
    assert seen[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert seen[5:] == sorted(seen[5:], reverse=True)
    assert seen[-1] < 0.02


def test_deterministic_algorithms_are_requested_on_cuda_only():
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled() == before
    with deterministic_algorithms(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
