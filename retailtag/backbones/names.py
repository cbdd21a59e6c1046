"""Short names of the compared backbones and pairs, for tables, pictures and sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from retailtag.backbones.ids import canonical, components_of
from retailtag.backbones.registry import FAMILIES, PRESETS
from retailtag.errors import UsageError

SEPARATOR = " · "  # between backbone and strategy
_JOINT = re.compile(r"\+(?=[A-Za-z])")  # of A+B; the plus sign of 1e+5 stays


def name_backbones(ids: Iterable[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Name of each backbone id: the one `given`, else the shortest that only it has.

    A published model goes by its name in its library; weights tag, library and arguments are added
    where two would share it. A name that means something else, such as the preset ``cnn`` for
    ``demo:cnn``, is never one.

    Examples
    --------
    >>> list(name_backbones(["demo:cnn", "timm:resnet50?mean=0.5", "demo:cnn+timm:x.y"]).values())
    ['demo:cnn', 'resnet50', 'demo:cnn+x']
    >>> list(name_backbones(["timm:resnet50.a1", "timm:resnet50.b2"]).values())
    ['resnet50.a1', 'resnet50.b2']
    """
    ids = list(dict.fromkeys(ids))
    given = given or {}
    parts = {i: _JOINT.split(i) for i in ids}
    single = dict.fromkeys(c for components in parts.values() for c in components)
    levels = {c: [given[c]] if c in given else _levels(c) for c in single}
    chosen = dict.fromkeys(levels, 0)
    while True:
        names = {c: levels[c][chosen[c]] for c in levels}
        shared = Counter(names.values())
        longer = [c for c, n in names.items() if shared[n] > 1 and chosen[c] < len(levels[c]) - 1]
        if not longer:
            break
        for component in longer:
            chosen[component] += 1
    return {i: given.get(i) or "+".join(names[c] for c in parts[i]) for i in ids}


def _levels(component: str) -> list[str]:
    """Names of one backbone from the shortest to its id."""
    scheme, colon, rest = component.partition(":")
    family = FAMILIES.get(scheme)
    stem = rest.partition("?")[0]
    names = [f"{scheme}{colon}{stem}", component]
    if family is not None and family.published:
        names = [family.split_name(stem)[0], stem, *names]
    return [name for name in names if name not in PRESETS]


def given_names(texts: Sequence[str], ids: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=ID`` texts into names by canonical id.

    Raises
    ------
    UsageError
        If one is not of that form, names no backbone of `ids` (canonical), or repeats a name.
    """
    names: dict[str, str] = {}
    for text in texts:
        name, equals, backbone = (part.strip() for part in text.partition("="))
        if not (name and equals and backbone):
            raise UsageError(f"--name {text} is not NAME=ID, such as small=timm:mobilenetv2_100.")
        backbone = canonical(backbone)
        if backbone not in ids:
            raise UsageError(
                f"--name {text}: {backbone} is not compared here; give one of {', '.join(ids)}."
            )
        names[backbone] = name
    taken = Counter([*names.values(), *(i for i in ids if i not in names)])
    for name in names.values():
        if taken[name] > 1:
            raise UsageError(f"--name gives {name} to two backbones; give each a name of its own.")
    return names


def compared_names(backbones: Sequence[str], texts: Sequence[str] = ()) -> dict[str, str]:
    """Names of the backbones of a bake-off and of the components of ``A+B``, by canonical id.

    `texts` are ``NAME=ID``, see `given_names`.
    """
    ids = [canonical(b) for b in backbones]
    components = [canonical(c) for b in backbones for c in components_of(b)]
    return name_backbones([*ids, *components], given_names(texts, ids))


def short_models(models: Iterable[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Short names of models called ``backbone · strategy``; others keep theirs.

    Examples
    --------
    >>> short_models(["timm:resnet50.tv_in1k · probe", "mine"])
    {'timm:resnet50.tv_in1k · probe': 'resnet50 · probe', 'mine': 'mine'}
    """
    split = {model: model.partition(SEPARATOR) for model in models}
    ids = {head for head, separator, _ in split.values() if separator and _is_id(head)}
    short = name_backbones(sorted(ids), given)
    return {
        model: f"{short.get(head, head)}{separator}{rest}"
        for model, (head, separator, rest) in split.items()
    }


def _is_id(text: str) -> bool:
    return text.partition(":")[0] in FAMILIES


def shortened(text: str, names: Mapping[str, str]) -> str:
    """Sentence with full names replaced by short ones, the longest first.

    Examples
    --------
    >>> shortened("a:x · probe beats b:a:x · probe", {"a:x · probe": "x", "b:a:x · probe": "y"})
    'x beats y'
    """
    if not names:
        return text
    longest_first = sorted(names, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: names[found[0]], text)
