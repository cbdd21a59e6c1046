"""Ids that another tool wrote in another form than the catalogue: zeros, ``.0``, suffix, path."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from retailtag.catalog.catalog import Catalog

_SUFFIX = re.compile(r"(?<=[^/])\.[A-Za-z][A-Za-z0-9]{1,4}$")
_WHOLE = re.compile(r"0*(\d+)(\.0+)?")


def _without_suffix(name: str) -> str:
    return _SUFFIX.sub("", name)


def _file_name(name: str) -> str:
    return _without_suffix(name.replace("\\", "/").rpartition("/")[2])


def _number(name: str) -> str:
    match = _WHOLE.fullmatch(name)
    return match[1] if match else name


# From what changes least to what changes most; the first that agrees is taken.
FORMS: Mapping[str, Callable[[str], str]] = {
    "without their suffix": _without_suffix,
    "by their file names": _file_name,
    "as whole numbers": _number,
    "by the numbers in their file names": lambda name: _number(_file_name(name)),
}


@dataclass(frozen=True)
class IdMatch:
    """A form in which ids agree with a catalogue's, and the catalogue's id of each."""

    form: str
    ids: dict[str, str]


def match_ids(given: Sequence[str], catalog: Catalog) -> IdMatch | None:
    """The first form in which every one of `given` is exactly one image of the catalogue.

    None if there is no such form: two ids would fall together, or one would be left over.

    Examples
    --------
    >>> _number("000012"), _number("12.0"), _number("a12"), _file_name("images/0/12.jpg")
    ('12', '12', 'a12', '12')
    """
    known = catalog.image_ids.tolist()
    for name, form in FORMS.items():
        by_form = {form(image_id): image_id for image_id in known}
        found = {image_id: by_form.get(form(image_id), "") for image_id in given}
        is_distinct = len(by_form) == len(known)
        if is_distinct and all(found.values()) and len(set(found.values())) == len(found):
            return IdMatch(name, found)
    return None
