import json
from dataclasses import replace

import pytest

from retailtag.errors import DataError, UsageError
from retailtag.scoring.compare import Comparison, compare_predictions
from retailtag.scoring.files import score_files
from retailtag.scoring.score import score_predictions


def test_differences_are_those_of_the_scorecards(catalog, predict):
    models = {"good": predict(catalog, 1, 3.0), "poor": predict(catalog, 2, 0.5)}
    found = compare_predictions(models, catalog, n_bootstrap=40)
    cards = {n: score_predictions(p, catalog, n_bootstrap=40) for n, p in models.items()}
    assert [(c.a, c.b, c.scope) for c in found] == [
        ("good", "poor", "all"),
        ("good", "poor", "tail"),
    ]
    for c in found:
        a, b = (cards[n].summaries[c.scope].macro_f1 for n in (c.a, c.b))
        assert c.difference.value == pytest.approx(a - b)
    assert not found[0].difference.is_tie
    assert found[0].difference.detectable == pytest.approx(
        2.802 * found[0].difference.standard_error
    )


def test_every_pair_once(catalog, predict):
    models = {name: predict(catalog, seed) for seed, name in enumerate("abc")}
    found = compare_predictions(models, catalog, n_bootstrap=10)
    assert [(c.a, c.b) for c in found if c.scope == "all"] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert compare_predictions({"a": models["a"]}, catalog) == ()


def test_json_round_trip(catalog, predict):
    models = {"a": predict(catalog, 1), "b": predict(catalog, 2)}
    for c in compare_predictions(models, catalog, n_bootstrap=10):
        assert Comparison.from_json(json.loads(json.dumps(c.to_json()))) == c


def test_models_that_lack_different_images_are_refused(catalog, predict):
    whole = predict(catalog)
    fewer = replace(whole, image_ids=whole.image_ids[1:], logits=whole.logits[1:])
    with pytest.raises(DataError, match="a and b have predictions for different images"):
        compare_predictions({"a": whole, "b": fewer}, catalog, allow_missing=True)


def test_files_are_scored_and_compared(catalog, predict, tmp_path):
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for seed, path in enumerate(paths):
        provenance = {"backbone": f"demo:{seed}", "strategy": "probe", "catalog": "c.csv"}
        predict(catalog, seed, provenance=provenance).save(path)
    reads = []

    def read(path, **how):
        reads.append((path.name, how))
        return catalog

    scored = score_files(paths, read, n_bootstrap=10)
    assert reads == [("c.csv", {})]
    assert [f.name for f in scored.folders] == ["a.test", "b.test"]
    assert (tmp_path / "a.test" / "scorecard.json").exists()
    assert len(scored.comparisons) == 2
    assert scored.comparisons[0].a == scored.cards[0].model == "demo:0 · probe"


def test_files_of_one_model_get_names_of_their_own(catalog, predict, tmp_path):
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in paths:
        predict(catalog).save(path)
    scored = score_files(
        paths, lambda path: catalog, catalog=tmp_path, out=tmp_path / "out", n_bootstrap=5
    )
    assert len({card.model for card in scored.cards}) == 2
    assert len(set(scored.folders)) == 2


def test_nothing_is_written_when_one_file_cannot_be_scored(catalog, predict, tmp_path):
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    predict(catalog).save(good)
    predict(catalog, fitted_ids=catalog.image_ids).save(bad)
    with pytest.raises(Exception, match="fitted on 120 images"):
        score_files([good, bad], lambda path: catalog, catalog=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npz", "good.npz"]


def test_a_catalogue_must_be_known(catalog, predict, tmp_path):
    path = tmp_path / "a.npz"
    predict(catalog).save(path)
    with pytest.raises(UsageError, match="--catalog"):
        score_files([path], lambda path: catalog)
    with pytest.raises(UsageError, match="twice"):
        score_files([path, path], lambda path: catalog)
