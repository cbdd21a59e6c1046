"""Second readings of settings, and of what runs record: scorecards, stages, logs, counts."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from reference_attack import Format, Refusal
from reference_mutations import of_json, of_json_lines, of_toml
from reference_readings import need, strict_json

from retailtag.files import write_json
from retailtag.finetuning.logs import JsonLines
from retailtag.outcomes import recommended_folder
from retailtag.report.results import BakeoffResult, PairCost, PairResult, Rule, T4Cost
from retailtag.runs.measure import StageCost
from retailtag.runs.stage import read_record, write_record
from retailtag.scoring.compare import Comparison
from retailtag.scoring.families import (
    NO_FAMILIES,
    BinDifference,
    FamilyComparison,
    Member,
    OwnedTag,
    TextGain,
)
from retailtag.scoring.finding import Finding
from retailtag.scoring.intervals import Difference
from retailtag.scoring.ledger import record_scored
from retailtag.scoring.ranking import NO_SAMPLES, SampleScores
from retailtag.scoring.scorecard import AssignmentRow, GroupSummary, ScoreCard, TagRow
from retailtag.scoring.strict_json import plain
from retailtag.settings import PRESETS, SECTIONS, BakeoffSettings, build, keys, values_of
from retailtag.settings_file import read_settings, write_settings

# Settings


def make_settings(folder: Path) -> None:
    settings = build({**PRESETS["quick"], "backbones": ("demo:cnn",), "probe.seed": 3})
    write_settings(folder / "settings.toml", settings, keys())


def read_toml(folder: Path) -> Any:
    return dict(read_settings(folder / "settings.toml"))


def second_toml(folder: Path) -> Any:
    """The values of the file: those of a setting are of the kind of its default, and finite."""
    tables = tomllib.loads((folder / "settings.toml").read_bytes().decode())
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        is_section = isinstance(value, dict) and name in SECTIONS
        flat |= {f"{name}.{k}": v for k, v in value.items()} if is_section else {name: value}
    defaults = dict(values_of(BakeoffSettings()))
    for key, value in flat.items():
        need(key in defaults, key)
        default = defaults[key]
        is_list = isinstance(default, tuple) or key == "backbones"
        need(not isinstance(value, dict) or is_list, key)  # a table is texts KEY=VALUE
        inside = list(value.values()) if isinstance(value, dict) else value
        for one in inside if isinstance(inside, list) else [inside]:
            need(not isinstance(one, dict | list), key)
            need(not isinstance(one, float) or math.isfinite(one), key)
            need(isinstance(one, bool) == isinstance(default, bool), key)
            need(not (isinstance(default, int) and isinstance(one, float)), key)
    return flat


# Scorecards and bake-offs


def _row(j: int) -> TagRow:
    return TagRow(f"tag{j}", "tail", 9 + j, j, j, 1, 2, 3, 0.5, 0.25, math.nan, 0.125, math.inf,
                  low_support=True)  # fmt: skip


def card(model: str = "demo:cnn · probe", f1: float = 0.5) -> ScoreCard:
    scopes = ("all", "tail", "common", "frequent")
    figures = (f1, 0.4, 0.6, 0.5, 0.5, 0.5)
    summaries = {s: GroupSummary(s, 2, 1, *figures, macro_f1_population=f1) for s in scopes}
    return ScoreCard(
        model=model,
        split="test",
        n_images=8,
        n_products=4,
        tags=(_row(0), _row(1)),
        summaries=summaries,
        micro_f1=0.5,
        macro_f1_sklearn=0.25,
        samples=SampleScores(8, 0, *[0.5] * 6),
        findings=(Finding("undefined-tags", "One tag has none.", "Collect some."),),
        provenance={"seed": 0, "catalog": {"digest": "ab"}},
        assignments=(AssignmentRow("colour", "independent", 2, 0.5, 0.5, 0.5, 8, 0.75),),
    )


def make_card(folder: Path) -> None:
    card().save(folder)


def make_bakeoff(folder: Path) -> None:
    t4 = T4Cost((1.0, 0.5, 2.0), (9.0,), (8.0,), (7.0,), {"1": 1.5})
    cost = PairCost(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7, 8.0, 3.5, 4.5, (3.9, 4.1), {"decode": 0.5},
                    1, 0.25, math.nan, {"float32": t4})  # fmt: skip
    pairs = [
        PairResult("demo:cnn", strategy, card(f"demo:cnn · {strategy}", f1), cost)
        for strategy, f1 in (("probe", 0.5), ("finetune", 0.6))
    ]
    comparisons = [
        Comparison(pairs[0].name, pairs[1].name, scope, Difference(-0.1, -0.2, 0.1, 0.05))
        for scope in ("all", "tail")
    ]
    facts = {"name": "shop.csv", "digest": "ab", "images": {"train": 9, "val": 0, "test": 8},
             "tags": 2}  # fmt: skip
    names = pairs[0].name, pairs[1].name
    families = FamilyComparison(
        (Member("supervised", names[1], "only pair", names[:1]),),
        (BinDifference("strategies", "F1", *names, 10, 19, 2, 0.1, 0.0, 0.2, 0.04, 0.08),),
        (OwnedTag("tag1", "supervised", 10, 4, 0.9, 0.1, 0.01),), 1,
        (TextGain("demo:clip", 50, -1, 2, 0.3, 0.4, 0.05, 0.15),), ("demo:cnn",),
    )  # fmt: skip
    result = BakeoffResult(
        facts, tuple(pairs), tuple(comparisons), {"processor": "x"}, "bakeoff", 0,
        (Finding("threads", "One.", "Two."),), Rule(90.0, tail_weight=0.25),
        (("demo:cnn", "small"),), families, names[1],
    )  # fmt: skip
    write_json(folder / "bakeoff.json", result.to_json())


def read_card(folder: Path) -> Any:
    return ScoreCard.load(folder).to_json()


def read_bakeoff(folder: Path) -> Any:
    """The result, and the folder of the pair that it recommends."""
    pair, _ = recommended_folder(folder)
    need(pair.is_relative_to(folder))
    return BakeoffResult.load(folder / "bakeoff.json").to_json()


# Fields that files of earlier versions lack.
_NUMBERS = ("f1_low", "f1_high", "f1_oracle", "macro_f1_sklearn", "macro_f1_oracle", "brier",
            "calibration_error", "macro_f1_population", "p", "p_holm", "latency_ms_low",
            "latency_ms_high", "probe_seconds", "finetune_seconds")  # fmt: skip
DEFAULTS = {
    **dict.fromkeys(_NUMBERS), **plain(asdict(Rule())), **plain(asdict(NO_FAMILIES)),
    "latency_ms_turns": [], "latency_ms_stages": {}, "latency_group": 0, "t4": {},
    "is_measured": False, "others": [], "names": [], "families": plain(asdict(NO_FAMILIES)),
    ".rule": plain(asdict(Rule())), "rule": "given", "n_never_predicted": 0, "findings": [],
    "test": "", "recommended": "",
    "provenance": {}, "assignment": "independent", "assignments": [],
    "samples": plain(asdict(NO_SAMPLES)),
}  # fmt: skip
NAMED = (".summaries", ".latency_ms_stages", ".t4", ".predicted_here")  # keys of any name


def like(value: Any, sound: Any, place: str = "") -> Any:
    """The value if it has the form of a sound one: same keys, kinds and kinds of elements."""
    if isinstance(sound, Mapping):
        free = place.endswith((".provenance", ".catalog", ".machine"))
        need(isinstance(value, dict), place)
        if free:
            return value
        named = place.endswith(NAMED)
        known = value if named else sound
        need(named or sound.keys() <= {*value, *DEFAULTS}, place)
        example = next(iter(sound.values()))
        return {
            k: like(value[k], example if named else sound[k], f"{place}.{k}")
            if k in value
            else DEFAULTS.get(f"{place}.{k}", DEFAULTS[k])
            for k in known
        }
    if isinstance(sound, list):
        need(isinstance(value, list), place)
        return [like(one, sound[0], place) for one in value] if sound else value
    if isinstance(sound, bool) or (isinstance(sound, str) and sound not in ("inf", "-inf")):
        need(type(value) is type(sound), place)
        return value
    if isinstance(sound, int):
        need(type(value) is int, place)
        return value
    number = value if value in (None, "inf", "-inf") else float(value)
    need(type(value) in (int, float) or value in (None, "inf", "-inf"), place)
    need(not isinstance(number, float) or math.isfinite(number), place)
    return number


def second_json(name: str) -> Callable[[Path], Any]:
    """The content in the form that its dataclasses give it, judged by a sound file."""
    sound: dict[str, Any] = {}

    def read(folder: Path) -> Any:
        value = strict_json((folder / name).read_bytes())
        if not sound:
            sound.update(value)
        need(value["format"] == sound["format"])
        return like(value, sound)

    return read


# Records of runs


def make_stage(folder: Path) -> None:
    (folder / "out.txt").write_text("x", encoding="utf-8")
    inputs = {"catalog": "ab", "settings": {"seed": 0}}
    write_record(folder, ["out.txt"], inputs, StageCost(1.5, 20.0), facts={"n": 3})


def read_stage(folder: Path) -> Any:
    record = read_record(folder)
    return record and vars(record)


def digest_of(value: Any) -> str:
    """SHA-256 of JSON as it is written."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(f"{text}\n".encode()).hexdigest()


def bind_stage(folder: Path) -> None:
    value = json.loads((folder / "stage.json").read_bytes())
    if value.pop("sha256", None):
        write_json(folder / "stage.json", {**value, "sha256": digest_of(value)})


def second_stage(folder: Path) -> Any:
    value = strict_json((folder / "stage.json").read_bytes())
    digest = value.pop("sha256", None)
    need(digest in (None, digest_of(value)))
    need(value.pop("format") == 1)
    value.setdefault("facts", {})
    value.setdefault("machine", {})
    names = ("inputs", "outputs", "facts", "machine")
    need(value.keys() == {*names, "seconds", "peak_memory_mib"})
    need(all(isinstance(value[name], dict) for name in names))
    need(all(isinstance(v, str) for v in value["outputs"].values()))
    need(all(type(value[name]) in (int, float) for name in ("seconds", "peak_memory_mib")))
    return value


def make_log(folder: Path) -> None:
    log = JsonLines(folder / "log.jsonl")
    log.settings({"lr": 0.1})
    for step in range(1, 6):
        log.metrics(step, {"loss": 1 / step})
    log.close()


def read_log(folder: Path) -> Any:
    """What a training that continues at step 3 keeps, with its own line."""
    log = JsonLines(folder / "log.jsonl", resume_at=3)
    log.settings({"lr": 0.1})
    log.metrics(4, {"loss": np.float32(0.5)})
    log.close()
    return [json.loads(line) for line in (folder / "log.jsonl").read_bytes().splitlines()]


def second_log(folder: Path) -> Any:
    """Whole lines of settings, and of steps up to 3; then what is written anew."""
    kept: list[Any] = []
    for line in (folder / "log.jsonl").read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if line.endswith(b"\n") and isinstance(row, dict):
            step = row.get("step", 0)
            if type(step) in (int, float) and step <= 3:
                kept.append(row)
    settings = [row.get("settings") for row in kept]
    kept += [] if {"lr": 0.1} in settings else [{"settings": {"lr": 0.1}}]
    return [*kept, {"step": 4, "loss": 0.5}]


def make_ledger(folder: Path) -> None:
    record_scored("ab", "test", ["p1", "p2"], folder)
    record_scored("cd", "test", ["p1"], folder)


def read_ledger(folder: Path) -> Any:
    return record_scored("ab", "test", ["p3"], folder)


def second_ledger(folder: Path) -> Any:
    """Distinct predictions of the same catalogue and split, the new one among them."""
    text = (folder / "scored.jsonl").read_bytes().decode(errors="replace")
    lines = [line.encode(errors="surrogatepass") for line in text.splitlines()]
    found = {"p3"}
    for line in lines:
        try:
            need(line.count(b"[") + line.count(b"{") <= 100, "depth")
            row = strict_json(line)
            if (row["catalogue"], row["split"]) == ("ab", "test"):
                found.add(str(row["predictions"]))
        except (ValueError, LookupError, TypeError, RecursionError, Refusal):
            continue
    return len(found)


FORMATS = (
    Format("settings.toml", make_settings, {"*.toml": of_toml}, read_toml, second_toml),
    Format(
        "scorecard.json",
        make_card,
        {"scorecard.json": of_json},
        read_card,
        second_json("scorecard.json"),
    ),
    Format(
        "bakeoff.json",
        make_bakeoff,
        {"bakeoff.json": of_json},
        read_bakeoff,
        second_json("bakeoff.json"),
    ),
    Format(
        "stage.json",
        make_stage,
        {"stage.json": of_json},
        read_stage,
        second_stage,
        bind=bind_stage,
    ),
    Format("log.jsonl", make_log, {"log.jsonl": of_json_lines}, read_log, second_log),
    Format(
        "scored.jsonl", make_ledger, {"scored.jsonl": of_json_lines}, read_ledger, second_ledger
    ),
)
