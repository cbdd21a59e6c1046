"""Notation of tags within a cell: lists as text, joined text, and words for an empty cell."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from retailtag.catalog.manifest import NO_TAGS, SEPARATOR, Cell

# How pandas and SQL write an empty cell as text. None and NA are not among them: attributes have
# such values ("pattern: None").
EMPTY_WORDS = frozenset({"nan", "NaN", "NaT", "<NA>", "null", "NULL"})
EMPTY_CELLS = EMPTY_WORDS | {""}
SEPARATORS = (";", ",", " ")  # tried where no cell holds the separator in force, in this order
COMMAS = SEPARATORS[:2]  # where a cell holds a single value or tag, which may have spaces
MOST = 0.5  # of the distinct cells must split, and of their pieces recur
MOST_BY_SPACES = 0.8  # of the pieces recur: names of several words share words as well
NEARLY_ALL = 0.9  # of the pieces recur where fewer cells split
_EMPTY_LISTS = ("[]", "()", "{}", "set()", "array([], dtype=object)")
# No comma behind dtype=, so that the search is not repeated from every dtype= of a hostile cell.
_ARRAY = re.compile(r"array\((.*?)(?:,\s*dtype=[^(),]*)?\)", re.DOTALL)
_STARTS_AS_LIST = re.compile(r"""(array\()?[\[({]\s*(np\.str_\()?['"]""")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ITEM = re.compile(
    rf"(?:np\.str_\()?(?P<quoted>{_QUOTED})\)?"
    r"|(?P<bare>[-+]?\d+(?:\.\d*)?|True|False|true|false|None|null|nan)(?=[\s,]|$)",
    re.DOTALL,
)
_BETWEEN = re.compile(r"\s*,\s*|\s+|$")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_UNREADABLE = (
    "looks like a list but cannot be read as one (numpy cuts long lists short); "
    'write ["red", "blue"] or red|blue'
)


class Better(NamedTuple):
    """A separator that splits cells into recurring pieces, and how many tags there would be."""

    separator: str
    n_tags: int
    n_whole: int  # tags without splitting


def as_list(text: str) -> tuple[Cell, str]:
    """A list written as text, as the tuple of its items; any other text stays what it is.

    Parameters
    ----------
    text : str
        A cell. Lists are those of JSON, Python (also tuples and sets) and numpy, whose items no
        comma divides.

    Returns
    -------
    cell : str or tuple of str
    fault : str
        What is wrong with a text that looks like a list and is none; else empty.

    Examples
    --------
    >>> as_list('["red", "blue"]'), as_list("['red' 'light blue']")
    ((('red', 'blue'), ''), (('red', 'light blue'), ''))
    >>> as_list("Jeans, skinny")
    ('Jeans, skinny', '')
    """
    if text in _EMPTY_LISTS:
        return (), ""
    starts = _STARTS_AS_LIST.match(text) is not None
    if not (starts or text[:1] in ("[", "{")):
        return text, ""
    array = _ARRAY.fullmatch(text)
    items = _items(array[1].strip() if array else text)
    if items is not None:
        return items, ""
    # Without quotes and commas, brackets may belong to a tag: [brand].
    is_list = starts or (text[-1] == _BRACKETS[text[0]] and "," in text)
    return text, _UNREADABLE if is_list else ""


def _items(text: str) -> tuple[str, ...] | None:
    """Items of a list with its brackets; None if it is no list."""
    if len(text) < 2 or text[-1] != _BRACKETS.get(text[0]):
        return None
    body = text[1:-1].strip()
    found = []
    at = 0
    while at < len(body):
        item = _ITEM.match(body, at)
        after = _BETWEEN.match(body, item.end()) if item else None
        if item is None or after is None:
            return None
        found.append(_unquoted(item["quoted"]) if item["quoted"] else _plain(item["bare"]))
        at = after.end()
    return tuple(found)


def _plain(bare: str) -> str:
    """Text of an item without quotes: a whole float loses its point, None is empty."""
    return "" if bare in ("None", "null") else re.sub(r"\.0*$", "", bare)


def _unquoted(token: str) -> str:
    """Content of a quoted string of JSON or Python."""
    if "\\" in token and token[0] == '"':
        try:
            return str(json.loads(token, strict=False))
        except ValueError:
            pass  # Python has escapes that JSON lacks
    return _ESCAPE.sub(_character, token[1:-1])


def _character(escape: re.Match[str]) -> str:
    code = escape[1]
    if code[0] in "uUx" and len(code) > 1:
        return chr(min(int(code[1:], 16), 0x10FFFF))
    return {"n": "\n", "t": "\t", "r": "\r"}.get(code, code if code in "'\"\\/" else escape[0])


def split_text(text: str, separator: str) -> list[str]:
    """Pieces of a text without the space around them; any space divides where it separates."""
    return [p.strip() for p in text.split(separator)] if separator.strip() else text.split()


def parse_cell(cell: Cell, separator: str) -> tuple[list[str], str]:
    """Tags of one cell, and what is wrong with it (empty: nothing).

    Examples
    --------
    >>> parse_cell("red | blue", "|"), parse_cell("['red', 'Jeans, skinny']", "|")
    ((['red', 'blue'], ''), (['red', 'Jeans, skinny'], ''))
    >>> parse_cell("Men|nan", "|")
    ([], 'holds nan, which is no tag')
    """
    fault = ""
    if isinstance(cell, str):
        cell, fault = as_list(cell)
    if fault or cell in ((), (NO_TAGS,), NO_TAGS) or cell in EMPTY_CELLS:
        return [], fault
    if isinstance(cell, str):
        parts = split_text(cell, separator)
    else:
        parts = [part.strip() for part in cell]
    fault = _fault(parts)
    return ([] if fault else parts), fault


def _fault(parts: Sequence[str]) -> str:
    """What is wrong with the tags of a cell; empty: nothing."""
    if "" in parts:
        return "holds an empty tag"
    if NO_TAGS in parts:
        return f"{NO_TAGS} means no tags and cannot be combined with other tags"
    for part in parts:
        if part in EMPTY_WORDS:
            return f"holds {part}, which is no tag"
        if SEPARATOR in part:
            return f"tag '{part}' has the separator {SEPARATOR} in it"
    return ""


def better_separator(
    cells: Iterable[Cell],
    separator: str,
    *,
    among: Sequence[str] = SEPARATORS,
    known: Collection[str] = (),
) -> Better | None:
    """Another separator that most cells seem to use, if none holds the one in force.

    Parameters
    ----------
    cells : iterable of str or tuple
        A column; lists and empty cells say nothing about a separator.
    separator : str
        The one in force.
    among : sequence of str
        Separators to try, in this order.
    known : collection of str
        Tags of other columns: a piece that is one of them counts as recurring.

    Notes
    -----
    A piece recurs if at least two distinct cells hold it, so that many photographs of one product
    count once. "Jeans, skinny" and "Shirt, slim" have a comma and no recurring piece.

    Examples
    --------
    >>> better_separator(["red, blue", "blue, green", "green, red"], "|")
    Better(separator=',', n_tags=3, n_whole=3)
    >>> better_separator(["Jeans, skinny", "Shirt, slim"], "|") is None
    True
    """
    distinct = {c for c in cells if isinstance(c, str) and c not in EMPTY_CELLS and c != NO_TAGS}
    texts = [text for text in distinct if as_list(text) == (text, "")]
    if any(separator in text for text in texts):
        return None
    for other in among:
        split = [{p for p in split_text(t, other) if p} for t in texts if other in t]
        whole = [{t} for t in texts if other not in t]
        often = Counter(p for pieces in (*split, *whole) for p in pieces)
        pieces = [p for some in split for p in some]
        recurring = sum(often[p] > 1 or p in known for p in pieces)
        share = recurring / max(len(pieces), 1)
        if len(split) > MOST * len(texts):
            seems = share >= MOST_BY_SPACES if other == " " else share > MOST
        else:
            seems = other != " " and len(split) > 2 and share >= NEARLY_ALL
        if seems:
            return Better(other, len(often), len(texts))
    return None


def holds_vectors(cells: Iterable[Cell]) -> bool:
    """Whether lists are rows of an indicator matrix ([0, 1, 0]) instead of lists of tags."""
    lists = [cell for cell in set(cells) if isinstance(cell, tuple)]
    if any(isinstance(cell, str) and cell not in EMPTY_CELLS for cell in cells):
        return False
    values = {value.lower() for cell in lists for value in cell}
    is_binary = values <= {"0", "1"} or values <= {"true", "false"}
    return is_binary and any(len(set(cell)) < len(cell) for cell in lists)


def made_of_tags(tags: Sequence[str]) -> list[str]:
    """Tags that a comma or semicolon divides into other tags: a few cells differ from the rest.

    Examples
    --------
    >>> made_of_tags(["red", "blue", "red, blue", "Jeans, skinny"])
    ['red, blue']
    """
    known = set(tags)
    commas = [s for s in SEPARATORS if s.strip()]
    return [t for t in tags if any(s in t and set(split_text(t, s)) <= known for s in commas)]
