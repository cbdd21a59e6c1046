"""Which head a probe takes: all tune their thresholds out of fold, and the best is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.probes.heads.head import Head
from retailtag.probes.sweep import Pooled
from retailtag.scoring.metrics import macro
from retailtag.settings import ProbeSettings
from retailtag.statistics.one_standard_error import one_standard_error
from retailtag.thresholds.tuning import Tuned, Tuning

HEADS = ("logistic", "ridge", "knn", "text")
ALL_HEADS = ProbeSettings.heads
MAX_TAGS_FOR_TEXT = 5_000  # up to which their names compete by default
MAX_IMAGES_FOR_KNN = 100_000  # training images up to which neighbours compete by default


def parse_heads(text: str) -> tuple[str, ...]:
    """Names of heads from a comma-separated list.

    Raises
    ------
    UsageError
        If one is unknown or named twice, or logistic regression is not the first: a fine-tune
        starts from its C whichever head is taken.

    Examples
    --------
    >>> parse_heads("logistic,ridge")
    ('logistic', 'ridge')
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names[:1] != HEADS[:1] or not set(names) <= set(HEADS) or len(set(names)) < len(names):
        raise UsageError(
            f"--heads {text} is not a list of heads; write logistic, then any of ridge, knn, text."
        )
    return names


def competing(heads: str, n_images: int, n_tags: int) -> tuple[str, ...]:
    """Heads to try on so many training images and tags.

    By default there are no neighbours above 100,000 images, and no texts above 5,000 tags.

    Examples
    --------
    >>> competing(ALL_HEADS, 2_000_000, 250)
    ('logistic', 'ridge', 'text')
    """
    names = parse_heads(heads)
    # Every tag is a training row of the head text, with a label of every tag.
    if heads == ALL_HEADS and n_tags > MAX_TAGS_FOR_TEXT:
        names = tuple(name for name in names if name != "text")
    # Comparing every two images grows with the square of their number, and every fold holds a copy
    # of the embeddings.
    if heads == ALL_HEADS and n_images > MAX_IMAGES_FOR_KNN:
        return tuple(name for name in names if name != "knn")
    return names


@dataclass(frozen=True, eq=False)
class ScoredHead:
    """A head with what its candidates reach out of fold, and the one that each tag takes."""

    name: str
    candidates: tuple[str, ...]  # settings, such as ``C=0.1``
    # (n_candidates, n_tags), out of fold; NaN for a tag without positives
    candidate_ap: NDArray[np.float64]
    pooled: Pooled
    index: NDArray[np.intp]  # (n_tags,), candidate of each tag
    # Fits it again, to other images; None for logistic regression, which `fit_at` fits.
    head: Head | None = None

    @property
    def setting(self) -> NDArray[np.str_]:
        """Candidate of each tag, (n_tags,)."""
        return np.array(self.candidates)[self.index]

    @property
    def ap(self) -> NDArray[np.float64]:
        """Out-of-fold AP of each tag at its candidate, (n_tags,)."""
        return self.candidate_ap[self.index, np.arange(len(self.index))]

    @property
    def macro_ap(self) -> float | None:
        """Mean of `ap` over the tags that have one; None without any."""
        value = macro(self.ap)
        return value if np.isfinite(value) else None

    def logits(self) -> NDArray[np.float32]:
        """Pooled out-of-fold logits (n_images, n_tags) at the chosen candidates."""
        return self.pooled.logits(self.index)


@dataclass(frozen=True, eq=False)
class HeadChoice:
    """The head that is used, with its thresholds.

    `facts` are, by head: ``macro_ap`` out of fold, or None; where thresholds are tuned for an
    F-beta ``macro_f`` and ``tail_macro_f``, cross-fit (left out where there is none); ``behind``
    and ``se``, how far it lies behind the best head, and the standard error of that.
    """

    head: ScoredHead
    tuned: Tuned  # thresholds on its out-of-fold scores
    scores: NDArray[np.float32]  # those scores, (n_images, n_tags)
    facts: dict[str, dict[str, float | None]]


def choose_head(
    heads: Sequence[ScoredHead],
    tuning: Tuning,
    labels: NDArray[np.int8],
    group: NDArray[np.str_],
    fold: NDArray[np.intp],
) -> HeadChoice:
    """The first head within one standard error of the best cross-fit macro F-beta.

    `heads` are in the order of preference: of heads that the folds cannot tell apart the first is
    taken. `labels` is (n_images, n_tags), `group` (n_tags,); `fold` (n_images,) divided the scores.

    Each head takes the threshold rule that suits its scores before they are compared: what counts
    is the tags that it will give. Average precision, which sees only the order within a tag,
    ranked a ridge head first that then gave rare tags to nearly every image. Under a precision no
    F-beta is cross-fit, and the heads are compared by average precision. The rule is that of
    `retailtag.statistics.one_standard_error`.
    """
    scores = [head.logits() for head in heads]
    tuned = [tuning.tune(logits, labels, group, fold) for logits in scores]
    f = [head.ap if at.f is None else at.f for head, at in zip(heads, tuned, strict=True)]
    # One row per head: the error of a difference is paired, tag by tag.
    # Tags of one fold count, unlike in the choice of C: a head that gives them to every image will
    # do so with others.
    choice = one_standard_error(np.array(f))
    facts = {head.name: _facts(head, at, group) for head, at in zip(heads, tuned, strict=True)}
    if choice is not None:
        for k, row in enumerate(facts.values()):
            row["behind"] = float(choice.behind[k])
            row["se"] = float(choice.error[k])
    chosen = 0 if choice is None else choice.chosen
    return HeadChoice(heads[chosen], tuned[chosen], scores[chosen], facts)


def _facts(head: ScoredHead, tuned: Tuned, group: NDArray[np.str_]) -> dict[str, float | None]:
    facts: dict[str, float | None] = {"macro_ap": head.macro_ap}
    if tuned.f is not None:
        scored = np.isfinite(tuned.f)
        for name, inside in (("macro_f", scored), ("tail_macro_f", scored & (group == "tail"))):
            if inside.any():
                facts[name] = float(tuned.f[inside].mean())
    return facts


def head_rows(
    heads: Sequence[ScoredHead], tags: tuple[str, ...], group: NDArray[np.str_]
) -> dict[str, NDArray[Any]]:
    """Columns of the table of heads, one row per (head, candidate, tag): AP, and whether taken."""
    n_tags = len(tags)
    columns: dict[str, list[NDArray[Any]]] = {}
    for head in heads:
        n = len(head.candidates)
        row = {
            "tag": np.tile(np.array(tags), n),
            "group": np.tile(group, n),
            "head": np.repeat(np.array([head.name]), n * n_tags),
            "setting": np.repeat(np.array(head.candidates), n_tags),
            "out_of_fold_ap": head.candidate_ap.ravel(),
            "chosen": (np.arange(n)[:, None] == head.index).ravel(),
        }
        for name, values in row.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def taken_ap(path: Path) -> dict[str, dict[str, float]]:
    """Out-of-fold AP of each tag by head, at the candidates chosen, from the table of heads."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, float]] = {}
    for row in pq.read_table(path).to_pylist():
        if row["chosen"]:
            found.setdefault(row["head"], {})[row["tag"]] = row["out_of_fold_ap"]
    return found
