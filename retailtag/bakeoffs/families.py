"""The pairs of a bake-off by family, for the section of the report on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from retailtag.backbones.ids import pretraining_of
from retailtag.backbones.registry import IMAGE_TEXT
from retailtag.bakeoffs.pairs import Pair
from retailtag.catalog.catalog import Catalog
from retailtag.predictions import Predictions
from retailtag.runs.heads import taken_ap
from retailtag.scoring.families import Entrant, TextGain, text_gains


def entrants(pairs: Sequence[Pair], predictions: Sequence[Predictions]) -> list[Entrant]:
    """The pairs with their families, named as in the results."""
    return [
        Entrant(
            f"{pair.backbone} · {pair.strategy}",
            pair.backbone,
            pair.strategy,
            pretraining_of(pair.backbone),
            of_pair,
        )
        for pair, of_pair in zip(pairs, predictions, strict=True)
    ]


def gains_of_names(pairs: Iterable[Pair], catalog: Catalog) -> tuple[TextGain, ...]:
    """What the head ``text`` adds to logistic regression, for probes that tried both."""
    table = catalog.table
    counts = dict(zip(table.tags, table.train_count.tolist(), strict=True))
    found: list[TextGain] = []
    for pair in pairs:
        if pair.strategy != "probe" or pretraining_of(pair.backbone) != IMAGE_TEXT:
            continue
        ap = taken_ap(pair.folder / "heads.parquet")
        if {"logistic", "text"} <= ap.keys():
            found += text_gains(pair.backbone, ap["logistic"], ap["text"], counts, table.cutoffs)
    return tuple(found)
