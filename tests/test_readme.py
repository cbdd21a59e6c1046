"""The README's Python example runs, on a small demo catalogue."""

import re
from pathlib import Path

import pytest

from retailtag.backbones.registry import load_demo

README = Path(__file__).parents[1] / "README.md"


def _example():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 1
    return blocks[0]


@pytest.fixture
def demo_folder(tmp_path, monkeypatch, few_timed):
    """Working directory with the catalogue of `make demo`, but small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAILTAG_DEVICE", "cpu")
    monkeypatch.setenv("RETAILTAG_STATE", str(tmp_path / "state"))
    load_demo()(Path("demo/catalogue"), n_images=150, seed=0, workers=1)
    return tmp_path


def test_python_example_runs(demo_folder):
    names = {}
    short = _example().replace("folds=3", "folds=2, sweep_C='0.01'")
    assert short != _example()
    exec(compile(short, str(README), "exec"), names)
    run, probe = names["run"], names["probe"]
    assert run.ranking.num_rows == 2
    assert run.decision.winner in run.ranking["pair"].to_pylist()
    assert (demo_folder / run.report).exists()
    assert probe.per_tag["tag"].to_pylist() == list(names["tagger"].tags)
