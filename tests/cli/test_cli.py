"""The program as a person or a script meets it: exit codes, JSON, silence, interruption."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest

from retailtag.backbones.ids import local_weights
from retailtag.cli import main as program
from retailtag.cli.main import run
from retailtag.cli.output import Output
from retailtag.errors import BadCatalogue, StaleFeatures, UsageError
from retailtag.settings import FinetuneSettings

SHORT = ["--features", "features", "--backbone", "demo:cnn", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["retailtag"])
    return tmp_path


def _json(capsys):
    """The one object on stdout, and nothing else there."""
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def test_the_four_verbs_in_a_row(tiny_csv, here, capsys):
    """extract, probe, finetune, score on one catalogue, each with --json and nothing else."""
    csv = str(tiny_csv)
    assert run(["extract", csv, *SHORT, "--json", "--quiet"]) == 0
    assert _json(capsys)["stores"][0]["n_computed"] == 140
    assert run(["probe", csv, *SHORT, "--sweep-C", "0.1", "--folds", "3", "--json"]) == 0
    probe = _json(capsys)
    assert probe["n_fits"] == 3 * 9
    assert probe["thresholds"]["rule"] in probe["thresholds"]["cross_fit"]
    assert run(["finetune", csv, *SHORT, "--epochs", "1", "--blocks", "2", "--json"]) == 0
    assert len(_json(capsys)["history"]) == 2
    files = [f"runs/demo-cnn/{s}/predictions.npz" for s in ("probe", "finetune")]
    assert run(["score", *files, "--json", "--replicates", "100"]) == 0
    cards = _json(capsys)["scorecards"]
    assert [card["model"] for card in cards] == ["demo:cnn · probe", "demo:cnn · finetune"]
    assert 0 <= cards[0]["summaries"]["all"]["macro_f1"] <= 1
    image = str(tiny_csv.parent / "images" / "p003-0.png")
    (here / "bad.png").write_bytes(b"no")
    assert run(["predict", "runs/demo-cnn/finetune", image, "--json"]) == 0
    assert list(_json(capsys)["tags"]) == [image]
    (here / "paths.txt").write_text(f"bad.png\n{image}\n")
    assert run(["predict", "runs/demo-cnn/probe", "paths.txt"]) == 3
    said = capsys.readouterr()
    assert f"{image}: " in said.out
    assert "bad.png could not be read" in said.err


def test_without_arguments_the_help_is_shown(here, capsys):
    assert run([]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["probe", "x.csv"], "--backbone"),
        (["score", "p.npz", "--replicates", "5"], "--replicates"),
        (["bakeoff", "x.csv", "--seed", "-1"], "--seed"),
        (["demo", "--out", "d", "--seed", "99999999999999999999999"], "--seed"),
        (["nonsense"], "nonsense"),
        (["catalog", "split", "x.csv", "--out", "o.csv", "--test", "5", "--seed", "two"], "--seed"),
    ],
)
def test_a_bad_command_line_is_one_sentence_and_one_object(here, capsys, command, said):
    assert run([*command, "--json"]) == 2
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["exit_code"] == 2
    assert said in answer["error"]
    assert captured.err == f"retailtag: {answer['error']}\n"
    assert "--help" in answer["error"]


def test_cutoffs_are_recorded_followed_and_overruled(tiny_csv, here, capsys):
    csv = str(tiny_csv)
    assert run(["extract", csv, *SHORT, "--quiet"]) == 0
    assert run(["probe", csv, *SHORT, "--sweep-C", "0.1", "--folds", "2", "--cutoffs", "5,20"]) == 0
    score = ["score", "runs/demo-cnn/probe", "--replicates", "100", "--json"]
    capsys.readouterr()
    assert run(score) == 0
    own = _json(capsys)["scorecards"][0]["summaries"]["tail"]
    assert run([*score, "--cutoffs", "lvis"]) == 0
    other = _json(capsys)["scorecards"][0]["summaries"]["tail"]
    assert own["n_tags"] + own["n_undefined"] < other["n_tags"] + other["n_undefined"]
    assert run([*score, "--cutoffs", "20,5"]) == 2
    assert "--cutoffs 20,5" in _json(capsys)["error"]


def test_bad_rows_are_listed_for_programs(here, capsys):
    (here / "c.csv").write_text("path,tags\n../a.png,x\n/b.png,y\n")
    assert run(["catalog", "check", "c.csv", "--json"]) == 3
    answer = _json(capsys)
    assert len(answer["problems"]) == 2
    assert answer["problems"][0].startswith("row 2")


def test_what_looks_like_markup_is_shown_as_it_is(capsys):
    from rich.table import Table

    table = Table(title="[/x]")
    table.add_column("[bold]")
    table.add_row("tag[/y]")
    output = Output()
    output.print(table)
    output.print("a [red]name[/z] " + "long " * 60)
    said = capsys.readouterr().out
    for text in ("[/x]", "[bold]", "tag[/y]", "a [red]name[/z]"):
        assert text in said
    assert said.count("\n") == 7  # the long line is one


def test_bakeoff_prints_ranking_and_report_and_plan_prints_stages(
    small_csv, here, capsys, few_timed
):
    command = ["bakeoff", str(small_csv), "--backbones", "demo:dino", "--strategies", "probe"]
    command += ["--sweep-C", "0.1", "--folds", "2", "--out", "run", "--device", "cpu"]
    command += ["--name", "small-vit=demo:dino"]
    assert run([*command, "--plan"]) == 0
    planned = capsys.readouterr().out
    assert "extract small-vit" in planned
    assert not list(here.iterdir())
    assert run(command) == 0
    said = capsys.readouterr()
    assert "small-vit" in said.out
    assert "probe small-vit: running" in said.err
    assert "run/report.html" in said.out
    assert run([*command, "--json"]) == 0
    again = _json(capsys)
    assert again["ran"] == []
    assert again["decision"]["winner"] == "demo:dino · probe"


def test_sweep_without_a_value_means_the_full_grid(tiny_csv, here, capsys):
    assert run(["extract", str(tiny_csv), *SHORT, "--quiet"]) == 0
    command = ["probe", str(tiny_csv), *SHORT, "--folds", "2", "--json", "--quiet"]
    command += ["--heads", "logistic", "--sweep-C"]
    assert run(command) == 0
    assert _json(capsys)["n_fits"] == 2 * 45 * 9


def test_quiet_is_silent(tiny_csv, here, capsys):
    assert run(["extract", str(tiny_csv), *SHORT, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["probe", "{csv}", "--backbone", "demo:nope"], 2, "demo"),
        (["probe", "{csv}", "--backbone", "demo:cnn", "--sweep-C", "1:x"], 2, "--sweep-C"),
        (["probe", "{csv}", "--backbone", "demo:cnn", "--sweep-C", "0:1:3"], 2, "--sweep-C"),
        (["probe", "{csv}", "--backbone", "demo:cnn", "--device", "tpu"], 2, "--device"),
        (["finetune", "{csv}", "--backbone", "demo:cnn", "--blocks", "-1"], 2, "--blocks"),
        (["bakeoff", "{csv}", "--backbones", ""], 2, "--backbones"),
        (["bakeoff", "{csv}", "--backbones", "demo:cnn", "--weights", "x:y=z"], 2, "--weights"),
        (["extract", "{csv}", "--backbone", "demo:cnn", "--workers", "-2"], 2, "--workers"),
        (["probe", "nowhere.csv", "--backbone", "demo:cnn"], 3, "nowhere.csv"),
        (["score", "nowhere.npz"], 3, "nowhere.npz"),
        (["finetune", "{csv}", "--backbone", "demo:cnn"], 3, "probe.json"),
        (["probe", "{csv}", "--backbone", "demo:cnn"], 3, "retailtag extract"),
        (["nonsense"], 2, "nonsense"),
        (["extract"], 2, "CATALOGUE"),
    ],
)
def test_mistakes_give_one_sentence_and_the_documented_code(
    tiny_csv, here, capsys, command, code, words
):
    assert run([part.format(csv=tiny_csv) for part in command]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_errors_are_one_object_under_json(here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["retailtag", "score", "nowhere.npz", "--json"])
    assert run(["score", "nowhere.npz", "--json"]) == 3
    error = _json(capsys)
    assert error["exit_code"] == 3
    assert "nowhere.npz" in error["error"]


def test_an_operating_system_error_is_a_sentence(here, capsys, monkeypatch, tiny_csv):
    (here / "features").write_text("a file where a folder must be")
    assert run(["extract", str(tiny_csv), *SHORT]) in (3, 6)
    captured = capsys.readouterr()
    assert "features" in captured.err
    assert "Traceback" not in captured.err


def test_exit_codes_are_in_the_help(capsys):
    assert run(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("0 done", "2 usage", "3 bad data", "4 stale", "130 interrupted"):
        assert words in said


def test_exceptions_carry_the_documented_codes():
    assert UsageError("x").exit_code == 2
    assert BadCatalogue("x.csv", ["row 2: no"]).exit_code == 3
    assert StaleFeatures("x").exit_code == 4


def test_an_interrupted_extraction_keeps_what_was_finished(here, tiny_csv, fork_script):
    """SIGINT in the middle: 130, one sentence, and the same command ends the work."""
    slow = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background
        "folder, *sys.argv[1:] = sys.argv[1:]\n"
        "os.chdir(folder)\n"
        "sys.stderr = open('said', 'w')\n"
        "from retailtag.backbones import backbone\n"
        "real = backbone.Backbone.embed\n"
        "def embed(self, pixels):\n"
        "    open('embedding', 'w').close()\n"
        "    time.sleep(60)\n"
        "    return real(self, pixels)\n"
        "backbone.Backbone.embed = embed\n"
        "from retailtag.cli.main import main\n"
        "main()\n"
    )
    command = ["extract", str(tiny_csv), *SHORT, "--batch-size", "4", "--quiet"]
    process = fork_script(slow, here, *command)
    while process.is_alive() and not (here / "embedding").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert (here / "said").read_text().strip() == f"retailtag: {program.INTERRUPTED}"
    assert run(["extract", *command[1:-3], "--quiet"]) == 0


@pytest.mark.parametrize(("moment", "said"), [("unwinding", program.INTERRUPTED), ("exit", "")])
def test_a_second_interruption_ends_at_once(here, fork_script, moment, said):
    """While the first unwinds, and while the interpreter exits: 130 and no traceback."""
    script = (
        "import atexit, os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "moment, folder = sys.argv[1:]\n"
        "os.chdir(folder)\n"
        "os.dup2(os.open('said', os.O_WRONLY | os.O_CREAT), 2)\n"
        "from retailtag.cli import main as program\n"
        "def wait(name):\n"
        "    open(name, 'w').close()\n"
        "    time.sleep(60)\n"
        "def run():\n"
        "    try:\n"
        "        wait('first')\n"
        "    except KeyboardInterrupt:\n"
        "        if moment == 'unwinding':\n"
        "            wait('second')\n"
        "    return 130\n"
        "program.run = run\n"
        "try:\n"
        "    program.main()\n"
        "finally:\n"
        "    wait('second')\n"  # as what is registered with atexit
    )
    process = fork_script(script, moment, here)
    for name in ("first", "second"):
        while process.is_alive() and not (here / name).exists():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert (here / "said").read_text().strip() == (f"retailtag: {said}" if said else "")


def test_no_color_and_no_terminal_give_plain_lines(here, tiny_csv, monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["extract", str(tiny_csv), *SHORT]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "extract demo:cnn: 140 images in" in said.err


def test_progress_lines_hold_rate_and_time_left(capsys, monkeypatch):
    from retailtag.cli import output

    monkeypatch.setattr(output, "PLAIN_LINE_EVERY", 0.0)
    with Output().progress.task("count [odd]", 10, "fits") as advance:
        advance(3, "model 90%")
        advance(1)
    noted, first, last = capsys.readouterr().err.splitlines()
    assert noted.startswith("count [odd]: 3/10 fits, ")
    assert noted.endswith("s left; model 90%")
    assert first.startswith("count [odd]: 4/10 fits, ")
    assert first.endswith("s left")
    assert last.startswith("count [odd]: 4 fits in")


def test_weights_are_matched_to_backbones():
    two = ["demo:cnn", "timm:x?a=1"]
    found = local_weights(["timm:x?a=1=/w/m.safetensors"], two)
    assert {k: str(v) for k, v in found.items()} == {"timm:x?a=1": "/w/m.safetensors"}
    assert str(local_weights(["w.pt"], ["cnn"])["cnn"]) == "w.pt"
    for values, ids in ((["w.pt"], two), (["demo:dino=w"], two)):
        with pytest.raises(UsageError, match="ID=PATH"):
            local_weights(values, ids)


def test_blocks_are_a_number_or_all():
    assert [FinetuneSettings(blocks=b).blocks for b in ("3", "all")] == [3, "all"]
    for text in ("four", "-1", "1.5"):
        with pytest.raises(UsageError, match="--blocks"):
            FinetuneSettings(blocks=text)


def test_json_never_holds_nan():
    with pytest.raises(ValueError, match="JSON"):
        Output(json=True).result({"x": np.nan})


def test_a_fine_tune_of_several_backbones_is_refused_before_its_probe_is_missed(
    tiny_csv, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(["finetune", str(tiny_csv), "--backbone", "demo:cnn+demo:dino"]) == 2
    assert "name one backbone here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
