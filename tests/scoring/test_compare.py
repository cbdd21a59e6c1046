import json
import math
from dataclasses import replace

import numpy as np
import pytest

from retailtag.errors import DataError, UsageError
from retailtag.scoring.aligned import align, product_counts
from retailtag.scoring.compare import (
    NORMAL,
    SWAP,
    Comparison,
    hold_contest,
)
from retailtag.scoring.files import compare_files, score_files
from retailtag.scoring.jackknife import jackknife, variance_of
from retailtag.scoring.score import score_predictions
from retailtag.scoring.strict_json import parsed


def compare_predictions(models, catalog, **options):
    return hold_contest({n: [p] for n, p in models.items()}, catalog, **options).comparisons


def test_differences_are_those_of_the_scorecards(catalog, predict):
    models = {"good": predict(catalog, 1, 3.0), "poor": predict(catalog, 2, 0.5)}
    found = compare_predictions(models, catalog, n_bootstrap=40)
    cards = {n: score_predictions(p, catalog) for n, p in models.items()}
    assert [(c.a, c.b, c.scope) for c in found] == [
        ("good", "poor", "all"),
        ("good", "poor", "tail"),
    ]
    for c in found:
        a, b = (cards[n].summaries[c.scope].macro_f1_population for n in (c.a, c.b))
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
        assert parsed(Comparison, json.loads(json.dumps(c.to_json()))) == c


def test_a_clear_winner_is_ahead_and_equals_are_tied(catalog, predict):
    models = {"good": predict(catalog, 1, 4.0), "poor": predict(catalog, 2, 0.0)}
    (every, _) = compare_predictions(models, catalog, n_bootstrap=100)
    assert every.test == SWAP
    assert every.p == every.p_holm == 1 / 2001
    assert (every.verdict, every.reversed().verdict) == ("ahead", "behind")
    same = {"a": models["good"], "b": models["good"]}
    assert {c.verdict for c in compare_predictions(same, catalog, n_bootstrap=50)} == {"tie"}
    assert {c.p for c in compare_predictions(same, catalog, n_bootstrap=50)} == {1.0}


def test_a_tie_needs_both_the_interval_and_the_adjusted_p(catalog, predict):
    models = {"good": predict(catalog, 1, 4.0), "poor": predict(catalog, 2, 0.0)}
    (c, _) = compare_predictions(models, catalog, n_bootstrap=100)
    assert replace(c, p_holm=0.06).verdict == "tie"
    assert replace(c, p_holm=math.nan).verdict == "tie"
    assert replace(c, difference=replace(c.difference, low=-0.1)).verdict == "tie"
    assert replace(c, p_holm=math.nan, test="").verdict == "ahead"


def test_many_models_keep_their_verdicts(catalog, predict):
    """The smallest p grows with the pairs that Holm counts, so the swaps grow with them."""
    models = {str(k): predict(catalog, k, 0.2) for k in range(7)} | {"good": predict(catalog, 9, 6)}
    found = compare_predictions(models, catalog, n_bootstrap=30, n_permutations=100)
    against = [c for c in found if c.scope == "all" and c.b == "good"]
    assert {c.verdict for c in against} == {"behind"}


def test_p_is_adjusted_within_a_scope(catalog, predict):
    models = {name: predict(catalog, seed, 0.2 * seed) for seed, name in enumerate("abcd")}
    found = compare_predictions(models, catalog, n_bootstrap=20)
    for scope in ("all", "tail"):
        inside = [c for c in found if c.scope == scope]
        smallest = min(inside, key=lambda c: c.p)
        assert smallest.p_holm == pytest.approx(min(1, len(inside) * smallest.p))


def test_standings_rank_by_the_population_and_share_out_the_first_place(catalog, predict):
    models = {name: (predict(catalog, k, skill),) for k, (name, skill) in
              enumerate({"poor": 0.0, "good": 3.0, "fair": 2.5}.items())}  # fmt: skip
    contest = hold_contest(models, catalog, n_bootstrap=200)
    every = [s for s in contest.standings if s.scope == "all"]
    estimates = [s.macro_f1_population for s in every]
    assert estimates == sorted(estimates, reverse=True)
    assert every[-1].model == "poor"
    assert sum(s.p_best for s in every) == pytest.approx(1)
    for s in every:
        assert math.isnan(s.seed_sd)
        card = score_predictions(models[s.model][0], catalog).summaries["all"]
        shown = (s.macro_f1_population, s.low, s.high, s.macro_f1)
        assert shown == pytest.approx(
            (card.macro_f1_population, card.macro_f1_low, card.macro_f1_high, card.macro_f1)
        )


def test_seeds_are_a_second_source_of_variance(catalog, predict):
    runs = [predict(catalog, k, 1.5) for k in range(3)]
    other = predict(catalog, 9, 1.0)
    contest = hold_contest({"seeded": runs, "one": [other]}, catalog, n_bootstrap=50)
    counts = [product_counts(align(p, catalog, "test"), catalog) for p in (*runs, other)]
    mask = counts[0].positives.sum(axis=0) > 0
    jacks = [jackknife(c, mask[None]) for c in counts]
    cards = [score_predictions(p, catalog).summaries["all"].macro_f1_population for p in runs]
    changes = np.mean([j.deviations[0] for j in jacks[:3]], axis=0) - jacks[3].deviations[0]
    alone = jacks[0].single & mask
    apart = np.mean([j.f1[alone] for j in jacks[:3]], axis=0) - jacks[3].f1[alone]
    images = variance_of(changes) + (apart**2).sum() / mask.sum() ** 2
    seeds = np.var(cards, ddof=1) / 3
    c = contest.comparisons[0]
    assert c.test == NORMAL
    assert c.difference.standard_error == pytest.approx(math.sqrt(images + seeds))
    assert c.p == pytest.approx(
        math.erfc(abs(c.difference.value) / c.difference.standard_error / math.sqrt(2))
    )
    standing = next(s for s in contest.standings if s.model == "seeded")
    assert standing.n_seeds == 3
    assert standing.macro_f1_population == pytest.approx(np.mean(cards))
    assert standing.seed_sd == pytest.approx(np.std(cards, ddof=1))


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


def test_models_are_compared_under_the_assignment(catalog, predict):
    table = replace(catalog.table, tags=("a:1", "a:2", "a:3", "b", "c", "d"), exclusive=("a",))
    shop = replace(catalog, table=table)
    models = {"good": predict(shop, 1, 3.0), "poor": predict(shop, 2, 0.5)}
    (found, *_) = compare_predictions(models, shop, n_bootstrap=20, assignment="exactly-one")
    cards = [score_predictions(p, shop, assignment="exactly-one") for p in models.values()]
    a, b = (card.summaries["all"].macro_f1_population for card in cards)
    assert found.difference.value == pytest.approx(a - b)


def kept(predict, catalog, **changes):
    """A probe, a fine-tune that kept it (its logits differ by rounding), and another model."""
    probe = predict(catalog, 1, 3.0, provenance={"backbone": "demo:cnn", "strategy": "probe"})
    facts = {"backbone": "demo:cnn", "strategy": "finetune", "is_probe": True, **changes}
    copy = replace(probe, logits=probe.logits + 1e-6, provenance=facts)
    other = predict(catalog, 2, 2.9, provenance={"backbone": "demo:dino", "strategy": "probe"})
    return [probe, copy, other]


def compared(models, catalog, folder, **options):
    paths = []
    for k, model in enumerate(models):
        paths.append(folder / f"{k}.npz")
        model.save(paths[-1])
    return compare_files(
        paths, lambda path: catalog, out=folder / "pairs.csv", catalog=folder, **options
    )


def test_a_fine_tune_that_kept_its_probe_counts_as_the_probe(catalog, predict, tmp_path):
    made = compared(kept(predict, catalog), catalog, tmp_path, n_bootstrap=50)
    every = [s for s in made.contest.standings if s.scope == "all"]
    assert {s.model for s in every} == {"demo:cnn · probe", "demo:dino · probe"}
    assert sum(s.p_best for s in every) == pytest.approx(1)
    (finding,) = (f for f in made.findings if f.code == "same-model")
    assert finding.sentence.startswith(
        "demo:cnn · finetune kept its probe: it is the same model as"
    )
    assert "finetune" not in (tmp_path / "pairs.csv").read_text()


def test_what_is_not_that_probe_counts_on_its_own(catalog, predict, tmp_path):
    models = kept(predict, catalog)
    trained = replace(models[1], provenance={**models[1].provenance, "is_probe": False})
    retuned = replace(models[1], thresholds=models[1].thresholds + 1)
    elsewhere = replace(models[1], provenance={**models[1].provenance, "features": "other"})
    for k, other in enumerate((trained, retuned, elsewhere)):
        folder = tmp_path / str(k)
        folder.mkdir()
        made = compared([models[0], other], catalog, folder, n_bootstrap=20)
        assert len([s for s in made.contest.standings if s.scope == "all"]) == 2
        assert not any(f.code == "same-model" for f in made.findings)


def test_a_probe_and_its_copy_alone_are_one_model_without_a_rival(catalog, predict, tmp_path):
    made = compared(kept(predict, catalog)[:2], catalog, tmp_path, n_bootstrap=20)
    assert {(s.model, s.p_best) for s in made.contest.standings} == {("demo:cnn · probe", 1.0)}
    assert made.contest.comparisons == ()
    assert [f.code for f in made.findings] == ["same-model"]
    assert (tmp_path / "pairs.csv").read_text().count("\n") == 1


def test_short_names_are_checked_before_anything_is_compared(catalog, predict, tmp_path):
    models = kept(predict, catalog)
    made = compared(models, catalog, tmp_path, n_bootstrap=20, names=["mine=demo:cnn"])
    assert made.names == {"demo:cnn": "mine"}
    (tmp_path / "pairs.csv").unlink()
    with pytest.raises(UsageError, match="demo:clip is not compared here"):
        compared(models, catalog, tmp_path, names=["mine=demo:clip"])
    assert not (tmp_path / "pairs.csv").exists()


def test_replicates_are_centred_on_the_estimate(catalog, predict):
    """A model that gives tags more often is no surer of being best for it."""
    models = {"a": (predict(catalog, 1, 2.0),), "b": (predict(catalog, 1, 2.0),)}
    assert {s.p_best for s in hold_contest(models, catalog, n_bootstrap=50).standings} == {0.5}


def test_being_best_is_no_surer_than_the_interval_of_the_difference(catalog, predict):
    models = {"a": (predict(catalog, 1, 1.5),), "b": (predict(catalog, 2, 1.2),)}
    contest = hold_contest(models, catalog, n_bootstrap=4000)
    for c in contest.comparisons:
        d = c.difference
        normal = math.erfc(-d.value / d.standard_error / math.sqrt(2)) / 2
        best = {s.model: s.p_best for s in contest.standings if s.scope == c.scope}
        assert abs(best["a"] - 0.5) <= abs(normal - 0.5) + 0.03
