"""Findings of several models, those of one code together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retailtag.scoring.finding import Finding


@dataclass(frozen=True)
class SharedFinding:
    """Findings of one code: a line for each sentence, with the models that it holds of."""

    code: str
    remedy: str
    lines: list[str]


def grouped(named: Iterable[tuple[str, Sequence[Finding]]]) -> list[SharedFinding]:
    """Findings by code, from (model, its findings); a model without a name is none.

    Examples
    --------
    >>> edge, rare = Finding("edge", "C is 10.", "Widen."), Finding("rare", "3 tags.", "Label.")
    >>> [f.lines for f in grouped([("a", [edge]), ("b", [edge]), ("c", [rare])])]
    [['a, b: C is 10.'], ['c: 3 tags.']]
    >>> [f.lines for f in grouped([("a", [edge]), ("b", [edge])])]
    [['C is 10.']]
    """
    models: set[str] = set()
    remedies: dict[str, str] = {}
    by_code: dict[str, dict[str, list[str]]] = {}
    for name, findings in named:
        models |= {name} - {""}
        for finding in findings:
            remedies.setdefault(finding.code, finding.remedy)
            sentences = by_code.setdefault(finding.code, {})
            sentences.setdefault(finding.sentence, []).append(name)
    return [
        SharedFinding(
            code, remedies[code], [_line(said_of, text, models) for text, said_of in found.items()]
        )
        for code, found in by_code.items()
    ]


def _line(said_of: Sequence[str], sentence: str, models: set[str]) -> str:
    names = [name for name in dict.fromkeys(said_of) if name]
    if not names or (set(names) == models and len(models) > 1):
        return sentence
    return f"{', '.join(names)}: {sentence}"
