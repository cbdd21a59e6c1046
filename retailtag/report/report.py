"""What every section of a report reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from retailtag.backbones.names import shortened
from retailtag.report.curves import Curves
from retailtag.report.decision import Decision
from retailtag.report.gallery import Gallery
from retailtag.report.results import BakeoffResult, PairResult
from retailtag.report.theme import short_backbones, short_names
from retailtag.scoring.confusion import ConfusedPair


@dataclass(frozen=True)
class Report:
    """A bake-off and its decision, with the names under which its pairs appear.

    Whatever else a section needs, such as pictures, is a further field with a default, which the
    report stage of the bake-off fills.
    """

    result: BakeoffResult
    decision: Decision
    gallery: Gallery | None = None  # of the recommended pair, as are the other two
    confused: tuple[ConfusedPair, ...] = ()
    curves: Curves | None = None

    @cached_property
    def names(self) -> dict[str, str]:
        """Short name of every pair, by its name."""
        return short_names(self.result)

    @cached_property
    def backbones(self) -> dict[str, str]:
        """Short name of every backbone, by its id."""
        return short_backbones(self.result)

    @property
    def winner(self) -> PairResult:
        """The recommended pair."""
        return self.result.pair(self.decision.winner)

    @property
    def winner_first(self) -> list[PairResult]:
        """Pairs in the order of the ranking, after the recommended one."""
        winner = self.winner
        return [winner, *(p for p in self.result.ranking if p is not winner)]

    def with_short_names(self, sentence: str) -> str:
        """Sentence with pairs under their short names."""
        return shortened(sentence, self.names)
