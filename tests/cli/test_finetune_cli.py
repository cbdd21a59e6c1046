"""`retailtag finetune` with the options that the four verbs in a row do without."""

import json
import shutil
from dataclasses import replace

import pytest

from retailtag import api
from retailtag.cli.main import run
from retailtag.files import read_json
from retailtag.lock import only_writer
from retailtag.probes.artefact import Probe

QUICK = ["--epochs", "1", "--blocks", "2", "--augment", "none", "--workers", "0"]


@pytest.fixture(scope="module")
def prepared(small_csv, tmp_path_factory):
    """A folder with features and probe of the small world."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        same = [str(small_csv), "--backbone", "demo:cnn", "--device", "cpu", "--quiet"]
        assert run(["extract", *same]) == 0
        assert (
            run(["probe", *same, "--sweep-C", "0.01", "--folds", "2", "--heads", "logistic"]) == 0
        )
    return folder


@pytest.fixture
def tune(prepared, small_csv, monkeypatch, tmp_path):
    """Run the command there, into a folder of its own."""
    monkeypatch.chdir(prepared)
    common = [str(small_csv), "--backbone", "demo:cnn", "--device", "cpu", "--out", str(tmp_path)]
    return lambda *options: run(["finetune", *common, *QUICK, *options])


def test_seeds_give_a_mean_a_spread_and_one_model(tune, tmp_path, capsys):
    assert tune("--seeds", "2", "--json", "--loss", "asl", "--sampler", "repeat:t=0.3") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["seeds"]) == 2
    assert set(told["spread"]["macro_f1"]) == {"mean", "sd"}
    other = ["runs/demo-cnn/probe", str(tmp_path), "--json", "--replicates", "100"]
    assert run(["compare", *other, "--permutations", "100", "--out", str(tmp_path / "p.csv")]) == 0
    assert "(2 seeds)" in capsys.readouterr().out


def test_a_search_goes_before_the_training(tune, tmp_path, capsys):
    pytest.importorskip("optuna")
    assert tune("--search", "2", "--json", "--cache-gb", "0", "--refit") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["search"]) == 2
    best = told["search"][0]["setting"]
    settings = read_json(tmp_path / "checkpoint.json")["facts"]["settings"]
    assert {name: settings[name] for name in best} == best


def test_what_is_shown_has_the_tail_and_the_speed(tune, capsys):
    assert tune("--ema", "0.9", "--mix", "mixup", "--parts", "2", "--amp", "bf16") == 0
    shown = capsys.readouterr().out
    for word in ("macro-AP", "tail AP", "macro-F1", "tail F1", "per s", "*: kept"):
        assert word in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--blocks", "some"), "'some' is not a whole number or all or scratch"),
        (("--cache-gb", "-1"), "--cache-gb -1"),
        (("--cache-dtype", "int4"), "--cache-dtype int4"),
        (("--checkpoint-minutes", "0"), "--checkpoint-minutes"),
        (("--log", "paper"), "--log paper"),
        (("--amp", "fp16"), "--mixed-precision fp16 needs a CUDA device"),
    ],
)
def test_what_cannot_be_followed_is_a_sentence(tune, capsys, options, words):
    assert tune(*options) == 2
    said = capsys.readouterr()
    assert words in " ".join((said.err + said.out).split())
    assert "Traceback" not in said.err


@pytest.mark.parametrize("verb", ["probe", "finetune", "bakeoff", "score"])
def test_a_second_writer_to_one_folder_is_refused(verb, prepared, small_csv, tmp_path, capsys):
    folder = tmp_path / "demo-cnn-probe" if verb == "score" else tmp_path
    model = [str(small_csv), "--backbones", "demo:cnn", "--device", "cpu"]
    words = {"score": [str(prepared / "runs/demo-cnn/probe")], "finetune": [*model, *QUICK]}
    with pytest.MonkeyPatch.context() as patch, only_writer(folder):
        patch.chdir(prepared)
        code = run([verb, *words.get(verb, model), "--out", str(tmp_path), "--quiet"])
        assert [path.name for path in folder.iterdir()] == [".lock"]
    said = capsys.readouterr().err.removeprefix("retailtag: ")
    assert code == 6
    assert said.startswith(f"{folder} is being written by another process (pid ")
    assert said.endswith("and run the same command again.\n")
    assert said.count("\n") == 1
    (folder / ".predictions.npz.a1.part").touch()  # a killed writer's
    with only_writer(folder):  # given back
        assert not list(folder.glob("*.part"))


def test_a_torn_model_is_not_served(prepared, small_csv, tmp_path, capsys):
    image = str(small_csv.parent / "images" / "p000-0.png")
    shutil.copytree(prepared / "runs/demo-cnn/probe", tmp_path / "probe")
    predict = ["predict", str(tmp_path / "probe"), image, "--device", "cpu"]
    assert run(predict) == 0
    probe = Probe.load(tmp_path / "probe")
    replace(probe, bias=-probe.bias).save(tmp_path / "later")
    shutil.copy(tmp_path / "later/probe.safetensors", tmp_path / "probe")
    capsys.readouterr()
    assert run(predict) == 4
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    for part in ("probe.json", "probe.safetensors", "run retailtag probe again"):
        assert part in said.err


def test_a_search_on_several_processes_is_refused(tune, monkeypatch, capsys):
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(api, "joined", lambda device: pytest.fail("waits for the others"))
    assert tune("--search", "2") == 2
    assert "--search runs in one process; search without torchrun" in capsys.readouterr().err
