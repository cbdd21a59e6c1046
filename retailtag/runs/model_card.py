"""The model card of an exported tagger: what it does, how well, and what it is not for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retailtag.catalog.catalog import Catalog
from retailtag.runs.operating_points import TITLES
from retailtag.scoring.curves import OperatingPoint
from retailtag.scoring.scorecard import ScoreCard
from retailtag.statistics.exclusive import INDEPENDENT
from retailtag.tagger.tagger import Tagger

CARD = "README.md"
SCOPES = ("all", "frequent", "common", "tail")


@dataclass(frozen=True, eq=False)
class Card:
    """What the card says; parts that are not known are empty, and said to be missing."""

    tagger: Tagger
    scorecard: ScoreCard | None
    catalog: Catalog | None
    calibration: Mapping[str, Any]  # as in the header
    points: Sequence[OperatingPoint]
    licences: Sequence[str]
    provenance: Mapping[str, Any]
    checked: str
    notes: Sequence[str]
    guide: str = ""  # how to run an ONNX model, as Markdown


def card_text(card: Card) -> str:
    """The card as Markdown."""
    tagger = card.tagger
    names = " + ".join(backbone.id for backbone in tagger.backbones)
    kind = "fine-tuned" if tagger.strategy == "finetune" else f"{tagger.head.head} probe"
    sections = (
        ("", [f"# {names}, {kind}", *_summary(card)]),
        ("Scores", _scores(card)),
        ("Operating points", _points(card)),
        ("Probabilities", _calibration(card)),
        ("Intended use", _use(card)),
        ("Limits", _limits(card)),
        ("Weights and licences", _licences(card)),
        ("Preprocessing", _preprocessing(card)),
        ("Provenance", _provenance(card)),
    )
    blocks = [
        "\n\n".join(([f"## {title}"] if title else []) + list(parts)) for title, parts in sections
    ]
    return "\n\n".join(blocks) + "\n"


def _summary(card: Card) -> Iterator[str]:
    tagger = card.tagger
    yield (
        f"Gives images some of {len(tagger.tags):,} tags. Written by `retailtag export`; the "
        "folder needs neither the catalogue, the features nor the network."
    )
    if card.guide:
        yield card.guide
    else:
        yield (
            "```python\nimport retailtag as rt\n\n"
            'tagger = rt.load("this/folder")\ntagger.predict(["photo.jpg"])\n```'
        )
        yield "On the command line: `retailtag predict this/folder photo.jpg`."
    if card.checked:
        yield card.checked
    if card.notes:
        yield "Left out when it was exported:"
        yield _bullets(card.notes)


def _scores(card: Card) -> Iterator[str]:
    score = card.scorecard
    if score is None:
        yield "Not scored when it was exported; `retailtag score` makes the figures."
        return
    yield (
        f"On {score.n_images:,} held-out images of {score.n_products:,} products, on which nothing "
        f"was chosen. {_groups(card)}"
    )
    rows = [
        (
            scope,
            f"{one.n_tags:,}",
            _estimate(one.best_estimate, one.macro_f1_low, one.macro_f1_high),
            _points_of(one.macro_f1),
            _points_of(one.macro_precision),
            _points_of(one.macro_recall),
            _points_of(one.macro_ap),
        )
        for scope in SCOPES
        if (one := score.summaries.get(scope)) is not None and one.n_tags
    ]
    header = ("tags", "with a positive", "macro-F1 in the population (95 %)")
    yield _table((*header, "macro-F1 on these images", "precision", "recall", "AP"), rows)
    yield (
        f"An image is given {score.tags_given:.1f} tags and truly has {score.tags_true:.1f}; "
        f"{_points_of(score.micro_precision)} % of the given tags are right, and "
        f"{_points_of(score.micro_recall)} % of the true ones are given."
    )


def _groups(card: Card) -> str:
    if card.catalog is None:
        return ""
    cutoffs = card.catalog.table.cutoffs
    return (
        f"Tail tags have under {cutoffs.tail} training images, frequent ones {cutoffs.frequent} "
        "or more."
    )


def _points(card: Card) -> Iterator[str]:
    names = list(card.tagger.operating_points)
    taken = "`model.json` holds" if card.guide else "`tagger.at(name)` takes"
    yield (
        f"{taken} the thresholds of {_listed(names)}; by default those of `{names[0]}` are in "
        "force, as the model was fitted."
    )
    if card.points:
        rows = [
            (
                f"`{point.name}`",
                TITLES.get(point.name, point.name),
                f"{point.tags_per_image:.1f}",
                _points_of(point.precision),
                _points_of(point.recall),
                _points_of(point.macro_f1),
                _points_of(point.tail_macro_f1),
            )
            for point in card.points
        ]
        header = ("name", "aim", "tags an image", "precision", "recall", "macro-F1", "tail")
        yield "On the held-out images (the aim is met on the images that thresholds were tuned on):"
        yield _table(header, rows)


def _calibration(card: Card) -> Iterator[str]:
    facts = card.calibration
    if not facts:
        yield (
            "Not calibrated: probabilities are the logistic of the logits, which orders images and "
            "need not be a frequency."
            if card.tagger.calibration is None
            else "Platt scaling of each tag, shrunk to that of its frequency group. Its error was "
            "not measured."
        )
        return
    yield (
        f"Platt scaling of each tag, shrunk to that of its frequency group, on {facts['scores']} "
        f"scores of {facts['n_images']:,} images. It never changes which tags an image is given."
    )
    titles = {"cross_fit": "cross-fit", "test": "held-out images"}
    rows = [
        (
            titles[where],
            scope,
            *(f"{100 * one[when]['calibration_error']:.2f}" for when in ("before", "after")),
            *(f"{100 * one[when]['brier']:.2f}" for when in ("before", "after")),
        )
        for where in titles
        for scope, one in facts.get(where, {}).items()
    ]
    header = ("measured on", "tags", "calibration error before", "after", "Brier before", "after")
    yield _table(header, rows)
    yield "Both times 100; smaller is better."


def _use(card: Card) -> Iterator[str]:
    yield (
        "Tagging photographs of the kind that the catalogue holds: search, filters, suggestions "
        "that a person confirms. Where no person looks, take an operating point whose precision "
        "you have measured on your own images."
    )
    if card.tagger.assignment != INDEPENDENT:
        yield (
            f"Of {_listed(card.tagger.exclusive)} an image is given "
            f"{card.tagger.assignment.replace('-', ' ')} tag."
        )
    elif card.tagger.exclusive:
        yield (
            f"{_listed(card.tagger.exclusive)} have one value an image; `--assign at-most-one` "
            "gives no more."
        )


def _limits(card: Card) -> Iterator[str]:
    limits = [
        "It knows its own tags alone, and says nothing of what it was never shown.",
        "Scores hold for images like the held-out ones; other cameras, backgrounds, assortments "
        "and seasons need scores of their own.",
        "Labels were taken as the catalogue has them: it learns what annotators forget or confuse.",
        "It was not made to judge people or their features, nor for decisions on safety or health.",
    ]
    if card.catalog is not None:
        count = card.catalog.table.train_count
        none, few = int((count == 0).sum()), int(((count > 0) & (count < 10)).sum())
        if none or few:
            limits.append(f"{few:,} tags had under 10 training images, and {none:,} had none.")
    if card.scorecard is not None and card.scorecard.undefined:
        limits.append(
            f"{len(card.scorecard.undefined):,} tags have no held-out image, so that nothing is "
            "known of how well they are given."
        )
        limits += [finding.sentence for finding in card.scorecard.findings]
    yield _bullets(limits)


def _licences(card: Card) -> Iterator[str]:
    backbones = card.tagger.backbones
    rows = [
        (f"`{backbone.id}`", licence)
        for backbone, licence in zip(backbones, card.licences, strict=True)
    ]
    yield _table(("backbone", "licence of the pretrained weights"), rows)
    yield (
        "The head and the trained weights are yours; the licence of the pretrained weights may "
        "bind what is derived from them. The images and tags have terms of their own."
    )


def _preprocessing(card: Card) -> Iterator[str]:
    rows = [
        (
            f"`{backbone.id}`",
            " x ".join(map(str, one.size)),
            f"{one.mode}, {one.interpolation}, crop {one.crop_pct:g}",
            ", ".join(f"{value:g}" for value in one.mean),
            ", ".join(f"{value:g}" for value in one.std),
        )
        for backbone in card.tagger.backbones
        for one in (backbone.preprocess,)
    ]
    yield _table(("backbone", "pixels", "resize", "mean", "standard deviation"), rows)


def _provenance(card: Card) -> Iterator[str]:
    rows = []
    for name, value in card.provenance.items():
        libraries = value.items() if isinstance(value, Mapping) else ((name, value),)
        rows += [(key, f"`{text}`") for key, text in libraries]
    yield _table(("what", "digest or version"), rows)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _points_of(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def _estimate(value: float, low: float, high: float) -> str:
    return f"{_points_of(value)} ({_points_of(low)} to {_points_of(high)})"
