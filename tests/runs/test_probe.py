"""The probe stage: sweeps that a kill cannot hurt, scalings it chooses among, what it says."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from retailtag.backbones import load_backbone
from retailtag.context import RunContext
from retailtag.errors import UsageError
from retailtag.extraction.extract import extract
from retailtag.finetuning.head import Head
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.probes.checkpoints import Checkpoints
from retailtag.probes.heads.ridge import RidgeHead
from retailtag.probes.scaling import SCALES
from retailtag.probes.solver.fit import make_solver
from retailtag.probes.solver.torch_solver import TorchSolver
from retailtag.progress import SILENT
from retailtag.runs import heads
from retailtag.runs import probe as stage
from retailtag.runs.embeddings import find_texts
from retailtag.runs.finetune_start import head_start
from retailtag.runs.probe import NO_TEXTS, check_probe_settings, load_rows, run_probe, wants_text
from retailtag.runs.stage import read_record, why_stale
from retailtag.runs.sweep import fit_at, strengths_around
from retailtag.settings import ComputeSettings, ProbeSettings
from retailtag.tagger.loading import load_fitted

SETTINGS = ProbeSettings(sweep_C="1e-5:1e-2:4", folds=3, heads="logistic")

KILLED = """
import os, signal
from pathlib import Path
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.runs.probe import run_probe
from retailtag.settings import ProbeSettings
from retailtag.probes.checkpoints import Checkpoints
from retailtag.probes.solver.fit import make_solver
from retailtag.store import FeatureStore

catalogue, store, out, grid, folds, n = sys.argv[1:]
save, saved = Checkpoints.save, []

def save_and_die(self, fits, start):
    save(self, fits, start)
    saved.append(fits)
    if len(saved) == int(n):
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = save_and_die
run_probe(
    RunContext(read_catalog(Path(catalogue))),
    FeatureStore.open(Path(store)),
    Path(out),
    ProbeSettings(sweep_C=grid, folds=int(folds), heads="logistic"),
)
"""


@pytest.fixture(scope="module")
def whole(tiny, tiny_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run_probe(RunContext(tiny), tiny_store, out, SETTINGS)
    return out


@pytest.fixture
def one_thread():
    """As in `fork_script`: sums of more threads have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OUTPUTS = (
    "probe.safetensors",
    "out_of_fold.safetensors",
    "predictions.npz",
    "sweep.parquet",
    "heads.parquet",
)


def same_end(a, b):
    """Outputs of two runs are equal byte for byte, their record but for its times."""
    for name in OUTPUTS:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = map(read_record, (a, b))
    assert (first.inputs, first.outputs, first.facts) == (
        second.inputs,
        second.outputs,
        second.facts,
    )
    assert not (a / "sweep").exists()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not of this system")
def test_a_killed_sweep_continues_after_its_finished_folds_to_the_same_bytes(
    tiny_csv, tiny, tiny_store, tmp_path, monkeypatch, fork_script, one_thread
):
    """Killed after the first fold: only the others are fitted, and all outputs are the same."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    args = [tiny_csv, tiny_store.path, out, SETTINGS.sweep_C, SETTINGS.folds, 1]
    killed = fork_script(KILLED, *args)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(list((out / "sweep").rglob("*.block"))) == 1
    assert read_record(out) is None
    run_probe(RunContext(tiny), tiny_store, whole, SETTINGS)

    asked = []
    fit = TorchSolver.__call__

    def counting(self, X, Y, C, *args, **more):
        asked.append(C.tolist())
        return fit(self, X, Y, C, *args, **more)

    monkeypatch.setattr(TorchSolver, "__call__", counting)
    run_probe(RunContext(tiny), tiny_store, out, SETTINGS)
    np.testing.assert_allclose(asked[:2], [[1e-5, 1e-4, 1e-3, 1e-2]] * 2)
    same_end(out, whole)


class Killed(BaseException):
    """Simulates a kill: nothing catches it."""


def killed_after_every_file(run, monkeypatch):
    """Call `run` until it ends; each call dies after the first file that none before it wrote."""
    done = []
    replace_by = Path.replace

    def rename_and_die(self, target):
        replace_by(self, target)
        if target not in done:
            done.append(target)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", rename_and_die)
        while True:
            try:
                run()
            except Killed:
                continue
            return [path.name for path in done]


def test_killed_after_every_file_it_ends_in_the_same_bytes(tiny, tiny_store, tmp_path, monkeypatch):
    """Two scalings, both widened, and every head; blocks of the sweep are files too."""
    settings = ProbeSettings(sweep_C="1e-7,1e-6", folds=2, scale="l2,standardise")
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_probe(RunContext(tiny), tiny_store, whole, settings)
    files = killed_after_every_file(
        lambda: run_probe(RunContext(tiny), tiny_store, out, settings), monkeypatch
    )
    assert sum(name.endswith(".block") for name in files) > 4
    assert {*OUTPUTS, "probe.json", "stage.json"} <= set(files)
    same_end(out, whole)


def test_checkpoints_of_other_labels_or_folds_are_not_used(tiny, tiny_store, tmp_path, monkeypatch):
    """Each run finds the checkpoints of the one before; later choices do not matter."""
    monkeypatch.setattr(Checkpoints, "clear", lambda self: None)
    served = []
    load = Checkpoints.load

    def counting(self, *args):
        served.append(load(self, *args))
        return served[-1]

    monkeypatch.setattr(Checkpoints, "load", counting)
    labels = tiny.table.labels.copy()
    labels[tiny.split == "train", 0] ^= 1
    other = replace(tiny, table=replace(tiny.table, labels=labels))
    for catalog, settings, taken in (
        (tiny, SETTINGS, 0),
        (tiny, replace(SETTINGS, choose_C="global", thresholds="fixed"), 3),
        (tiny, replace(SETTINGS, folds=2), 0),
        (tiny, replace(SETTINGS, seed=1), 0),
        (other, SETTINGS, 0),
    ):
        served.clear()
        run_probe(RunContext(catalog), tiny_store, tmp_path, settings)
        assert sum(block is not None for block in served) == taken


def test_the_table_has_rows_only_for_what_was_fitted(tiny, tiny_store, tmp_path):
    settings = ProbeSettings(sweep_C="1e-3,1e-2", folds=2, scale="none,l2")
    run = run_probe(RunContext(tiny), tiny_store, tmp_path, settings)
    table = parquet.read_table(tmp_path / "sweep.parquet")
    rows = table.to_pylist()
    cells = {(row["scale"], row["tag"], row["C"], row["fold"]) for row in rows}
    assert len(cells) == len(rows) == run.record.facts["n_fits"]
    for scale in ("none", "l2"):
        strengths = {row["C"] for row in rows if row["scale"] == scale}
        n = sum(row["scale"] == scale for row in rows)
        assert n == 2 * len(tiny.table.tags) * len(strengths)
    fitted = [row["objective"] for row in rows if row["status"] != "single class"]
    assert np.isfinite(fitted).all()


def test_the_best_scaling_is_taken_and_all_are_told(tiny, tiny_store, tmp_path):
    run = run_probe(
        RunContext(tiny),
        tiny_store,
        tmp_path,
        replace(SETTINGS, scale="none,l2,standardise"),
    )
    reached = run.probe.facts["scales"]
    assert list(reached) == ["none", "l2", "standardise"]
    assert reached[run.probe.scale] >= max(reached.values()) - 0.001
    assert run.probe.facts["out_of_fold"]["all"]["macro_ap"] == reached[run.probe.scale]
    assert Probe.load(tmp_path).scale == run.probe.scale


@pytest.mark.parametrize("scale", SCALES)
def test_predictions_tagger_and_probe_agree_under_every_scaling(tiny, tiny_store, tmp_path, scale):
    run = run_probe(
        RunContext(tiny), tiny_store, tmp_path, ProbeSettings(sweep_C="0.1", folds=2, scale=scale)
    )
    view = tiny_store.load(run.predictions.image_ids.tolist())
    np.testing.assert_allclose(run.probe.logits(view.X), run.predictions.logits, rtol=1e-5)
    image_id = run.predictions.image_ids[0]
    data = tiny.images.read(tiny.image_ids.tolist().index(image_id))
    by_tagger = load_fitted(tmp_path).logits([data])
    np.testing.assert_allclose(by_tagger[0], run.predictions.logits[0], atol=2e-3)


def test_heads_compete_out_of_fold_and_the_better_is_handed_over(
    tiny, tiny_store, tmp_path, monkeypatch
):
    """Ridge is made to win, under a scaling whose unit rows it must not be given."""
    settings = ProbeSettings(sweep_C="0.01", folds=2, scale="l2", heads="logistic,ridge")
    _win(monkeypatch, "ridge")
    run = run_probe(RunContext(tiny), tiny_store, tmp_path, settings)
    facts = run.probe.facts
    assert facts["head"] == run.probe.head == Probe.load(tmp_path).head == "ridge"
    assert set(facts["heads"]) == {"logistic", "ridge"}
    assert facts["heads"]["ridge"]["macro_ap"] == facts["out_of_fold"]["all"]["macro_ap"] > 0.5
    assert all(s.startswith("ridge=") for s in facts["out_of_fold"]["all"]["setting"])
    assert (run.probe.C == 0.01).all()  # what a fine-tune starts from
    train = load_rows(tiny, tiny_store, tiny.rows("train"), 2)
    by_hand = RidgeHead().fit(train.X, tiny.table.labels[train.rows])
    rest = tiny_store.load(run.predictions.image_ids.tolist()).X
    names = list(RidgeHead().candidates)
    index = np.array([names.index(s) for s in _settings_of(facts, tiny.table)])
    np.testing.assert_allclose(run.predictions.logits, by_hand.scores(rest, index), rtol=1e-4)


@pytest.fixture(scope="module")
def clip_store(tiny, tmp_path_factory):
    compute = ComputeSettings(device="cpu", features=tmp_path_factory.mktemp("clip"))
    return extract(RunContext(tiny, compute=compute), load_backbone("demo:clip")).store


ALL = ProbeSettings(sweep_C="1e-3,1e-2", folds=2)


@pytest.mark.parametrize("head", ["logistic", "ridge", "knn", "text"])
def test_whichever_head_wins_its_tagger_gives_the_predictions(
    tiny, clip_store, tmp_path, monkeypatch, head
):
    _win(monkeypatch, head)
    texts = find_texts(ALL.heads, "demo:clip", tiny.table.tags)
    run = run_probe(RunContext(tiny), clip_store, tmp_path, ALL, texts=texts)
    facts = run.probe.facts
    assert set(facts["heads"]) == {"logistic", "ridge", "knn", "text"}
    assert facts["head"] == head
    assert facts["heads"][head]["macro_ap"] == facts["out_of_fold"]["all"]["macro_ap"] > 0.3
    assert ("knn.safetensors" in run.record.outputs) == (head == "knn")
    shown = run.predictions.image_ids[:12].tolist()
    rows = [tiny.image_ids.tolist().index(image_id) for image_id in shown]
    tagger = load_fitted(tmp_path)
    by_tagger = tagger.logits([tiny.images.read(row) for row in rows])
    saved = Predictions.load(tmp_path / "predictions.npz").logits
    np.testing.assert_allclose(by_tagger, saved[:12], rtol=1e-3, atol=2e-3)
    assert saved[:, tiny.table.tags.index("striped")].std() > 0.01
    assert tagger.nbytes > tagger.parameters


def test_a_bank_goes_when_another_head_takes_its_folder(tiny, tiny_store, tmp_path, monkeypatch):
    _win(monkeypatch, "knn")
    voting = replace(ALL, heads="logistic,knn")
    run = run_probe(RunContext(tiny), tiny_store, tmp_path, voting)
    assert run.probe.head == "knn"
    assert why_stale(tmp_path, run.record.inputs) is None
    rest = tiny_store.load(run.predictions.image_ids.tolist()).X
    again = Probe.load(tmp_path).logits(rest)
    np.testing.assert_allclose(again, run.predictions.logits, rtol=1e-4)
    run_probe(RunContext(tiny), tiny_store, tmp_path, replace(ALL, heads="logistic"))
    assert not (tmp_path / "knn.safetensors").exists()
    assert Probe.load(tmp_path).vote is None


def test_text_is_skipped_with_a_word_where_there_is_no_text_tower(tiny, tiny_store, tmp_path):
    said = []

    class Listening(type(SILENT)):
        def say(self, line):
            said.append(line)

    texts = find_texts(ALL.heads, "demo:cnn", tiny.table.tags)
    assert texts is None
    context = RunContext(tiny, progress=Listening())
    run = run_probe(context, tiny_store, tmp_path, ALL, texts=texts)
    assert list(run.probe.facts["heads"]) == ["logistic", "ridge", "knn"]
    assert said == []  # text comes by default where it can be had
    asked = replace(ALL, heads="logistic,text")
    run = run_probe(context, tiny_store, tmp_path, asked)
    assert list(run.probe.facts["heads"]) == ["logistic"]
    assert said == [f"probe demo:cnn: {NO_TEXTS}"]


def test_texts_are_embedded_only_where_asked_for_and_of_one_backbone(tiny):
    tags = tiny.table.tags
    assert find_texts("logistic,ridge", "demo:clip", tags) is None
    assert find_texts("logistic,text", "demo:clip+demo:cnn", tags) is None
    assert find_texts("logistic,text", "timm:resnet50", tags) is None  # nothing is loaded
    texts = find_texts("logistic,text", "demo:clip", tags)
    assert texts.shape == (len(tags), load_backbone("demo:clip").dim)


def test_text_takes_the_groups_strengths_and_their_neighbours():
    C = np.logspace(-4, 2, 7)
    ap = np.full((7, 4), 0.1)
    ap[0, :2] = ap[4, 2:] = 0.9
    group = np.array(["common", "common", "tail", "tail"])
    for choose in ("per-group", "per-tag"):
        around = strengths_around(C, ap, group, choose)
        np.testing.assert_array_equal(around, C[[0, 1, 3, 4, 5]])
    assert len(strengths_around(C, ap, group, "global")) <= 3


def test_text_wants_the_scaling_whose_strengths_it_takes(tiny, clip_store, tmp_path):
    with pytest.raises(UsageError, match="add standardise to --scale"):
        check_probe_settings(replace(ALL, heads="logistic,text", scale="l2"))
    assert wants_text(replace(ALL, heads="logistic,text", scale="l2,standardise"))
    texts = find_texts(ALL.heads, "demo:clip", tiny.table.tags)
    run = run_probe(RunContext(tiny), clip_store, tmp_path, replace(ALL, scale="l2"), texts=texts)
    assert list(run.probe.facts["heads"]) == ["logistic", "ridge", "knn"]


def test_the_table_of_heads_holds_what_each_candidate_earns(tiny, tiny_store, tmp_path):
    run_probe(RunContext(tiny), tiny_store, tmp_path, replace(ALL, heads="logistic,ridge"))
    table = parquet.read_table(tmp_path / "heads.parquet").to_pydict()
    settings = {"C=0.001", "C=0.01", *RidgeHead().candidates}
    assert set(table["setting"]) >= settings  # the grid of C is widened
    assert len(table["tag"]) == len(set(table["setting"])) * len(tiny.table.tags)
    assert sum(table["chosen"]) == 2 * len(tiny.table.tags)


def _win(monkeypatch, head):
    """Make a head win: it comes first, and the scores of the others are turned round."""
    logits, choose = heads.ScoredHead.logits, stage.choose_head

    def turned(self):
        return logits(self) if self.name == head else -logits(self)

    def first(heads, *rest):
        return choose(sorted(heads, key=lambda h: h.name != head), *rest)

    monkeypatch.setattr(heads.ScoredHead, "logits", turned)
    monkeypatch.setattr(stage, "choose_head", first)


def _settings_of(facts, table):
    return [facts["out_of_fold"][group]["setting"][0] for group in table.group]


@pytest.mark.parametrize("scale", SCALES)
def test_a_fine_tune_starts_from_the_head_that_was_fitted(tiny, tiny_store, scale):
    """Exactly, or up to the spread of the norms where rows are divided by them."""
    import torch

    train = load_rows(tiny, tiny_store, tiny.rows("train"), 2)
    labels = tiny.table.labels[train.rows]
    C = np.full(labels.shape[1], 0.1)
    fitted = fit_at(train.X, labels, C, make_solver(), scale)
    with torch.no_grad():
        start = Head(head_start(train.X, fitted))(torch.from_numpy(train.X)).numpy()
    expected = fitted.scaler.transform(train.X) @ fitted.weight.T + fitted.bias
    if scale.startswith("l2"):
        assert np.corrcoef(start.ravel(), expected.ravel())[0, 1] > 0.99
    else:
        np.testing.assert_allclose(start, expected, rtol=1e-3, atol=1e-3)


def test_tags_that_did_not_converge_are_in_the_probe_and_in_a_finding(whole, tiny):
    facts, record = Probe.load(whole).facts, read_record(whole)
    assert {"never", "once", "product"} <= set(facts["unconverged"]["single class"])
    sentences = [s for code, s, _ in record.facts["findings"] if code == "single-class"]
    assert len(sentences) == 1
    assert all(tag in sentences[0] for tag in facts["unconverged"]["single class"][:3])
