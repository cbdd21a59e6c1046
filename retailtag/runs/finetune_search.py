"""The search of a fine-tune's settings, each trained and judged on the validation part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from retailtag.backbones.backbone import Backbone
from retailtag.catalog.catalog import Catalog
from retailtag.files import write_json
from retailtag.finetuning.config import FinetuneConfig
from retailtag.finetuning.search import Ranking, Report, Setting, search
from retailtag.probes.artefact import Probe
from retailtag.progress import SILENT, Progress
from retailtag.runs.finetune_start import check_probe
from retailtag.runs.finetune_training import FinetuneStage, Means, finetune_inputs
from retailtag.store import FeatureStore

RANKING = "search.json"


def search_settings(
    catalog: Catalog,
    store: FeatureStore,
    load: Callable[[], Backbone],
    probe: Probe,
    out: Path,
    config: FinetuneConfig,
    n: int,
    *,
    means: Means | None = None,
    progress: Progress = SILENT,
) -> tuple[FinetuneConfig, Ranking]:
    """Try `n` settings of loss, sampler, rate and layer decay; the best, and how all did.

    Parameters
    ----------
    load : callable
        Loads the backbone anew for every setting.
    out : Path
        Folder of the fine-tune; the search lies in ``search`` below it, and goes on there.
    config : FinetuneConfig
        Tried first; gives everything that is not searched.
    n : int
        At least 1.
    catalog, store, probe, means, progress
        As in `retailtag.runs.finetune.run_finetune`.

    Returns
    -------
    (FinetuneConfig, Ranking)

    Notes
    -----
    A setting is worth its best epoch's criterion, without interpolation. The winner was chosen
    among `n` on the validation part, so its criterion there flatters it: the test split tells.
    """
    check_probe(catalog, store, probe)
    folder = out / "search"
    start = Setting(config.loss, config.sampler, config.lr, config.layer_decay)

    def objective(setting: Setting, report: Report) -> float:
        settings = replace(_with(config, setting), interpolate="1", refit=False)
        place = folder / setting.name
        stage = FinetuneStage(
            catalog, store, load(), probe, place, settings, means or Means(), progress
        )
        stage.train(report)
        stage.remove_snapshots()
        return float(stage.result.history[stage.result.best_epoch]["criterion"])

    inputs = finetune_inputs(catalog, store, probe, _with(config, Setting()))
    ranking = search(
        objective, n, folder, config.seed, start=start, inputs=inputs, progress=progress
    )
    write_json(folder / RANKING, ranking.to_json())
    return _with(config, ranking.best), ranking


def _with(config: FinetuneConfig, setting: Setting) -> FinetuneConfig:
    return replace(
        config,
        loss=setting.loss,
        sampler=setting.sampler,
        lr=setting.lr,
        layer_decay=setting.layer_decay,
    )
