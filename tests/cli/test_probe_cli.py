"""What `retailtag probe` shows of the threshold rules."""

import sys

import pytest

from retailtag.cli.main import run
from retailtag.cli.probe import _rules
from retailtag.thresholds.tuning import RULES

SHORT = ["--features", "features", "--backbone", "demo:cnn", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["retailtag"])
    return tmp_path


def _shown(table):
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_rules_are_shown_in_points_with_the_chosen_one_marked():
    row = {"all": 0.4567, "tail": 0.2, "behind": 0.0123, "se": 0.02}
    bare = {"all": 0.5, "behind": 0.0, "se": 0.0}
    facts = {"rule": "group", "objective": "fbeta:2", "cross_fit": {"group": row, "bagged": bare}}
    text = _shown(_rules(facts))
    assert "cross-fit macro-fbeta:2" in text
    chosen = next(line for line in text.splitlines() if "group" in line)
    for figure in ("group *", "45.67", "20.00", "1.23 (2.00)"):
        assert figure in chosen
    assert "bagged *" not in text


def test_probe_takes_rule_and_objective(tiny_csv, here, capsys):
    csv = str(tiny_csv)
    assert run(["extract", csv, *SHORT, "--quiet"]) == 0
    probe = ["probe", csv, *SHORT, "--sweep-C", "0.1", "--folds", "2"]
    assert run([*probe, "--thresholds", "per-tag", "--objective", "fbeta:2"]) == 0
    shown = capsys.readouterr().out
    assert "per-tag *" in shown
    assert all(rule in shown for rule in RULES)
    assert run([*probe, "--objective", "precision:0.9"]) == 0
    assert "Threshold rules" not in capsys.readouterr().out
    assert run([*probe, "--thresholds", "bagged", "--objective", "precision:0.9"]) == 2
    assert "--thresholds bagged" in capsys.readouterr().err
