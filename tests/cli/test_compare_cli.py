"""compare, gates, other tools' files and the count of scored models, as a user meets them."""

import json
import sys

import numpy as np
import pytest

from retailtag.catalog.readers import read_catalog
from retailtag.cli.main import run
from retailtag.predictions import Predictions


@pytest.fixture
def shop(tiny_csv, tmp_path, monkeypatch):
    """Predictions of three models for the small world, in the folders of a bake-off."""
    monkeypatch.chdir(tmp_path)
    catalog = read_catalog(tiny_csv)
    for k, name in enumerate(("probe", "finetune", "weak")):
        rng = np.random.default_rng(k)
        skill = 1.0 if name == "weak" else 4.0
        logits = rng.normal(size=catalog.table.labels.shape) + skill * (catalog.table.labels == 1)
        rows = catalog.rows("test")
        Predictions(
            image_ids=catalog.image_ids[rows],
            tags=catalog.table.tags,
            logits=(logits[rows] - skill / 2).astype(np.float32),
            thresholds=np.zeros(len(catalog.table.tags), np.float32),
            fitted_ids=catalog.image_ids[catalog.rows("train")],
            provenance={"backbone": "demo:cnn", "strategy": name, "catalog": str(tiny_csv)},
        ).save(tmp_path / f"run/demo-cnn/{name}/predictions.npz")
    return catalog


def call(monkeypatch, capsys, *args):
    """Exit code, stdout and stderr of one command line."""
    words = [str(a) for a in args]
    monkeypatch.setattr(sys, "argv", ["retailtag", *words])
    monkeypatch.setenv("COLUMNS", "200")
    code = run(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_compare_ranks_and_writes_pairs(shop, monkeypatch, capsys, tmp_path):
    code, out, _ = call(monkeypatch, capsys, "compare", "run", "--replicates", 200)
    assert code == 0
    assert "P(best)" in out
    assert "3 different models have been scored" in out
    assert "Differences in macro-F1" in out
    assert out.index("demo:cnn · probe") < out.index("demo:cnn · weak")
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2
    assert lines[0].startswith("a,b,scope,difference,low,high")


def test_compare_json_is_one_object(shop, monkeypatch, capsys, tmp_path):
    args = ["compare", "run", "--json", "--replicates", 200, "--out", tmp_path / "p.csv"]
    code, out, _ = call(monkeypatch, capsys, *args)
    value = json.loads(out)
    assert code == 0
    assert sum(s["p_best"] for s in value["standings"] if s["scope"] == "all") == pytest.approx(1)
    verdicts = {(c["a"][-5:], c["b"][-5:]): c["verdict"] for c in value["comparisons"]}
    assert len(verdicts) == 3
    assert call(monkeypatch, capsys, *args)[1] == out
    assert call(monkeypatch, capsys, "compare", "run/demo-cnn/probe")[0] == 2


def test_score_takes_the_folder_of_a_bakeoff(shop, monkeypatch, capsys, tmp_path):
    code, out, _ = call(
        monkeypatch, capsys, "score", "run", "--json", "--replicates", 100, "--out", "cards"
    )
    assert code == 0
    assert len(json.loads(out)["scorecards"]) == 3
    assert sorted(p.name for p in (tmp_path / "cards/demo-cnn-probe").iterdir()) == [
        ".lock",
        "groups.csv",
        "per_tag.csv",
        "scorecard.json",
        "undefined_tags.csv",
    ]


def test_an_unmet_gate_exits_5_after_everything_is_written(shop, monkeypatch, capsys, tmp_path):
    args = ["score", "run/demo-cnn/probe", "--replicates", 100, "--gate", "macro_f1>=0.01"]
    assert call(monkeypatch, capsys, *args)[0] == 0
    args += ["--gate", "macro_f1>1", "--gate", "micro_f1<0", "--out", "cards", "--json"]
    code, out, err = call(monkeypatch, capsys, *args)
    assert code == 5
    assert (tmp_path / "cards/demo-cnn-probe/scorecard.json").exists()
    met = [g["met"] for g in json.loads(out)["scorecards"][0]["gates"]]
    assert met == [True, False, False]
    assert err.count("does not meet") == 2
    code, _, err = call(monkeypatch, capsys, "score", "run", "--gate", "tail>1")
    assert code == 2
    assert "tail_macro_f1" in err


def test_models_scored_on_the_test_split_are_counted(shop, monkeypatch, capsys, state):
    one = ["score", "run/demo-cnn/probe", "--replicates", 100, "--json"]
    first = json.loads(call(monkeypatch, capsys, *one)[1])
    assert first["findings"] == []
    assert json.loads(call(monkeypatch, capsys, *one)[1]) == first
    two = ["score", "run/demo-cnn/weak", "--replicates", 100]
    assert "2 different models have been scored on the test split" in " ".join(
        call(monkeypatch, capsys, *two)[1].split()
    )
    assert (state / "scored.jsonl").read_text().count("\n") == 2


def test_the_count_never_enters_the_scorecard(shop, monkeypatch, capsys, tmp_path):
    card = tmp_path / "run/demo-cnn/probe/predictions.test/scorecard.json"
    one = ["score", "run/demo-cnn/probe", "--replicates", 100, "--quiet"]
    call(monkeypatch, capsys, *one)
    before = card.read_bytes()
    call(monkeypatch, capsys, "score", "run/demo-cnn/weak", "--replicates", 100)
    call(monkeypatch, capsys, *one)
    assert card.read_bytes() == before


def test_a_state_that_cannot_be_written_changes_nothing(shop, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RETAILTAG_STATE", str(tmp_path / "file" / "inside"))
    code, out, err = call(
        monkeypatch, capsys, "score", "run/demo-cnn/probe", "--replicates", 100, "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["findings"] == []


def test_another_tools_csv_is_scored_as_declared(shop, tiny_csv, monkeypatch, capsys, tmp_path):
    own = Predictions.load(tmp_path / "run/demo-cnn/probe/predictions.npz")
    header = ",".join(["image_id", *own.tags])
    rows = [
        ",".join([i, *map(repr, row)])
        for i, row in zip(own.image_ids.tolist(), own.logits.tolist(), strict=True)
    ]
    (tmp_path / "theirs.csv").write_text("\n".join([header, *rows]) + "\n")
    cuts = [f"{tag},0" for tag in own.tags]
    (tmp_path / "cuts.csv").write_text("\n".join(["tag,threshold", *cuts]) + "\n")
    args = ["score", "theirs.csv", "--catalog", tiny_csv, "--replicates", 100, "--json"]
    assert call(monkeypatch, capsys, *args)[0] == 2
    assert call(monkeypatch, capsys, *args, "--scores", "logits")[0] == 2
    assert call(monkeypatch, capsys, *args, "--scores", "probabilities", "--tune", "group")[0] == 3
    args += ["--scores", "logits", "--thresholds", "cuts.csv"]
    code, out, err = call(monkeypatch, capsys, *args)
    assert code == 0, err
    (theirs,) = json.loads(out)["scorecards"]
    ours = json.loads(
        call(monkeypatch, capsys, "score", "run/demo-cnn/probe", "--replicates", 100, "--json")[1]
    )["scorecards"][0]
    assert theirs["model"] == "theirs"
    assert theirs["summaries"] == ours["summaries"]
    code, _, err = call(monkeypatch, capsys, "score", "theirs.csv", "--scores", "logits")
    assert code == 2
    assert "--catalog" in err


def test_options_for_other_tools_are_refused_for_own_files(shop, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "score", "run", "--scores", "logits")
    assert code == 2
    assert "retailtag's own" in err
