"""Another tool's image ids matched with the catalogue's, where they differ in spelling alone.

Spreadsheets drop leading zeros, pandas turns numbers into floats, and many tools write file names
or whole paths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from retailtag.errors import named

_SUFFIX = re.compile(r"\.[A-Za-z]\w{1,4}$")
_NUMBER = re.compile(r"0*(\d+)(\.0+)?")
# Each form ignores what the ones before ignore, and more: the first that fits best is used.
FORMS = ("the suffix", "suffix, leading zeros and .0", "folder, suffix, leading zeros and .0")


@dataclass(frozen=True)
class IdMatch:
    """Ids of a file paired with those of a catalogue that differ in spelling alone."""

    ids: dict[str, str]  # of the file: that of the catalogue
    ignored: str = ""  # in what they differ; one of `FORMS`
    ambiguous: str = ""  # an example of ids that could mean several; then `ids` is empty


def match_ids(theirs: Sequence[str], ours: Sequence[str]) -> IdMatch:
    """Pair ids that differ in leading zeros, ``.0``, suffix or folder, if no pair is in doubt.

    Parameters
    ----------
    theirs, ours : sequence of str
        Ids of the file and of the catalogue; those in both are left alone.

    Examples
    --------
    >>> match_ids(["12", "13.0"], ["000012", "000013"]).ids
    {'12': '000012', '13.0': '000013'}
    >>> match_ids(["7"], ["07", "007"]).ambiguous
    '7 could be 07 or 007'
    """
    own = set(ours)
    strange = [i for i in theirs if i not in own]
    best = IdMatch({})
    doubt = ""
    for level, ignored in enumerate(FORMS):
        by_form: dict[str, list[str]] = {}
        for name in ours:
            by_form.setdefault(_form(name, level), []).append(name)
        pairs = [(name, by_form.get(_form(name, level), [])) for name in strange]
        # An id that the file has as it is belongs to nobody else.
        taken = {i: i for i in theirs if i in own}
        found, unclear = _paired(pairs, taken)
        doubt = doubt or unclear
        if not unclear and len(found) > len(best.ids):
            best = IdMatch(found, ignored)
    return best if best.ids else IdMatch({}, ambiguous=doubt)


def _paired(
    pairs: Sequence[tuple[str, list[str]]], taken: dict[str, str]
) -> tuple[dict[str, str], str]:
    """The pairs, unless an id has several partners: then an example of that."""
    found: dict[str, str] = {}
    for name, partners in pairs:
        if len(partners) > 1:
            return {}, f"{name} could be {' or '.join(partners[:2])}"
        for partner in partners:
            if partner in taken:
                return {}, f"{taken[partner]} and {name} could both be {partner}"
            taken[partner] = name
            found[name] = partner
    return found, ""


def _form(name: str, level: int) -> str:
    """An id without what `FORMS[level]` ignores."""
    if level == len(FORMS) - 1:
        name = re.split(r"[/\\]", name)[-1]
    name = _SUFFIX.sub("", name)
    number = _NUMBER.fullmatch(name) if level else None
    return number[1] if number else name


def both_sides(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Two ids of each side, for a message."""
    return f"its ids are such as {named(theirs[:2])}, the catalogue's such as {named(ours[:2])}"
