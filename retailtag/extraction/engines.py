"""Which engine computes a catalogue's embeddings.

An extraction that continues a store uses that store's engine; a new one tries the engines on a
sample of its images. Later stages choose no engine: they read the store that exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.engines import AUTO, EAGER, EngineName, embedder_of, with_engine
from retailtag.backbones.engines.build import candidates, why_unavailable
from retailtag.backbones.engines.trial import Bench, Trial, fastest
from retailtag.context import RunContext
from retailtag.errors import Unavailable
from retailtag.extraction.embedder import Embedder, identity
from retailtag.extraction.extract import IMAGES_PER_BLOCK
from retailtag.extraction.shards import WHOLE, Shard
from retailtag.extraction.stores import EngineRequest, stores_of
from retailtag.images.loader import load_batches
from retailtag.settings import ExtractSettings
from retailtag.store import FeatureStore

if TYPE_CHECKING:
    import torch

    from retailtag.backbones.backbone import Backbone
    from retailtag.backbones.engines.embedder import EngineEmbedder

TRIAL_IMAGES = 32  # images that engines are timed and compared on
# Building an engine takes 1 to 8 s (results/LOG.md): eager computes fewer images than this in
# about the time that the trials take.
MIN_IMAGES_FOR_TRIAL = 256


@dataclass(frozen=True, eq=False)
class ChosenEngine:
    """What will compute the embeddings of one backbone, and why in a few words."""

    embedder: Embedder  # the backbone itself, or an engine that computes it
    why: str
    trials: tuple[Trial, ...] = ()  # engines that were tried or skipped

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "engine": self.embedder.spec().engine,
            "why_engine": self.why,
            "engines_tried": [trial.to_json() for trial in self.trials],
        }


def choose_engine(
    context: RunContext,
    backbone: Backbone,
    settings: ExtractSettings | None = None,
    *,
    shard: Shard = WHOLE,
    measure: bool = True,
) -> ChosenEngine:
    """Choose what computes a backbone's embeddings of a catalogue, or of a shard of it.

    A store with rows in the features folder is continued by its own engine. Otherwise it is the
    requested engine, or the fastest on a sample of the images.

    Raises
    ------
    Unavailable
        If the requested engine, or that of the store to continue, cannot run here, or its
        embeddings of the sample are too far from those of eager float32.

    Notes
    -----
    The choice depends on measured times and so may differ between two folders. Within one folder
    it is final: the first store with rows decides. Shards of one catalogue must agree without
    communicating, so they use eager float32 unless they continue a store or an engine is named;
    so does what computes elsewhere (`measure` false), where times of this machine tell nothing.
    """
    settings = settings or ExtractSettings()
    request = EngineRequest.to_extract(settings)
    rows = shard.rows(len(context.catalog), IMAGES_PER_BLOCK)
    chooser = _Chooser(context, backbone, request, rows)
    spec = identity(backbone, settings.dtype, allow_truncated=context.reading.allow_truncated)
    stores = stores_of(shard.root(context.compute.features), spec, request)
    if stores:
        chosen = chooser.continued(stores[0])
    elif request.engine != AUTO:
        chosen = chooser.requested()
    elif not measure:
        chosen = ChosenEngine(backbone, "not measured here: name another with --engine")
    elif shard != WHOLE:
        why = "shards must agree: name another with --engine for all of them"
        chosen = ChosenEngine(backbone, why)
    else:
        chosen = chooser.measured()
    if chosen.trials or chosen.embedder is not backbone:
        context.progress.say(
            f"engine {chosen.embedder.spec().engine} for {backbone.id}: {chosen.why}"
        )
    return chosen


@dataclass(frozen=True, eq=False)
class _Chooser:
    """The ways to choose; `rows` are those that will be extracted."""

    context: RunContext
    backbone: Backbone
    request: EngineRequest
    rows: NDArray[np.intp]

    def continued(self, store: FeatureStore) -> ChosenEngine:
        """The engine of an existing store, compared again if there are new images for it."""
        name = EngineName.parse(store.spec.engine)
        try:
            embedder = embedder_of(self.backbone, name)
        except Unavailable as error:
            raise Unavailable(
                f"{store.path} cannot be continued: {error} Continue where that engine runs, or "
                "start another store with --engine and --precision."
            ) from error
        if name != EAGER and self._has_new_images(store):
            self._check(name, embedder)
        return ChosenEngine(embedder, f"that of {store.path}, which is continued")

    def requested(self) -> ChosenEngine:
        """The engine named by the user, if it is accurate enough."""
        precision = self.request.precision or "exact"
        embedder = with_engine(self.backbone, self.request.engine, precision)
        name = EngineName.parse(embedder.spec().engine)
        self._check(name, embedder)
        return ChosenEngine(embedder, "as requested")

    def measured(self) -> ChosenEngine:
        """The fastest on a sample of those that are accurate enough."""
        from retailtag.backbones.engines.embedder import EngineEmbedder

        if len(self.rows) < MIN_IMAGES_FOR_TRIAL:
            why = f"no trial below {MIN_IMAGES_FOR_TRIAL} images"
            return ChosenEngine(self.backbone, why)
        pixels = self._sample()
        if not len(pixels):
            return ChosenEngine(self.backbone, "no image of the sample could be read")
        precision, device = self.request.precision or "exact", self.backbone.device.type
        names = candidates(precision, device)
        problems = {name: why_unavailable(name, device) for name in names}
        available = {n: embedder_of(self.backbone, n) for n in names if not problems[n]}
        engines = {n: e for n, e in available.items() if isinstance(e, EngineEmbedder)}
        trials = Bench(pixels, self.backbone, precision).try_all(engines, len(self.rows))
        trials += [Trial(name, problem=problem) for name, problem in problems.items() if problem]
        best = fastest(trials)
        return ChosenEngine(engines.get(best.name, self.backbone), _why(trials), tuple(trials))

    def _has_new_images(self, store: FeatureStore) -> bool:
        known = store.known()
        return any(i not in known for i in self.context.catalog.image_ids[self.rows].tolist())

    def _check(self, name: EngineName, embedder: Backbone | EngineEmbedder) -> None:
        """Refuse an engine whose embeddings of the sample are not those of eager float32."""
        # Also when a store is continued: it may come from another machine, where the same engine
        # used other kernels.
        if name == EAGER or not len(pixels := self._sample()):
            return
        precision = "exact" if name.exact else "fast"
        parity = Bench(pixels, self.backbone, precision).compare(embedder)
        if problem := parity.problem(precision):
            raise Unavailable(
                f"Engine {name} is too far from eager float32 for {self.backbone.id}: {problem}; "
                "use --engine eager."
            )

    def _sample(self) -> torch.Tensor:
        """Pixels uint8 (n, 3, h, w) of readable images spread evenly over the rows."""
        import torch

        places = np.linspace(0, len(self.rows) - 1, TRIAL_IMAGES).round().astype(np.intp)
        drawn = self.rows[np.unique(places)] if len(self.rows) else self.rows
        batches = load_batches(
            self.context.catalog.images,
            drawn,
            self.backbone.preprocess,
            batch_size=TRIAL_IMAGES,
            workers=self.context.workers,
            **self.context.limits,
        )
        found = [batch.pixels for batch in batches if len(batch)]
        empty = np.empty((0, 3, *self.backbone.preprocess.size), np.uint8)
        return torch.from_numpy(np.concatenate([empty, *found]))


def _why(trials: Sequence[Trial]) -> str:
    """What was tried, the fastest first, and what was skipped, by reason."""
    rated = sorted((t for t in trials if not t.problem), key=lambda t: -(t.rate or 0.0))
    by_problem: dict[str, list[str]] = {}
    for trial in trials:
        if trial.problem:
            by_problem.setdefault(trial.problem, []).append(str(trial.name))
    skipped = [f"{', '.join(names)} skipped ({why})" for why, names in by_problem.items()]
    return "the fastest accurate one on a sample: " + "; ".join([*map(str, rated), *skipped])
