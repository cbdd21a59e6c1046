import pytest

from retailtag.backbones.names import given_names, name_backbones, short_models, shortened
from retailtag.errors import UsageError


def test_a_name_is_as_short_as_it_can_be_without_meaning_two_things():
    ids = ["timm:resnet50.a1_in1k", "timm:resnet50.tv_in1k", "open_clip:ViT-B-32/openai"]
    assert list(name_backbones(ids).values()) == [
        "resnet50.a1_in1k",
        "resnet50.tv_in1k",
        "ViT-B-32",
    ]
    arguments = ["timm:resnet50?mean=0.5", "timm:resnet50?mean=0.4"]
    assert list(name_backbones(arguments).values()) == arguments
    assert name_backbones(["timm:dino", "open_clip:dino"]) == {
        "timm:dino": "timm:dino",
        "open_clip:dino": "open_clip:dino",
    }


def test_stand_ins_and_imported_vectors_keep_the_name_of_their_kind():
    ids = ["demo:cnn", "own:clip", "timm:cnn"]  # cnn and clip are presets of other models
    assert list(name_backbones(ids).values()) == ids


def test_backbones_side_by_side_are_named_part_by_part():
    ids = ["timm:a.x", "timm:b.y", "timm:a.x+timm:b.y"]
    assert list(name_backbones(ids).values()) == ["a", "b", "a+b"]
    given = {"timm:a.x": "small"}
    assert list(name_backbones(ids, given).values()) == ["small", "b", "small+b"]


def test_a_given_name_is_read_by_preset_or_id():
    assert given_names(["mine=demo:cnn"], ["demo:cnn"]) == {"demo:cnn": "mine"}
    preset = "timm:resnet50.tv_in1k"
    assert given_names(["r=cnn"], [preset]) == {preset: "r"}
    long = "timm:x?mean=0.5"
    assert given_names([f"m={long}"], [long]) == {long: "m"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["demo:cnn"], "is not NAME=ID"),
        (["=demo:cnn"], "is not NAME=ID"),
        (["a=demo:clip"], "demo:clip is not compared here; give one of demo:cnn, demo:dino"),
        (["a=demo:cnn", "a=demo:dino"], "gives a to two backbones"),
        (["demo:dino=demo:cnn"], "gives demo:dino to two backbones"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(texts, message):
    with pytest.raises(UsageError, match=message):
        given_names(texts, ["demo:cnn", "demo:dino"])


def test_models_are_named_by_their_backbones():
    models = ["timm:resnet50.a1 · probe (2 seeds)", "demo:cnn · finetune", "theirs · v2", "x"]
    assert list(short_models(models).values()) == [
        "resnet50 · probe (2 seeds)",
        "demo:cnn · finetune",
        "theirs · v2",
        "x",
    ]
    assert short_models(models[:1], {"timm:resnet50.a1": "r"}) == {models[0]: "r · probe (2 seeds)"}


def test_a_sentence_keeps_what_is_no_name():
    assert shortened("demo:cnn2 and demo:cnn", {"demo:cnn2": "b"}) == "b and demo:cnn"
    assert shortened("nothing", {}) == "nothing"
