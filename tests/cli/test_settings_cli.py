"""Settings on the command line: --config, --set, init, --verbose, --log-file, old spellings."""

import json

import pytest

from retailtag.cli.main import run

QUICK = ["--sweep-C", "0.1", "--folds", "2", "--set", "probe.heads=logistic", "--device", "cpu"]


@pytest.fixture
def extracted(tiny_csv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["extract", str(tiny_csv), "--backbones", "demo:cnn", "--quiet"]) == 0
    return str(tiny_csv)


def test_the_settings_of_a_run_repeat_it(extracted, tmp_path, capsys):
    assert run(["probe", extracted, "--backbones", "demo:cnn", *QUICK, "--quiet"]) == 0
    folder = tmp_path / "runs" / "demo-cnn" / "probe"
    first = (folder / "predictions.npz").read_bytes()
    for path in folder.iterdir():
        if path.name != "settings.toml" and path.is_file():
            path.unlink()
    assert run(["probe", "--config", str(folder / "settings.toml"), "--quiet"]) == 0
    assert (folder / "predictions.npz").read_bytes() == first
    assert capsys.readouterr() == ("", "")


def test_earlier_spellings_are_accepted_and_not_listed(extracted, capsys):
    assert run(["probe", extracted, "--backbone", "demo:cnn", *QUICK, "--quiet"]) == 0
    assert run(["score", "runs", "--catalog", extracted, "--replicates", "100", "--quiet"]) == 0
    capsys.readouterr()
    for command in ("probe", "score"):
        assert run([command, "--help-all"]) == 0
        words = capsys.readouterr().out.split()
        assert not {"--backbone", "--catalog"} & set(words)


def test_verbose_names_the_settings_in_force_and_the_log_file_keeps_the_news(
    extracted, tmp_path, capsys
):
    log = tmp_path / "logs" / "probe.log"
    names = ["--backbones", "demo:cnn", "--out", "out"]
    assert run(["probe", extracted, *names, *QUICK, "--verbose", "--log-file", str(log)]) == 0
    assert "probe.folds = 2" in capsys.readouterr().err
    lines = log.read_text(encoding="utf-8").splitlines()
    assert any(line.endswith("probe.folds = 2") for line in lines)
    assert any("fits in" in line for line in lines)
    assert all(line[:2] == "20" and line[10] == "T" for line in lines)


def test_init_writes_a_file_that_every_command_takes(extracted, tmp_path, capsys):
    assert run(["init", "mine.toml", "--preset", "quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": "mine.toml", "preset": "quick"}
    assert run(["init", "mine.toml"]) == 2
    assert "--force" in capsys.readouterr().err
    names = ["--backbones", "demo:cnn", "--config", "mine.toml"]
    assert run(["bakeoff", extracted, *names, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]


def test_a_wrong_key_is_refused_with_the_nearest_right_one(extracted, capsys):
    command = ["finetune", extracted, "--backbones", "demo:cnn"]
    assert run([*command, "--set", "finetune.layer_decy=0.8"]) == 2
    assert "did you mean finetune.layer_decay?" in capsys.readouterr().err


def test_the_environment_gives_features_and_device(extracted, tmp_path, monkeypatch, capsys):
    (tmp_path / "features").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("RETAILTAG_FEATURES", str(tmp_path / "elsewhere"))
    assert run(["features", "ls", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["stores"]) == 1
    monkeypatch.setenv("RETAILTAG_DEVICE", "tpu")
    assert run(["probe", extracted, "--backbones", "demo:cnn"]) == 2
    assert "--device tpu is unknown" in capsys.readouterr().err


def test_one_backbone_is_asked_for_where_one_is_used(extracted, capsys):
    assert run(["probe", extracted, "--backbones", "demo:cnn,demo:dino"]) == 2
    assert "probe takes one backbone" in capsys.readouterr().err
