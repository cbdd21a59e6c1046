"""`retailtag drift` from images to a page: sources, the verdict, gates, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retailtag as rt
from retailtag import outcomes
from retailtag.backbones.factory import load_backbone
from retailtag.cli.main import run
from retailtag.errors import EXIT_BAD_DATA, EXIT_GATE, EXIT_STALE, EXIT_USAGE, UsageError
from retailtag.probes.artefact import Probe
from retailtag.report.drawing import Drawing
from retailtag.tagger.drift.comparison import reference_of
from retailtag.tagger.drift.reference import FILE
from retailtag.tagger.drift.sources import Pictures
from retailtag.tagger.tagger import Tagger

QUICK = ["--set", "drift.permutations=99", "--workers", "0"]


@pytest.fixture(scope="module")
def model(tiny_csv):
    """A model of random weights that records its catalogue."""
    backbone = load_backbone("demo:cnn", random_weights=True)
    weight = np.random.default_rng(0).normal(size=(2, backbone.dim)).astype(np.float32)
    zeros = np.zeros(2, np.float32)
    facts = {"catalog": str(tiny_csv), "catalog_args": {}}
    head = Probe(("red", "<b>blue</b>"), weight, zeros, zeros, np.ones(2), facts=facts)
    return Tagger((backbone,), head, "probe")


@pytest.fixture
def loaded(model, monkeypatch, tmp_path):
    """The command loads this model; it writes into a folder of its own."""
    monkeypatch.setattr(outcomes, "load_tagger", lambda *given, **options: model)
    monkeypatch.setattr(Drawing, "svg", lambda self: {"wide": "", "narrow": ""})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    return model


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder of pictures unlike those of the catalogue."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(1)
    for k in range(14):
        pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg", quality=30)
    return folder


def test_other_pictures_are_drift_and_the_page_shows_them(loaded, noise, capsys, tmp_path):
    argv = ["drift", "model", "--new", str(noise), *QUICK, "--json", "--gate", "p>0.05"]
    assert run(argv) == EXIT_GATE
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["has_drifted"]
    assert found["reference"] == "test split of catalogue.csv"
    assert found["remedies"][0]["action"] == "input"
    assert "p>0.05 is not met: p is 0.0" in printed.err
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert "<h1><span>Drift: " in page
    assert len(re.findall(r'<img src="data:image/jpeg;base64,[^"]+"', page)) == 14
    assert "&lt;b&gt;blue&lt;/b&gt;" in page
    assert "<b>blue" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_images_like_the_reference_are_none_and_pass_the_gate(loaded, tiny_csv, capsys):
    lines = tiny_csv.read_text(encoding="utf-8").splitlines()
    test_rows = [line for line in lines[1:] if ",test," in line]
    Path("half.csv").write_text("\n".join([lines[0], *test_rows]), encoding="utf-8")
    argv = ["drift", "model", "--new", "half.csv", "--reference", str(tiny_csv)]
    options = ["--split", "train", "--images", str(tiny_csv.parent), "--gate", "p>=0.01"]
    assert run([*argv, *QUICK, *options, "--alpha", "0.01"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("No drift (p = ")
    assert max(map(len, out.splitlines()[2:10])) <= 110
    assert "scores on them are too confident" in out


def test_a_kept_reference_takes_the_place_of_images(loaded, noise, tiny, tmp_path, capsys):
    kept = reference_of(loaded, Pictures.of_split(tiny))
    kept.save(tmp_path / "model" / FILE)
    assert run(["drift", "model", "--new", str(noise), *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_reference"] == 17  # one image of each product
    (tmp_path / "model" / FILE).write_bytes(b"nothing")
    assert run(["drift", "model", "--new", str(noise), *QUICK]) == EXIT_BAD_DATA
    assert "not a drift reference" in capsys.readouterr().err


def test_a_reference_of_another_model_is_refused(loaded, noise, tiny, tmp_path, capsys):
    other = replace(loaded, head=replace(loaded.head, bias=loaded.head.bias + 1))
    reference_of(other, Pictures.of_split(tiny)).save(tmp_path / "other.npz")
    argv = ["drift", "model", "--new", str(noise), "--reference", "other.npz", *QUICK]
    assert run(argv) == EXIT_STALE
    assert "other.npz was made with another model" in capsys.readouterr().err
    assert not (tmp_path / "drift.html").exists()
    argv[argv.index("other.npz")] = "nowhere.npz"
    assert run(argv) == EXIT_BAD_DATA
    assert "nowhere.npz does not exist; name images" in capsys.readouterr().err


def test_without_a_reference_the_remedy_is_named(loaded, noise, monkeypatch):
    bare = replace(loaded, head=replace(loaded.head, facts={}))
    with pytest.raises(UsageError, match="name images to compare with by --reference"):
        rt.drift(bare, noise, workers=0)


def test_a_gate_that_is_none_is_refused_before_anything_is_read(loaded, capsys):
    assert run(["drift", "model", "--new", "nowhere", "--gate", "quality>1"]) == EXIT_USAGE
    assert "with one of >=, >, <=, < and one of p, separation, novel_share" in (
        capsys.readouterr().err
    )


def test_the_function_gives_tables(loaded, noise):
    made = rt.drift(loaded, [noise], permutations=99, workers=0)
    assert made.page is None
    assert made.tags.column_names[:3] == ["tag", "reference", "new"]
    assert repr(made).startswith("Drift: p = ")
