"""Findings that qualify a scorecard, each with its figures and its remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import GROUPS
from retailtag.errors import named
from retailtag.scoring.finding import Finding, count
from retailtag.scoring.scorecard import ScoreCard

# Rival models are often a few points of macro-F1 apart: a wider tail interval cannot rank them.
MAX_TAIL_INTERVAL_WIDTH = 0.10
MAX_OPTIMISM = 0.02  # macro-F1 that thresholds gain on the scores they were tuned on
MAX_CALIBRATION_ERROR = 0.05  # pooled; beyond it probabilities mislead
MIN_SHARE_SIMILAR = 0.01  # of the scored images; fewer change macro-F1 by less than its interval
# Fewer images without a similar one are mostly those that were missed, and say nothing.
MIN_SHARE_OTHERS = 0.1
# Tags given over tags expected; outside this range a group is over- or under-tagged.
PREVALENCE_RATIOS = (0.5, 2.0)
SAME_THREADS = "Where the last digits matter, set OMP_NUM_THREADS to one number and run again."
MIN_TAGS_FOR_PREVALENCE = 20  # tags given or expected in a group; their ratio is chance with fewer


def reading_findings(notes: Sequence[str]) -> list[Finding]:
    """How another tool's file was read, where it could have been read otherwise."""
    remedy = "If that is wrong, write the catalogue's ids and columns of tags alone."
    return [Finding("foreign-file", note, remedy) for note in notes]


def card_findings(card: ScoreCard) -> list[Finding]:
    """Findings that follow from the finished card alone."""
    found = [_calibration(card), _undefined(card), _wide_tail(card), _never_predicted(card)]
    return [f for f in found if f is not None]


def _calibration(card: ScoreCard) -> Finding | None:
    """About the scope with the largest error."""
    errors = {
        scope: s.calibration_error
        for scope, s in card.summaries.items()
        if scope in ("all", *GROUPS) and s.calibration_error > MAX_CALIBRATION_ERROR
    }
    if not errors:
        return None
    worst = max(errors, key=lambda scope: errors[scope])
    return Finding(
        "calibration",
        f"Read as probabilities, the scores of {worst} tags are off by {100 * errors[worst]:.1f} "
        "points on average (pooled calibration error): they rank, but 0.8 does not mean 80 %.",
        "Use the thresholds instead of the probabilities, or calibrate on a separate split.",
    )


def _undefined(card: ScoreCard) -> Finding | None:
    rows = card.undefined
    if not rows:
        return None
    return Finding(
        "undefined-tags",
        f"{len(rows):,} of {count(len(card.tags), 'tag')} are on no image of the {card.split} "
        f"split ({named([r.tag for r in rows])}); they are left out of every macro average.",
        "Enlarge the split or merge these tags; undefined_tags.csv lists them with their false "
        "alarms.",
    )


def _wide_tail(card: ScoreCard) -> Finding | None:
    tail = card.summaries["tail"]
    width = tail.macro_f1_high - tail.macro_f1_low
    if not tail.n_tags or width <= MAX_TAIL_INTERVAL_WIDTH:
        return None
    support = [r.support for r in card.tags if r.group == "tail" and r.support]
    return Finding(
        "tail-support",
        f"The 95 % interval of tail macro-F1 is {100 * width:.0f} points wide: {tail.n_tags} tail "
        f"tags with a median of {int(np.median(support))} positives in the {card.split} split.",
        "Rank the tail by out-of-fold scores over all training images, or enlarge the split.",
    )


def _never_predicted(card: ScoreCard) -> Finding | None:
    silent = [r.tag for r in card.tags if r.support and r.tp + r.fp == 0]
    if not silent:
        return None
    return Finding(
        "never-predicted",
        f"{count(len(silent), 'tag')} with positives in the {card.split} split were never given "
        f"to an image ({named(silent)}).",
        "Look at their average precision: if it is good the threshold is too high, if it is poor "
        "the tag needs more training images.",
    )


def constant_scores(tags: Sequence[str], logits: NDArray[np.float32]) -> Finding | None:
    """Tags whose logits (n_images, n_tags) are the same for every scored image."""
    if len(logits) < 2:
        return None
    flat = np.flatnonzero(logits.min(axis=0) == logits.max(axis=0)).tolist()
    if not flat:
        return None
    return Finding(
        "constant-scores",
        f"{count(len(flat), 'tag')} score the same for every image "
        f"({named([tags[j] for j in flat])}).",
        "They were not fitted (all training labels equal, or no positive); add training images or "
        "drop these tags from the taxonomy.",
    )


def non_finite_scores(tags: Sequence[str], logits: NDArray[np.float32]) -> Finding | None:
    """Tags with an infinite logit (n_images, n_tags); NaN is refused earlier."""
    bad = np.isinf(logits)
    if not bad.any():
        return None
    where = [tags[j] for j in np.flatnonzero(bad.any(axis=0)).tolist()]
    return Finding(
        "non-finite-scores",
        f"{count(int(bad.sum()), 'score')} of {count(len(where), 'tag')} are infinite "
        f"({named(where)}): such scores all tie and cannot be calibrated.",
        "Look for overflow or a logarithm of 0 in the model; clip probabilities before the logit.",
    )


def duplicated_images(
    twins: Sequence[tuple[str, str]], seen_by: str, n_images: int, split: str
) -> Finding | None:
    """Scored images that are training images under another id: (scored id, training id) pairs."""
    if not twins:
        return None
    return Finding(
        "duplicated-images",
        f"{count(len(twins), 'image')} of the {n_images:,} scored in the {split} split are "
        f"training images under another id, by {seen_by} "
        f"({named([f'{a} = {b}' for a, b in twins])}): the model has seen them with their tags.",
        "Give copies one product (`group`) and split again with `retailtag catalog split`; "
        "`retailtag catalog check` lists them.",
    )


def similar_images(
    pairs: Sequence[str],
    n_images: int,
    scores: tuple[float, float] | None,
    n_tags: int,
    split: str,
    n_scored: int,
) -> Finding | None:
    """Scored images that look like products in training (``scored ~ training``), and what it earns.

    `n_images` of the `n_scored` were compared with the training images. `scores` are macro-F1 on
    the `pairs` and on the others over the same `n_tags` tags; None if no tag has positives on both
    sides or the others are too few.
    """
    if len(pairs) < MIN_SHARE_SIMILAR * n_images or not pairs:
        return None
    earned = (
        f"the other {n_images - len(pairs):,} are too few to tell how new products would score, "
        "which may be far worse"
    )
    if scores is not None:
        earned = (
            f"macro-F1 is {100 * scores[0]:.1f} on them and {100 * scores[1]:.1f} on the others "
            f"(over the {count(n_tags, 'tag')} on both); new products are like the others"
        )
    of_all = f"{n_images:,} scored in the {split} split"
    if n_images < n_scored:
        of_all = f"{n_images:,} compared, of {n_scored:,} scored in the {split} split,"
    return Finding(
        "similar-images",
        f"{count(len(pairs), 'image')} of the {of_all} look like a "
        f"product in training ({named(pairs)}): {earned}.",
        "If they show the same products, split again with `retailtag catalog split --group-by "
        "similar`, or by a column that names the product.",
    )


def threshold_optimism(scope: str, in_sample: float, cross_fit: float) -> Finding | None:
    """Macro-F1 on the scores that thresholds were tuned on, against cross-fit macro-F1."""
    if not in_sample - cross_fit > MAX_OPTIMISM:
        return None
    return Finding(
        "threshold-optimism",
        f"Over {scope} tags the thresholds earn {100 * in_sample:.1f} points of macro-F1 on the "
        f"scores they were tuned on and {100 * cross_fit:.1f} on the others (cross-fit): the "
        "figures of the tuning are too high.",
        "Quote held-out or cross-fit figures, and shrink the thresholds of rare tags "
        "(`--thresholds shrunk` or `group`).",
    )


def probe_kept(is_probe: object) -> Finding | None:
    """A fine-tune whose result is the probe that it started from."""
    if is_probe is not True:
        return None
    return Finding(
        "probe-kept",
        "No epoch of this fine-tune was better than its start on the validation set, so the result "
        "is the probe, thresholds included.",
        "Train longer (--epochs), lower the learning rate (--lr), add training images, or choose "
        "the epoch by average precision (--choose-epoch macro-ap), which a small validation set "
        "measures better than macro-F1.",
    )


def same_model(copy: str, probe: str) -> Finding:
    """A compared fine-tune that kept its probe, which is compared too."""
    return Finding(
        "same-model",
        f"{copy} kept its probe: it is the same model as {probe}, and both count as one here.",
        "Train longer or choose the epoch otherwise (see the finding probe-kept of retailtag "
        "score) if the fine-tune should differ.",
    )


def prevalence_off(group: str, given: int, expected: float) -> Finding | None:
    """Tags given in a group, against the number expected at its training prevalence."""
    low, high = PREVALENCE_RATIOS
    if max(given, expected) < MIN_TAGS_FOR_PREVALENCE or low * expected <= given <= high * expected:
        return None
    over = given > expected
    return Finding(
        "prevalence",
        f"{group.capitalize()} tags were given {given:,} times; at training prevalence "
        f"{expected:,.0f} are expected. They are given {'too often' if over else 'too rarely'}, or "
        "the split differs from the training images.",
        "Compare precision and recall of the group and tune its thresholds again; they may be too "
        f"{'low' if over else 'high'}.",
    )


def often_scored(n_models: int | None, n_now: int, split: str) -> Finding | None:
    """Different models scored on a split so far (None: unknown), `n_now` of them in this run."""
    if n_models is None or n_models < 2 or split != "test":
        return None
    return Finding(
        "split-reused",
        f"{n_models:,} different models have been scored on the {split} split of this catalogue, "
        f"{n_now:,} of them in this run; the score of the best is too high by selection.",
        "Choose on validation or out-of-fold scores, and keep a fresh split for the final figure.",
    )


def shared_products(shared: NDArray[np.str_], n_products: int, split: str) -> Finding | None:
    """Products (by name) with images both in training and in the scored split."""
    if not len(shared):
        return None
    return Finding(
        "shared-products",
        f"{count(len(shared), 'product')} of {n_products:,} in the {split} split also have "
        f"training images ({named(shared.tolist())}): near-copies raise the scores.",
        "Split by product: `retailtag catalog split` keeps a product's images together.",
    )


def missing_images(missing: NDArray[np.str_], split: str) -> Finding | None:
    """Images (ids) of the scored split that the predictions lack."""
    if not len(missing):
        return None
    return Finding(
        "missing-images",
        f"{count(len(missing), 'image')} of the {split} split have no prediction and are left out "
        f"({named(missing.tolist())}).",
        "Repair or replace the unreadable images, then extract and predict again.",
    )


def changed_sources(changed: Sequence[str], n_images: int, split: str) -> Finding | None:
    """Scored images (ids) whose bytes are not those that were embedded."""
    if not changed:
        return None
    return Finding(
        "changed-sources",
        f"{count(len(changed), 'image')} of the {n_images:,} scored in the {split} split have "
        f"other bytes than when they were extracted ({named(changed)}): their scores are of the "
        "earlier pictures.",
        "Run `retailtag extract` again, which computes only these; then fit again.",
    )


def mixed_threads(recorded: object) -> Finding | None:
    """A run that was interrupted and continued with another number of threads."""
    if not isinstance(recorded, list) or len(recorded) < 2:
        return None
    return Finding(
        "threads",
        f"The run was interrupted and continued with another number of threads "
        f"({named(list(map(str, recorded)))}): the last digits of its scores, and a choice between "
        "nearly equal ones, may differ from those of a run with one number.",
        SAME_THREADS,
    )


def several_threads(recorded: Mapping[str, object]) -> list[Finding]:
    """Models, by name, that were fitted with different numbers of threads (None: not recorded)."""
    counts = {name: n for name, n in recorded.items() if isinstance(n, list)}
    if len({tuple(n) for n in counts.values()}) < 2:
        return []
    each = [f"{name}: {', '.join(map(str, n))}" for name, n in counts.items()]
    return [
        Finding(
            "threads",
            f"The models were fitted with different numbers of threads ({named(each)}): the last "
            "digits of their scores, and choices between nearly equal ones, differ by that alone.",
            SAME_THREADS,
        )
    ]


def catalogue_changed(recorded: object, digest: str) -> Finding | None:
    """Predictions made on a catalogue whose digest differs from the one scored with."""
    if not isinstance(recorded, str) or recorded == digest:
        return None
    return Finding(
        "catalogue-changed",
        "The catalogue's ids, splits, groups or labels have changed since these predictions were "
        f"made ({recorded[:12]} then, {digest[:12]} now).",
        "If labels or splits changed, fit again so that C and thresholds follow them.",
    )
