"""One fine-tune from its inputs to its files: training, thresholds, predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.backbone import Backbone
from retailtag.catalog.attributes import recorded_attributes
from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.errors import DataError, UsageError
from retailtag.finetuning.activation_cache import parse_budget
from retailtag.finetuning.artefact import Checkpoint
from retailtag.finetuning.augment import Augment
from retailtag.finetuning.batch_loader import BatchLoader, Views, image_keys
from retailtag.finetuning.cached_loader import CachedBatchLoader, CachedImages, cached_batch_loader
from retailtag.finetuning.checks import repeats_pixels
from retailtag.finetuning.determinism import deterministic_algorithms
from retailtag.finetuning.head import HeadInit
from retailtag.finetuning.image_loader import ImageLoader
from retailtag.finetuning.logs import Logs, open_logs
from retailtag.finetuning.network import Network, State
from retailtag.finetuning.snapshots import Snapshots
from retailtag.finetuning.trainer import FinetuneResult, Report, refit, train
from retailtag.finetuning.training_step import MicroBatches, predict
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.runs.evidence import f1_of_cells, seen_in_training, threshold_f1
from retailtag.runs.finetune_start import (
    FinetuneImages,
    first_head,
    make_selector,
    probe_head,
    split_images,
)
from retailtag.runs.probe import Features
from retailtag.runs.start_scores import StartScores, carried_from_start
from retailtag.settings import AUTO, FinetuneSettings
from retailtag.store import FeatureStore
from retailtag.store.spec import canonical_json
from retailtag.thresholds.platt import shrunken_curves
from retailtag.thresholds.ranking import rank_tags
from retailtag.thresholds.tuning import VERSION, Tuned, Tuning
from retailtag.tuning_scores import TuningScores

REFIT_SNAPSHOT = "resume-refit.pt"
CACHE_SUFFIX = "-trunk"  # of the folder of cached activations, beside that of the feature stores

Logits = NDArray[np.float32]


def finetune_inputs(
    catalog: Catalog, store: FeatureStore, probe: Probe, config: FinetuneSettings
) -> dict[str, Any]:
    """Everything that the outputs of a fine-tune depend on."""
    return {
        "catalogue": catalog.digest,
        "cutoffs": asdict(catalog.table.cutoffs),
        "exclusive": recorded_attributes(catalog.table),
        "features": store.spec.digest,
        "embeddings": store.digest_for(catalog.image_ids.tolist()),
        "C": probe.C.tolist(),
        "scale": probe.scale,
        "head": probe.head,
        "thresholds": hashlib.sha256(probe.thresholds.tobytes()).hexdigest(),
        "tuning": VERSION,
        "settings": config.recorded(),
    }


def backbone_bytes(backbone: Backbone) -> int:
    """Memory of a backbone's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in backbone.module.state_dict().values())


class FinetuneTraining:
    """One fine-tune from its inputs to its files; parameters as in `run_finetune`."""

    # Set by `train`.
    network: Network
    result: FinetuneResult
    # Scores and thresholds of the start, which those of the result are carried over from; None:
    # they are tuned on the validation set
    start: tuple[StartScores, Tuned] | None
    tuned: Tuned

    def __init__(
        self,
        context: RunContext,
        store: FeatureStore,
        backbone: Backbone,
        probe: Probe,
        out: Path,
        config: FinetuneSettings,
    ) -> None:
        self.context = context
        self.catalog = context.catalog
        self.progress = context.progress
        self.store = store
        self.backbone = backbone
        self.probe = probe
        self.out = out
        self.config = config
        self.labels = context.catalog.table.labels
        self.tuning = Tuning(config.thresholds, config.objective, config.seed)
        self.inputs = finetune_inputs(context.catalog, store, probe, config)
        # The weights are part of the snapshot's key alone: the feature store is named after them,
        # but `scratch` replaces them.
        whole = {**self.inputs, "weights": backbone.weights_sha256}
        key = hashlib.sha256(canonical_json(whole).encode()).hexdigest()
        minutes = config.checkpoint_minutes
        self.ranks = context.ranks
        self._check_ranks(key)
        more: dict[str, Any] = {"progress": self.progress, "ranks": self.ranks}
        self.snapshots = Snapshots(out, key, minutes, **more)
        self.refit_snapshots = Snapshots(out, key, minutes, name=REFIT_SNAPSHOT, **more)

    def _check_ranks(self, key: str) -> None:
        """Refuse processes that train something else, or nothing."""
        size, batch_size = self.ranks.size, self.config.batch_size
        if batch_size < size:
            raise UsageError(
                f"--batch-size {batch_size} cannot be divided over {size} processes; give at least "
                f"{size}, or start fewer."
            )
        if not self.ranks.are_same(key):
            raise DataError(
                "The processes of this training read different catalogues, features, probes, "
                "weights or settings; give all of them the same files and options."
            )

    @cached_property
    def images(self) -> FinetuneImages:
        """The images, by their use."""
        return split_images(self.catalog, self.store, self.config)

    @cached_property
    def image_loader(self) -> ImageLoader:
        """Pixels of the training and the validation images."""
        return ImageLoader(
            self.catalog,
            self.backbone,
            self.images.both_rows.tolist(),
            workers=self.context.workers,
            **self.context.limits,
            sha256=self.store.known(),
            processes=self.ranks.on_machine,
        )

    def train(self, report: Report | None = None) -> None:
        """Train, tune the thresholds, and train again on all images if that is asked for."""
        with deterministic_algorithms(self.backbone.device):
            self._train(report)

    def _train(self, report: Report | None) -> None:
        config = self.config
        train_rows = self.images.train.rows
        val_rows = self.images.val.rows
        head = self.ranks.from_first(lambda: self._first_head(self.images.train))
        self.network = self._network(head)
        self.start = self.ranks.from_first(lambda: self._tuned_start(head))
        start = self.network.state()
        loader = self._batch_loader(self.network, config.epochs)
        self.result = train(
            self.network,
            loader,
            self.labels,
            train_rows,
            val_rows,
            make_selector(self.catalog, val_rows, self.tuning, config.choose_epoch, self._carry()),
            snapshots=self.snapshots,
            open_log=self._open_log,
            report=report,
            progress=self.progress,
        )
        self.tuned = self.ranks.from_first(self._tune)
        if isinstance(loader, CachedBatchLoader):
            loader.close()  # before a refit opens the cache again
        if self.is_probe:
            self._take_probe()
        elif config.refit:
            self._refit(start)

    @property
    def is_probe(self) -> bool:
        """Whether the result is the probe itself: no epoch validated better than its start.

        The start is fitted without the validation set; a result for which nothing was chosen need
        not be. Only a probe that training would have started from can replace it, with thresholds
        for the same objective.
        """
        probe = self.probe
        config = self.config
        is_start = probe.head == "logistic" and config.blocks != "scratch"
        objective = probe.facts.get("settings", {}).get("objective")
        same_thresholds = config.thresholds == AUTO and config.objective == objective
        return self.result.best_epoch == 0 and is_start and same_thresholds

    def _take_probe(self) -> None:
        """Take over the head and the thresholds of the probe."""
        self.progress.say("no epoch validates better than the start: the probe is used as it is")
        start = probe_head(self.images.both.X, self.probe)
        self.network = Network(self.backbone, start, self.config, ranks=self.ranks)
        how = self.probe.facts["thresholds"]
        self.tuned = Tuned(
            self.probe.thresholds,
            how.get("rule", ""),
            how.get("objective", ""),
            how.get("cross_fit", {}),
            capped=bool(how.get("capped")),
        )

    def _network(self, head: HeadInit) -> Network:
        compiled = self.config.compile
        return Network(self.backbone, head, self.config, compiled=compiled, ranks=self.ranks)

    def _first_head(self, fitted: Features) -> HeadInit:
        device = str(self.backbone.device.type)
        return first_head(self.labels, fitted, self.probe, self.config, device)

    def _tuned_start(self, head: HeadInit) -> tuple[StartScores, Tuned] | None:
        """Scores and thresholds of the start, where the result's are to come from them."""
        config, train = self.config, self.images.train
        if config.thresholds != AUTO or config.blocks == "scratch":
            return None
        val = head.logits(self.images.val.X)
        scores = StartScores.fit(self.catalog, train, val, self._first_head, config.seed)
        if scores is None:
            return None
        group = self.catalog.table.group
        return scores, scores.tune(self.tuning, self.labels[train.rows], group)

    def _carry(self) -> Callable[[Logits], Logits] | None:
        """Thresholds of the start as those of the model that gives these validation scores."""
        if self.start is None:
            return None
        scores, tuned = self.start
        return lambda logits: scores.carried(tuned, logits, self.catalog.table.group)

    def _tune(self) -> Tuned:
        group = self.catalog.table.group
        logits, labels = self.result.val_logits, self.labels[self.images.val.rows]
        if self.start is None:
            return self.tuning.tune(logits, labels, group)
        return carried_from_start(*self.start, logits, labels, group)

    def _refit(self, start: State) -> None:
        both = self.images.both
        # The same start as the first training: the head of all images, the blocks as pretrained.
        self.network = self._network(self.ranks.from_first(lambda: self._first_head(both)))
        self.network.load_body(start)
        refit(
            self.network,
            self._batch_loader(self.network, self.result.best_epoch),
            self.labels,
            both.rows,
            self.result.best_epoch,
            self.result.factor,
            snapshots=self.refit_snapshots,
            progress=self.progress,
        )

    def _views(self) -> Views:
        augment = Augment.parse(self.config.augment)
        keys = image_keys(self.catalog.image_ids.tolist())
        return Views(augment, self.config.seed, keys, self.context.workers)

    def _batch_loader(self, network: Network, epochs: int) -> BatchLoader:
        """Cached activations where they repeat and fit the budget, else pixels."""
        config = self.config
        views = self._views()
        plain = BatchLoader(network, self.image_loader, views)
        if not repeats_pixels(config) or not epochs:
            return plain
        features = self.store.path.parent
        root = features.with_name(f"{features.name}{CACHE_SUFFIX}")
        train_rows = self.images.train.rows
        val_rows = self.images.val.rows
        if config.refit:  # which trains on the validation images too, in all their views
            train_rows = np.concatenate([train_rows, val_rows])
            val_rows = val_rows[:0]
        ids = self.catalog.image_ids.tolist()
        cached = cached_batch_loader(
            network,
            self.image_loader,
            CachedImages(ids, self.store.known(), train_rows, val_rows),
            self.store.spec,
            root,
            parse_budget(config.cache_gb, root),
            views,
            dtype=config.cache_dtype,
            progress=self.progress,
        )
        return cached or plain

    def _open_log(self, resume_at: int | None) -> Logs:
        if not self.ranks.is_first:
            return Logs()
        log = open_logs(self.out, self.config.log, resume_at=resume_at, say=self.progress.say)
        log.settings(self.inputs["settings"])
        return log

    def facts(self) -> dict[str, Any]:
        """What the artefacts record, and what the scorer's findings are based on."""
        result = self.result
        spec = self.store.spec
        val_rows = self.images.val.rows
        both = self.images.both_rows
        is_fitted_on_both = self.config.refit or (self.is_probe and not self.images.has_own_val)
        return {
            "strategy": "finetune",
            "backbone": spec.backbone,
            "catalog_digest": self.catalog.digest,
            "exclusive": recorded_attributes(self.catalog.table),
            "features": spec.digest,
            "model": [spec.architecture, spec.preprocessing],
            "settings": self.config.recorded(),
            "processes": self.ranks.size,
            "threads": sorted(self.snapshots.threads | self.refit_snapshots.threads),
            "best_epoch": result.best_epoch,
            "is_probe": self.is_probe,
            "interpolation": {"factor": result.factor, "tried": result.factors},
            "n_fit": len(both) if is_fitted_on_both else len(self.images.train.rows),
            "n_val": len(val_rows),
            **seen_in_training(self.catalog, self.store, self.images.test, both),
            "thresholds": self.tuned.facts,
            "threshold_f1": self._threshold_f1(),
        }

    def _threshold_f1(self) -> dict[str, dict[str, float]]:
        if self.is_probe:
            known: dict[str, dict[str, float]] = self.probe.facts["threshold_f1"]
            return known
        logits = self.result.val_logits
        rows = self.images.val.rows
        if self.start is not None:  # no label of these images is behind the thresholds
            cells = logits >= self.tuned.thresholds
            return f1_of_cells(self.catalog, rows, cells, cells)
        return threshold_f1(self.catalog, rows, logits, self.tuned.thresholds, self.tuning)

    def checkpoint(self, facts: dict[str, Any]) -> Checkpoint:
        """The trained model."""
        weight, bias = self.network.head.folded()
        # The scaling of the head is folded in: the checkpoint is used on raw embeddings.
        state = {k: v.detach().cpu() for k, v in self.backbone.module.state_dict().items()}
        tags = self.catalog.table.tags
        thresholds = self.tuned.thresholds
        made = Checkpoint(self.backbone.id, state, tags, weight, bias, thresholds, facts)
        if self.is_probe:  # which has its own thresholds, tuned on its out-of-fold scores
            return replace(made, calibration=self.probe.calibration)
        rows, logits = self.images.val.rows, self.result.val_logits
        ids = self.catalog.image_ids[rows]
        return replace(
            made,
            validation=TuningScores(ids, logits),
            start=self.start[0].stored(ids) if self.start else None,
            calibration=shrunken_curves(
                rank_tags(logits, self.labels[rows]), self.catalog.table.group
            ),
        )

    def predictions(self, facts: dict[str, Any]) -> Predictions:
        """Scores of the test images, each decoded once."""
        ids = self.catalog.image_ids
        test = self.images.test
        loader = BatchLoader(self.network, self.image_loader, self._views())
        # As many images at once as in training, which is known to fit into memory.
        size = self.config.batch_size // self.config.micro_batches
        return Predictions(
            image_ids=ids[test],
            tags=self.catalog.table.tags,
            logits=predict(self.network, loader, test, MicroBatches(size, self.progress)),
            thresholds=self.tuned.thresholds,
            fitted_ids=ids[self.images.both_rows],
            provenance=facts,
        )

    def remove_snapshots(self) -> None:
        """Delete what only an interrupted run needs."""
        self.snapshots.remove()
        self.refit_snapshots.remove()
