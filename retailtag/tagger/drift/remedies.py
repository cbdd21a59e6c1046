"""What to do about a drift, named by what drifted; every sentence quotes the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from retailtag.statistics.drift import DriftResult, Remedy, Shift

# A tag's own threshold has half of the weight from 20 positives on (shrinkage P / (P + 20)).
THRESHOLD_POSITIVES = 20
# Positives from which a tag is no tail tag.
TAIL_POSITIVES = 50
# Images after which a share is known to 5 points at 95 %: 1.96^2 / 4 / 0.05^2.
MEASURED_IMAGES = 385
# A tag that is given to fewer images costs too many labels for what it is worth.
LEAST_RATE = 0.01
MOVED_KINDS = 0.1  # of the images must be of another file type

OF_FILE = {
    "megapixels": "deliver images of the size that the reference has",
    "jpeg_quality": "save JPEG files at the quality of the reference",
}
# These also depend on what is photographed.
OF_PICTURE = {
    "sharpness": "check focus and scaling",
    "bytes_per_pixel": "check compression",
    "brightness": "check light and exposure",
    "contrast": "check light and background",
    "aspect": "check cropping",
}


def remedies(result: DriftResult) -> tuple[Remedy, ...]:
    """Remedies of a comparison, the first one to try first; one at least."""
    if not result.has_drifted:
        return (_none(result),)
    made = tuple(_of_input(result))
    # Other articles make other pictures: where tags moved, and nothing else about their images,
    # that is why.
    is_of_articles = bool(result.moved_tags) and result.embeddings.p_within_tags > result.alpha
    if made and (_is_of_file(result) or not is_of_articles):
        return made
    found = (*_of_rates(result), *_of_embeddings(result), *made)
    return found or (_measure(result),)


def _none(result: DriftResult) -> Remedy:
    most = max(result.embeddings.separation.high, 1 - result.embeddings.separation.low)
    return Remedy(
        "none",
        f"The smallest p of all tests is {result.p:.3f} after correction, above the rate of false "
        f"alarms of {result.alpha:g}.",
        "A shift that "
        f"{result.n_new:,} images do not show may still be there: the embeddings tell new images "
        f"from old ones in at most {100 * most:.0f} of 100 pairs (50: not at all).",
    )


def _of_input(result: DriftResult) -> Iterator[Remedy]:
    """Files or pictures that are made in another way than those of the reference."""
    hints = OF_FILE | OF_PICTURE
    moved = _large(result)
    moved.sort(key=lambda s: -abs(s.superiority.value - 0.5))
    because = [_told(s) for s in moved]
    todo = [hints[s.name] for s in moved]
    if _has_other_kinds(result):
        kinds = [f"{k} {100 * a:.0f} to {100 * b:.0f} %" for k, (a, b) in result.kinds.items()]
        because.append(f"file types: {', '.join(kinds)}")
        todo.append("deliver the file type that the reference has")
    if not because:
        return
    to_stay = (
        ""
        if _is_of_file(result)
        else f" If the pictures are to stay like this, label {MEASURED_IMAGES} of them at random, "
        "score them, and refit with them if the score has fallen."
    )
    yield Remedy(
        "input",
        f"The new images are made in another way: {'; '.join(because)}.",
        f"Fix the input first: {', '.join(dict.fromkeys(todo))}. Then compare again: other shifts "
        f"on this page may come from it.{to_stay}",
    )


def _large(result: DriftResult) -> list[Shift]:
    return [s for s in result.moved_properties if s.is_large]


def _has_other_kinds(result: DriftResult) -> bool:
    """Whether the types of the files moved, and by enough images."""
    gap = sum(abs(new - old) for old, new in result.kinds.values()) / 2
    has_moved = result.drifted("properties") and result.kinds_p <= result.alpha
    return has_moved and gap >= MOVED_KINDS


def _is_of_file(result: DriftResult) -> bool:
    """Whether the files differ in what does not depend on the articles."""
    return _has_other_kinds(result) or any(s.name in OF_FILE for s in _large(result))


def _told(shift: Shift) -> str:
    more = shift.superiority.value
    way, share = ("higher", more) if more > 0.5 else ("lower", 1 - more)
    return (
        f"{shift.name.replace('_', ' ')} median {shift.reference[1]:.3g} to {shift.new[1]:.3g}, "
        f"{way} in {100 * share:.0f} of 100 pairs"
    )


def _of_rates(result: DriftResult) -> Iterator[Remedy]:
    """A prior shift: tags are given more or less often, and their images look as before."""
    moved = result.moved_tags
    if not moved or result.embeddings.p_within_tags <= result.alpha:
        return
    first = moved[0]
    n = _images_for(result, THRESHOLD_POSITIVES)
    yield Remedy(
        "thresholds",
        f"{len(moved):,} tag{'s are' if len(moved) > 1 else ' is'} given at another rate (most of "
        f"all {first.tag}, "
        f"{100 * first.reference.value:.1f} to {100 * first.new.value:.1f} % of the images); among "
        "images of the same moved tags the embeddings do not differ "
        f"(p = {result.embeddings.p_within_tags:.3f}).",
        f"Retune the thresholds on about {n:,} labelled new images: {THRESHOLD_POSITIVES} "
        f"positives of the rarest moved tag that at least {100 * LEAST_RATE:.0f} % of them are "
        "given, from which on a tag's own threshold outweighs that of its group.",
    )


def _images_for(result: DriftResult, positives: int) -> int:
    """New images that hold so many positives of the rarest moved tag of at least `LEAST_RATE`."""
    present = [t.new.value for t in result.moved_tags if t.new.value >= LEAST_RATE]
    return math.ceil(positives / min(present)) if present else MEASURED_IMAGES


def _of_embeddings(result: DriftResult) -> Iterator[Remedy]:
    """Images that look different: beyond the reference (fine-tune), or within it (refit)."""
    share = result.novelty.share
    excess = share.value - result.novelty.level
    if result.drifted("novelty") and excess > 0:
        n = math.ceil(TAIL_POSITIVES / excess)
        yield Remedy(
            "finetune",
            f"{100 * share.value:.0f} % of the new images ({100 * share.low:.0f} to "
            f"{100 * share.high:.0f}) lie farther out than "
            f"{100 * (1 - result.novelty.level):.0f} % of the reference.",
            "Look at the most novel images. If they are wanted, label about "
            f"{n:,} new images and fine-tune with them: {TAIL_POSITIVES} of these are then novel "
            "beyond the expected share, the number from which on a tag is no tail tag.",
        )
    elif result.drifted("embeddings") and result.embeddings.p_within_tags <= result.alpha:
        separation = result.embeddings.separation
        n = max(_images_for(result, TAIL_POSITIVES), MEASURED_IMAGES)
        yield Remedy(
            "refit",
            f"Embeddings tell new images from old ones in {100 * separation.value:.0f} of 100 "
            f"pairs ({100 * separation.low:.0f} to {100 * separation.high:.0f}; 50: not at all), "
            "also among images of the same moved tags, and they lie within the reference.",
            f"Label about {n:,} new images at random, score them, and refit the probe with them if "
            f"the score has fallen ({MEASURED_IMAGES} tell a share to 5 points"
            + (f"; {TAIL_POSITIVES} positives of the rarest moved tag" if result.moved_tags else "")
            + ").",
        )


def _measure(result: DriftResult) -> Remedy:
    names = ", ".join(f.name for f in result.families if f.has_drifted)
    return Remedy(
        "measure",
        f"What moved ({names}) points to no single cause.",
        f"Label {MEASURED_IMAGES} new images at random and score them: that tells a share to 5 "
        "points, and whether the tags got worse.",
    )
