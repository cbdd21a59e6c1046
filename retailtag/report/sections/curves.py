"""Curves behind the choices: strengths, epochs, thresholds, probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.drawing import Drawing
from retailtag.report.figures.curves import (
    learning_figure,
    reliability_figure,
    strengths_figure,
    trade_off_figure,
)
from retailtag.report.report import Report
from retailtag.report.theme import colours
from retailtag.scoring.curves import OperatingPoint


@dataclass(frozen=True)
class CurvesView:
    """Figures, those without data left out, and the operating points."""

    figures: tuple[Drawing, ...]
    points: tuple[OperatingPoint, ...]


def curves(report: Report) -> CurvesView | None:
    """Curves of the recommended pair; None where the report was made from the results alone."""
    found = report.curves
    if found is None:
        return None
    name = report.names[report.decision.winner]
    own = [c for c in found.strengths if c.backbone == report.winner.backbone]
    figures = []
    if found.trade_off:
        figures.append(
            Drawing(
                "trade-off",
                "Precision against recall, and macro-F1 against tags an image",
                f"Held-out images, {name}. Line: all thresholds moved together. Points: as fitted, "
                "and tuned for other objectives on images that were not held out.",
                lambda layout: trade_off_figure(found, layout),
            )
        )
    if own:
        figures.append(
            Drawing(
                "strengths",
                "Mean AP by strength C",
                f"Out of fold, {report.backbones[report.winner.backbone]}. Filled: the C that the "
                "group took, the smallest within one standard error of the best.",
                lambda layout: strengths_figure(own, layout),
            )
        )
    if found.learning:
        figures.append(
            Drawing(
                "learning",
                "Validation macro-F1 by epoch",
                "Each fine-tune on its own validation set. Dashed: the tail. Filled: the epoch "
                "kept; epoch 0 is the start, the probe.",
                lambda layout: learning_figure(
                    found.learning, report.backbones, colours(report.result), layout
                ),
            )
        )
    if found.reliability:
        figures.append(
            Drawing(
                "reliability",
                "Share present against mean probability",
                f"Held-out cells, {name}, in 15 bins of the probability. On the diagonal, "
                "probabilities mean what they say.",
                lambda layout: reliability_figure(found, layout),
            )
        )
    return CurvesView(tuple(figures), found.points)
