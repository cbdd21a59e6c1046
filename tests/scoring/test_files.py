"""Finding predictions, grouping seeds, and the table of pairs."""

import csv
from dataclasses import replace

import pytest

from retailtag.errors import DataError, SplitOverlap, UsageError
from retailtag.scoring.files import compare_files, find_predictions, seed_groups

FACTS = {"backbone": "demo:cnn", "strategy": "finetune", "catalog_digest": "d", "catalog": "c.csv"}


def run_of(predict, catalog, seed, epochs=5, **facts):
    settings = {"seed": seed, "epochs": epochs}
    return predict(catalog, seed, provenance={**FACTS, **facts, "settings": settings})


@pytest.fixture
def runs(catalog, predict, tmp_path):
    """A bake-off's folder: three seeds of one fine-tune, and a probe."""
    for seed in range(3):
        run_of(predict, catalog, seed).save(tmp_path / f"run/cnn/seed{seed}/predictions.npz")
    facts = {"strategy": "probe", "backbone": "=demo"}
    run_of(predict, catalog, 7, **facts).save(tmp_path / "run/cnn/probe/predictions.npz")
    return tmp_path / "run"


def test_files_folders_and_bakeoffs_are_found_in_order(runs):
    found = find_predictions([runs])
    assert [p.parent.name for p in found] == ["probe", "seed0", "seed1", "seed2"]
    one = runs / "cnn/seed1"
    assert find_predictions([one]) == find_predictions([one / "predictions.npz"])
    assert find_predictions([runs / "cnn/seed2", one])[0].parent.name == "seed2"


def test_nothing_and_twice_are_refused(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no predictions\.npz"):
        find_predictions([tmp_path / "empty"])
    with pytest.raises(UsageError, match="named twice"):
        find_predictions([runs, runs / "cnn/probe"])


def test_runs_that_differ_in_their_seed_alone_are_one_model(catalog, predict):
    three = [run_of(predict, catalog, s) for s in range(3)]
    other = [run_of(predict, catalog, s, epochs=9) for s in (0, 1)]
    names = [f"m{k}" for k in range(5)]
    assert seed_groups(three, names[:3]) == {"demo:cnn · finetune (3 seeds)": [0, 1, 2]}
    assert list(seed_groups([*three, *other], names).values()) == [[0, 1, 2], [3, 4]]
    assert len(seed_groups([*three, *other], names)) == 2


def test_other_data_or_the_same_seed_again_is_no_second_seed(catalog, predict):
    one, two = (run_of(predict, catalog, s) for s in (0, 1))
    elsewhere = replace(two, provenance={**two.provenance, "catalog_digest": "e"})
    assert seed_groups([one, elsewhere], ["a", "b"]) == {"a": [0], "b": [1]}
    assert seed_groups([one, one], ["a", "b"]) == {"a": [0], "b": [1]}
    unknown = predict(catalog)
    assert seed_groups([unknown, unknown], ["a", "b"]) == {"a": [0], "b": [1]}


def test_pairs_are_written_safe_for_spreadsheets(runs, catalog, tmp_path):
    out = tmp_path / "pairs.csv"
    compared = compare_files([runs], lambda path: catalog, out=out, n_bootstrap=50)
    assert len(compared.digests) == 4
    with out.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [r["scope"] for r in rows] == ["all", "tail"]
    assert rows[0]["a"] == "'=demo · probe"
    assert rows[0]["b"] == "demo:cnn · finetune (3 seeds)"
    c = compared.contest.comparisons[0]
    assert float(rows[0]["difference"]) == pytest.approx(c.difference.value, rel=1e-5)
    assert float(rows[0]["p_holm"]) == pytest.approx(c.p_holm, rel=1e-5)
    assert rows[0]["verdict"] == c.verdict
    assert rows[0]["test"] == "normal, images and seeds"


def test_models_fitted_with_other_threads_are_told(catalog, predict, tmp_path):
    counts = {"one": [1], "two": [2], "unknown": None}
    for name, threads in counts.items():
        run_of(predict, catalog, 0, backbone=name, threads=threads).save(tmp_path / f"{name}.npz")

    def findings(*names):
        files = [tmp_path / f"{name}.npz" for name in names]
        out = tmp_path / "pairs.csv"
        return compare_files(files, lambda path: catalog, out=out, n_bootstrap=50).findings

    assert findings("one", "unknown") == ()
    (finding,) = findings(*counts)
    assert "(one · finetune: 1, two · finetune: 2)" in finding.sentence
    assert "OMP_NUM_THREADS" in finding.remedy


def test_what_cannot_be_compared_is_refused(runs, catalog, predict, tmp_path):
    out = tmp_path / "pairs.csv"
    one = runs / "cnn/probe"
    with pytest.raises(UsageError, match="only one model"):
        compare_files([one], lambda path: catalog, out=out)
    leaking = run_of(predict, catalog, 1, strategy="leak")
    leaking = replace(leaking, fitted_ids=catalog.image_ids)
    leaking.save(tmp_path / "leak.npz")
    with pytest.raises(SplitOverlap):
        compare_files([one, tmp_path / "leak.npz"], lambda path: catalog, out=out)
    elsewhere = predict(catalog, 2, provenance={"strategy": "other", "catalog": "d.csv"})
    elsewhere.save(tmp_path / "d.npz")
    flipped = catalog.with_split(catalog.split[::-1].copy())
    with pytest.raises(UsageError, match="several catalogues"):
        compare_files(
            [one, tmp_path / "d.npz"],
            lambda path: catalog if path.name == "c.csv" else flipped,
            out=out,
        )
    assert not out.exists()
