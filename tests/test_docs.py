"""The pages are right where a program can tell: links, lengths, and the options of commands."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from retailtag.cli.main import app
from retailtag.cli.options import with_bare_options
from retailtag.settings import keys, option_of
from retailtag.verbs import USES, flags_of, resolve

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GENERATED = ROOT / "docs" / "cli.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "results" / "README.md",
    ROOT / "benchmarks" / "README.md",
]
WRITTEN = [page for page in PAGES if page != GENERATED]
README_LINES = 220
PARAGRAPH_WORDS = 90
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) ", re.MULTILINE)
EARLIER_SPELLINGS = {alias for key in keys() for alias in option_of(key).aliases}

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
by_written = pytest.mark.parametrize("page", WRITTEN, ids=lambda p: str(p.relative_to(ROOT)))


def _prose(page):
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def _paragraphs(page):
    """Paragraphs, each item of a list by itself; without code, tables and headings."""
    for block in re.split(r"\n\s*\n", _prose(page)):
        lines = [line for line in block.splitlines() if not line.lstrip().startswith(("|", "#"))]
        yield from ITEM.split("\n".join(lines))


def _anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@by_name
def test_relative_links_lead_to_files_and_headings(page):
    for link in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page}: {link}"


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


@by_written
def test_paragraphs_are_short(page):
    for paragraph in _paragraphs(page):
        n = len(paragraph.split())
        assert n <= PARAGRAPH_WORDS, f"{page}: {n} words: {paragraph.strip()[:80]}"


def _command_lines():
    """Every command line of retailtag in the sh blocks of the pages, as words."""
    for page in WRITTEN:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language != "sh":
                continue
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                words = words[: words.index(">")] if ">" in words else words
                if words[:1] == ["retailtag"]:
                    yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words)[:60]}")


def _leaf(words):
    """The command that words name, its name, and the words after it."""
    command, name = typer.main.get_command(app), ""
    words = list(words)
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
    return command, name, words


@pytest.mark.parametrize("words", list(_command_lines()))
def test_commands_use_options_that_exist(words):
    assert not {word.partition("=")[0] for word in words} & EARLIER_SPELLINGS
    command, name, rest = _leaf(words)
    context = command.make_context(name, with_bare_options(rest))  # parses, runs nothing
    verb = name if name in USES else "features"
    options = {flag[2:].replace("-", "_") for flag in flags_of(verb)}
    given = {k: v for k, v in context.params.items() if k in options and v not in (None, False)}
    resolve(verb, None, given, sets=context.params.get("set") or ())


def test_findings_page_lists_every_code():
    sources = (
        ROOT / "retailtag" / "scoring" / "findings.py",
        *(ROOT / "retailtag").glob("bake*/*.py"),
    )
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    codes = set(re.findall(r"Finding\(\s*\"([a-z-]+)\"", text))
    assert len(codes) > 10
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_map_names_every_package_and_module():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "retailtag").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {name for name in names - {"__main__.py"} if f"`{name}`" not in page} == set()


@by_written
def test_modules_named_on_a_page_exist(page):
    for name in re.findall(r"`([\w/]+\.py)`", _prose(page)):
        places = (ROOT / name, ROOT / "retailtag" / name, page.parent / name)
        assert any(place.exists() for place in places), f"{page}: {name}"
