"""Findings of a sweep: choices at the end of the grid, and fits that went wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import named
from retailtag.probes.choice import EVERY_TAG, shared_choices
from retailtag.probes.solver.fits import STATUS_REMEDY, TRUSTED
from retailtag.probes.sweep import Sweep, at_lower_end, at_upper_end
from retailtag.statistics.one_standard_error import Choice

Finding = tuple[str, str, str]  # code, sentence, remedy


def grid_findings(sweep: Sweep, group: NDArray[np.str_], rule: str) -> list[Finding]:
    """Findings about choices at the end of the grid: that it was widened, or that it is short."""
    if len(sweep.C) < 2:
        return []
    choices = _deciding(sweep.ap, group, rule)
    at_ends = [found for name, choice in choices.items() for found in _at_end(sweep, name, choice)]
    return [*_widened(sweep, group, rule), *at_ends]


def _deciding(ap: NDArray[np.float64], group: NDArray[np.str_], rule: str) -> dict[str, Choice]:
    """Choices without that of all tags together, where each group chooses for itself."""
    choices = shared_choices(ap, group, rule)
    return {n: choice for n, choice in choices.items() if rule == "global" or n != EVERY_TAG}


def _widened(sweep: Sweep, group: NDArray[np.str_], rule: str) -> list[Finding]:
    asked = sweep.asked
    if len(asked) == len(sweep.C):
        return []
    first = _deciding(sweep.ap[np.isin(sweep.C, asked)], group, rule)
    names = [name for name, at in first.items() if at_lower_end(at) or at_upper_end(at)]
    sentence = (
        f"The grid of C, {asked[0]:g} to {asked[-1]:g}, was widened to {sweep.C[0]:.3g} to "
        f"{sweep.C[-1]:.3g}: {named(names)} tags chose its end."
    )
    remedy = "Start from a --sweep-C that reaches so far to fit it in one go."
    return [("grid-widened", sentence, remedy)]


def _at_end(sweep: Sweep, name: str, choice: Choice) -> list[Finding]:
    C = sweep.C
    remedy = "Widen the grid with --sweep-C."
    if at_upper_end(choice):
        end = f"largest of the grid ({C[-1]:.3g})."
    elif at_lower_end(choice):
        end = f"smallest of the grid ({C[0]:.3g})."
    elif choice.chosen == 0:
        end = (
            f"smallest of the grid ({C[0]:.3g}), within one standard error of the best "
            f"({C[choice.best]:.3g})."
        )
        remedy = "Smaller values would score alike; raise the lower end of --sweep-C to avoid them."
    else:
        return []
    return [("grid-edge", f"The C of {name} tags is the {end}", remedy)]


def troubled_tags(
    sweep: Sweep, choice: NDArray[np.intp], final: NDArray[np.str_], tags: Sequence[str]
) -> dict[str, list[str]]:
    """Tags by every status outside `TRUSTED` that one of their fits at the chosen C has.

    `choice` (n_tags,) is the grid index of each tag, `final` (n_tags,) the status of its fit to all
    training images.
    """
    of_folds = sweep.status[:, choice, np.arange(len(tags))]
    status = np.concatenate([of_folds, final[None]])
    return {
        name: [tags[j] for j in np.flatnonzero((status == name).any(axis=0)).tolist()]
        for name in np.unique(status).tolist()
        if name not in TRUSTED
    }


def status_findings(sweep: Sweep, troubled: dict[str, list[str]]) -> list[Finding]:
    """Findings about fits that went wrong; `troubled` names the tags at the chosen C."""
    found = []
    status = sweep.status
    for name in sorted({*troubled, *np.unique(status).tolist()} - {*TRUSTED}):
        tags = troubled.get(name, [])
        where = f"at the chosen C: {named(tags)}" if tags else "none at a chosen C"
        sentence = (
            f"{int((status == name).sum()):,} of {status.size:,} fits of the sweep ended with "
            f"status '{name}', {where}."
        )
        found.append((name.replace(" ", "-"), sentence, STATUS_REMEDY[name]))
    return found
