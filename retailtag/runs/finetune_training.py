"""A fine-tune on its way: who is fitted, what feeds it, what it leaves."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retailtag.backbones.backbone import Backbone
from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.finetuning.activation_cache import parse_budget
from retailtag.finetuning.artefact import Checkpoint
from retailtag.finetuning.augment import Augment
from retailtag.finetuning.batch_loader import BatchLoader, PixelBatchLoader, Views, image_keys
from retailtag.finetuning.cached_loader import CachedBatchLoader, CachedImages, cached_batch_loader
from retailtag.finetuning.checks import repeats_pixels
from retailtag.finetuning.determinism import deterministic_algorithms
from retailtag.finetuning.image_loader import ImageLoader
from retailtag.finetuning.logs import Logs, open_logs
from retailtag.finetuning.network import Network, State
from retailtag.finetuning.snapshots import Snapshots
from retailtag.finetuning.trainer import FinetuneResult, Report, refit, train
from retailtag.finetuning.training_step import MicroBatches, predict
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.runs.evidence import copies_of_fitted, threshold_f1
from retailtag.runs.finetune_start import divide, first_head, make_selector, probe_head
from retailtag.runs.probe import Features
from retailtag.settings import AUTO, FinetuneSettings
from retailtag.store import FeatureStore
from retailtag.store.spec import canonical_json
from retailtag.thresholds.tuning import Tuned, Tuning

REFIT_SNAPSHOT = "resume-refit.pt"


def finetune_inputs(
    catalog: Catalog, store: FeatureStore, probe: Probe, config: FinetuneSettings
) -> dict[str, Any]:
    """Everything that the outputs of a fine-tune depend on."""
    return {
        "catalogue": catalog.digest,
        "cutoffs": asdict(catalog.table.cutoffs),
        "features": store.spec.digest,
        "embeddings": store.digest_for(catalog.image_ids.tolist()),
        "C": probe.C.tolist(),
        "scale": probe.scale,
        "head": probe.head,
        "thresholds": hashlib.sha256(probe.thresholds.tobytes()).hexdigest(),
        "settings": config.recorded(),
    }


def backbone_bytes(backbone: Backbone) -> int:
    """Memory of a backbone's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in backbone.module.state_dict().values())


class FinetuneStage:
    """One fine-tune on its way from inputs to files.

    Parameters
    ----------
    context, store, backbone, probe, out, config
        As `retailtag.runs.finetune.run_finetune` takes them.

    Attributes
    ----------
    inputs : dict
        See `finetune_inputs`.
    parts : FinetuneImages
    result : FinetuneResult
        Once `train` has run.
    tuned : Tuned
        Thresholds, from the validation part.
    """

    result: FinetuneResult
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
        catalog, progress = context.catalog, context.progress
        self.context, self.catalog, self.progress = context, catalog, progress
        self.store, self.backbone, self.probe = store, backbone, probe
        self.out, self.config = out, config
        self.labels, self.device = catalog.table.labels, str(backbone.device.type)
        self.tuning = Tuning(config.thresholds, config.objective, config.seed)
        self.inputs = finetune_inputs(catalog, store, probe, config)
        whole = {**self.inputs, "weights": backbone.weights_sha256}
        key = hashlib.sha256(canonical_json(whole).encode()).hexdigest()
        snapshots = partial(Snapshots, out, key, config.checkpoint_minutes, progress=progress)
        self.snapshots, self.refit_snapshots = snapshots(), snapshots(name=REFIT_SNAPSHOT)

    def train(self, report: Report | None = None) -> None:
        """Train, tune the thresholds, and train again on all images if that is asked for."""
        with deterministic_algorithms(self.backbone.device):
            self._train(report)

    def _train(self, report: Report | None) -> None:
        self.parts = divide(self.catalog, self.store, self.config)
        self.pixels = self._pixels()
        self.network = self._network(self.parts.fit)
        origin = self.network.state()
        val, config = self.parts.val.rows, self.config
        judge = make_selector(self.catalog, val, self.tuning, config.choose_epoch)
        feed = self._feed(self.network, config.epochs)
        self.result = train(
            self.network,
            feed,
            self.labels,
            self.parts.fit.rows,
            val,
            judge,
            snapshots=self.snapshots,
            open_log=self._open_log,
            report=report,
            progress=self.progress,
        )
        group = self.catalog.table.group
        self.tuned = self.tuning.tune(self.result.val_logits, self.labels[val], group)
        if isinstance(feed, CachedBatchLoader):
            feed.close()
        if self.keeps_probe:
            self._keep_probe()
        elif config.refit:
            self._refit(origin)

    @property
    def keeps_probe(self) -> bool:
        """Whether the result is the probe itself: no epoch validated better than its start.

        The start lacks the validation part, and so do its thresholds all the rest: neither is
        needed once nothing is chosen by that part. Only a probe that is what training would have
        started from can take its place, with thresholds for the same end.
        """
        probe, config = self.probe, self.config
        alike = probe.head == "logistic" and config.blocks != "scratch"
        aim = probe.facts.get("settings", {}).get("objective")
        same_end = config.thresholds == AUTO and config.objective == aim
        return self.result.best_epoch == 0 and alike and same_end

    def _keep_probe(self) -> None:
        """Take the head and the thresholds of the probe."""
        self.progress.say("no epoch validates better than the start: the probe is kept as it is")
        start = probe_head(self.parts.both.X, self.probe)
        self.network = Network(self.backbone, start, self.config)
        made = self.probe.facts["thresholds"]
        self.tuned = Tuned(self.probe.thresholds, **made)

    def _network(self, fitted: Features) -> Network:
        start = first_head(self.labels, fitted, self.probe, self.config, self.device)
        return Network(self.backbone, start, self.config, compiled=self.config.compile)

    def _refit(self, origin: State) -> None:
        both = self.parts.both
        self.network = self._network(both)
        self.network.load_body(origin)
        refit(
            self.network,
            self._feed(self.network, self.result.best_epoch),
            self.labels,
            both.rows,
            self.result.best_epoch,
            self.result.factor,
            snapshots=self.refit_snapshots,
            progress=self.progress,
        )

    def _pixels(self) -> ImageLoader:
        rows = np.concatenate([self.parts.fit.rows, self.parts.val.rows]).tolist()
        return ImageLoader(
            self.catalog,
            self.backbone,
            rows,
            workers=self.context.workers,
            **self.context.limits,
            sha256=self.store.known(),
        )

    def _views(self) -> Views:
        augment = Augment.parse(self.config.augment)
        keys = image_keys(self.catalog.image_ids.tolist())
        return Views(augment, self.config.seed, keys, self.context.workers)

    def _feed(self, network: Network, epochs: int) -> BatchLoader:
        """Kept activations where they repeat and fit the budget, else pixels."""
        views = self._views()
        plain = PixelBatchLoader(network, self.pixels, views)
        if not repeats_pixels(self.config) or not epochs:
            return plain
        features = self.store.path.parent
        root = features.with_name(f"{features.name}-trunk")
        fit, val = self.parts.fit.rows, self.parts.val.rows
        if self.config.refit:
            fit, val = np.concatenate([fit, val]), val[:0]
        images = CachedImages(self.catalog.image_ids.tolist(), self.store.known(), fit, val)
        kept = cached_batch_loader(
            network,
            self.pixels,
            images,
            self.store.spec,
            root,
            parse_budget(self.config.cache_gb, root),
            views,
            dtype=self.config.cache_dtype,
            progress=self.progress,
        )
        return kept or plain

    def _open_log(self, resume_at: int | None) -> Logs:
        log = open_logs(self.out, self.config.log, resume_at=resume_at, say=self.progress.say)
        log.settings(self.inputs["settings"])
        return log

    def facts(self) -> dict[str, Any]:
        """What the artefacts record, and what the scorer warns by."""
        result, parts, ids = self.result, self.parts, self.catalog.image_ids
        spec = self.store.spec
        val, fitted = parts.val.rows, np.sort(np.concatenate([parts.fit.rows, parts.val.rows]))
        seen = (
            self.probe.facts["threshold_f1"]
            if self.keeps_probe
            else threshold_f1(
                self.catalog, val, result.val_logits, self.tuned.thresholds, self.tuning
            )
        )
        whole = self.config.refit or (self.keeps_probe and not parts.is_own_val)
        return {
            "strategy": "finetune",
            "backbone": spec.backbone,
            "catalog_digest": self.catalog.digest,
            "features": spec.digest,
            "model": [spec.architecture, spec.preprocessing],
            "settings": self.config.recorded(),
            "best_epoch": result.best_epoch,
            "is_probe": self.keeps_probe,
            "interpolation": {"factor": result.factor, "tried": result.factors},
            "n_fit": len(fitted) if whole else len(parts.fit.rows),
            "n_val": len(val),
            "copies": copies_of_fitted(self.store, ids[parts.test], ids[fitted]),
            "thresholds": self.tuned.facts,
            "threshold_f1": seen,
        }

    def checkpoint(self, facts: dict[str, Any]) -> Checkpoint:
        """The trained model."""
        weight, bias = self.network.head.folded()
        state = {k: v.detach().cpu() for k, v in self.backbone.module.state_dict().items()}
        tags, thresholds = self.catalog.table.tags, self.tuned.thresholds
        return Checkpoint(self.backbone.id, state, tags, weight, bias, thresholds, facts)

    def predictions(self, facts: dict[str, Any]) -> Predictions:
        """Scores of the test images, each decoded once."""
        ids, parts = self.catalog.image_ids, self.parts
        feed = PixelBatchLoader(self.network, self.pixels, self._views())
        at_once = MicroBatches(self.config.batch_size // self.config.micro_batches, self.progress)
        return Predictions(
            image_ids=ids[parts.test],
            tags=self.catalog.table.tags,
            logits=predict(self.network, feed, parts.test, at_once),
            thresholds=self.tuned.thresholds,
            fitted_ids=ids[np.sort(np.concatenate([parts.fit.rows, parts.val.rows]))],
            provenance=facts,
        )

    def remove_snapshots(self) -> None:
        """Drop what only an interrupted run needs."""
        self.snapshots.remove()
        self.refit_snapshots.remove()
