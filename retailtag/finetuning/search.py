"""The settings of a fine-tune, searched: N are tried, and the weak ones stopped early.

Settings are proposed by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) and
stopped by asynchronous successive halving (Li et al. 2020): at epochs 1, 3, 9, ... a setting goes
on only if it is among the best third of all that came as far. The first setting is the one that
would be used without a search, so that the winner is no worse than it by the criterion. The rule
of halving is written out here since Optuna's own lets interrupted attempts compete too, which
would make a resumed search differ from an uninterrupted one.

Everything lies in ``search.db`` (SQLite) in the run's folder. A search that was killed goes on with
the same call and ends as it would have ended: a proposal is a function of the seed, of its number
and of the results before it, and the setting that was interrupted is tried again first. A larger N
adds settings; other inputs or another seed are refused.

References
----------
Bergstra et al. (2011), Algorithms for Hyper-Parameter Optimization, section 4.
Li et al. (2020), A System for Massively Parallel Hyperparameter Tuning (ASHA), algorithm 2.
Akiba et al. (2019), Optuna: A Next-generation Hyperparameter Optimization Framework.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retailtag.errors import ArtefactError, DataError, Unavailable, UsageError, check_seed
from retailtag.files import make_folder
from retailtag.progress import SILENT, Progress
from retailtag.store.lock import WriterLock

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

DATABASE = "search.db"
LOCK = "search.lock"
FACTOR = 3  # one setting in three goes on from a rung to the next


@dataclass(frozen=True)
class Setting:
    """What a search varies.

    Parameters
    ----------
    loss, sampler : str
        As `parse_loss` and `parse_sampler` read them.
    lr : float
        Peak learning rate of the blocks.
    layer_decay : float
        Factor of the rate from a block to the one before it, in (0, 1].
    """

    loss: str = "bce"
    sampler: str = "shuffle"
    lr: float = 3e-4
    layer_decay: float = 0.75

    @property
    def name(self) -> str:
        """Twelve characters that no other setting has: a folder for what is kept of its run."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Space:
    """What settings are drawn from.

    Parameters
    ----------
    losses, samplers : tuple of str
    lr : (float, float)
        Drawn log-uniformly in between.
    layer_decay : (float, float)
        Drawn uniformly in between.
    """

    losses: tuple[str, ...] = ("bce", "asl", "asl:gamma_neg=2", "focal:alpha=none", "db", "la")
    samplers: tuple[str, ...] = ("shuffle", "repeat", "repeat:t=0.01")
    lr: tuple[float, float] = (3e-5, 3e-3)
    layer_decay: tuple[float, float] = (0.5, 1.0)

    def including(self, start: Setting) -> Space:
        """The space, widened where needed to hold `start`."""
        return Space(
            tuple(dict.fromkeys((start.loss, *self.losses))),
            tuple(dict.fromkeys((start.sampler, *self.samplers))),
            (min(start.lr, self.lr[0]), max(start.lr, self.lr[1])),
            (
                min(start.layer_decay, self.layer_decay[0]),
                max(start.layer_decay, self.layer_decay[1]),
            ),
        )


@dataclass(frozen=True)
class Tried:
    """How one setting did.

    Parameters
    ----------
    number : int
        From 0, in the order in which they were tried.
    setting : Setting
    status : str
        ``complete``, ``stopped`` (by successive halving) or ``failed``.
    value : float or None
        Criterion at the end, larger is better; of a stopped setting its last, of a failed one None.
    epochs : int
        Epochs that were reported.
    reason : str
        Of a failure.
    """

    number: int
    setting: Setting
    status: str
    value: float | None
    epochs: int
    reason: str = ""


@dataclass(frozen=True)
class Ranking:
    """All settings that were tried, best first.

    Parameters
    ----------
    rows : tuple of Tried
        Complete ones by value, then stopped ones by epochs and value, then failed ones; of equals
        the earlier one first.
    """

    rows: tuple[Tried, ...]

    @classmethod
    def of(cls, rows: Sequence[Tried]) -> Ranking:
        """Rank `rows`, given in any order."""
        return cls(tuple(sorted(rows, key=_place)))

    @property
    def best(self) -> Setting:
        """The winner.

        Raises
        ------
        DataError
            If no setting was completed.
        """
        if not self.rows or self.rows[0].status != "complete":
            reasons = "; ".join(sorted({row.reason for row in self.rows if row.reason}))
            raise DataError(f"No setting of the search was completed ({reasons}); lower --lr.")
        return self.rows[0].setting

    def to_json(self) -> list[dict[str, Any]]:
        """Plain rows, best first."""
        return [asdict(row) for row in self.rows]


Report = Callable[[int, float], bool]
Objective = Callable[[Setting, Report], float]


def search(
    objective: Objective,
    n: int,
    folder: Path,
    seed: int = 0,
    *,
    start: Setting | None = None,
    space: Space | None = None,
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> Ranking:
    """Try n settings, or those that are missing to n.

    Parameters
    ----------
    objective : callable
        ``(setting, report) -> value``, larger is better. It calls ``report(epoch, value)`` for
        each epoch, from 1, those that it takes from a checkpoint included; where that returns
        True, the setting is stopped and the objective returns its value so far at once. A
        `DataError` (such as a loss that is not finite) or a value that is not finite makes the
        setting a failed one; anything else ends the search, which can go on later. A setting that
        was interrupted is given again: an objective that keeps its checkpoints under
        `Setting.name` need not begin anew.
    n : int
        At least 1.
    folder : Path
        Of the run; ``search.db`` is made in it, or continued.
    seed : int
    start : Setting, optional
        Tried first; the defaults if left out.
    space : Space, optional
    inputs : mapping, optional
        JSON-able: everything else that values depend on. A database made with others is refused.
    progress : Progress

    Returns
    -------
    Ranking

    Raises
    ------
    UsageError
        If n is below 1 or the seed out of range.
    Unavailable
        If Optuna is not installed, or another process is searching in this folder.
    ArtefactError
        If the database belongs to another search, or is damaged.

    Notes
    -----
    Successive halving judges a setting when it reports, against what others had at that epoch: the
    first ones meet little competition and run to their end.
    """
    check_seed(seed)
    if n < 1:
        raise UsageError(f"--search {n} is out of range; give how many settings to try, from 1.")
    start = start or Setting()
    space = (space or Space()).including(start)
    asked = {"seed": seed, "start": asdict(start), "space": asdict(space), **(inputs or {})}
    make_folder(folder)
    lock = WriterLock(folder / LOCK)
    lock.acquire()  # a second process would take the running setting for an interrupted one
    try:
        study = _open(folder, asked)
        with progress.task("search", n, "settings") as advance:
            advance(min(n, len(_done(study))))
            while (number := len(_done(study))) < n:
                tried = _try(study, objective, start, space, _seed(seed, number))
                progress.say(_line(tried, n))
                advance(1)
        return Ranking.of(_done(study))
    finally:
        lock.release()


def _open(folder: Path, asked: dict[str, Any]) -> Study:
    """The study in `folder`, made if there is none; refused if it was asked something else."""
    try:
        import optuna
        from sqlalchemy.exc import DatabaseError
    except ImportError:
        raise Unavailable(
            '--search needs Optuna, which is not installed; run `pip install "retailtag[search]"`.'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{folder / DATABASE}",
            study_name="finetune",
            direction="maximize",
            load_if_exists=True,
        )
    except (DatabaseError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise ArtefactError(
            f"{folder / DATABASE} is damaged or of another version of Optuna "
            f"({str(error).splitlines()[0]}); delete it to begin anew."
        ) from error
    asked = json.loads(json.dumps(asked))
    held = study.user_attrs.get("asked")
    if held is None:
        study.set_user_attr("asked", asked)
    elif held != asked:
        names = sorted(k for k in {*held, *asked} if held.get(k) != asked.get(k))
        raise ArtefactError(
            f"{folder / DATABASE} belongs to a search with another {', '.join(names)}; "
            "give another --out, or delete the file to begin anew."
        )
    return study


def goes_on(value: float, others: Sequence[float]) -> bool:
    """Whether a setting is promoted at a rung: among the best third of all that reached it.

    Parameters
    ----------
    value : float
        Of the setting that is judged.
    others : sequence of float
        Of those that reached the rung before it.

    Examples
    --------
    >>> goes_on(0.5, []), goes_on(0.5, [0.6]), goes_on(0.5, [0.6, 0.1, 0.2, 0.3, 0.4])
    (True, False, True)
    """
    places = max(1, (len(others) + 1) // FACTOR)
    return sum(other > value for other in others) < places


def _is_rung(epoch: int) -> bool:
    """Whether `epoch` is 1, 3, 9, ..."""
    return epoch in {FACTOR**k for k in range(20)}


class _Reporter:
    """Takes the values of one trial in and says when to stop."""

    def __init__(self, study: Study, trial: Trial) -> None:
        self._study, self._trial = study, trial
        self.stopped = False

    def __call__(self, epoch: int, value: float) -> bool:
        if not math.isfinite(value):
            self.stopped = True
            return True
        self._trial.report(value, epoch)
        if _is_rung(epoch):
            finished = (trial for _, trial in _finished(self._study))
            reached = [t.intermediate_values for t in finished]
            self.stopped |= not goes_on(value, [v[epoch] for v in reached if epoch in v])
        return self.stopped


def _try(study: Study, objective: Objective, start: Setting, space: Space, seed: int) -> Tried:
    """Try the next setting, or again the one that was interrupted, and record how it did."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    study.sampler = TPESampler(seed=seed)
    trial = _ask(study, start)
    setting = _draw(trial, space)
    report = _Reporter(study, trial)
    try:
        value = objective(setting, report)
        reason = "" if math.isfinite(value) else f"the criterion is {value}"
    except DataError as error:
        value, reason = math.nan, str(error)
    if reason:
        study.tell(trial, state=TrialState.FAIL)
        # After it: a kill in between leaves a trial that does not count and is tried again.
        study.set_user_attr(f"failed-{trial.number}", reason)
    elif report.stopped:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)
    return _done(study)[-1]


def _ask(study: Study, start: Setting) -> Trial:
    """The trial to run: the start first, then what the sampler proposes.

    A trial that a kill interrupted is given up: the same seed and the same results before it
    propose it again.
    """
    from optuna.trial import TrialState

    if not _finished(study) and not study.get_trials(states=(TrialState.WAITING,)):
        study.enqueue_trial(asdict(start))
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study.ask()


def _draw(trial: Trial, space: Space) -> Setting:
    return Setting(
        loss=trial.suggest_categorical("loss", space.losses),
        sampler=trial.suggest_categorical("sampler", space.samplers),
        lr=trial.suggest_float("lr", *space.lr, log=True),
        layer_decay=trial.suggest_float("layer_decay", *space.layer_decay),
    )


def _finished(study: Study) -> list[tuple[str, FrozenTrial]]:
    """(status, trial) of all that ended by themselves; not of those that a kill interrupted."""
    from optuna.trial import TrialState

    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped"}
    return [
        (names.get(trial.state, "failed"), trial)
        for trial in study.get_trials(deepcopy=False)
        if trial.state in names or f"failed-{trial.number}" in study.user_attrs
    ]


def _done(study: Study) -> list[Tried]:
    """Rows of all that ended by themselves, in the order in which they were tried."""
    return [
        Tried(
            number=number,
            setting=Setting(**trial.params),
            status=status,
            value=trial.value,
            epochs=max(trial.intermediate_values, default=0),
            reason=study.user_attrs.get(f"failed-{trial.number}", ""),
        )
        for number, (status, trial) in enumerate(_finished(study))
    ]


def _place(row: Tried) -> tuple[int, int, float, int]:
    """Sort key of a ranking, best first."""
    rank = ("complete", "stopped", "failed").index(row.status)
    value = -math.inf if row.value is None else row.value
    return rank, 0 if row.status == "complete" else -row.epochs, -value, row.number


def _seed(seed: int, number: int) -> int:
    """Seed of the proposal of setting `number`."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _line(row: Tried, n: int) -> str:
    shown = row.reason or f"criterion {row.value:.4f} after {row.epochs} epochs, {row.status}"
    return f"setting {row.number + 1}/{n}: {row.setting}: {shown}"
