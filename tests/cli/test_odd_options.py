"""Every number that an option takes has a range; beyond it, one sentence and exit code 2."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import typer

from retailtag.catalog.table import GroupCutoffs
from retailtag.cli.main import app, run
from retailtag.errors import UsageError
from retailtag.fields import Option, flag, types_of
from retailtag.finetuning.augment import Augment
from retailtag.finetuning.losses import LOSSES, parse_loss
from retailtag.finetuning.mixing import MIXES, parse_mix
from retailtag.finetuning.sampling import SAMPLERS, parse_sampler
from retailtag.probes.grid import parse_grid
from retailtag.scoring.gates import parse_gate
from retailtag.settings import build, keys, option_of, section_of
from retailtag.thresholds.objectives import Objective

NUMBERS = [key for key in keys() if {int, float} & set(types_of(*section_of(key)))]
ODD = ["nan", "inf", "-inf", "1e300", "-1e300", "1e400", "9" * 5000]
OTHER_TYPES = [math.nan, math.inf, -math.inf, 10**400, -(10**400), 1 + 2j, b"1", [1]]


def ends(option: Option) -> tuple[float, float]:
    return max(option.at_least, option.above), min(option.at_most, option.below)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_setting_that_is_a_number_has_a_range_and_is_refused_beyond_it(key):
    option = option_of(key)
    low, high = ends(option)
    assert math.isfinite(low)
    assert math.isfinite(high)
    beyond = [low - 1, high + 1, *ODD, *OTHER_TYPES]
    beyond += [low] * (option.above == low) + [high] * (option.below == high)
    for value in beyond:
        with pytest.raises(UsageError) as caught:
            build({key: value})
        said = str(caught.value)
        assert said.startswith(flag(key.rpartition(".")[2], option))
        assert "\n" not in said


@pytest.mark.parametrize("key", NUMBERS)
def test_a_setting_that_is_a_number_takes_the_ends_of_its_range(key):
    option = option_of(key)
    others = {"finetune.batch_size": 65_536} if key == "finetune.micro_batches" else {}
    for value in (option.at_least, option.at_most):
        if math.isfinite(value):
            build({**others, key: value})


def specs(kinds) -> list[str]:
    """One text for each setting of each kind, with a place for its number."""
    return [f"{name}:{field.name}={{}}" for name, kind in kinds.items() for field in fields(kind)]


TEXTS = {
    parse_grid: ["{}", "1,{}", "{}:1:3", "1e-3:{}:3", "1e-3:1:{}"],
    Objective.parse: ["fbeta:{}", "precision:{}"],
    GroupCutoffs.parse: ["{},500", "50,{}"],
    Augment.parse: ["cached:{}", "cached:{}:strong"],
    parse_gate: ["macro_f1>={}", "tail_macro_ap<{}"],
    parse_loss: specs(LOSSES),
    parse_sampler: specs(SAMPLERS),
    parse_mix: specs(MIXES),
    lambda text: build({"finetune.interpolate": text}): ["{}"],
}


@pytest.mark.parametrize(
    ("parse", "text"), [(parse, text) for parse, texts in TEXTS.items() for text in texts]
)
@pytest.mark.parametrize("number", ODD, ids=lambda number: number[:8])
def test_a_number_inside_a_text_is_refused_beyond_its_range(parse, text, number):
    with pytest.raises(UsageError, match=r"^--") as caught:
        parse(text.format(number))
    assert "\n" not in str(caught.value)


def commands(group, path=()):
    """Every command with the words that call it."""
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


OWN = [
    pytest.param(path, option, id=f"{' '.join(path)} {option.opts[0]}")
    for path, command in commands(typer.main.get_command(app))
    for option in command.params
    if option.type_descriptor.annotation in (int, float)
]


@pytest.mark.parametrize(("path", "option"), OWN)
def test_a_number_that_one_command_takes_has_a_range_too(path, option, capsys):
    assert option.min is not None
    assert option.max is not None
    for value in (option.min - 1, option.max + 1, *ODD):
        assert run([*path, option.opts[0], str(value)]) == 2
        assert option.opts[0] in capsys.readouterr().err


def test_the_numbers_of_single_commands_are_found():
    assert {"demo --workers", "finetune --search", "catalog split --folds"} <= {p.id for p in OWN}


@pytest.mark.parametrize(
    "words",
    [
        ["probe", "--objective", "fbeta:1e300"],
        ["probe", "--sweep-C", "1e-5:1:100000000"],
        ["finetune", "--weight-decay", "nan"],
        ["finetune", "--set", "finetune.clip_norm=1e300"],
        ["catalog", "split", "--out", "x.csv", "--test", "nan"],
        ["catalog", "split", "--out", "x.csv", "--test", "1.0e400"],
        ["catalog", "split", "--out", "x.csv", "--test", "0.2", "--val", "-1"],
        ["catalog", "split", "--out", "x.csv", "--test", "0.2", "--val", "9" * 5000],
        ["catalog", "split", "--out", "x.csv", "--test", "0.2", "--seeds", "1e9"],
        ["catalog", "split", "--out", "x.csv", "--test", "0.2", "--seeds", "9" * 30],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_odd_numbers_on_the_command_line_end_with_the_code_of_wrong_usage(
    words, tiny_csv, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    verb = words[:2] if words[0] == "catalog" else words[:1]
    backbone = [] if words[0] == "catalog" else ["--backbone", "demo:cnn"]
    assert run([*verb, str(tiny_csv), *words[len(verb) :], *backbone]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("retailtag: ")
    assert not list(tmp_path.iterdir())
