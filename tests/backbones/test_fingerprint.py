"""The fingerprint: equal where nothing differs, one sentence on each thing that does."""

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from retailtag.backbones import fingerprint as fp
from retailtag.backbones import load_backbone
from retailtag.cli.main import run as retailtag
from retailtag.cli.models import app
from retailtag.errors import DataError, Mismatch
from retailtag.images.decode import decode_pixels


def load_drawing():
    path = Path(__file__).parents[1] / "reference" / "pictures.py"
    spec = importlib.util.spec_from_file_location("drawn_pictures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def facts():
    """The fingerprint of a CLIP, which has texts too."""
    return fp.fingerprint(load_backbone("demo:clip"))


def test_the_shipped_pictures_are_what_the_demo_draws():
    drawn, shipped = load_drawing().draw(), fp.pictures()
    assert list(shipped) == sorted(drawn)
    assert len(shipped) == 10
    assert sum(map(len, shipped.values())) < 200_000
    for name, data in shipped.items():
        # Encoders change with their versions: a JPEG drawn today may differ in a few values.
        expected, found = (decode_pixels(d).astype(int) for d in (drawn[name], data))
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < (0 if name.endswith("png") else 0.5) + 1e-9


def test_a_fingerprint_is_the_same_when_it_is_made_again(facts):
    again = fp.fingerprint(load_backbone("demo:clip"))
    assert json.loads(json.dumps(again)) == facts
    assert fp.compare(facts, again) == fp.Comparison([], [])
    assert facts["pictures"]["07-turned.jpg"]["size"] == [96, 128]  # upright
    assert len({row["embedding_sha256"] for row in facts["pictures"].values()}) == 10


def test_projections_tell_the_distance_of_two_arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 384))
    y = x + 0.01 * rng.normal(size=x.shape)
    apart = np.array([fp.projections(v) for v in x]) - [fp.projections(v) for v in y]
    assert np.sqrt((apart**2).mean()) == pytest.approx(
        np.linalg.norm(x - y, axis=1).mean(), rel=0.1
    )


def changed(facts, share):
    """The fingerprint of embeddings that differ by a share of their spread in every number."""
    other = copy.deepcopy(facts)
    table = np.array([row["embedding"] for row in facts["pictures"].values()])
    step = share * np.sqrt(((table - table.mean(axis=0)) ** 2).mean())
    for row in other["pictures"].values():
        row["embedding"] = [v + step for v in row["embedding"]]
        row["embedding_sha256"] = "0" * 64
    return other


def test_rounding_of_another_processor_is_a_note_and_more_is_a_difference(facts):
    (note,) = fp.compare(changed(facts, 1e-4), facts).notes
    assert note == "The embeddings differ by 0.01% of their spread: as other processors do."
    found = fp.compare(changed(facts, 0.05), facts)
    assert found.notes == []
    assert found.differences == [
        "The embeddings differ by 5.00% of their spread: another engine, precision or device."
    ]


def test_bfloat16_is_told_from_float32(facts):
    backbone = load_backbone("demo:clip")
    backbone.module.to(dtype=__import__("torch").bfloat16)
    embed = backbone.module.forward
    backbone.module.forward = lambda pixels: embed(pixels.bfloat16())
    other = fp.fingerprint(backbone)
    assert any("embeddings differ" in d for d in fp.compare(facts, other).differences)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["weights_sha256"], "f" * 64, "The weights have SHA-256 ffffffffffffffff... there"),
        (["preprocessing", "interpolation"], "nearest", "interpolation nearest there and bi"),
        (["preprocessing", "gamma"], 2, "The preprocessing has gamma 2 there and nothing here."),
        (["architecture", "depth"], 99, "The architecture has depth 99 there and nothing here."),
        (["output"], "tokens", "The output is tokens there"),
        (["pictures", "07-turned.jpg", "size"], [128, 96], "07-turned.jpg decodes to 128 x 96"),
        (["texts", fp.TEXTS[0]], [9.0] * 8, "The text 'a photo of a shoe' has another embedding"),
    ],
)
def test_each_difference_is_one_sentence(facts, path, value, sentence):
    other = copy.deepcopy(facts)
    at = other
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    found = fp.compare(other, facts)
    (difference,) = found.differences
    assert sentence in difference


@pytest.mark.parametrize(("step", "is_note"), [(10.0, True), (5_000.0, False)])
def test_pixels_of_another_decoder_are_a_note_until_they_are_many(facts, step, is_note):
    other = copy.deepcopy(facts)
    row = other["pictures"]["01-plain.jpg"]
    row["pixels"] = [p + step for p in row["pixels"]]
    row["pixels_sha256"] = row["decoded_sha256"] = "0" * 64
    found = fp.compare(other, facts)
    (sentence,) = found.notes if is_note else found.differences
    assert sentence.startswith("1 of 10 pictures have other pixels after decoding (01-plain.jpg)")


def command(*args):
    result = CliRunner().invoke(app, ["verify", "demo:cnn", *args])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_command_prints_and_compares(tmp_path, capsys):
    printed = command("--fingerprint", "--json")
    file = tmp_path / "theirs.json"
    file.write_text(printed)
    facts = json.loads(printed)
    assert facts["machine"]["cores"] > 0
    assert facts["weights_sha256"] in command("--fingerprint")
    assert "Nothing differs." in command("--compare", str(file))
    assert json.loads(command("--compare", str(file), "--json"))["differences"] == []
    file.write_text(json.dumps(facts | {"weights_sha256": "f" * 64}))
    with pytest.raises(Mismatch, match="load the same file"):
        command("--compare", str(file))
    # a program reads one object, and the exit code of a mismatched artefact
    args = ["models", "verify", "demo:cnn", "--compare", str(file), "--json"]
    assert retailtag(args) == 4
    assert len(json.loads(capsys.readouterr().out)["differences"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda f: [],
        lambda f: f | {"fingerprint": 2},
        lambda f: f | {"pictures": {}},
        lambda f: f | {"architecture": 3},
        lambda f: f | {"texts": {"a": [1.0]}},
        lambda f: f | {"preprocessing": {"size": [0, 1]}},
        lambda f: f | {"weights_sha256": None},
        lambda f: f | {"pictures": {"a.png": {"size": [1, 1]}}},
    ],
)
def test_other_files_are_refused(facts, tmp_path, change):
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(change(facts)))
    with pytest.raises(
        DataError, match=r"theirs\.json is not a fingerprint of format 1; write one"
    ):
        fp.read_fingerprint(file)
