"""A search over the settings of a fine-tune that stops weak settings early.

Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) proposes the settings, and
asynchronous successive halving (Li et al. 2020) stops them: at epochs 1, 3, 9, ... a setting
continues only if it is among the best third of all that reached that epoch. The first setting is
the one that would be used without a search, so the winner is no worse than it by the criterion.

The study is ``search.db`` (SQLite) in the run's folder. The same call continues a search that was
killed, to the same end; a larger N adds settings; other inputs or another seed are refused.

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

from retailtag.errors import ArtefactError, DataError, Unavailable, UsageError
from retailtag.files import make_folder
from retailtag.lock import WriterLock
from retailtag.progress import SILENT, Progress

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

DATABASE = "search.db"
LOCK = "search.lock"
FACTOR = 3  # of three settings at a rung, one continues to the next

LOSSES = ("bce", "asl", "asl:gamma_neg=2", "focal:alpha=none", "db")
SAMPLERS = ("shuffle", "repeat", "repeat:t=0.01")
LR_RANGE = (3e-5, 3e-3)
LAYER_DECAY_RANGE = (0.5, 1.0)


@dataclass(frozen=True)
class Setting:
    """What a search varies; the fields of `FinetuneSettings` of these names."""

    loss: str = "bce"
    sampler: str = "shuffle"
    lr: float = 3e-4
    layer_decay: float = 0.75

    @property
    def name(self) -> str:
        """Twelve characters that no other setting has, for a folder of its run."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Tried:
    """How one setting did."""

    number: int  # from 0, in the order in which the settings were tried
    setting: Setting
    status: str  # complete, stopped (by successive halving) or failed
    value: float | None  # last criterion, larger is better; None of a failed setting
    epochs: int  # that were reported
    reason: str = ""  # of a failure

    @property
    def rank(self) -> tuple[int, int, float, int]:
        """Sort key, best first."""
        order = ("complete", "stopped", "failed").index(self.status)
        value = -math.inf if self.value is None else self.value
        return order, 0 if self.status == "complete" else -self.epochs, -value, self.number


Ranking = tuple[Tried, ...]
"""Settings that were tried: complete ones by value, then stopped ones by epochs and value, then
failed ones; of equals the earlier one first."""


def best_of(ranking: Ranking) -> Setting:
    """The winner; raises `DataError` if no setting was completed."""
    if not ranking or ranking[0].status != "complete":
        reasons = "; ".join(sorted({row.reason for row in ranking if row.reason}))
        raise DataError(f"No setting of the search was completed ({reasons}); lower --lr.")
    return ranking[0].setting


Report = Callable[[int, float], bool]
Objective = Callable[[Setting, Report], float]


def search(
    objective: Objective,
    n: int,
    folder: Path,
    seed: int = 0,
    *,
    start: Setting | None = None,
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> Ranking:
    """Try n settings, at least 1, or as many as are missing to n.

    ``objective(setting, report)`` gives a value, larger is better. It calls ``report(epoch,
    value)`` after each epoch, from 1, also for epochs that it takes from a snapshot; if that
    returns True, the setting is stopped and the objective returns its value so far at once. A
    `DataError` (such as a loss that is not finite) or a value that is not finite makes the setting
    a failed one; any other exception ends the search. A setting that was interrupted is given
    again.

    `start` is tried first, by default the defaults. `inputs`, JSON-able, are everything else that
    values depend on. ``search.db`` in `folder` is created or continued.

    Raises `Unavailable` if Optuna is not installed or another process is searching in this folder,
    `ArtefactError` if the database belongs to another search or other inputs, or is damaged.
    """
    if n < 1:
        raise UsageError(f"--search {n} is out of range; give how many settings to try, from 1.")
    start = start or Setting()
    make_folder(folder)
    lock = WriterLock(folder / LOCK, "--out")
    lock.acquire()  # a second process would take the running setting for an interrupted one
    try:
        space = {"losses": LOSSES, "samplers": SAMPLERS, "lr": LR_RANGE, "decay": LAYER_DECAY_RANGE}
        asked = {"seed": seed, "start": asdict(start), "space": space, **(inputs or {})}
        study = _open(folder, asked)
        with progress.task("search", n, "settings") as advance:
            advance(min(n, len(_done(study))))
            while (number := len(_done(study))) < n:
                # A seed per proposal: it then depends on the results before it and on nothing
                # that an interruption changes.
                own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
                row = _try(study, objective, start, own)
                done = row.reason or f"criterion {row.value:.4f}, {row.epochs} epochs, {row.status}"
                progress.say(f"setting {number + 1}/{n}: {row.setting}: {done}")
                advance(1)
        return tuple(sorted(_done(study), key=lambda row: row.rank))
    finally:
        lock.release()


def _open(folder: Path, asked: dict[str, Any]) -> Study:
    """The study in `folder`, created if it is missing; refused if it was asked something else."""
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
            f"({str(error).splitlines()[0]}); delete it to start again."
        ) from error
    asked = json.loads(json.dumps(asked))
    stored = study.user_attrs.get("asked")
    if stored is None:
        study.set_user_attr("asked", asked)
    elif stored != asked:
        names = sorted(k for k in {*stored, *asked} if stored.get(k) != asked.get(k))
        raise ArtefactError(
            f"{folder / DATABASE} belongs to a search with another {', '.join(names)}; "
            "give another --out, or delete the file to start again."
        )
    return study


def goes_on(value: float, others: Sequence[float]) -> bool:
    """Whether a value continues at a rung: it is among the best third of all that reached it.

    Examples
    --------
    >>> goes_on(0.5, []), goes_on(0.5, [0.6]), goes_on(0.5, [0.6, 0.1, 0.2, 0.3, 0.4])
    (True, False, True)
    """
    places = max(1, (len(others) + 1) // FACTOR)
    return sum(other > value for other in others) < places


class _Reporter:
    """Records the values of one trial and decides when to stop it."""

    def __init__(self, study: Study, trial: Trial) -> None:
        self._study = study
        self._trial = trial
        self.stopped = False

    def __call__(self, epoch: int, value: float) -> bool:
        if not math.isfinite(value):
            self.stopped = True
            return True
        self._trial.report(value, epoch)
        if epoch in {FACTOR**k for k in range(20)}:
            # Not Optuna's SuccessiveHalvingPruner: it lets interrupted attempts compete too, so
            # that a resumed search would differ from an uninterrupted one.
            reached = [trial.intermediate_values for _, trial in _finished(self._study)]
            self.stopped |= not goes_on(value, [v[epoch] for v in reached if epoch in v])
        return self.stopped


def _try(study: Study, objective: Objective, start: Setting, seed: int) -> Tried:
    """Try the next setting, or the interrupted one again, and record how it did."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    study.sampler = TPESampler(seed=seed)
    trial = _ask(study, start)
    setting = _draw(trial, start)
    report = _Reporter(study, trial)
    try:
        value = objective(setting, report)
        reason = "" if math.isfinite(value) else f"the criterion is {value}"
    except DataError as error:
        value = math.nan
        reason = str(error)
    if reason:
        study.tell(trial, state=TrialState.FAIL)
        # The reason comes second: a kill in between leaves a failed trial without one, which
        # counts as interrupted and is tried again.
        study.set_user_attr(f"failed-{trial.number}", reason)
    elif report.stopped:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)
    return _done(study)[-1]


def _ask(study: Study, start: Setting) -> Trial:
    """The trial to run: the start first, then what the sampler proposes.

    An interrupted trial is closed; the same seed and the same results before it propose it again.
    """
    from optuna.trial import TrialState

    if not _finished(study) and not study.get_trials(states=(TrialState.WAITING,)):
        study.enqueue_trial(asdict(start))
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study.ask()


def _draw(trial: Trial, start: Setting) -> Setting:
    """A setting from the search space, widened where needed to include `start`."""
    losses = tuple(dict.fromkeys((start.loss, *LOSSES)))
    samplers = tuple(dict.fromkeys((start.sampler, *SAMPLERS)))
    lr = (*LR_RANGE, start.lr)
    decay = (*LAYER_DECAY_RANGE, start.layer_decay)
    return Setting(
        loss=trial.suggest_categorical("loss", losses),
        sampler=trial.suggest_categorical("sampler", samplers),
        lr=trial.suggest_float("lr", min(lr), max(lr), log=True),
        layer_decay=trial.suggest_float("layer_decay", min(decay), max(decay)),
    )


def _finished(study: Study) -> list[tuple[str, FrozenTrial]]:
    """(status, trial) of all trials that ended by themselves, without the interrupted ones."""
    from optuna.trial import TrialState

    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped"}
    return [
        (names.get(trial.state, "failed"), trial)
        for trial in study.get_trials(deepcopy=False)
        if trial.state in names or f"failed-{trial.number}" in study.user_attrs
    ]


def _done(study: Study) -> list[Tried]:
    """Rows of all trials that ended by themselves, in the order in which they were tried."""
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
