"""Score predictions files: read them and their catalogue, write scorecards, compare models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from retailtag.backbones.names import given_names
from retailtag.catalog.catalog import Catalog
from retailtag.errors import DataError, UsageError
from retailtag.files import slug, write_text
from retailtag.lock import only_writer
from retailtag.predictions import Predictions
from retailtag.remote import as_path
from retailtag.scoring.bootstrap import N_REPLICATES
from retailtag.scoring.compare import Comparison, Contest, hold_contest
from retailtag.scoring.csvs import csv_text
from retailtag.scoring.finding import Finding
from retailtag.scoring.findings import same_model, several_threads
from retailtag.scoring.permutation import PERMUTATIONS
from retailtag.scoring.score import (
    model_name,
    predictions_digest,
    refuse_overlap,
    score_predictions,
)
from retailtag.scoring.scorecard import ScoreCard
from retailtag.statistics.exclusive import INDEPENDENT

ReadCatalog = Callable[..., Catalog]
PREDICTIONS = "predictions.npz"
PAIR_COLUMNS = (
    *("a", "b", "scope", "difference", "low", "high", "standard_error", "detectable"),
    *("p", "p_holm", "test", "verdict"),
)
# Runs of one model agree in these, and in their settings but for the seed.
SETTINGS_OF_A_MODEL = ("backbone", "strategy", "catalog_digest", "features", "model", "stored_as")


@dataclass(frozen=True)
class ScoredFiles:
    """Scorecards of predictions files, in the order given, and where they were written."""

    cards: tuple[ScoreCard, ...]
    folders: tuple[Path, ...]
    comparisons: tuple[Comparison, ...]  # empty for one file, or for several catalogues
    digests: tuple[tuple[str, str], ...]  # of the catalogue and the predictions behind each card
    names: Mapping[str, str]  # short names that were given, by backbone id


@dataclass(frozen=True)
class ComparedFiles:
    """Ranking and pairs of files; digests as in `ScoredFiles`."""

    contest: Contest
    digests: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    names: Mapping[str, str]


def find_predictions(paths: Sequence[Path]) -> list[Path]:
    """Predictions files named by a user, in that order.

    A path is a file, a folder that holds a ``predictions.npz``, or a folder of a bake-off, which
    gives every pair, sorted by name. `DataError` if a folder holds none, `UsageError` if a file is
    named twice.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
        elif (path / PREDICTIONS).is_file():
            found.append(path / PREDICTIONS)
        else:
            below = sorted(path.rglob(PREDICTIONS))
            if not below:
                raise DataError(f"{path} holds no {PREDICTIONS}; name the folder of a run.")
            found += below
    twice = [path for path, n in Counter(p.resolve() for p in found).items() if n > 1]
    if twice:
        raise UsageError(f"A predictions file is named twice ({twice[0]}); name each once.")
    return found


def score_files(
    paths: Sequence[Path],
    read: ReadCatalog,
    *,
    catalog: Path | None = None,
    split: str = "test",
    out: Path | None = None,
    n_bootstrap: int = N_REPLICATES,
    seed: int = 0,
    allow_missing: bool = False,
    assignment: str = INDEPENDENT,
    loaded: Mapping[Path, Predictions] | None = None,
    names: Sequence[str] = (),
) -> ScoredFiles:
    """Score every predictions file on one split and write its scorecard.

    `paths` are as `find_predictions` takes them, or keys of `loaded`, predictions made from files
    of other tools. ``read(catalog)`` reads the catalogue; by default it is read where and how
    each predictions file records it, and `UsageError` is raised if one records none. Each
    scorecard goes to a folder of its model in `out`, by default beside its predictions, in
    ``NAME.SPLIT``. Nothing is written unless every file can be scored. `names` are texts
    ``NAME=ID``, see `retailtag.backbones.names.given_names`. The rest is as in
    `retailtag.scoring.compare.hold_contest`.
    """
    paths = find_predictions(paths)
    models = [(loaded or {}).get(path) or Predictions.load(path) for path in paths]
    given = given_names(names, _backbones(models))
    model_names = _distinct_names(paths, models)
    catalogs = _catalogs(paths, models, read, catalog)
    cards = tuple(
        score_predictions(
            p, c, split=split, allow_missing=allow_missing, name=name, assignment=assignment
        )
        for p, c, name in zip(models, catalogs, model_names, strict=True)
    )
    comparisons: tuple[Comparison, ...] = ()
    if len(models) > 1 and len({c.digest for c in catalogs}) == 1:
        contest = hold_contest(
            {name: [model] for name, model in zip(model_names, models, strict=True)},
            catalogs[0],
            split=split,
            n_bootstrap=n_bootstrap,
            seed=seed,
            allow_missing=allow_missing,
            assignment=assignment,
        )
        comparisons = contest.comparisons
    folders = tuple(
        out / slug(name) if out else path.with_name(f"{path.stem}.{split}")
        for path, name in zip(paths, model_names, strict=True)
    )
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(only_writer(folder))
        for card, folder in zip(cards, folders, strict=True):
            card.save(folder)
    return ScoredFiles(cards, folders, comparisons, _digests(catalogs, models), given)


def compare_files(
    paths: Sequence[Path],
    read: ReadCatalog,
    *,
    out: Path,
    catalog: Path | None = None,
    split: str = "test",
    n_bootstrap: int = N_REPLICATES,
    n_permutations: int = PERMUTATIONS,
    seed: int = 0,
    allow_missing: bool = False,
    assignment: str = INDEPENDENT,
    names: Sequence[str] = (),
) -> ComparedFiles:
    """Rank the models of predictions files, compare every two, and write ``pairs.csv``.

    `paths`, as `find_predictions` takes them, name at least two models; runs that differ only in
    their seed are one, and so are a probe and a fine-tune that kept it. `out`, a CSV, gets one line
    per pair and scope. The rest is as in `score_files` and
    `retailtag.scoring.compare.hold_contest`.

    Raises `UsageError` if there is nothing to compare or the files come from several catalogues,
    `SplitOverlap` if a model was fitted on an image of the split.
    """
    paths = find_predictions(paths)
    models = [Predictions.load(path) for path in paths]
    given = given_names(names, _backbones(models))
    model_names = _distinct_names(paths, models)
    groups = seed_groups(models, model_names)
    if len(groups) < 2:
        raise UsageError("There is only one model; name the predictions of two or more.")
    groups, findings = without_copies(models, groups)
    catalogs = _catalogs(paths, models, read, catalog)
    if len({c.digest for c in catalogs}) > 1:
        raise UsageError("The predictions come from several catalogues; give one with --catalog.")
    for model in models:
        refuse_overlap(model, catalogs[0], split)
    contest = hold_contest(
        {name: [models[k] for k in members] for name, members in groups.items()},
        catalogs[0],
        split=split,
        n_bootstrap=n_bootstrap,
        seed=seed,
        allow_missing=allow_missing,
        n_permutations=n_permutations,
        assignment=assignment,
    )
    write_text(out, csv_text(PAIR_COLUMNS, map(_pair_row, contest.comparisons)))
    threads = {n: m.provenance.get("threads") for n, m in zip(model_names, models, strict=True)}
    findings += several_threads(threads)
    return ComparedFiles(contest, _digests(catalogs, models), tuple(findings), given)


def without_copies(
    models: Sequence[Predictions], groups: Mapping[str, list[int]]
) -> tuple[dict[str, list[int]], list[Finding]]:
    """Groups of `seed_groups` without fine-tunes that kept a probe among them, and findings.

    Such a fine-tune is its probe: as a model of its own it would halve the probability that either
    is best.
    """
    first = {name: models[members[0]] for name, members in groups.items()}
    copies = {
        name: other
        for name, model in first.items()
        for other, probe in first.items()
        if model.provenance.get("is_probe") is True
        and probe.provenance.get("strategy") == "probe"
        and all(
            model.provenance.get(k) == probe.provenance.get(k) for k in ("backbone", "features")
        )
        and np.array_equal(model.thresholds, probe.thresholds)
    }
    kept = {name: members for name, members in groups.items() if name not in copies}
    return kept, [same_model(copy, probe) for copy, probe in copies.items()]


def _backbones(models: Sequence[Predictions]) -> list[str]:
    """Ids of the backbones that predictions record."""
    ids = [model.provenance.get("backbone") for model in models]
    return list(dict.fromkeys(i for i in ids if isinstance(i, str)))


def _pair_row(c: Comparison) -> SimpleNamespace:
    """Line of ``pairs.csv``: model `a` minus model `b`."""
    d = c.difference
    facts = {**vars(c), **vars(d), "difference": d.value}
    return SimpleNamespace(**facts, detectable=d.detectable, verdict=c.verdict)


def _digests(
    catalogs: Sequence[Catalog], models: Sequence[Predictions]
) -> tuple[tuple[str, str], ...]:
    pairs = zip(catalogs, models, strict=True)
    return tuple((catalog.digest, predictions_digest(model)) for catalog, model in pairs)


def seed_groups(models: Sequence[Predictions], names: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the runs of each model; runs that differ only in their seed are one model.

    Backbone, strategy, data and settings must be recorded and equal, and all seeds distinct: the
    same seed twice is the same run twice.
    """
    by_key: dict[str, list[int]] = {}
    for k, model in enumerate(models):
        by_key.setdefault(_key_without_seed(model) or f"run {k}", []).append(k)
    groups: dict[str, list[int]] = {}
    shared = Counter(model_name(models[m[0]].provenance) for m in by_key.values())
    for members in by_key.values():
        seeds = {models[k].provenance.get("settings", {}).get("seed") for k in members}
        if len(members) > 1 and len(seeds) == len(members):
            name = model_name(models[members[0]].provenance)
            name = name if shared[name] == 1 else names[members[0]]
            groups[f"{name} ({len(members)} seeds)"] = members
        else:
            groups.update({names[k]: [k] for k in members})
    return dict(sorted(groups.items(), key=lambda item: item[1][0]))  # in the order given


def _key_without_seed(model: Predictions) -> str | None:
    """Text that equals that of the same model under another seed; None if no seed is recorded."""
    settings = model.provenance.get("settings")
    if not isinstance(settings, dict) or "seed" not in settings:
        return None
    facts = {name: model.provenance.get(name) for name in SETTINGS_OF_A_MODEL}
    rest = {name: value for name, value in settings.items() if name != "seed"}
    return json.dumps([facts, rest], sort_keys=True)


def _distinct_names(paths: Sequence[Path], models: Sequence[Predictions]) -> list[str]:
    """Model names, with the path added where two are equal."""
    names = [model_name(m.provenance, p.stem) for p, m in zip(paths, models, strict=True)]
    seen = Counter(names)
    return [n if seen[n] == 1 else f"{n} ({p})" for n, p in zip(names, paths, strict=True)]


def once(read: ReadCatalog) -> ReadCatalog:
    """The same reader, which reads each distinct catalogue once."""
    known: dict[str, Catalog] = {}

    def remembered(path: Path, **how: Any) -> Catalog:
        key = json.dumps([str(path), how], sort_keys=True)
        if key not in known:
            known[key] = read(path, **how)
        return known[key]

    return remembered


def _catalogs(
    paths: Sequence[Path],
    models: Sequence[Predictions],
    read: ReadCatalog,
    catalog: Path | None,
) -> list[Catalog]:
    """Catalogue of each model; each distinct one is read once."""
    read = once(read)
    pairs = zip(paths, models, strict=True)
    return [recorded_catalog(path, model, read, catalog) for path, model in pairs]


def recorded_catalog(
    path: Path, model: Predictions, read: ReadCatalog, catalog: Path | None = None
) -> Catalog:
    """The catalogue of the predictions at `path`, unless it is given; `UsageError` without any."""
    where = catalog or model.provenance.get("catalog")
    how = {} if catalog else model.provenance.get("catalog_args") or {}
    if where is None:
        raise UsageError(f"{path} does not record its catalogue; name it with --catalog.")
    try:
        return read(as_path(where), **{k: v for k, v in how.items() if k != "path"})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
