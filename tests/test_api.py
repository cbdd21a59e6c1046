"""The API: each command is one call of it, and its results show themselves."""

import json
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest

import retailtag as rt
from retailtag.cli.main import run
from retailtag.display import Displayed, View
from retailtag.errors import DataError, RetailtagError, UsageError
from retailtag.inputs import tagger_of
from retailtag.progress import SILENT
from retailtag.settings import BakeoffSettings, ScoreSettings
from retailtag.verbs import resolve

PROBE = {"sweep_C": "0.01", "folds": 2, "heads": "logistic"}
FINETUNE = {"epochs": 1, "augment": "none", "blocks": 1}
BAKEOFF = {**PROBE, **FINETUNE, "replicates": 100, "one_of": "colour", "assign": "exactly-one"}
# what differs between equal runs: times, memory and latency, and digests of the files with them
# Latency decides between equal pairs, so that the winner, drawn bold, may change too.
TIMED_FILES = (
    *("bakeoff.json", "report.html", "history.jsonl", "ranking.csv", "summary.md"),
    *("quality_cost.png", "summary.png", "tail.png"),
)
LATENCIES = tuple(f"latency_ms_{name}" for name in ("p50", "p95", "low", "high", "turns", "stages"))
MEASURED = (*TIMED_FILES, *LATENCIES, "seconds", "_mib", "machine", "per_second", "started")


def _options(**options):
    """Options of the API as words of the command line."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _command(*words):
    assert run([*map(str, words), "--quiet"]) == 0


@pytest.fixture(scope="module")
def world(small_csv, tmp_path_factory, quick_stages):
    """The same work by commands and by calls, each in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch, quick_stages(timed=True, drawn=True):
        patch.setattr(sys, "argv", ["retailtag"])
        patch.setenv("RETAILTAG_DEVICE", "cpu")
        yield _World(small_csv, tmp_path_factory.mktemp("api"), patch)


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
        _command("bakeoff", csv, *backbone, *_options(**BAKEOFF))

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
        made["bakeoff"] = rt.bakeoff(csv, ["demo:cnn"], **BAKEOFF, command="retailtag")


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
    if path.suffix == ".jsonl":
        return _without_measured([json.loads(line) for line in text.splitlines()])
    content = json.loads(text)
    if path.name == "stage.json":
        content["sha256"] = None  # of a record with the seconds that it took
    return _without_measured(content)


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


@pytest.mark.parametrize("verb", ["extract", "probe", "finetune", "score", "compare", "bakeoff"])
def test_results_show_themselves_as_text_and_html(world, verb):
    made = world.made[verb]
    tables = list(made.views())
    assert tables
    assert all(view.title in repr(made) for view in tables)
    assert made._repr_html_().count("<table>") == len(tables)


def test_results_are_tables(world):
    made, tags = world.made, len(world.made["probe"].run.probe.tags)
    assert made["extract"].table.column("computed").to_pylist() == [72]
    per_tag = made["probe"].per_tag
    assert per_tag.column_names == ["tag", "group", "support", "ap", "C", "threshold"]
    assert per_tag.num_rows == tags
    assert set(per_tag.column("C").to_pylist()) <= set(made["probe"].run.probe.C.tolist())
    assert made["finetune"].history.column("best").to_pylist().count(True) == 1
    assert made["score"].per_tag.num_rows == 2 * tags
    kept = any(f.code == "same-model" for f in made["compare"].findings)  # then it has no rival
    n_compared = made["score"].comparisons.num_rows
    assert made["compare"].pairs.num_rows == (0 if kept else n_compared)
    assert {"model", "macro_f1", "p_best"} <= set(made["compare"].standings.column_names)
    ranking = made["bakeoff"].ranking
    assert ranking.column("recommended").to_pylist().count(True) == 1
    assert ranking.to_pylist()[0]["pair"] == made["bakeoff"].run.result.ranking[0].name


def test_html_escapes_what_users_named():
    class Made(Displayed):
        def views(self):
            yield View("<i>title</i>", pa.table({"<a>": ["<b>"]}), ("<script>",))

    page = Made()._repr_html_()
    assert not any(mark in page for mark in ("<i>", "<a>", "<script>", "<b><"))
    assert "&lt;script&gt;" in page


def test_the_recommended_model_tags_images(world):
    images = sorted((world.csv.parent / "images").iterdir())[:2]
    made = world.made["bakeoff"]
    tags = made.recommended.tag(images)
    assert tags == rt.load(made.folder).tag([str(path) for path in images])
    assert [list(found) for found in made.recommended.predict(images)] == tags
    assert all(0 < p < 1 for found in made.recommended.predict(images) for p in found.values())
    strategy = made.decision.winner.rpartition(" ")[2]
    pair = made.folder / "demo-cnn" / strategy
    assert tags == rt.load(pair, assign="exactly-one").tag(images)
    # the report and the model recommended by it give exactly one colour, other models if told to
    assert all(sum(tag.startswith("colour:") for tag in found) == 1 for found in tags)
    assert {p.scorecard.assignment for p in made.run.result.pairs} == {"exactly-one"}
    assert "Exactly one" in made.report.read_text(encoding="utf-8")
    lines = []
    heard = SimpleNamespace(say=lines.append, task=SILENT.task)
    tagger = rt.load(pair, progress=heard)
    assert tagger.assignment == "at-most-one"  # of what the catalogue records
    assert "--assign independent" in lines[0]
    assert rt.load(pair, assign="independent", progress=heard).assignment == "independent"
    assert len(lines) == 1
    settings = BakeoffSettings(score=ScoreSettings(assign="exactly-one"))
    assert tagger_of(tagger, settings, heard).assignment == "exactly-one"
    assert tagger_of(tagger, BakeoffSettings(), heard) is tagger
    with pytest.raises(UsageError, match="--one-of"):
        rt.load(world.made["probe"], assign="exactly-one")
    assert rt.load(world.made["probe"], assign="exactly-one", one_of="colour").tag(images)


def test_the_settings_of_a_bakeoff_start_it_again_and_reuse_every_stage(world, capsys):
    again = rt.bakeoff(settings=world.calls / "runs/bakeoff/settings.toml")
    assert again.run.ran == []
    assert run(["bakeoff", "--config", "runs/bakeoff/settings.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ran"] == []


def test_settings_are_written_before_the_work_starts(tiny_csv, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("retailtag.bakeoffs.run.run_request", interrupted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        rt.bakeoff(tiny_csv, "demo:cnn", folds=3, device="cpu")
    assert "folds = 3" in (tmp_path / "runs/bakeoff/settings.toml").read_text()
    with pytest.raises(UsageError, match="folds"):
        rt.bakeoff(tiny_csv, "demo:cnn", folds=1000, device="cpu", out="refused")
    assert not (tmp_path / "refused").exists()


def test_score_takes_a_catalogue_that_was_read(world, tmp_path):
    catalog = rt.read_catalog(str(world.csv))
    assert rt.read_catalog(catalog) is catalog
    made = rt.score(world.made["probe"], catalog=catalog, out=tmp_path)
    expected = world.made["score"].scorecards[0]
    assert made.scorecards[0].summaries["all"] == expected.summaries["all"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda csv: rt.probe(csv, "demo:cnn", fold=3), "did you mean folds"),
        (lambda csv: rt.probe(csv, "demo:cnn", settings=3), "settings takes BakeoffSettings"),
        (lambda csv: rt.extract(csv, "demo:cnn", shard=3), "--shard 3"),
        (lambda csv: rt.extract(3, "demo:cnn"), "int"),
        (lambda csv: rt.extract(backbones="demo:cnn"), "CATALOGUE is missing"),
        (lambda csv: rt.probe(csv, 3), "backbones"),
        (lambda csv: rt.load(3), "Give a path or what a run returned, not int"),
        (lambda csv: rt.score([None]), "not NoneType"),
        (lambda csv: rt.fit_probes([["a"]], [[1]]), "X must be an array of numbers"),
    ],
)
def test_wrong_types_and_names_are_refused_in_a_sentence(tiny_csv, tmp_path, call, sentence):
    with pytest.raises(RetailtagError, match=sentence):
        call(tiny_csv)


def test_the_environment_gives_way_to_whole_settings(monkeypatch):
    monkeypatch.setenv("RETAILTAG_DEVICE", "cuda")
    assert resolve("probe", rt.BakeoffSettings())[0].compute.device == "auto"
    assert resolve("probe", rt.ProbeSettings(folds=3))[0].compute.device == "cuda"
    assert resolve("probe", rt.ComputeSettings(device="cpu"))[0].compute.device == "cpu"


def test_probes_of_arrays_are_a_table():
    fits = rt.fit_probes([[0.0], [1.0], [2.0], [3.0]], [[0], [0], [1], [1]], C=1, device="cpu")
    assert fits.table.column_names == ["C", "tag", "status", "objective", "gap", "iterations"]
    assert "few positives" in repr(fits)


def test_options_of_reading_are_refused_for_a_catalogue_that_is_read(tiny):
    with pytest.raises(UsageError, match="is read already; give attributes"):
        rt.probe(tiny, "demo:cnn", attributes="colour")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda row: {**row, "split": "test"}, "has no train images"),
        (lambda row: {**row, "tags": "-"}, "has no image with a tag"),
        (lambda row: {**row, "tags": "all"}, "no tag that some of its 3 train images carry"),
    ],
)
def test_nothing_to_fit_is_one_sentence_and_leaves_nothing(
    tmp_path, monkeypatch, picture, change, sentence
):
    monkeypatch.chdir(tmp_path)
    rows = [{"path": f"{i}.jpg", "tags": "red|all", "split": "train"} for i in range(3)]
    rows.append({"path": "3.jpg", "tags": "blue", "split": "test"})
    for i, row in enumerate(rows):
        (tmp_path / row["path"]).write_bytes(picture(40 * i))
    catalog = rt.read_catalog([change(row) for row in rows])
    before = sorted(tmp_path.iterdir())
    for verb in (rt.probe, rt.finetune, rt.bakeoff):
        with pytest.raises(DataError, match=sentence) as said:
            verb(catalog, "demo:cnn", device="cpu")
        assert "\n" not in str(said.value)
    assert sorted(tmp_path.iterdir()) == before
