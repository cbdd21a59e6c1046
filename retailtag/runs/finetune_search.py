"""The search over a fine-tune's settings, each trained and measured on the validation set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from retailtag.backbones.backbone import Backbone
from retailtag.context import RunContext
from retailtag.files import write_json
from retailtag.finetuning.search import Ranking, Report, Setting, best_of, search
from retailtag.probes.artefact import Probe
from retailtag.runs.finetune_start import check_probe
from retailtag.runs.finetune_training import FinetuneTraining, finetune_inputs
from retailtag.settings import FinetuneSettings
from retailtag.store import FeatureStore

RANKING = "search.json"


def search_settings(
    context: RunContext,
    store: FeatureStore,
    load: Callable[[], Backbone],
    probe: Probe,
    out: Path,
    config: FinetuneSettings,
    n: int,
) -> tuple[FinetuneSettings, Ranking]:
    """Try `n` settings of loss, sampler, learning rate and layer decay; the best, and the ranking.

    `load` loads the backbone again for every setting; `config` is tried first, and gives everything
    that is not searched. The search is stored in ``search`` below `out`, the folder of the
    fine-tune, and continued there.

    The value of a setting is the criterion of its best epoch, without interpolation. The winner was
    chosen among `n` on the validation set, so its criterion there is optimistic.
    """
    check_probe(context.catalog, store, probe)
    folder = out / "search"

    def objective(setting: Setting, report: Report) -> float:
        # Interpolation and a refit come after the choice of the epoch: the search needs neither.
        tried = replace(config, **asdict(setting), interpolate="1", refit=False)
        training = FinetuneTraining(context, store, load(), probe, folder / setting.name, tried)
        training.train(report)
        training.remove_snapshots()
        return float(training.result.history[training.result.best_epoch]["criterion"])

    # What is searched must not count among the inputs: they are set to their defaults.
    fixed = replace(config, **asdict(Setting()))
    ranking = search(
        objective,
        n,
        folder,
        config.seed,
        start=Setting(config.loss, config.sampler, config.lr, config.layer_decay),
        inputs=finetune_inputs(context.catalog, store, probe, fixed),
        progress=context.progress,
    )
    write_json(folder / RANKING, [asdict(row) for row in ranking])
    return replace(config, **asdict(best_of(ranking))), ranking
