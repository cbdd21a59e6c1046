from retailtag.cli.output import Screen
from retailtag.report.decision import decide
from retailtag.report.tables import (
    comparison_table,
    decision_text,
    findings_text,
    groups_table,
    ranking_table,
)
from retailtag.scoring.finding import Finding


def shown(renderable) -> str:
    screen = Screen()
    screen.width = 160
    with screen.capture() as captured:
        screen.print(renderable)
    return captured.get()


def test_ranking_marks_the_recommended_pair(bakeoff):
    decision = decide(bakeoff)
    text = shown(ranking_table(bakeoff, decision))
    assert text.count("→ ") == 2  # the row and the caption
    assert f"→ {decision.winner}" in text
    assert all(p.name in text for p in bakeoff.pairs)


def test_groups_and_comparisons_name_every_model(bakeoff):
    cards = [p.scorecard for p in bakeoff.pairs[:2]]
    text = shown(groups_table(cards))
    assert all(card.model in text for card in cards)
    assert text.count("tail 10-19") == len(cards)
    assert all(
        f"{card.model}, per image: sample-F1 {100 * card.samples.sample_f1:.1f}" in text
        for card in cards
    )
    text = shown(comparison_table(bakeoff.comparisons))
    assert text.count("tie") + text.count("ahead") >= len(bakeoff.comparisons)


def test_names_are_no_markup(bakeoff):
    finding = Finding("undefined-tags", "tag [bold]x[/bold] [/]", "drop [it]")
    text = shown(findings_text([finding]))
    assert "[bold]x[/bold] [/]" in text
    assert "drop [it]" in text
    assert decide(bakeoff).winner in shown(decision_text(decide(bakeoff)))
