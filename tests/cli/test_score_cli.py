import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from retailtag.catalog.readers import read_catalog
from retailtag.cli.main import app
from retailtag.errors import SplitOverlap, UsageError
from retailtag.predictions import Predictions


@pytest.fixture
def folder(tmp_path):
    """Catalogue of 40 images with colours as an attribute, and predictions of two models."""
    rows = ["image_id,path,tags,split,colour"]
    for k in range(40):
        Image.new("RGB", (8, 8), (6 * k, 0, 0)).save(tmp_path / f"{k}.png")
        tags = "shoe|left" if k % 2 else "shirt"
        rows.append(
            f"i{k},{k}.png,{tags},{'test' if k < 24 else 'train'},{'red' if k % 3 else 'blue'}"
        )
    manifest = tmp_path / "catalogue.csv"
    manifest.write_text("\n".join(rows) + "\n")
    catalog = read_catalog(manifest, attributes=["colour"])
    for seed, strategy in enumerate(("probe", "finetune")):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=catalog.table.labels.shape) + 2.0 * catalog.table.labels - 1.0
        Predictions(
            image_ids=catalog.image_ids,
            tags=catalog.table.tags,
            logits=logits.astype(np.float32),
            thresholds=np.zeros(len(catalog.table.tags), np.float32),
            fitted_ids=catalog.image_ids[catalog.rows("train")],
            provenance={
                "backbone": "demo:cnn",
                "strategy": strategy,
                "catalog": str(manifest),
                "catalog_args": {"attributes": ["colour"], "images": str(tmp_path)},
            },
        ).save(tmp_path / f"{strategy}.npz")
    return tmp_path


def invoke(*args):
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["score", *map(str, args)])


def test_scorecards_are_written_and_shown(folder):
    result = invoke(folder / "probe.npz", folder / "finetune.npz")
    assert result.exit_code == 0, result.output
    assert "demo:cnn · probe" in result.stdout
    assert "Differences in macro-F1" in result.stdout
    for name in ("probe", "finetune"):
        assert (folder / f"{name}.test" / "scorecard.json").exists()


def test_the_catalogue_is_read_as_it_was_and_as_asked(folder):
    path = folder / "catalogue.csv"
    path.write_text(path.read_text().replace("path,tags", "where,words"))
    for name in ("probe", "finetune"):
        predictions = Predictions.load(folder / f"{name}.npz")
        args = predictions.provenance["catalog_args"]
        args |= {"path_column": "where", "images": [str(folder)]}
        predictions.save(folder / f"{name}.npz")
    result = invoke(folder / "probe.npz", "--tags-column", "words")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("args", "said"),
    [({"colours": "red"}, "Unknown options"), ({"cutoffs": [1, 2]}, "--cutoffs [1, 2] is not"),
     ({"path": "elsewhere", "one_of": 3}, "--one-of 3 is not a list")],
)  # fmt: skip
def test_recorded_options_that_cannot_be_followed_name_the_predictions(folder, args, said):
    predictions = Predictions.load(folder / "probe.npz")
    predictions.provenance["catalog_args"] = args
    predictions.save(folder / "probe.npz")
    error = invoke(folder / "probe.npz").exception
    assert isinstance(error, UsageError)
    assert f"probe.npz: {said}" in str(error)


def test_json_is_one_object(folder):
    result = invoke(folder / "probe.npz", "--json", "--out", folder / "out", "--replicates", 100)
    value = json.loads(result.stdout)
    assert value["comparisons"] == []
    (card,) = value["scorecards"]
    assert 0 <= card["summaries"]["all"]["macro_f1"] <= 1
    assert card["folder"] == str(folder / "out" / "demo-cnn-probe")


def test_at_most_one_value_of_an_attribute_is_scored_and_all_figures_are_shown(folder):
    result = invoke(folder / "probe.npz", "--assign", "at-most-one")
    assert result.exit_code == 0, result.output
    assert "exactly one" in result.stdout
    assert "colour" in result.stdout
    found = json.loads(invoke(folder / "probe.npz", "--assign", "at-most-one", "--json").stdout)
    card = found["scorecards"][0]
    assert card["assignment"] == "at-most-one"
    of_all = {r["assignment"]: r["macro_f1"] for r in card["assignments"] if not r["attribute"]}
    assert card["summaries"]["all"]["macro_f1"] == of_all["at-most-one"]
    assert (folder / "probe.test" / "assignments.csv").exists()


def test_quiet_prints_nothing(folder):
    result = invoke(folder / "probe.npz", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")


def test_catalogue_can_be_named(folder):
    moved = folder / "moved.csv"
    (folder / "catalogue.csv").rename(moved)
    result = invoke(folder / "probe.npz", "--catalog", moved, "--attributes", "colour")
    assert result.exit_code == 0, result.output


def test_scoring_what_was_fitted_is_refused(folder):
    result = invoke(folder / "probe.npz", "--split", "train")
    assert isinstance(result.exception, SplitOverlap)


def test_scoring_imports_no_heavy_library(folder):
    code = (
        "import sys\n"
        "from retailtag.cli.main import run\n"
        f"assert run(['score', {str(folder / 'probe.npz')!r}, '--replicates', '100']) == 0\n"
        "heavy = {'torch', 'timm', 'open_clip', 'sklearn', 'matplotlib', 'h5py', 'pyarrow'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
