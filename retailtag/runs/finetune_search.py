"""The search of a fine-tune's settings, each trained and judged on the validation part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from retailtag.backbones.backbone import Backbone
from retailtag.context import RunContext
from retailtag.files import write_json
from retailtag.finetuning.search import Ranking, Report, Setting, search
from retailtag.probes.artefact import Probe
from retailtag.runs.finetune_start import check_probe
from retailtag.runs.finetune_training import FinetuneStage, finetune_inputs
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
    """Try `n` settings of loss, sampler, rate and layer decay; the best, and how all did.

    Parameters
    ----------
    load : callable
        Loads the backbone anew for every setting.
    out : Path
        Folder of the fine-tune; the search lies in ``search`` below it, and goes on there.
    config : FinetuneSettings
        Tried first; gives everything that is not searched.
    n : int
        At least 1.
    context, store, probe
        As in `retailtag.runs.finetune.run_finetune`.

    Returns
    -------
    (FinetuneSettings, Ranking)

    Notes
    -----
    A setting is worth its best epoch's criterion, without interpolation. The winner was chosen
    among `n` on the validation part, so its criterion there flatters it: the test split tells.
    """
    check_probe(context.catalog, store, probe)
    folder = out / "search"
    start = Setting(config.loss, config.sampler, config.lr, config.layer_decay)

    def objective(setting: Setting, report: Report) -> float:
        settings = replace(_with(config, setting), interpolate="1", refit=False)
        place = folder / setting.name
        stage = FinetuneStage(context, store, load(), probe, place, settings)
        stage.train(report)
        stage.remove_snapshots()
        return float(stage.result.history[stage.result.best_epoch]["criterion"])

    inputs = finetune_inputs(context.catalog, store, probe, _with(config, Setting()))
    ranking = search(
        objective, n, folder, config.seed, start=start, inputs=inputs, progress=context.progress
    )
    write_json(folder / RANKING, ranking.to_json())
    return _with(config, ranking.best), ranking


def _with(config: FinetuneSettings, setting: Setting) -> FinetuneSettings:
    return replace(
        config,
        loss=setting.loss,
        sampler=setting.sampler,
        lr=setting.lr,
        layer_decay=setting.layer_decay,
    )
