"""Curves behind a bake-off: strengths, epochs, thresholds and probabilities, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from retailtag.files import json_bytes
from retailtag.scoring.curves import OperatingPoint, ReliabilityBin
from retailtag.scoring.strict_json import plain


@dataclass(frozen=True)
class StrengthCurve:
    """Mean out-of-fold AP of one group's tags by C, of the probe of one backbone."""

    backbone: str
    group: str  # ``tail``, ``common`` or ``frequent``
    C: tuple[float, ...]  # ascending
    macro_ap: tuple[float, ...]
    chosen: tuple[float, ...]  # strengths that the group's tags took


@dataclass(frozen=True)
class LearningCurve:
    """Scores of a fine-tune on its validation set by epoch; 0 is the start, the probe."""

    backbone: str
    epochs: tuple[int, ...]
    macro_f1: tuple[float, ...]
    tail_macro_f1: tuple[float, ...]
    best_epoch: int


@dataclass(frozen=True)
class Curves:
    """What the section on curves shows; the last three are of the recommended pair."""

    strengths: tuple[StrengthCurve, ...] = ()
    learning: tuple[LearningCurve, ...] = ()
    trade_off: tuple[OperatingPoint, ...] = ()  # on the held-out images, most tags first
    # As fitted, and for other objectives: tuned on kept scores, counted on the held-out images
    points: tuple[OperatingPoint, ...] = ()
    reliability: tuple[ReliabilityBin, ...] = ()

    def to_json(self) -> str:
        """Text of ``curves.json``."""
        return json_bytes(plain(asdict(self))).decode()
