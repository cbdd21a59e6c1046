"""Which engine computes a catalogue's embeddings, and which store of several is read.

An extraction goes on with the engine of the store that it continues; a new one tries the engines
on a sample of its own images. Later stages choose none: they read the store that there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.engines import AUTO, EAGER, EngineName, embedder_of, with_engine
from retailtag.backbones.engines.build import candidates, why_unavailable
from retailtag.backbones.engines.names import check_engine
from retailtag.backbones.engines.trial import Bench, Trial, fastest, too_far
from retailtag.catalog.catalog import Catalog
from retailtag.errors import StaleFeatures, Unavailable
from retailtag.extraction.embed import Embedder, Loading, identity
from retailtag.extraction.extract import BLOCK_ROWS, check_extraction
from retailtag.extraction.shards import ALL, Part
from retailtag.images.loader import load_batches
from retailtag.progress import SILENT, Progress
from retailtag.store import FeatureSpec, FeatureStore, list_stores

if TYPE_CHECKING:
    import torch

    from retailtag.backbones.backbone import Backbone

SAMPLE = 32  # images that engines are tried on
FEW = 256  # below this many images nothing is tried


@dataclass(frozen=True)
class EngineRequest:
    """What a user asks of the engine.

    Parameters
    ----------
    engine : str
        ``auto``, or one of `retailtag.backbones.engines.ENGINES`.
    precision : str or None
        ``exact``: float32. ``fast``: reduced arithmetic too. None, where a store is looked for:
        either, exact first.

    Raises
    ------
    UsageError
        If one is unknown.
    """

    engine: str = AUTO
    precision: str | None = "exact"

    def __post_init__(self) -> None:
        check_engine(self.engine, self.precision or "exact")

    def allows(self, name: EngineName) -> bool:
        """Whether embeddings of this engine serve the request."""
        asked = self.engine in (AUTO, name.engine)
        return asked and (name.exact or self.precision != "exact")

    def order(self, spec: FeatureSpec) -> tuple[bool, bool, str]:
        """Sort key of identities that serve: exact before reduced (``fast``: after), eager first.

        Notes
        -----
        Who asks for ``fast`` and has both gets the fast one.
        """
        name = EngineName.parse(spec.engine)
        return name.exact == (self.precision == "fast"), name.engine != EAGER.engine, spec.engine


ANY = EngineRequest(precision=None)


@dataclass(frozen=True, eq=False)
class ChosenEngine:
    """What will compute the embeddings of one backbone, and why.

    Parameters
    ----------
    embedder : Embedder
        The backbone itself, or an engine that computes it.
    why : str
        In a few words.
    trials : tuple of Trial
        Engines that were tried or passed over; empty where none was.
    """

    embedder: Embedder
    why: str
    trials: tuple[Trial, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "engine": self.embedder.spec().engine,
            "why_engine": self.why,
            "engines_tried": [trial.to_json() for trial in self.trials],
        }


def stores_of(
    features: Path, spec: FeatureSpec, request: EngineRequest = ANY
) -> list[FeatureStore]:
    """Stores under `features` that hold rows and differ from `spec` in the engine alone.

    Those that serve the request, the preferred one first: exact before reduced arithmetic (the
    other way round under ``fast``), then eager, then by name.
    """
    found = [
        store
        for store in list_stores(features)
        if replace(store.spec, engine=spec.engine) == spec
        and request.allows(EngineName.parse(store.spec.engine))
        and store.segment_paths()
    ]
    return sorted(found, key=lambda store: request.order(store.spec))


def find_store(
    features: Path,
    spec: FeatureSpec,
    request: EngineRequest = ANY,
    *,
    fitted: str | None = None,
    progress: Progress = SILENT,
) -> FeatureStore:
    """Open the store of `spec`, whichever engine filled it.

    Parameters
    ----------
    features : Path
        Folder of the feature stores.
    spec : FeatureSpec
        Its identity but for the engine.
    request : EngineRequest
        What engines are allowed.
    fitted : str, optional
        Digest of the identity that a probe was fitted on: that store first, if it is there.
    progress : Progress
        Told which one was taken of several.

    Raises
    ------
    DataError
        If there is none of this backbone.
    StaleFeatures
        If there are only others, of another identity or engine than asked for.
    ArtefactError
        If it is damaged.
    """
    stores = stores_of(features, spec, request)
    if not stores:
        _refuse_other_engines(features, spec, request)
        return FeatureStore.find(features, spec)
    taken = next((store for store in stores if store.spec.digest == fitted), stores[0])
    if len(stores) > 1:
        others = ", ".join(s.spec.engine for s in stores if s is not taken)
        progress.say(
            f"{spec.backbone}: reading the embeddings of {taken.spec.engine} (also there: "
            f"{others}; --engine and --precision choose)."
        )
    return FeatureStore.open(taken.path, taken.spec)


def _refuse_other_engines(features: Path, spec: FeatureSpec, request: EngineRequest) -> None:
    others = [store.spec.engine for store in stores_of(features, spec)]
    if others:
        asked = f"--engine {request.engine}" + (
            f" --precision {request.precision}" if request.precision else ""
        )
        raise StaleFeatures(
            f"{features} holds features of {spec.backbone} by {', '.join(others)}, not by what "
            f"{asked} asks for; drop these options, or run extract with them."
        )


def choose_engine(
    catalog: Catalog,
    backbone: Backbone,
    features: Path,
    request: EngineRequest | None = None,
    *,
    dtype: str = "float32",
    loading: Loading | None = None,
    part: Part = ALL,
    progress: Progress = SILENT,
) -> ChosenEngine:
    """Choose what computes a backbone's embeddings of a catalogue.

    Parameters
    ----------
    catalog : Catalog
        Its images are the sample.
    backbone : Backbone
    features : Path
        Folder of the feature stores: an engine whose store is there, with rows, goes on.
    request : EngineRequest, optional
    dtype : str
        Of the stored embeddings.
    loading : Loading, optional
        How images will be read.
    part : Part
        Part of the catalogue that this machine does.
    progress : Progress
        Told what was chosen and why.

    Returns
    -------
    ChosenEngine

    Raises
    ------
    UsageError
        If `loading` or `dtype` is none that can be used.
    Unavailable
        If the engine asked for, or that of the store to be continued, cannot run here, or is too
        far from eager float32 on the sample.

    Notes
    -----
    The choice depends on measured times, and so may differ between two runs into two folders. In
    one folder it stands: the identity of the first store with rows decides. Parts of one
    catalogue must agree without talking, so they take eager float32 unless a store is there or
    an engine is named.
    """
    request, loading = request or EngineRequest(), loading or Loading()
    check_extraction(loading.batch_size, loading.workers, dtype)
    rows = part.rows(len(catalog), BLOCK_ROWS)
    chooser = _Chooser(catalog, backbone, request, loading, rows)
    root = features if part == ALL else Path(features) / part.folder
    spec = identity(backbone, dtype, allow_truncated=loading.allow_truncated)
    held = stores_of(root, spec, request)
    if held:
        chosen = chooser.continued(held[0])
    elif request.engine != AUTO:
        chosen = chooser.asked_for()
    elif part != ALL:
        why = "parts must agree: name another with --engine for all of them"
        chosen = ChosenEngine(backbone, why)
    else:
        chosen = chooser.measured()
    if chosen.trials or chosen.embedder is not backbone:
        progress.say(f"engine {chosen.embedder.spec().engine} for {backbone.id}: {chosen.why}")
    return chosen


@dataclass(frozen=True, eq=False)
class _Chooser:
    """The ways to choose; `rows` are those that will be extracted."""

    catalog: Catalog
    backbone: Backbone
    request: EngineRequest
    loading: Loading
    rows: NDArray[np.intp]

    def continued(self, store: FeatureStore) -> ChosenEngine:
        """The engine of a store that is there, compared again if there are new images for it."""
        name = EngineName.parse(store.spec.engine)
        try:
            embedder = embedder_of(self.backbone, name)
        except Unavailable as error:
            raise Unavailable(
                f"{store.path} cannot be continued: {error} Go on where that engine runs, or start "
                "a store of its own with --engine and --precision."
            ) from error
        if name != EAGER and self._has_new_images(store):
            self._check(name, embedder)
        return ChosenEngine(embedder, f"that of {store.path}, which is continued")

    def asked_for(self) -> ChosenEngine:
        """The engine named by the user, if it is near enough."""
        precision = self.request.precision or "exact"
        embedder = with_engine(self.backbone, self.request.engine, precision)
        name = EngineName.parse(embedder.spec().engine)
        self._check(name, embedder)
        return ChosenEngine(embedder, "as asked for")

    def measured(self) -> ChosenEngine:
        """The fastest on a sample, of those that are near enough."""
        from retailtag.backbones.engines.embedder import EngineEmbedder

        if len(self.rows) < FEW:
            return ChosenEngine(self.backbone, f"nothing is tried below {FEW} images")
        pixels = self._sample()
        if not len(pixels):
            return ChosenEngine(self.backbone, "no image of the sample could be read")
        precision, device = self.request.precision or "exact", self.backbone.device.type
        names = candidates(precision, device)
        missing = {name: why_unavailable(name, device) for name in names}
        made = {name: embedder_of(self.backbone, name) for name in names if not missing[name]}
        engines = {n: engine for n, engine in made.items() if isinstance(engine, EngineEmbedder)}
        trials = Bench(pixels, self.backbone, precision).try_all(engines, len(self.rows))
        trials += [Trial(name, problem=why) for name, why in missing.items() if why]
        best = fastest(trials)
        return ChosenEngine(engines.get(best.name, self.backbone), _why(trials), tuple(trials))

    def _has_new_images(self, store: FeatureStore) -> bool:
        known = store.known()
        return any(i not in known for i in self.catalog.image_ids[self.rows].tolist())

    def _check(self, name: EngineName, embedder: Embedder) -> None:
        """Refuse an engine whose embeddings of the sample are not those of eager float32."""
        if name == EAGER or not len(pixels := self._sample()):
            return
        precision = "exact" if name.exact else "fast"
        parity = Bench(pixels, self.backbone, precision).compare(embedder)
        if not parity.keeps(precision):
            raise Unavailable(
                f"Engine {name} is too far from eager float32 for {self.backbone.id}: "
                f"{too_far(parity, precision)}; use --engine eager."
            )

    def _sample(self) -> torch.Tensor:
        """Pixels uint8 (n, 3, h, w) of images spread over the rows, without unreadable ones."""
        import torch

        places = np.unique(np.linspace(0, len(self.rows) - 1, SAMPLE).round().astype(np.intp))
        drawn = self.rows[places] if len(self.rows) else self.rows
        batches = load_batches(
            self.catalog.images,
            drawn,
            self.backbone.preprocess,
            batch_size=SAMPLE,
            workers=self.loading.workers,
            max_pixels=self.loading.max_pixels,
            allow_truncated=self.loading.allow_truncated,
        )
        found = [batch.pixels for batch in batches if len(batch)]
        empty = np.empty((0, 3, *self.backbone.preprocess.size), np.uint8)
        return torch.from_numpy(np.concatenate([empty, *found]))


def _why(trials: Sequence[Trial]) -> str:
    """What was tried, the fastest first, and what was passed over, by reason."""
    rated = sorted((t for t in trials if not t.problem), key=lambda t: -(t.rate or 0.0))
    passed: dict[str, list[str]] = {}
    for trial in trials:
        if trial.problem:
            passed.setdefault(trial.problem, []).append(str(trial.name))
    over = [f"{', '.join(names)} passed over ({why})" for why, names in passed.items()]
    return "the fastest near enough on a sample: " + "; ".join([*map(str, rated), *over])
