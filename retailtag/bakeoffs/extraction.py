"""The first stages of a bake-off: the embeddings of every backbone, in one pass over the images."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cached_property
from itertools import product

from retailtag.backbones import canonical, components_of, load_backbone
from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines import AUTO, EAGER, EngineName
from retailtag.backbones.engines.build import best_name
from retailtag.backbones.preprocess import accepts_truncated
from retailtag.bakeoffs.checks import check_readable
from retailtag.bakeoffs.estimates import Estimator
from retailtag.bakeoffs.request import Request
from retailtag.extraction.engines import MIN_IMAGES_FOR_TRIAL, choose_engine
from retailtag.extraction.extract import ExtractSummary, extract_together
from retailtag.extraction.stores import EngineRequest
from retailtag.runs.checks import changed_since_extract
from retailtag.runs.stage import Estimate, Stage, read_record
from retailtag.store import EmbeddingSource, FeatureSpec, FeatureStore, join, list_stores


def load(request: Request, backbone: str) -> Backbone:
    """Load a backbone, after freeing those of earlier stages."""
    gc.collect()
    weights = request.weights.get(backbone)
    context = request.context
    return load_backbone(
        backbone, weights=weights, device=context.device, progress=context.progress
    )


class ExtractionPass:
    """The feature stores of a bake-off, filled in one pass that all its backbones share.

    `summaries` are by canonical id, and empty until the pass has run.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.summaries: dict[str, ExtractSummary] = {}
        self._expected: dict[str, EmbeddingSource | None] = {}

    def source(self, backbone: str) -> EmbeddingSource | None:
        """Embeddings of a backbone: once the pass has run those it filled, else `expected`."""
        if not self.summaries:
            return self.expected(backbone)
        stores = [self.summaries[canonical(c)].store for c in components_of(backbone)]
        return join(stores)

    def expected(self, backbone: str) -> EmbeddingSource | None:
        """The stores that the pass would continue, as far as their names and records tell."""
        if backbone not in self._expected:
            self._expected[backbone] = self._find(backbone)
        return self._expected[backbone]

    def _find(self, backbone: str) -> EmbeddingSource | None:
        ids = set(self.request.context.catalog.image_ids.tolist())
        record = read_record(self.request.folder(backbone, "probe"))
        fitted = record.inputs.get("features") if record else None
        stores = list_stores(self.request.settings.compute.features)
        by_component = [
            [s for s in stores if s.spec.backbone == name and self._fits(s.spec)]
            for name in map(canonical, components_of(backbone))
        ]
        # Several stores may fit, of other weights or engines: first that of the finished probe,
        # then the one with the most images of this catalogue.
        sources = [
            (source.spec.digest == fitted, len(source.known().keys() & ids), i, source)
            for i, source in enumerate(map(join, product(*by_component)))
        ]
        return max(sources)[-1] if sources else None

    def _fits(self, spec: FeatureSpec) -> bool:
        """Whether the settings ask for this dtype and reading, and allow the engine."""
        settings = self.request.settings
        allowed = EngineRequest.to_extract(settings.extract).allows(EngineName.parse(spec.engine))
        has_dtype = spec.dtype == settings.extract.dtype
        same_reading = accepts_truncated(spec) == settings.reading.allow_truncated
        return allowed and has_dtype and same_reading

    def run(self) -> None:
        """Bring the stores of all backbones up to date.

        Raises
        ------
        DataError
            If no training or no test image could be read.
        """
        context, settings = self.request.context, self.request.settings
        given = {canonical(c): c for b in settings.backbones for c in components_of(b)}
        backbones = {name: load(self.request, component) for name, component in given.items()}
        for name in map(canonical, self.request.fine_tuned):
            # Refuses more --blocks than the model has, now that local weights are loaded.
            backbones[name].trainable_names(settings.finetune.trained_blocks)
        engines = [choose_engine(context, b, settings.extract) for b in backbones.values()]
        embedders = [chosen.embedder for chosen in engines]
        summaries = extract_together(context, embedders, settings.extract)
        self.summaries = dict(zip(backbones, summaries, strict=True))
        for backbone in settings.backbones:
            components = [self.summaries[canonical(c)] for c in components_of(backbone)]
            absent = {image_id: why for s in components for image_id, why in s.absent.items()}
            check_readable(context.catalog, absent)


class ExtractStage(Stage):
    """Embeddings of one backbone. Its outputs are in the feature store, which records them."""

    def __init__(self, extraction: ExtractionPass, estimator: Estimator, component: str) -> None:
        self.extraction = extraction
        self.estimator = estimator
        self.backbone = canonical(component)
        self.name = f"extract {self.backbone}"
        self._component = component

    def why_stale(self) -> str | None:
        """By ids, and by size and time of the files: hashing all would take as long as reading."""
        n_new, n_changed = self._n_new(), self._n_changed
        if not n_new and not n_changed:
            return None
        kinds = [f"{n:,} {kind}" for n, kind in ((n_new, "new"), (n_changed, "changed")) if n]
        return f"{' and '.join(kinds)} images, {self._engine(n_new)}"

    def estimate(self) -> Estimate:
        """Of the images that are new by their ids, or changed."""
        return self.estimator.extract(self._component, self._n_new() + self._n_changed)

    def run(self) -> None:
        """Run the pass that all backbones share."""
        self.extraction.run()

    def update(self, announce: Callable[[str], None]) -> bool:
        """Run in any case: only the pass sees whether the bytes of an image have changed."""
        summaries = self.extraction.summaries
        is_first = not summaries
        if is_first:
            announce(self.why_stale() or "looks for changed images")
            self.run()
        n_computed = self.extraction.summaries[self.backbone].n_computed
        if n_computed and not is_first:
            announce(f"{n_computed:,} images embedded in the pass that all backbones share")
        return n_computed > 0

    def _n_new(self) -> int:
        ids = set(self.extraction.request.context.catalog.image_ids.tolist())
        store = self.extraction.expected(self._component)
        if isinstance(store, FeatureStore):
            ids -= store.known().keys() | store.absent().keys()
        return len(ids)

    @cached_property
    def _n_changed(self) -> int:
        catalog = self.extraction.request.context.catalog
        store = self.extraction.expected(self._component)
        if store is None:
            return 0
        return len(changed_since_extract(catalog, store, range(len(catalog))))

    def _engine(self, n_new: int) -> str:
        """What will compute the embeddings, as far as it is known before any trial."""
        store = self.extraction.expected(self._component)
        if store is not None and store.n_rows:
            return store.spec.engine
        request = self.extraction.request
        engine = EngineRequest.to_extract(request.settings.extract)
        if engine.engine != AUTO:
            precision = engine.precision or "exact"
            return str(best_name(engine.engine, precision, request.context.device))
        return str(EAGER) if n_new < MIN_IMAGES_FOR_TRIAL else "by the fastest engine"
