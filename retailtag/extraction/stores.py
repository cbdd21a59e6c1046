"""Which of several stores of a backbone is read: those that the requested engine allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from retailtag.backbones.engines import AUTO, EAGER, EngineName
from retailtag.errors import DataError, StaleFeatures
from retailtag.progress import SILENT, Progress
from retailtag.settings import ExtractSettings
from retailtag.store import FeatureSpec, FeatureStore, list_stores


@dataclass(frozen=True)
class EngineRequest:
    """What a user asks of the engine."""

    engine: str = AUTO  # or one of `retailtag.backbones.engines.ENGINES`
    # exact: float32; fast: reduced arithmetic too; None, to read a store: either, exact first
    precision: str | None = "exact"

    @classmethod
    def to_extract(cls, settings: ExtractSettings) -> EngineRequest:
        """What an extraction asks for: exact features by default."""
        return cls(settings.engine, "exact" if settings.precision == AUTO else settings.precision)

    @classmethod
    def to_read(cls, settings: ExtractSettings) -> EngineRequest:
        """What later stages ask for: features of either precision by default, exact ones first."""
        return cls(settings.engine, None if settings.precision == AUTO else settings.precision)

    def allows(self, name: EngineName) -> bool:
        """Whether embeddings of this engine serve the request."""
        asked = self.engine in (AUTO, name.engine)
        return asked and (name.exact or self.precision != "exact")

    def order(self, spec: FeatureSpec) -> tuple[bool, bool, str]:
        """Sort key of allowed identities: exact before reduced (``fast``: after), eager first."""
        name = EngineName.parse(spec.engine)
        return name.exact == (self.precision == "fast"), name.engine != EAGER.engine, spec.engine


ANY = EngineRequest(precision=None)


def stores_of(
    features: Path, spec: FeatureSpec, request: EngineRequest = ANY
) -> list[FeatureStore]:
    """Stores in `features` with rows whose identity differs from `spec` at most in the engine.

    Only those that the request allows, the preferred one first: exact before reduced arithmetic
    (the other way round under ``fast``), then eager, then by name.
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

    `fitted` is the digest of the identity that a probe was fitted on; that store is preferred.
    `progress` says which store is read if there are several.

    Raises
    ------
    DataError
        If the backbone has no store.
    StaleFeatures
        If its stores have another identity, or another engine than requested.
    ArtefactError
        If the store is damaged.
    """
    stores = stores_of(features, spec, request)
    if not stores:
        _refuse_other_engines(features, spec, request)
        return FeatureStore.find(features, spec)
    taken = next((store for store in stores if store.spec.digest == fitted), stores[0])
    if len(stores) > 1:
        others = ", ".join(s.spec.engine for s in stores if s is not taken)
        progress.say(
            f"{spec.backbone}: reading the embeddings of {taken.spec.engine} (also stored: "
            f"{others}; choose with --engine and --precision)."
        )
    return FeatureStore.open(taken.path, taken.spec)


def find_imported(features: Path, backbone: str) -> FeatureStore:
    """Open the store of imported embeddings; `DataError` if there is none of this name."""
    for store in list_stores(features):
        if store.spec.backbone == backbone:
            return FeatureStore.open(store.path, store.spec)
    name = backbone.partition(":")[2]
    raise DataError(
        f"{features} holds no embeddings {backbone}; import them with retailtag features import "
        f"VECTORS --ids IDS --name {name}."
    )


def _refuse_other_engines(features: Path, spec: FeatureSpec, request: EngineRequest) -> None:
    others = [store.spec.engine for store in stores_of(features, spec)]
    if others:
        asked = f"--engine {request.engine}" + (
            f" --precision {request.precision}" if request.precision else ""
        )
        raise StaleFeatures(
            f"{features} holds features of {spec.backbone} computed by {', '.join(others)}, which "
            f"{asked} excludes; drop these options, or run extract with them."
        )
