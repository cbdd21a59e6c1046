"""`retailtag export --format onnx` and ``triton``: from a run to a folder that was compared."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

import retailtag as rt
from retailtag.cli.main import run
from retailtag.context import RunContext
from retailtag.errors import EXIT_STALE, EXIT_UNAVAILABLE, EXIT_USAGE, UsageError
from retailtag.runs.export_onnx import OnnxRequest, export_onnx
from retailtag.runs.probe import run_probe
from retailtag.scoring.metrics import f1_from_counts, macro, tag_counts
from retailtag.settings import ExportSettings, ProbeSettings
from retailtag.tagger.onnx import folder as folder_module
from retailtag.tagger.onnx.session import OnnxSession


@pytest.fixture(scope="module")
def fitted(small, small_csv, small_store, tmp_path_factory):
    """Folder of a probe that records its catalogue."""
    out = tmp_path_factory.mktemp("fitted") / "probe"
    where = {"catalog": str(small_csv), "catalog_args": {}}
    settings = ProbeSettings(sweep_C="1e-2", folds=3, heads="logistic")
    run_probe(RunContext(small, provenance=where), small_store, out, settings)
    return out


@pytest.fixture(scope="module")
def made(fitted):
    """An export in float32 and int8, at its default place."""
    return rt.export(fitted, format="onnx", int8=True, device="cpu")


@pytest.fixture
def same_graph(made, monkeypatch):
    """Exports in the test take the graph that was made before: making one takes seconds."""
    graph = onnx.load(made.folder / "model.onnx")
    monkeypatch.setattr(folder_module, "graph_of", lambda tagger: graph)


def test_the_folder_holds_model_runner_and_card(made, fitted):
    assert made.folder == fitted.with_name("probe-onnx")
    names = {p.name for p in made.folder.iterdir()}
    assert names == {
        "model.onnx", "model.int8.onnx", "model.json", "preprocessing.json", "run_onnx.py",
        "preprocess.py", "README.md",
    }  # fmt: skip
    assert made.run.files == {p.name: p.stat().st_size for p in made.folder.iterdir()}
    about = json.loads((made.folder / "model.json").read_text())
    assert about["calibrated"]
    assert about["operating_points"].keys() == made.tagger.operating_points.keys()
    assert about["parity"]["images"] == 18
    assert about["parity"]["largest_logit_difference"] < 1e-3
    card = (made.folder / "README.md").read_text()
    for part in ("python run_onnx.py shirt.jpg", "trtexec --onnx=model.onnx", "## Limits",
                 "on 18 images: all tags identical", "macro f1", "`model.json` holds"):  # fmt: skip
        assert part in card
    assert "rt.load" not in card


def test_the_loss_of_int8_is_that_of_its_logits_on_the_test_split(made, small):
    int8, tagger = made.run.onnx.int8, made.tagger
    rows = small.rows("test")
    assert int8["images"] == len(rows)
    assert int8["calibration_images"] == len(small.rows("train"))
    pixels = [np.stack(tagger.pixels(small.images.read(row))) for row in rows.tolist()]
    feed = {"pixels": np.concatenate(pixels)}
    order = [tagger.tags.index(tag) for tag in small.table.tags]
    labels = small.table.labels[rows]
    for name, file in (("float32", "model.onnx"), ("int8", "model.int8.onnx")):
        logits = OnnxSession(made.folder / file).logits(feed)[:, order]
        f1 = f1_from_counts(tag_counts(logits >= tagger.thresholds[order], labels))
        defined = (labels == 1).any(axis=0)
        tail = defined & (small.table.group == "tail")
        expected = {"macro_f1": macro(f1, defined), "tail_macro_f1": macro(f1, tail)}
        assert int8["scores"][name] == pytest.approx(expected)
    assert set(int8["loss"]) == {"macro_f1", "tail_macro_f1"}


def test_a_repository_of_triton_by_the_command(fitted, same_graph, tmp_path, capsys):
    out = tmp_path / "triton"
    asked = ["export", str(fitted), "--format", "triton", "--with-preprocessing"]
    assert run([*asked, "--out", str(out), "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["files"]) == {
        "README.md", "model.json", "preprocessing.json", "tagger/config.pbtxt", "tagger/tags.txt",
        "tagger/1/model.onnx",
    }  # fmt: skip
    assert said["onnx"]["parity"]["cells_that_differ"] == 0
    assert said["onnx"]["resizing"]["largest_pixel_difference"] <= 2


def test_without_the_catalogue_a_sample_is_compared(
    fitted, small_csv, same_graph, tmp_path, capsys
):
    asked = ["export", str(fitted), "--format", "onnx", "--device", "cpu"]
    gone = ["--catalogue", str(tmp_path / "gone.csv")]
    assert run([*asked, *gone, "--out", str(tmp_path / "a")]) == EXIT_USAGE
    assert "gone.csv is not there" in capsys.readouterr().err
    images = sorted((small_csv.parent / "images").iterdir())[:3]
    sample = [part for image in images for part in ("--sample", str(image))]
    assert run([*asked, *sample, "--out", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "on 3 images: all tags identical, largest difference of a logit" in printed
    assert "\\n" not in printed
    assert "run_onnx.py IMAGE..." in printed


@pytest.mark.parametrize("option", ["--int8", "--with-preprocessing"])
def test_options_of_onnx_alone_are_refused(fitted, tmp_path, capsys, option):
    assert run(["export", str(fitted), option, "--out", str(tmp_path / "x")]) == EXIT_USAGE
    assert f"{option} is about an ONNX model; give --format onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_images_are_needed(made, tmp_path):
    settings = ExportSettings(format="onnx")
    with pytest.raises(UsageError, match="name some with --sample"):
        export_onnx(made.tagger, tmp_path, OnnxRequest(settings))
    with pytest.raises(UsageError, match="--int8 needs the catalogue's training images"):
        export_onnx(made.tagger, tmp_path, OnnxRequest(replace(settings, int8=True)))


def test_a_difference_ends_with_4_and_leaves_nothing(
    fitted, same_graph, tmp_path, capsys, monkeypatch
):
    true = OnnxSession.logits
    monkeypatch.setattr(OnnxSession, "logits", lambda self, feed: true(self, feed) + 0.002)
    asked = ["export", str(fitted), "--format", "onnx", "--device", "cpu"]
    assert run([*asked, "--out", str(tmp_path / "x")]) == EXIT_STALE
    assert "differs from PyTorch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_command_says_what_to_install(fitted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    asked = ["export", str(fitted), "--format", "onnx", "--device", "cpu"]
    assert run([*asked, "--out", str(tmp_path / "x")]) == EXIT_UNAVAILABLE
    assert "pip install 'retailtag[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
