"""The study of defaults: the test split is never read, rows are computed once, means are right."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import retailtag as rt

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import defaults

    return defaults


def ids(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8") as file:
        return {row["image_id"]: row["group"] for row in csv.DictReader(file)}


def test_only_training_images_are_read_and_products_stay_whole(study, small_csv, tmp_path):
    whole = rt.read_catalog(small_csv)
    allowed = {str(i) for i in whole.image_ids[whole.rows("train")]}
    path, n_images = study.inner_split(small_csv, None, 0, tmp_path)
    assert ids(path).keys() == allowed
    assert n_images == len(allowed)
    inner = rt.read_catalog(path, images=[str(small_csv.parent)])
    train, test = ({*inner.group[inner.rows(name)]} for name in ("train", "test"))
    assert train
    assert test
    assert not train & test
    assert not any("whole" in p.name for p in tmp_path.iterdir())


def test_a_part_has_whole_products(study, small_csv, tmp_path):
    everything = ids(study.inner_split(small_csv, None, 0, tmp_path)[0])
    path, n_images = study.inner_split(small_csv, 20, 0, tmp_path)
    part = ids(path)
    assert 20 <= n_images == len(part) < len(everything)
    assert part == {i: group for i, group in everything.items() if group in {*part.values()}}


class Stub:
    """Rows without fits, with every one that was asked for."""

    def __init__(self, study):
        self.study = study
        self.asked = []

    def __call__(self, bench, setting):
        self.asked.append((bench.backbone, bench.seed, setting))
        if setting == "refit" and self.asked.count(self.asked[-1]) == 1 and not bench.seed:
            raise KeyboardInterrupt  # in the middle of a study
        number = len(setting) + bench.seed
        return {
            "date": "", "revision": "", "cpu": "", "cores": "", **bench.key(setting),
            "head": "knn", "tail_cross_fit_gain": "-0.01" if bench.seed else "0.01",
            "best_epoch": "", "macro_f1": number / 100, "tail_macro_f1": "", "macro_ap": 0.5,
            "tail_macro_ap": "", "micro_f1": 0.5, "seconds": 10.0,
        }  # fmt: skip


def test_an_interrupted_study_computes_no_row_twice(
    study, small_csv, tmp_path, monkeypatch, capsys
):
    stub = Stub(study)

    def row(bench, setting):
        return stub(bench, setting)

    monkeypatch.setattr(study.Bench, "row", row)
    monkeypatch.setattr(study.Bench, "extract", lambda bench: None)
    monkeypatch.setattr(study, "_lacks_start", lambda *_: False)
    table = tmp_path / "defaults.csv"
    command = ["--catalogue", str(small_csv), "--backbones", "demo:cnn", "--seeds", "0", "1"]
    command += ["--out", str(tmp_path / "out"), "--table", str(table)]
    with pytest.raises(KeyboardInterrupt):
        study.main(command)
    n_before = len(study.rows_of(table))
    study.main(command)
    rows = study.rows_of(table)
    assert 0 < n_before < len(rows) == 2 * len(study.SETTINGS)
    twice = [key for key in stub.asked if stub.asked.count(key) > 1]
    assert {key[2] for key in twice} == {"refit"}
    study.main(command)
    assert study.rows_of(table) == rows

    by_key = {(row["seed"], row["setting"]): row for row in rows}
    for seed, source in (("0", study.ALL), ("1", study.LOGISTIC)):
        kept = by_key[seed, study.KEPT]
        assert kept["macro_f1"] == by_key[seed, source]["macro_f1"]
    said = capsys.readouterr().out.splitlines()
    line = next(line for line in said if line.startswith("augment=cached:4"))
    assert line.split()[2:] == ["2", f"{len('augment=cached:4') - len('finetune'):+.1f}",
                                "+0.0", "+0.0", "1.00", "times"]  # fmt: skip


def test_differences_of_three_pairs_have_a_standard_error(study):
    pairs = [({"macro_f1": a}, {"macro_f1": b}) for a, b in ((0.5, 0.4), (0.4, 0.4), (0.6, 0.4))]
    assert study._difference(pairs, "macro_f1") == "+10.0 (5.8)"
    assert study._difference([({"macro_f1": ""}, {"macro_f1": "0.1"})], "macro_f1") == ""


def test_a_probe_and_a_fine_tune_are_fitted_and_scored(study, small_csv, tmp_path, monkeypatch):
    one = {"heads": "logistic", "sweep_C": "0.1", "folds": 2}
    monkeypatch.setitem(study.PROBES, study.LOGISTIC, one)
    table = tmp_path / "defaults.csv"
    inner, n_images = study.inner_split(small_csv, None, 0, tmp_path)
    bench = study.Bench(
        inner, "small", small_csv.parent, n_images, "demo:cnn", 0, tmp_path, table, (), 1
    )
    bench.extract()
    study.measure(bench, ["finetune"])
    rows = study.rows_of(table)
    assert [row["setting"] for row in rows] == [study.LOGISTIC, "finetune"]
    for row in rows:
        assert 0 <= float(row["macro_f1"]) <= 1
        assert float(row["seconds"]) > 0
