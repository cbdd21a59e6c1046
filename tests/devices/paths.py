"""Everything that computes on a device, on a stand-in for an accelerator, beside the CPU.

`tests/test_devices.py` runs this file in a process of its own, and so does
``pytest tests/devices/paths.py``.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyarrow import parquet
from reference_accelerator import SimTensor

import retailtag as rt
from retailtag.backbones import load_backbone
from retailtag.backbones.engines import with_torch
from retailtag.backbones.engines.build import with_engine
from retailtag.backbones.engines.names import EAGER
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.extraction.extract import extract
from retailtag.finetuning.trainer import Training
from retailtag.finetuning.validation import ModelSelector
from retailtag.probes.artefact import Probe
from retailtag.probes.heads.knn import KnnHead
from retailtag.probes.heads.text_prior import TextPriorHead
from retailtag.probes.solver.eigenbasis import RotatedFeatures
from retailtag.probes.solver.fit import fit_probes, make_solver
from retailtag.probes.solver.torch_solver import TorchSolver
from retailtag.runs.embeddings import find_texts
from retailtag.runs.finetune import run_finetune
from retailtag.runs.probe import run_probe
from retailtag.settings import ComputeSettings, FinetuneSettings, ProbeSettings
from retailtag.tagger.loading import load_fitted

# -- the device itself -----------------------------------------------------------------------


def test_devices_do_not_mix(sim):
    here, there = torch.ones(3, 3), torch.ones(3, 3, device=sim)
    mixtures = (
        lambda: there + here,
        lambda: here @ there,
        lambda: torch.cat([there, here]),
        lambda: here.add_(there),
        lambda: there.mul_(here),
        lambda: torch.where(there > 0, here, there),
        lambda: torch.addmm(there, there, here),
        lambda: here[0] * there.sum(),
        lambda: torch.nn.functional.linear(there, here),
        lambda: torch._foreach_add([there], [here]),
    )
    for mixed in mixtures:
        with pytest.raises(RuntimeError, match="same device"):
            mixed()


def test_a_tensor_on_the_device_is_not_an_array(sim):
    there = torch.ones(3, device=sim)
    refused = (there.numpy, lambda: np.asarray(there), lambda: np.zeros(3).__setitem__(..., there))
    for convert in refused:
        with pytest.raises(TypeError, match="to numpy"):
            convert()


def test_what_cuda_allows_is_allowed(sim):
    there = torch.arange(3.0).to(sim)
    assert there.tolist() == [0, 1, 2]
    assert there.sum().item() == 3
    assert type(there.cpu()) is torch.Tensor
    assert (there * torch.tensor(2.0))[torch.tensor([2])].cpu().numpy() == [4]
    here = torch.zeros(3)
    here.copy_(there)
    here[1:] = there[:2]
    assert here.tolist() == [0, 0, 1]
    assert torch.tensor([1, 2], device=sim).device == torch.zeros(1, device=sim).device
    there[1:].fill_(5)  # a view
    assert there.tolist() == [0, 5, 5]


def test_gradients_are_those_of_the_cpu(sim):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Dropout())
    x = torch.randn(2, 3, 5, 5)
    found = []
    for device in ("cpu", sim):
        network.to(device).zero_grad()
        torch.manual_seed(1)
        network(x.to(device)).square().sum().backward()
        found.append([p.grad.clone().cpu() for p in network.parameters()])
        assert all(p.device.type == device for p in network.parameters())
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# -- heads -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    """Features (160, 10) of unlike scales, and labels (160, 5), frequent to rare and unknown."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((160, 10)) * np.arange(1, 11) ** -0.5
    score = X @ rng.standard_normal((10, 5)) + rng.logistic(size=(160, 5))
    Y = np.zeros((160, 5), np.int8)
    for tag, positives in enumerate([80, 30, 6, 1, 0]):
        Y[np.argsort(-score[:, tag])[:positives], tag] = 1
    Y[rng.random(Y.shape) < 0.02] = -1
    return X.astype(np.float32), Y


C = np.array([1e-3, 1.0, 1e3])  # from what the diagonal guess solves to the factored Hessians


def assert_same_optimum(found, expected, tol=1e-4):
    """Both are certified, and as close as two certified solutions must be."""
    solved = np.isfinite(expected.gap)
    assert np.array_equal(found.status, expected.status)
    assert (found.gap[solved] <= tol).all()
    assert (expected.gap[solved] <= tol).all()
    np.testing.assert_allclose(found.objective, expected.objective, rtol=2 * tol)
    # f is 1-strongly convex in w: ½‖w - w*‖² <= f(w) - f(w*) <= tol·f(w), for each of the two
    apart = np.linalg.norm(found.weight.astype(float) - expected.weight, axis=2)
    assert (apart[solved] <= 2 * np.sqrt(2 * tol * expected.objective[solved]) + 1e-5).all()
    np.testing.assert_array_equal(found.bias[~solved], expected.bias[~solved])


def test_solver(sim, world):
    X, Y = world
    weight = np.random.default_rng(0).choice([0, 1, 3], len(X))
    for options in ({}, {"sample_weight": weight}):
        found, expected = (fit_probes(X, Y, C, device=d, **options) for d in (sim, "cpu"))
        assert_same_optimum(found, expected)
        assert np.isfinite(expected.gap).any(axis=0).sum() >= 3


def test_solver_in_float64(sim, world, monkeypatch):
    X, Y = world
    monkeypatch.setattr("retailtag.probes.solver.path.FLOAT32_ITERATIONS", 1)
    X = X * np.logspace(0, 3, X.shape[1], dtype=np.float32)
    found, expected = (fit_probes(X, Y, C, device=device) for device in (sim, "cpu"))
    assert_same_optimum(found, expected)


def test_solver_with_streamed_features(sim, world):
    X, Y = world
    few_bytes = X.nbytes // 4
    features = RotatedFeatures.make(X, None, torch.device(sim), few_bytes)
    assert features.streamed
    assert features.Z.device.type == "cpu"
    blocks = [block for _, block in features.blocks(3)]
    assert len(blocks) > 1
    assert all(isinstance(block, SimTensor) for block in blocks)
    found = TorchSolver(sim, memory=few_bytes)(X, Y, C)
    assert_same_optimum(found, TorchSolver()(X, Y, C))


def test_solver_started_warm(sim, world):
    X, Y = world
    first = TorchSolver(sim)(X, Y, C[:1])
    start = (first.weight[0], first.bias[0])
    found, expected = (TorchSolver(device)(X, Y, C[1:], start=start) for device in (sim, "cpu"))
    assert_same_optimum(found, expected)


def test_neighbours(sim, world):
    X, Y = world
    found, expected = (
        KnnHead(counts=(20, 5), device=device).fit(X[:110], Y[:110]).scores(X[110:], 0)
        for device in (sim, "cpu")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_text_head(sim, world):
    X, Y = world
    text = np.random.default_rng(1).standard_normal((Y.shape[1], X.shape[1])).astype(np.float32)
    found, expected = (
        TextPriorHead(text, C[:2], make_solver("torch", device), weights=(0.0, 10.0)).fit(X, Y)
        for device in (sim, "cpu")
    )
    scores = [fits.scores(X, candidate) for candidate in range(4) for fits in (found, expected)]
    for a, b in zip(scores[::2], scores[1::2], strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05)  # each within its certificate


# -- models and whole runs -------------------------------------------------------------------


def context(catalog, device, features):
    """The context of a run on any device; settings take only those that users may choose."""
    compute = ComputeSettings(device="cpu", features=features, workers=0)
    made = RunContext(catalog, compute=compute)
    vars(made)["device"] = device  # where the cached property looks first
    return made


@pytest.fixture(scope="module")
def tiny(tiny_csv, tmp_path_factory):
    """The first 20 products of the small world: torch's dispatch by Python is slow."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(tiny_csv.parent / "images", folder / "images")
    lines = tiny_csv.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "catalogue.csv").write_text("".join(lines[:41]), encoding="utf-8")
    return read_catalog(folder / "catalogue.csv")


@pytest.fixture(scope="module")
def stores(sim, tiny, tmp_path_factory):
    """Embeddings of the small world by demo:cnn and demo:clip, extracted on each device."""
    found = {}
    for device in ("cpu", sim):
        here = context(tiny, device, tmp_path_factory.mktemp(device) / "features")
        for name in ("demo:cnn", "demo:clip"):
            found[name, device] = extract(here, load_backbone(name, device=device)).store
    return found


@pytest.mark.parametrize("name", ["demo:cnn", "demo:clip"])
def test_extraction(sim, tiny, stores, name):
    expected, found = (stores[name, device] for device in ("cpu", sim))
    assert found.spec == expected.spec
    X, Y = (store.load(tiny.image_ids).X for store in (found, expected))
    np.testing.assert_allclose(X, Y, rtol=1e-4, atol=1e-5)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    embedded, expected = (load_backbone(name, device=d).embed(pixels) for d in (sim, "cpu"))
    assert isinstance(embedded, SimTensor)  # it stays there until it is asked for
    torch.testing.assert_close(embedded.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_eager_engine(sim, monkeypatch, precision):
    # what the processor can do is no matter of another device
    monkeypatch.setattr("retailtag.backbones.cpu.has_bfloat16", lambda: True)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    here, there = (load_backbone("demo:dino", device=device) for device in ("cpu", sim))
    embeddings = [
        with_engine(there, "eager", precision).embed(pixels),
        *with_torch.build(there, EAGER, batch_size=3)([pixels]),  # the converted module
    ]
    for found in embeddings:
        assert found.device.type == sim
        torch.testing.assert_close(found.cpu(), here.embed(pixels), rtol=1e-4, atol=1e-5)


def test_probe_with_every_head(sim, tiny, stores, tmp_path):
    settings = ProbeSettings(sweep_C="0.01", folds=2, heads="logistic,ridge,knn,text")
    tables = []
    for device in ("cpu", sim):
        texts = find_texts(settings.heads, "demo:clip", tiny.table.tags, device=device)
        here = context(tiny, device, tmp_path)
        run_probe(here, stores["demo:clip", device], tmp_path / device, settings, texts=texts)
        tables.append(parquet.read_table(tmp_path / device / "heads.parquet").to_pydict())
    expected, found = tables
    assert set(found["head"]) == {"logistic", "ridge", "knn", "text"}
    for column in ("tag", "head", "setting", "chosen"):
        assert found[column] == expected[column]
    np.testing.assert_allclose(found["out_of_fold_ap"], expected["out_of_fold_ap"], atol=1e-3)


QUICK = FinetuneSettings(epochs=1, batch_size=16, blocks=2, interpolate="0.5")
VARIANTS = {
    "plain": {"ema": 0.9, "mix": "cutmix", "loss": "db", "micro_batches": 2, "refit": True},
    "cached": {"augment": "cached:2", "loss": "asl", "sampler": "repeat:t=0.3"},
    "whole": {"blocks": "all", "gradient_checkpointing": True, "mix": "mixup", "loss": "focal"},
}


@pytest.fixture(scope="module")
def probes(sim, tiny, stores, tmp_path_factory):
    """Folder of a probe for each device, on the embeddings made there."""
    settings = ProbeSettings(sweep_C="0.01", folds=2, heads="logistic")
    folders = {}
    for device in ("cpu", sim):
        folders[device] = tmp_path_factory.mktemp("probe")
        here = context(tiny, device, folders[device])
        run_probe(here, stores["demo:cnn", device], folders[device], settings)
    return folders


def finetuned(catalog, stores, probes, device, out, config):
    """A fine-tune of demo:cnn on a device."""
    backbone = load_backbone("demo:cnn", device=device)
    probe = Probe.load(probes[device])
    here = context(catalog, device, out)
    return run_finetune(here, stores["demo:cnn", device], backbone, probe, out, config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_finetune(sim, tiny, stores, probes, tmp_path, monkeypatch, variant):
    # the probe solves this small world, but the trained weights shall be seen in the result
    monkeypatch.setattr(ModelSelector, "choose_from", lambda _, candidates: len(candidates) - 1)
    config = replace(QUICK, **VARIANTS[variant])
    expected, found = (
        finetuned(tiny, stores, probes, device, tmp_path / device, config)
        for device in ("cpu", sim)
    )
    assert found.best_epoch == 1
    for device in ("cpu", sim):  # each fills a cache for each view where the variant wants them
        features = stores["demo:cnn", device].path.parent
        caches = list(features.with_name("features-trunk").glob("*/rows-*.bin"))
        assert variant != "cached" or len(caches) == 2
    losses = [run.history[1]["loss"] for run in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    logits = found.predictions.logits
    np.testing.assert_allclose(logits, expected.predictions.logits, rtol=1e-3, atol=1e-3)
    rows = [tiny.image_ids.tolist().index(i) for i in found.predictions.image_ids[:4]]
    images = [tiny.images.read(row) for row in rows]
    for device in ("cpu", sim):
        tagger = load_fitted(tmp_path / sim, device=device)
        np.testing.assert_allclose(tagger.logits(images), logits[:4], rtol=1e-3, atol=1e-3)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_killed_finetune_continues(sim, tiny, stores, probes, tmp_path, monkeypatch):
    config = replace(QUICK, blocks=1, augment="none", cache_gb=0, ema=0.9, checkpoint_minutes=1e-9)
    expected = finetuned(tiny, stores, probes, sim, tmp_path / "whole", config)
    step = Training._step

    def breaks(training, epoch, batch, *rest):
        if batch == 1:
            raise Killed
        return step(training, epoch, batch, *rest)

    monkeypatch.setattr(Training, "_step", breaks)
    with pytest.raises(Killed):
        finetuned(tiny, stores, probes, sim, tmp_path / "killed", config)
    monkeypatch.setattr(Training, "_step", step)
    assert (tmp_path / "killed" / "resume.pt").exists()
    found = finetuned(tiny, stores, probes, sim, tmp_path / "killed", config)
    assert found.history[1]["loss"] == expected.history[1]["loss"]
    np.testing.assert_array_equal(found.predictions.logits, expected.predictions.logits)


def test_predict(sim, tiny, probes):
    images = [tiny.images.read(row) for row in range(5)]
    expected, found = (load_fitted(probes[sim], device=device) for device in ("cpu", sim))
    np.testing.assert_allclose(found.logits(images), expected.logits(images), rtol=1e-4, atol=1e-4)
    assert found.tag(images) == expected.tag(images)
    here, there = (rt.predict(tagger, images, batch_size=2) for tagger in (expected, found))
    assert here["tags"].to_pylist() == there["tags"].to_pylist() != [[]] * 5
