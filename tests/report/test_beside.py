"""Tables and summary beside the page say what the scorecards say."""

import csv
import io
from dataclasses import replace

from retailtag.report.beside import per_tag_csv, ranking_csv, summary_md
from retailtag.report.decision import decide
from retailtag.report.report import Report


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_ranking_has_a_row_for_each_pair_with_its_standing(bakeoff):
    report = Report(bakeoff, decide(bakeoff))
    table = rows(ranking_csv(report))
    assert [(r["backbone"], r["strategy"]) for r in table] == [
        (p.backbone, p.strategy) for p in bakeoff.ranking
    ]
    (best,) = [r for r in table if r["recommended"] == "true"]
    assert best["name"] == report.names[report.decision.winner]
    tied = {report.names[name] for name in report.decision.ties}
    assert {r["name"] for r in table if r["tied"] == "true"} == tied
    first = bakeoff.ranking[0]
    assert float(table[0]["micro_f1"]) == float(f"{first.scorecard.micro_f1:.6g}")
    assert float(table[0]["latency_ms_p50"]) == float(f"{first.cost.latency_ms_p50:.6g}")


def test_every_tag_of_every_pair_is_a_row_that_no_spreadsheet_runs(bakeoff):
    pairs = []
    for pair in bakeoff.pairs:
        evil = replace(pair.scorecard.tags[0], tag='=HYPERLINK("x"),\n1')
        card = replace(pair.scorecard, tags=(evil, *pair.scorecard.tags[1:]))
        pairs.append(replace(pair, scorecard=card))
    result = replace(bakeoff, pairs=tuple(pairs))
    report = Report(result, decide(result))
    table = rows(per_tag_csv(report))
    assert len(table) == sum(len(p.scorecard.tags) for p in pairs)
    assert table[0]["tag"].startswith("'=HYPERLINK")
    for line, row in zip(table, report.winner.scorecard.tags, strict=False):
        assert int(line["support"]) == row.support
        assert line["f1"] == ("" if row.f1 != row.f1 else f"{row.f1:.6g}")


def test_the_summary_names_the_winner_and_every_pair(bakeoff):
    report = Report(bakeoff, decide(bakeoff))
    text = summary_md(report)
    assert f"Recommended: **{report.names[report.decision.winner]}**" in text
    assert bakeoff.command in text
    assert all(f"| {name} |" in text for name in report.names.values())
    header, line, *table = [x for x in text.splitlines() if x.startswith("|")]
    assert {x.count("|") for x in (header, line, *table)} == {header.count("|")}
    assert len(table) == len(bakeoff.pairs)
