"""Findings of a sweep: choices at the end of the grid, flat curves, fits that went wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import named
from retailtag.probes.choice import deciding_choices
from retailtag.probes.solver.fits import STATUS_REMEDY, TRUSTED
from retailtag.probes.sweep import Sweep, at_lower_end, at_upper_end
from retailtag.statistics.one_standard_error import Choice

MIN_FLAT_STRENGTHS = 3  # that are alike, and over how wide a range of C
MIN_FLAT_RATIO = 99.0  # two decades, less the rounding of a grid

Finding = tuple[str, str, str]  # code, sentence, remedy


def grid_findings(sweep: Sweep, group: NDArray[np.str_], rule: str) -> list[Finding]:
    """Findings about the grid: it was widened, its end was chosen, or a curve is flat."""
    if len(sweep.C) < 2:
        return []
    found = _widened(sweep, group, rule)
    for name, choice in deciding_choices(sweep.evidence, group, rule).items():
        found += [*_at_end(sweep, name, choice), *_flat(sweep, name, choice)]
    return found


def _widened(sweep: Sweep, group: NDArray[np.str_], rule: str) -> list[Finding]:
    asked = sweep.asked
    if len(asked) == len(sweep.C):
        return []
    first = deciding_choices(sweep.evidence[np.isin(sweep.C, asked)], group, rule)
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


def _flat(sweep: Sweep, name: str, choice: Choice) -> list[Finding]:
    """That the curve of a group is flat over two decades of C from the one that was chosen."""
    first = choice.chosen
    outside = np.flatnonzero(~choice.within[first:])
    end = first + int(outside[0]) if len(outside) else len(choice.mean)
    ratio = sweep.C[end - 1] / sweep.C[first]
    if end - first < MIN_FLAT_STRENGTHS or ratio < MIN_FLAT_RATIO:
        return []
    mean = choice.mean[first:end]
    sentence = (
        f"AP hardly depends on C for {name} tags: it is {mean.min():.3f} to {mean.max():.3f} from "
        f"C = {sweep.C[first]:.3g} to {sweep.C[end - 1]:.3g}, within one standard error; the most "
        "regularised was taken."
    )
    remedy = "Any C in this range will do; more products per tag would tell them apart."
    return [("flat-curve", sentence, remedy)]


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
