"""Long-tail-aware scoring: predictions and a catalogue in, a scorecard with intervals out."""

from retailtag.scoring.compare import Comparison, hold_contest
from retailtag.scoring.score import score_predictions
from retailtag.scoring.scorecard import GroupSummary, ScoreCard, TagRow

__all__ = [
    "Comparison",
    "GroupSummary",
    "ScoreCard",
    "TagRow",
    "hold_contest",
    "score_predictions",
]
