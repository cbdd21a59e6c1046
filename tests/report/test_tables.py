from dataclasses import replace

import pytest

from retailtag.backbones.names import short_models
from retailtag.cli.output import Screen
from retailtag.report import tables
from retailtag.report.decision import decide
from retailtag.report.grouped import grouped
from retailtag.report.tables import (
    comparison_table,
    decision_text,
    findings_text,
    groups_table,
    ranking_table,
)
from retailtag.report.theme import short_names
from retailtag.scoring.finding import Finding


def shown(renderable, width: int = 160) -> str:
    screen = Screen()
    screen.width = width
    with screen.capture() as captured:
        screen.print(renderable)
    return captured.get()


def test_ranking_marks_the_recommended_pair(bakeoff):
    decision = decide(bakeoff)
    text = shown(ranking_table(bakeoff, decision))
    assert text.count("→ ") == 2  # the row and the caption
    names = short_names(bakeoff)
    assert f"→ {names[decision.winner]}" in text
    assert all(names[p.name] in text for p in bakeoff.pairs)
    summary = bakeoff.pair(decision.winner).scorecard.summaries["all"]
    line = next(line for line in text.splitlines() if f"→ {names[decision.winner]}" in line)
    assert f"{100 * summary.macro_f1_population:.1f}" in line
    assert f"{100 * summary.macro_f1:.1f}" in line
    assert f"{100 * summary.macro_f1_low:.1f}–{100 * summary.macro_f1_high:.1f}" in text


def test_intervals_are_whole_at_80_columns(bakeoff):
    screen = Screen()
    screen.width = 80
    with screen.capture() as captured:
        screen.print(ranking_table(bakeoff, decide(bakeoff)))
        screen.print(groups_table([bakeoff.pairs[0].scorecard]))
    for scope in ("all", "tail"):
        s = bakeoff.pairs[0].scorecard.summaries[scope]
        assert captured.get().count(f"{100 * s.macro_f1_low:.1f}–{100 * s.macro_f1_high:.1f}") >= 2


def test_groups_and_comparisons_name_every_model(bakeoff):
    cards = [p.scorecard for p in bakeoff.pairs[:2]]
    text = shown(groups_table(cards))
    names = short_models(card.model for card in cards)
    assert all(names[card.model] in text for card in cards)
    assert text.count("tail 10-19") == len(cards)
    assert "tags an image: " in text
    assert all(
        f"{names[card.model]}, per image: sample-F1 {100 * card.samples.sample_f1:.1f}" in text
        for card in cards
    )
    text = shown(comparison_table(bakeoff.comparisons))
    assert text.count("tie") + text.count("ahead") >= len(bakeoff.comparisons)


def test_names_are_no_markup(bakeoff):
    finding = Finding("undefined-tags", "tag [bold]x[/bold] [/]", "drop [it]")
    text = shown(findings_text([finding]))
    assert "[bold]x[/bold] [/]" in text
    assert "drop [it]" in text
    decision = decide(bakeoff)
    assert short_names(bakeoff)[decision.winner] in shown(decision_text(decision, bakeoff))


def test_given_names_are_used_in_every_table(bakeoff):
    given = {bakeoff.pairs[0].backbone: "mine"}
    cards = [p.scorecard for p in bakeoff.pairs[:2]]
    texts = [
        shown(groups_table(cards, given)),
        shown(comparison_table(bakeoff.comparisons, given)),
        shown(ranking_table(named := replace(bakeoff, names=tuple(given.items())), decide(named))),
        shown(decision_text(decide(named), named)),
    ]
    assert all("mine · " in text for text in texts[:3])
    assert not any(bakeoff.pairs[0].backbone in text for text in texts)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_narrow_terminal_loses_spare_columns_and_breaks_no_word(width):
    columns = ("model", "against", "detectable", "p", "verdict")
    table = tables._table("Differences", "", columns)
    cells = ("convnext_small probe", "vit_base fine-tune", "2.1", "0.032", "ahead")
    table.add_row(*cells)
    text = shown(table, width)
    needed = [cell for k, cell in enumerate(cells) if columns[k] not in tables.SPARE]
    assert all(word in text for cell in needed for word in cell.split())
    assert max(map(len, text.splitlines())) <= width
    left_out = [column for column in columns if column not in text.split("Not shown")[0]]
    assert all(column in text for column in left_out)
    assert bool(left_out) == ("Not shown at this width" in text)
    assert shown(table, 160).count("Not shown") == 0  # the table is whole again


def test_a_finding_of_several_models_is_shown_once():
    edge = Finding("edge", "The best C is at the edge.", "Widen the grid.")
    other = Finding("edge", "C [0] is at the edge.", "Widen the grid.")
    text = shown(findings_text(grouped([("a", [edge]), ("b", [edge]), ("c", [other])])))
    assert text.count("Widen the grid.") == 1
    assert "a, b: The best C is at the edge." in text
    assert "c: C [0] is at the edge." in text
