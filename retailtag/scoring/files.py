"""Score predictions files: read them and their catalogue, write a scorecard each, compare them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retailtag.catalog.catalog import Catalog
from retailtag.errors import UsageError
from retailtag.files import slug
from retailtag.predictions import Predictions
from retailtag.scoring.compare import Comparison, compare_predictions
from retailtag.scoring.score import model_name, score_predictions
from retailtag.scoring.scorecard import ScoreCard

ReadCatalog = Callable[..., Catalog]


@dataclass(frozen=True)
class ScoredFiles:
    """What `score_files` found and where it wrote it.

    Parameters
    ----------
    cards : tuple of ScoreCard
        One per predictions file, in the order given.
    folders : tuple of Path
        Where each card lies.
    comparisons : tuple of Comparison
        Of every two models; empty for one file, or when the files come from several catalogues.
    """

    cards: tuple[ScoreCard, ...]
    folders: tuple[Path, ...]
    comparisons: tuple[Comparison, ...]


def score_files(
    paths: Sequence[Path],
    read: ReadCatalog,
    *,
    catalog: Path | None = None,
    catalog_args: dict[str, Any] | None = None,
    split: str = "test",
    out: Path | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    allow_missing: bool = False,
) -> ScoredFiles:
    """Score every predictions file on one split and write its scorecard.

    Parameters
    ----------
    paths : sequence of Path
        Files that `Predictions.save` wrote.
    read : callable
        Reads a catalogue: ``read(path, **catalog_args)``.
    catalog, catalog_args : Path and dict, optional
        The catalogue and how to read it; as recorded in each predictions file by default.
    out : Path, optional
        Folder for the scorecards, with a folder a model inside it; by default each lies beside
        its predictions, in ``NAME.SPLIT``.
    split, n_bootstrap, seed, allow_missing
        As in `retailtag.scoring.score.score_predictions`.

    Returns
    -------
    ScoredFiles
        Nothing is written unless every file can be scored.

    Raises
    ------
    UsageError
        If a file is given twice, or no catalogue is given and a file records none.
    """
    if len(set(paths)) != len(paths):
        raise UsageError("A predictions file is named twice; name each once.")
    models = [Predictions.load(path) for path in paths]
    names = _distinct_names(paths, models)
    catalogs = _read_once(paths, models, read, catalog, catalog_args)
    settings: dict[str, Any] = {
        "split": split,
        "n_bootstrap": n_bootstrap,
        "seed": seed,
        "allow_missing": allow_missing,
    }
    cards = tuple(
        score_predictions(p, c, name=name, **settings)
        for p, c, name in zip(models, catalogs, names, strict=True)
    )
    comparisons: tuple[Comparison, ...] = ()
    if len({c.digest for c in catalogs}) == 1:
        named = dict(zip(names, models, strict=True))
        comparisons = compare_predictions(named, catalogs[0], **settings)
    folders = tuple(
        out / slug(name) if out else path.with_name(f"{path.stem}.{split}")
        for path, name in zip(paths, names, strict=True)
    )
    for card, folder in zip(cards, folders, strict=True):
        card.save(folder)
    return ScoredFiles(cards, folders, comparisons)


def _distinct_names(paths: Sequence[Path], models: Sequence[Predictions]) -> list[str]:
    """Model names, with the file's name added where two are equal."""
    names = [model_name(m.provenance, p.stem) for p, m in zip(paths, models, strict=True)]
    seen = Counter(names)
    return [n if seen[n] == 1 else f"{n} ({p})" for n, p in zip(names, paths, strict=True)]


def _read_once(
    paths: Sequence[Path],
    models: Sequence[Predictions],
    read: ReadCatalog,
    catalog: Path | None,
    catalog_args: dict[str, Any] | None,
) -> list[Catalog]:
    """Catalogue of each model; each distinct one is read once."""
    known: dict[str, Catalog] = {}
    found = []
    for path, model in zip(paths, models, strict=True):
        where = catalog or model.provenance.get("catalog")
        how = catalog_args or ({} if catalog else model.provenance.get("catalog_args")) or {}
        if where is None:
            raise UsageError(f"{path} does not record its catalogue; name it with --catalog.")
        key = json.dumps([str(where), how], sort_keys=True)
        if key not in known:
            known[key] = read(Path(where), **how)
        found.append(known[key])
    return found
