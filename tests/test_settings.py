"""Settings: one place for defaults, choices and ranges; files and options agree with it."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailtag.errors import UsageError
from retailtag.settings import (
    PRESETS,
    SECTIONS,
    BakeoffSettings,
    FinetuneSettings,
    ProbeSettings,
    ScoreSettings,
    build,
    default_of,
    keys,
    option_of,
    values_of,
)
from retailtag.settings_file import read_settings, template, write_settings
from retailtag.verbs import USES, flags_of, resolve


def test_every_default_is_valid_and_survives_a_file(tmp_path):
    settings = build({})
    assert settings == BakeoffSettings()
    write_settings(tmp_path / "s.toml", settings, keys())
    assert build(read_settings(tmp_path / "s.toml")) == settings


@given(
    folds=st.integers(2, 50),
    lr=st.floats(1e-8, 10, exclude_min=True),
    backbones=st.lists(st.sampled_from(["cnn", "demo:cnn+demo:clip", 'ü "x"\\n']), unique=True),
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
)
def test_values_survive_a_file(tmp_path_factory, folds, lr, backbones, text):
    values = {
        "probe.folds": folds,
        "finetune.lr": lr,
        "finetune.loss": text,
        "backbones": backbones or ["cnn"],
        "compute.features": text or "x",
    }
    settings = build(values)
    path = tmp_path_factory.mktemp("settings") / "s.toml"
    write_settings(path, settings, keys())
    assert build(read_settings(path)) == settings


@pytest.mark.parametrize("preset", PRESETS)
def test_the_template_of_a_preset_gives_the_preset(preset, tmp_path):
    (tmp_path / "s.toml").write_text(template(preset))
    assert read_settings(tmp_path / "s.toml") == {
        key: list(v) if isinstance(v, tuple) else v for key, v in PRESETS[preset].items()
    }
    assert all(option_of(key).help in template(preset) for key in keys())


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UsageError, match="--preset slow is unknown; use one of quick, default"):
        template("slow")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("probe.folds", 1, "--folds 1 is out of range; use at least 2"),
        ("probe.folds", "many", "--folds 'many' is not a whole number"),
        ("probe.folds", 2.5, "--folds 2.5 is not a whole number"),
        ("probe.folds", True, "--folds True is not a whole number"),
        ("finetune.lr", math.inf, "--lr inf is out of range"),
        ("finetune.lr", "nan", "--lr nan is out of range"),
        ("finetune.blocks", "some", "not a whole number or all or scratch"),
        ("finetune.interpolate", "2", "--interpolate 2 must be auto or 0 to 1"),
        ("compute.device", "tpu", "--device tpu is unknown; use one of auto, cpu, cuda"),
        ("reading.allow_truncated", "maybe", "--allow-truncated 'maybe' is not true or false"),
        ("catalog.path", 3, "--path 3 is not a path"),
        ("backbones", [1], r"--backbones \[1\] is not a list"),
        ("backbones", "", "--backbones is empty"),
        ("backbones", "cnn,cnn", "--backbones has an entry twice"),
        ("strategies", "guess", "--strategies must be some of probe, finetune"),
        ("finetune.layer_decy", 1, "did you mean finetune.layer_decay?"),
        ("layer_decay", 1, "did you mean finetune.layer_decay?"),
        ("zzz", 1, "retailtag init lists them all"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(key, value, words):
    with pytest.raises(UsageError, match=words) as error:
        build({key: value})
    assert "\n" not in str(error.value)


def test_more_micro_batches_than_images_are_refused():
    with pytest.raises(UsageError, match="--micro-batches 9 exceeds --batch-size 8"):
        FinetuneSettings(batch_size=8, micro_batches=9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("folds = ", "is not TOML"),
        ("a = " + "[" * 5000, r"is not TOML \(it is nested too deeply\)"),
        ("a = " + "9" * 5000, r"is not TOML \(Exceeds the limit"),
        ("[" + "a." * 900 + "a]", "a is not a setting"),
        ("a = 1\0", "is not TOML"),
        ("#" * (1 << 20) + "\n", "has over 1,048,576 bytes"),
        ("[probe]\nfold = 3", "probe.fold is not a setting; did you mean probe.folds"),
        ("[prob]\nfolds = 3", "prob is not a setting; did you mean probe"),
        ("[probe]\nfolds = 1", "--folds 1 is out of range"),
        ("probe = 3", "probe is not a setting"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        read_settings(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml: No such file"):
        read_settings(tmp_path / "none.toml")


def test_options_beat_sets_beat_the_file_beats_the_environment(monkeypatch):
    monkeypatch.setenv("RETAILTAG_FEATURES", "from-environment")
    monkeypatch.setenv("RETAILTAG_DEVICE", "cpu")
    file = {"probe.folds": 3, "probe.seed": 3, "probe.scale": "none"}
    sets = ["probe.folds=4", "probe.seed=4"]
    settings, named = resolve("probe", None, {"folds": 5, "scale": None}, file=file, sets=sets)
    assert (settings.probe.folds, settings.probe.seed, settings.probe.scale) == (5, 4, "none")
    assert settings.compute.features == Path("from-environment")
    assert named == {*file, "compute.features", "compute.device"}
    assert resolve("probe", None, {}, file={"compute.features": "f"})[0].compute.features == Path(
        "f"
    )


def test_one_option_gives_every_setting_of_its_name():
    settings, _ = resolve("bakeoff", None, {"seed": 7, "objective": "fbeta:2"})
    assert {settings.probe.seed, settings.finetune.seed, settings.score.seed} == {7}
    assert settings.probe.objective == settings.finetune.objective == "fbeta:2"


def test_an_option_of_another_verb_is_refused():
    with pytest.raises(UsageError, match="epochs is not an option of probe"):
        resolve("probe", None, {"epochs": 3})
    with pytest.raises(UsageError, match="KEY=VALUE"):
        resolve("probe", sets=["folds"])


def test_a_section_alone_is_taken_and_another_type_is_not():
    assert resolve("probe", ProbeSettings(folds=3))[0].probe.folds == 3
    assert resolve("score", ScoreSettings(seed=3))[0].score.seed == 3
    with pytest.raises(UsageError, match="not dict"):
        resolve("probe", {"folds": 3})


@pytest.mark.parametrize("verb", USES)
def test_options_that_several_sections_share_have_one_default_each(verb):
    """Where one option gives several settings, its help and their type are the same."""
    for flag, own in flags_of(verb).items():
        if flag in ("--batch-size",):  # of a forward pass, and of a step of the optimiser
            continue
        assert len({(default_of(key), option_of(key).help) for key in own}) == 1, flag


def test_what_results_do_not_depend_on_is_not_recorded():
    fast = dataclasses.replace(FinetuneSettings(), compile=True, cache_gb=0, log=("wandb",))
    assert fast.recorded() == FinetuneSettings().recorded()
    assert "lr" in fast.recorded()
    assert not {"cache_gb", "compile", "log", "checkpoint_minutes"} & set(fast.recorded())


def test_keys_and_values_cover_every_field():
    named = {f"{s}.{f.name}" for s, kind in SECTIONS.items() for f in dataclasses.fields(kind)}
    own = {"backbones", "strategies", "names", "out", "merge", "no_images"}
    assert set(keys()) == named | own
    assert dict(values_of(build({"probe.folds": 9})))["probe.folds"] == 9
