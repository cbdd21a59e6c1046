"""The API: each command is one call of it, and its results show themselves."""

import json
import sys

import pytest

import retailtag as rt
from retailtag.cli.main import run

PROBE = {"sweep_C": "0.01,1", "folds": 2, "heads": "logistic"}
FINETUNE = {"epochs": 1, "augment": "none", "blocks": 1}
# what differs between equal runs: times, memory and latency, and digests of the files with them
TIMED_FILES = ("bakeoff.json", "report.html", "history.jsonl", "quality_cost.png", "summary.png")
MEASURED = (*TIMED_FILES, "seconds", "_mib", "machine", "per_second", "started", "_p50", "_p95")


def _options(**options):
    """Options of the API as words of the command line."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _command(*words):
    assert run([*map(str, words), "--quiet"]) == 0


@pytest.fixture(scope="module")
def world(tiny_csv, tmp_path_factory):
    """The same work by commands and by calls, each in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["retailtag"])
        patch.setenv("RETAILTAG_DEVICE", "cpu")
        yield _World(tiny_csv, tmp_path_factory.mktemp("api"), patch)


class _World:
    def __init__(self, csv, root, patch):
        self.csv, self.root, self.patch = csv, root, patch
        self.commands, self.calls = root / "commands", root / "calls"
        self.made = {}
        for folder in (self.commands, self.calls):
            folder.mkdir()
        patch.chdir(self.commands)
        self._run_commands()
        patch.chdir(self.calls)
        self._run_calls()

    def _run_commands(self):
        csv, backbone = self.csv, _options(backbones="demo:cnn")
        _command("extract", csv, *backbone)
        _command("probe", csv, *backbone, *_options(**PROBE))
        _command("finetune", csv, *backbone, *_options(**FINETUNE))
        pair = ("runs/demo-cnn/probe", "runs/demo-cnn/finetune")
        _command("score", *pair, *_options(out="scores", replicates=100))
        _command("compare", *pair, *_options(out="pairs.csv", replicates=100, permutations=100))
        _command("bakeoff", csv, *backbone, *_options(**PROBE, **FINETUNE, replicates=100))

    def _run_calls(self):
        csv, made = self.csv, self.made
        made["extract"] = rt.extract(csv, "demo:cnn")
        made["probe"] = rt.probe(str(csv), "demo:cnn", **PROBE)
        made["finetune"] = rt.finetune(
            csv, "demo:cnn", probe=made["probe"], settings=rt.FinetuneSettings(**FINETUNE)
        )
        pair = [made["probe"], made["finetune"]]
        made["score"] = rt.score(pair, out="scores", replicates=100)
        made["compare"] = rt.compare(pair, replicates=100, permutations=100)
        made["bakeoff"] = rt.bakeoff(
            csv, ["demo:cnn"], **PROBE, **FINETUNE, replicates=100, command="retailtag"
        )


def _files(folder):
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def _without_measured(value):
    if isinstance(value, dict):
        return {k: _without_measured(v) for k, v in value.items() if not k.endswith(MEASURED)}
    return [_without_measured(v) for v in value] if isinstance(value, list) else value


def _content(path):
    """What equal runs share of a file."""
    if path.suffix not in (".json", ".jsonl"):
        return None if path.name.endswith(TIMED_FILES) else path.read_bytes()
    text = path.read_text()
    values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else text
    return _without_measured(values if path.suffix == ".jsonl" else json.loads(text))


@pytest.mark.parametrize(
    "place",
    ["features", "runs/demo-cnn/probe", "runs/demo-cnn/finetune", "scores", "runs/bakeoff"],
)
def test_a_command_and_its_call_write_the_same_files(world, place):
    by_command, by_call = _files(world.commands / place), _files(world.calls / place)
    assert by_command
    assert by_command.keys() == by_call.keys()
    for name, path in by_command.items():
        assert _content(path) == _content(by_call[name]), name


def test_compare_writes_the_same_pairs_by_command_and_by_call(world):
    assert (world.commands / "pairs.csv").read_bytes() == (world.calls / "pairs.csv").read_bytes()
