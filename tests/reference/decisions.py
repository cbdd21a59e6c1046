"""Made-up bake-offs whose scores, intervals and costs are what a test says."""

from dataclasses import replace
from itertools import combinations

from retailtag.report.results import BakeoffResult, PairCost, PairResult
from retailtag.scoring.compare import Comparison
from retailtag.scoring.intervals import Difference
from retailtag.scoring.scorecard import GroupSummary, ScoreCard, TagRow

COST = PairCost(0.0, 100.0, 500.0, 10.0, 12.0, 100.0, 1_000_000, 4.0)


def summary(scope, value, n_tags=10):
    return GroupSummary(scope, n_tags, 0, value, value - 0.02, value + 0.02, value, value, value)


def pair(name, macro_f1, tail, n_tail=10, **cost):
    summaries = {"all": summary("all", macro_f1), "tail": summary("tail", tail, n_tail)}
    card = ScoreCard(name, "test", 1000, 900, (), summaries, macro_f1, macro_f1)
    return PairResult(name, "probe", card, replace(COST, **cost))


def bakeoff(pairs, noise):
    """Comparisons whose intervals are the difference plus or minus noise[scope]."""
    comparisons = []
    for a, b in combinations(pairs, 2):
        for scope, width in noise.items():
            value = a.scorecard.summaries[scope].macro_f1 - b.scorecard.summaries[scope].macro_f1
            gap = Difference(value, value - width, value + width, width / 2)
            comparisons.append(Comparison(a.name, b.name, scope, gap))
    return BakeoffResult({}, tuple(pairs), tuple(comparisons), {}, "retailtag bakeoff", 0)


def counted(pair, tp, fp, fn, micro_f1=0.5):
    """The pair with one tag of these counts over 10 images."""
    row = TagRow("t", "tail", 5, tp + fn, tp, fp, fn, 10, 0.5, 0.5, 0.5, 0.5, 0.0, True)
    card = replace(pair.scorecard, tags=(row,), n_images=10, micro_f1=micro_f1)
    return replace(pair, scorecard=card)
