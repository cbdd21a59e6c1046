"""Long-tail-aware scoring: predictions and a catalogue in, a scorecard with intervals out."""

from retailtag.scoring.compare import Comparison, compare_predictions
from retailtag.scoring.score import score_predictions
from retailtag.scoring.scorecard import GroupSummary, ScoreCard, TagRow

__all__ = [
    "Comparison",
    "GroupSummary",
    "ScoreCard",
    "TagRow",
    "compare_predictions",
    "score_predictions",
]
