"""Nothing of the user's is obeyed by a terminal: control and bidirectional characters, markup."""

import logging
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from retailtag.cli import main as program
from retailtag.cli import output as words
from retailtag.cli.main import run
from retailtag.cli.output import Output, Screen, warn
from retailtag.display import Displayed, View, printable, table_of
from retailtag.report.tables import findings_text
from retailtag.scoring.finding import Finding

HOSTILE = {
    "colour": "\x1b[31mred",
    "title (OSC)": "\x1b]0;mine\x07",
    "link (OSC 8)": "\x1b]8;;http://x\x1b\\y",
    "C1": "\x9b31mred\x85",
    "back": "abc\x08\x08\x7f",
    "start of the line": "abc\rxyz",
    "tab": "a\tb",
    "right to left": "\u202egnp.exe",
    "isolate": "\u2066a\u2069\u200f\u061c",
    "line separator": "a\u2028b\u2029",
    "half of a pair": "a\udcffb",
    "nul": "a\0b",
}
MARKUP = "[red]:car:[/red] [link=x]"


def is_shown(text: str) -> bool:
    controls = {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")} - {"\n"}
    bidirectional = {c for c in text if unicodedata.bidirectional(c)[:2] in ("LR", "RL", "PD")}
    marks = set(text) & set("\u061c\u200e\u200f\u2066\u2067\u2068\u2069")
    return not (controls or bidirectional or marks)


@given(st.text(st.characters()))
def test_printable_text_has_escapes_and_loses_nothing(text):
    shown = printable(text, keep="")
    assert is_shown(shown)
    assert "\n" not in shown
    if "\\" not in text and is_shown(text) and "\n" not in text:
        assert shown == text
    assert printable(shown) == shown


@pytest.mark.parametrize("name", HOSTILE)
def test_no_way_to_a_terminal_passes_control_characters(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    text = HOSTILE[name]
    escaped = printable(text)
    assert escaped != text
    log = tmp_path / "log.txt"
    output = Output(log_file=log)
    output.print(f"line {text}")
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    output.print(table)
    output.print(text, table)
    output.print(findings_text([Finding("code", text, text)]))
    warn(f"warning {text}\n  item {text}")
    output.progress.say(f"news {text}")
    with output.progress.task(text, 1) as advance:
        monkeypatch.setattr(words, "PLAIN_LINE_EVERY", 0.0)
        advance(1, f"note {text}")
    said = capsys.readouterr()
    assert is_shown(said.out + said.err + log.read_text())
    assert said.out.count(escaped) == 12
    assert said.err.count(escaped) == 6
    assert log.read_text().count(escaped) == 4


@pytest.mark.parametrize("name", HOSTILE)
def test_errors_show_the_paths_and_tags_of_the_command_line_escaped(name, capsys, tmp_path):
    text = HOSTILE[name].replace("\0", "\x01").replace("/", "_")
    for command in (["catalog", "check", f"{tmp_path}/{text}.csv"], [text], ["demo", f"--{text}"]):
        assert run(command) in (2, 3)
        said = capsys.readouterr()
        assert is_shown(said.err)
        # the parser has escapes of its own for what it quotes
        assert printable(text) in said.err or command[0] != "catalog"
        assert said.err.count("\n") == 1


def test_a_name_cannot_add_a_line(capsys, tmp_path):
    assert run(["catalog", "check", f"{tmp_path}/a\nretailtag: all is well.csv"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_cannot_make_up_a_row(capsys):
    table = Table("id", "state")
    table.add_row("a\nwhole", "damaged")
    Output().print("a\nwhole", table)
    said = capsys.readouterr().out
    assert said.startswith("a\\nwhole\n┏")
    assert "│ a\\nwhole │ damaged │" in said


def test_bars_show_escapes(capsys):
    screen = Screen(stderr=True)
    bars = words._Printable(words._Bars(screen))
    with bars.task(HOSTILE["title (OSC)"], 2) as advance:
        advance(1, HOSTILE["right to left"])
        bars.say(MARKUP)
    said = capsys.readouterr().err
    assert is_shown(said)
    assert MARKUP in said


def test_bars_keep_their_width_and_figures_on_80_columns(capsys):
    screen = Screen(stderr=True)
    screen.width = 80
    bars = words._Bars(screen)
    name = "extract timm:vit_base_patch14_dinov2.lvd142m?img_size=224"
    with bars.task(name, 12_000) as advance:
        advance(6_000, "loss 0.1234, macro-F1 of the validation set 45.6")
        screen.print(bars._bars.get_renderable())
    line = max(capsys.readouterr().err.splitlines(), key=len)
    assert len(line) <= 80
    assert "━" * 5 in line
    assert "6,000/12,000" in line
    assert "/s" in line
    assert line.strip("-\\|/ ").startswith("extract timm:vit_base")


def test_a_working_command_moves_and_leaves_stdout_to_the_result(capsys):
    output = Output(json=True)
    output._stderr._force_terminal = True
    with output.busy("retailtag bakeoff"):
        assert output._bars._bars.live.is_started
        assert output._bars._bars.tasks[0].total is None  # an endless bar
        output.result({"a": 1})
        assert not output._bars._bars.live.is_started
    assert capsys.readouterr().out == '{"a": 1}\n'


def test_sentences_wrap_between_words_on_a_terminal_and_not_in_a_file(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    sentence = Text("word " * 60 + "end")
    Output().print(sentence)
    assert capsys.readouterr().out.count("\n") == 1
    assert Screen().width == words.FILE_WIDTH
    output = Output()
    output._stdout._force_terminal = True
    output._stdout.width = 79
    output.print(sentence)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 79
    assert " ".join(" ".join(lines).split()) == sentence.plain


def test_off_a_terminal_nothing_is_drawn(capsys):
    with Output().busy("retailtag bakeoff"):
        pass
    assert capsys.readouterr() == ("", "")


def test_markup_and_emoji_names_are_shown_as_they_are(capsys):
    output = Output()
    table = Table(MARKUP, title=MARKUP)
    table.add_row(MARKUP)
    output.print(table)
    output.print(MARKUP)
    output.progress.say(MARKUP)
    said = capsys.readouterr()
    assert (said.out.count(MARKUP), said.err.count(MARKUP)) == (4, 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_results_of_the_api_show_escapes(name):
    text = HOSTILE[name]

    class Result(Displayed):
        def views(self):
            yield View(text, table_of([{text.replace("\udcff", "\x80"): text}]), (text,))

    if name == "half of a pair":  # Arrow holds none
        return
    assert is_shown(repr(Result()))
    assert is_shown(Result()._repr_html_())
    assert repr(Result()).count(printable(text)) == 4


def test_warnings_and_logs_of_libraries_are_escaped(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", None)
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    program._escape_libraries()
    text = HOSTILE["title (OSC)"]
    warnings.showwarning(UserWarning(text), UserWarning, "file.py", 1)
    record = logging.LogRecord("timm", logging.WARNING, "file.py", 1, f"{text}\n%s", (text,), None)
    logging.lastResort.handle(record)
    said = capsys.readouterr().err
    assert is_shown(said)
    assert said.count(printable(text)) == 3
    assert said.count("\n") == 2
