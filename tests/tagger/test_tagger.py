"""A tagger takes images as paths, bytes or PIL images, and describes itself."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit

from retailtag.backbones import resize
from retailtag.backbones.factory import load_backbone
from retailtag.calibration import Calibration
from retailtag.errors import ArtefactError, UnreadableImage, UsageError
from retailtag.finetuning.artefact import Checkpoint
from retailtag.outcomes import load_tagger
from retailtag.probes.artefact import Probe
from retailtag.settings import ComputeSettings
from retailtag.tagger.loading import load_fitted
from retailtag.tagger.tagger import Tagger

TAGS = ("red", "<b>striped</b>", "cotton")


@pytest.fixture(scope="module")
def tagger():
    backbone = load_backbone("demo:cnn", random_weights=True)
    rng = np.random.default_rng(0)
    head = Probe(
        TAGS,
        rng.normal(size=(3, backbone.dim)).astype(np.float32),
        np.zeros(3, np.float32),
        np.zeros(3, np.float32),
        np.ones(3),
        facts={"thresholds": {"rule": "per-tag", "objective": "f1"}},
    )
    return Tagger((backbone,), head, "probe")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An RGBA picture with a transparent corner, as Pillow holds it, and its file."""
    pixels = np.random.default_rng(1).integers(0, 256, (70, 50, 4), dtype=np.uint8)
    pixels[:20, :20, 3] = 0
    path = tmp_path_factory.mktemp("images") / "shirt.png"
    Image.fromarray(pixels).save(path)
    return Image.fromarray(pixels), path


def test_paths_bytes_and_pil_images_give_the_same_logits(tagger, image):
    picture, path = image
    given = [str(path), path, path.read_bytes(), picture, Image.open(path)]
    logits = tagger.logits(given)
    assert logits.shape == (5, 3)
    assert logits.dtype == np.float32
    assert (logits == logits[0]).all()
    assert picture.mode == "RGBA"  # the caller's image is left as it was
    tags = tagger.tag(given)
    assert tags == [tags[0]] * 5
    assert set(tags[0]) == {t for t, z in zip(TAGS, logits[0], strict=True) if z >= 0}


def test_a_palette_image_is_converted_like_its_file(tagger):
    palette = Image.new("P", (40, 40), 3)
    palette.putpalette(range(48))
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert np.array_equal(tagger.logits([palette]), tagger.logits([buffer.getvalue()]))


def test_no_images_give_no_rows(tagger):
    assert tagger.logits([]).shape == (0, 3)
    assert tagger.tag([]) == []


@pytest.mark.parametrize("one", ["shirt.png", b"bytes", Image.new("RGB", (2, 2))])
def test_a_single_image_is_refused_with_the_remedy(tagger, one):
    with pytest.raises(UsageError, match=r"Give a list of images, \[image\], not one"):
        tagger.tag(one)


def test_another_type_is_one_sentence(tagger, image):
    with pytest.raises(UsageError, match=r"^Image 1 is of type ndarray; give a path, bytes"):
        tagger.tag([image[1], np.zeros((3, 3))])


def test_an_unreadable_file_is_named(tagger, tmp_path):
    with pytest.raises(UnreadableImage, match=r"gone\.jpg cannot be read: No such file"):
        tagger.tag([tmp_path / "gone.jpg"])
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    with pytest.raises(UnreadableImage, match=r"page\.jpg is a web page"):
        tagger.tag([str(tmp_path / "page.jpg")])


def test_an_image_that_cannot_be_scaled_is_named(tagger, tmp_path, monkeypatch):
    monkeypatch.setattr(resize, "MAX_SCALING_BYTES", 1000)
    Image.new("L", (900, 1)).save(tmp_path / "line.png")
    with pytest.raises(UnreadableImage, match=r"line\.png has 900 x 1 pixels, .* of memory"):
        tagger.tag([tmp_path / "line.png"])
    with pytest.raises(UnreadableImage, match=r"^has 900 x 1 pixels"):
        tagger.tag([Image.new("L", (900, 1))])


def test_it_describes_itself_in_text_and_html(tagger):
    assert repr(tagger) == (
        "Tagger(backbone=demo:cnn, strategy=probe, head=logistic, tags=3, thresholds=per-tag)"
    )
    page = tagger._repr_html_()
    assert page.startswith("<table>")
    assert "<td>demo:cnn</td>" in page
    assert "<td>per-tag</td>" in page


def test_at_most_one_and_exactly_one_value_of_an_attribute(tagger, image):
    tags = ("colour:red", "colour:blue", "cotton")
    z = tagger.logits([image[1]])[0]
    for thresholds, most, exactly in ((z - [1, 2, 1], [1, 2], [1, 2]), (z + [2, 1, 1], [], [1])):
        head = replace(tagger.head, tags=tags, thresholds=thresholds.astype(np.float32))
        model = replace(tagger, head=head, exclusive=("colour",))
        for assignment, expected in (("at-most-one", most), ("exactly-one", exactly)):
            found = model.assigning(assignment).tag([image[1]])[0]
            assert set(found) == {tags[j] for j in expected}
        # a model that records no attribute takes those that are named
        bare = replace(model, exclusive=())
        assert bare.assigning("exactly-one", ["colour"]).tag([image[1]]) == [found]
    with pytest.raises(UsageError, match="--one-of"):
        bare.assigning("exactly-one")
    with pytest.raises(UsageError, match="no tag of the model begins with size:"):
        bare.assigning("exactly-one", ["size"])


def test_at_takes_the_thresholds_of_an_operating_point(tagger, image):
    strict = np.full(3, np.inf, np.float32)
    model = replace(tagger, operating_points={"f1": tagger.thresholds, "precision:0.8": strict})
    assert model.at("precision:0.8").tag([image[1]]) == [[]]
    assert model.at("precision:0.8").at("f1").tag([image[1]]) == tagger.tag([image[1]]) != [[]]
    with pytest.raises(UsageError, match=r"recall is not known .* has f1, precision:0\.8;"):
        model.at("recall")


def test_calibrated_probabilities_leave_the_tags_and_put_the_likeliest_first(tagger, image):
    logits = tagger.logits([image[1]])
    thresholds = np.full(3, -np.inf, np.float32)
    everything = replace(tagger, head=replace(tagger.head, thresholds=thresholds))
    plain = list(everything.predict([image[1]])[0])
    # the tag of the largest logit is calibrated far below the others
    offset = np.where(np.array(TAGS) == plain[0], -50, 0).astype(np.float32)
    curves = Calibration(np.full(3, 0.5, np.float32), offset)
    found = replace(everything, calibration=curves).predict([image[1]])[0]
    assert list(found) == [*plain[1:], plain[0]]
    expected = expit(0.5 * logits[0].astype(np.float64) + curves.offset)
    np.testing.assert_allclose([found[tag] for tag in TAGS], expected, atol=1e-15)
    np.testing.assert_allclose(tagger.probabilities(logits), expit(logits.astype(np.float64)))
    assert tagger.probabilities(np.array([[-1e9, 0, 1e9]], np.float32)).tolist() == [[0, 0.5, 1]]


@pytest.fixture(scope="module")
def checkpoint(tagger):
    """What a fine-tune of the same backbone would store."""
    backbone, head = tagger.embedders[0], tagger.head
    spec = backbone.spec()
    state = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    facts = {"model": [spec.architecture, spec.preprocessing]}
    numbers = head.weight, head.bias, head.thresholds
    return Checkpoint("demo:cnn", state, TAGS, *numbers, facts)


def test_a_fine_tune_gives_the_logits_of_its_tensors(tagger, checkpoint, image, tmp_path):
    checkpoint.save(tmp_path)
    assert np.array_equal(load_fitted(tmp_path).logits([image[1]]), tagger.logits([image[1]]))


def _first(state, change):
    name = next(iter(state))
    return {**state, name: change(state[name])}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: dict(list(state.items())[1:]), r"safetensors lacks backbone\."),
        (lambda state: {**state, "more": torch.zeros(1)}, "unknown tensor, backbone.more"),
        (
            lambda state: _first(state, lambda t: t[:1].clone()),
            r"holds backbone\..* as float32 \(1",
        ),
        (lambda state: _first(state, lambda t: t.double()), r"as float64 .*, not float32"),
    ],
)
def test_tensors_of_another_architecture_are_named(checkpoint, change, sentence, tmp_path):
    replace(checkpoint, state=change(checkpoint.state)).save(tmp_path)
    with pytest.raises(ArtefactError, match=f"{sentence}.*run retailtag finetune again"):
        load_fitted(tmp_path)


@pytest.mark.parametrize("backbone", ["nothing", "demo:nothing", "a:b+a:b", "demo:cnn?size"])
def test_an_unknown_backbone_names_the_file(checkpoint, tagger, backbone, tmp_path):
    replace(checkpoint, backbone=backbone).save(tmp_path / "finetune")
    replace(tagger.head, facts={"backbone": backbone}).save(tmp_path / "probe")
    for kind, file in (("finetune", "checkpoint.json"), ("probe", "probe.json")):
        with pytest.raises(ArtefactError, match=file.replace(".", r"\.")):
            load_tagger(tmp_path / kind, ComputeSettings(device="cpu"))


def test_a_head_for_longer_embeddings_is_refused(checkpoint, tmp_path):
    wide = np.concatenate([checkpoint.weight] * 2, axis=1)
    replace(checkpoint, weight=wide).save(tmp_path)
    with pytest.raises(
        ArtefactError, match=r"head for embeddings of length \d+, and demo:cnn gives"
    ):
        load_fitted(tmp_path)
