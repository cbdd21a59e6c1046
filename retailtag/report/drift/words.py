"""Names and figures of a drift comparison as people read them."""

from __future__ import annotations

from retailtag.statistics.drift import DriftResult, Estimate, Shift

FAMILY_NAMES = {
    "embeddings": "Embeddings",
    "novelty": "Novelty",
    "confidences": "Confidences",
    "tags": "Tag rates",
    "properties": "Image properties",
}
FIGURE_NAMES = {
    "top_logit": "logit of the likeliest tag",
    "uncertainty": "uncertainty of all tags, bits",
    "tags_given": "tags given",
    "megapixels": "size, megapixels",
    "aspect": "width / height",
    "brightness": "brightness, 0 to 255",
    "contrast": "contrast",
    "sharpness": "sharpness (Laplacian)",
    "bytes_per_pixel": "bytes per pixel",
    "jpeg_quality": "JPEG quality",
}
ACTIONS = {
    "none": "Nothing to do",
    "input": "Fix the input",
    "thresholds": "Retune the thresholds",
    "refit": "Refit the probe",
    "finetune": "Fine-tune",
    "measure": "Measure first",
}


def verdict(result: DriftResult) -> str:
    """Drift or none, and what drifted."""
    names = [FAMILY_NAMES[f.name].lower() for f in result.families if f.has_drifted]
    return f"Drift: {', '.join(names)}" if names else "No drift"


def p_text(p: float) -> str:
    """A p-value with three decimals."""
    return f"{p:.3f}"


def percent(estimate: Estimate) -> str:
    """A share with its interval, in percent."""
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:.1f} ({low:.1f} to {high:.1f})"


def effect(result: DriftResult, family: str) -> str:
    """Effect size of a family in a few words."""
    if family == "embeddings":
        return f"separates {percent(result.embeddings.separation)} % of pairs; 50: no shift"
    if family == "novelty":
        expected = 100 * result.novelty.level
        return f"{percent(result.novelty.share)} % novel; {expected:.0f} expected"
    if family == "tags":
        tag = result.tags[0]
        return f"{tag.tag}: {percent(tag.reference)} to {percent(tag.new)} %"
    shifts = result.confidences if family == "confidences" else result.properties
    return shift_text(min(shifts, key=lambda s: (s.p_adjusted, -s.distance)))


def shift_text(shift: Shift) -> str:
    """Medians of a figure, and how often a new image has more of it."""
    name = FIGURE_NAMES.get(shift.name, shift.name)
    return (
        f"{name}: median {shift.reference[1]:.3g} to {shift.new[1]:.3g}, higher in "
        f"{100 * shift.superiority.value:.0f} % of pairs"
    )
