"""What the calls of the API take, made into what the packages below need.

Settings and options, catalogues in every form, folders and outcomes, images, fitted models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retailtag.errors import UsageError
from retailtag.fields import Section
from retailtag.progress import SILENT, Progress
from retailtag.ranks import ALONE, Ranks
from retailtag.remote import as_path
from retailtag.settings import BakeoffSettings, CatalogSettings
from retailtag.settings_file import read_settings
from retailtag.verbs import resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailtag.catalog.catalog import Catalog
    from retailtag.context import RunContext
    from retailtag.scoring.files import ReadCatalog
    from retailtag.tagger.drift.reference import Reference
    from retailtag.tagger.drift.sources import Pictures
    from retailtag.tagger.tagger import Tagger

Settings = BakeoffSettings | Section | str | Path | None


def pictures_of(
    source: Any, settings: BakeoffSettings, stdin: IO[bytes] | None, split: str | None = None
) -> Pictures:
    """Images to compare; of a catalogue those of a `split`, empty for held-out ones, if given."""
    from retailtag.catalog.catalog import Catalog
    from retailtag.catalog.manifest import table_suffix
    from retailtag.catalog.named import MANIFESTS
    from retailtag.tagger.drift.sources import Pictures

    several = source if isinstance(source, list | tuple) else [source]
    one = several[0] if len(several) == 1 else None
    is_catalog = isinstance(one, Catalog) or any(isinstance(row, Mapping) for row in several)
    if split is not None and one is not None:
        is_path = isinstance(one, str | Path)
        is_catalog |= not is_path or table_suffix(Path(one)) in MANIFESTS
    if is_catalog:
        catalog = read_source(source if one is None else one, settings)[0]
        return Pictures.of_catalog(catalog) if split is None else Pictures.of_split(catalog, split)
    limit = settings.reading.max_bytes
    return Pictures.of_sources(several, settings.catalog, max_bytes=limit, stdin=stdin)


def drift_reference(
    model: Any, source: Any, tagger: Tagger, settings: BakeoffSettings
) -> Pictures | Reference:
    """What new images are compared with: a kept reference, or images to read."""
    from retailtag.tagger.drift.reference import FILE, Reference

    one = source[0] if isinstance(source, list | tuple) and len(source) == 1 else source
    split = settings.drift.split or ""
    place = getattr(model, "folder", model) if source is None else one
    if isinstance(place, str | Path):
        is_folder = Path(place).is_dir()
        path = Path(place) / FILE if is_folder else Path(place)
        if path.is_file() if is_folder else path.suffix == Path(FILE).suffix:
            kept = Reference.load(path)
            kept.check(tagger, path)
            return kept
    if source is not None:
        return pictures_of(source, settings, None, split)
    recorded, settings = recorded_source(tagger, settings)
    if recorded is None:
        raise UsageError(
            "The model keeps no reference and its catalogue is not there; name images to compare "
            "with by --reference."
        )
    return pictures_of(recorded, settings, None, split)


def settings_of(verb: str, settings: Settings, options: Mapping[str, Any]) -> BakeoffSettings:
    """Settings of a call of a verb: what `settings` says, and the options on top."""
    found, _ = given_settings(verb, settings, options)
    return found


def given_settings(
    verb: str, settings: Settings, options: Mapping[str, Any]
) -> tuple[BakeoffSettings, set[str]]:
    """Settings of a call, and the keys that options or a file gave."""
    if isinstance(settings, str | Path):
        return resolve(verb, None, options, file=read_settings(Path(settings)))
    return resolve(verb, settings, options)


def run_context(
    catalog: Any, settings: BakeoffSettings, progress: Progress | None, ranks: Ranks = ALONE
) -> RunContext:
    """Read the catalogue, with what the runs over it share; the first of `ranks` tells progress."""
    from retailtag.context import RunContext

    told = progress if progress and ranks.is_first else SILENT
    found, provenance = read_source(catalog, settings)
    for note in found.notes:
        told.say(note)
    if provenance:  # where the scorer looks whether images have changed since
        provenance["features_folder"] = str(settings.compute.features)
    return RunContext(found, settings.reading, settings.compute, provenance, told, ranks)


def with_own_weights(context: RunContext, backbones: Sequence[str]) -> list[RunContext]:
    """A context for each backbone, in which ``--weights`` names its own alone."""
    from retailtag.backbones.ids import components_of, local_weights

    local = local_weights(context.compute.weights, backbones)
    own = [
        tuple(f"{i}={local[i]}" for i in components_of(name) if i in local) for name in backbones
    ]
    return [replace(context, compute=replace(context.compute, weights=w)) for w in own]


def read_source(source: Any, settings: BakeoffSettings) -> tuple[Catalog, dict[str, Any]]:
    """The catalogue, unless it is one already, and where it was read from if that is a path."""
    from retailtag.catalog.catalog import Catalog
    from retailtag.catalog.readers import read_catalog as read

    s = settings.catalog
    source = s.path if source is None else source
    if source is None:
        raise UsageError("CATALOGUE is missing; name a manifest or a folder.")
    if isinstance(source, Catalog):
        # Its tags and groups are fixed: options of reading would be ignored without a word.
        if replace(s, path=None) != CatalogSettings():
            raise UsageError(
                "The catalogue is read already; give attributes, images, cutoffs and columns to "
                "read_catalog."
            )
        return source, {}
    provenance = {}
    if isinstance(source, str | Path):
        source = as_path(source)
        how = s.recorded()
        del how["path"]
        provenance = {"catalog": str(source), "catalog_args": how}
    return read(source, s, max_bytes=settings.reading.max_bytes), provenance


def to_score(
    verb: str, catalog: Any, settings: Settings, options: Mapping[str, Any]
) -> tuple[BakeoffSettings, ReadCatalog, dict[str, Any]]:
    """Settings of a scoring call, its reader of catalogues, and what scoring and comparing share.

    Catalogues are read as the predictions record them, but by the options given.
    """
    s, given = given_settings(verb, settings, options)
    source = s.catalog.path if catalog is None else catalog
    is_path = isinstance(source, str | Path)
    # What was asked for, by name or in settings; all else is as the predictions record it, the
    # cut-offs of the tags' groups among them.
    named = {n for n, v in vars(s.catalog).items() if v != getattr(CatalogSettings, n)}
    named |= {key.removeprefix("catalog.") for key in given}

    def read(path: Path, **recorded: Any) -> Catalog:
        if source is not None and not is_path:
            return read_source(source, s)[0]
        if not path.exists():
            raise UsageError(f"The catalogue {path} is not there; name it with --catalogue.")
        # a version before recorded None for no --images
        known = {n: v for n, v in recorded.items() if v is not None and n not in named}
        if strange := [n for n in known if n not in vars(s.catalog)]:
            raise UsageError(
                f"Unknown options of reading {path} are recorded ({', '.join(strange)}); name the "
                "catalogue with --catalogue."
            )
        return read_source(path, replace(s, catalog=replace(s.catalog, **known)))[0]

    from retailtag.scoring.files import once
    from retailtag.statistics.exclusive import INDEPENDENT

    shared = {
        "catalog": source if source is None else as_path(source if is_path else "."),
        "split": s.score.split,
        "n_bootstrap": s.score.replicates,
        "seed": s.score.seed,
        "allow_missing": s.score.allow_missing,
        "assignment": s.score.assign or INDEPENDENT,
        "names": s.names,
    }
    return s, once(read), shared


def numbers(name: str, values: Any) -> NDArray[Any]:
    """Array of numbers or booleans; anything else is refused in a sentence."""
    import numpy as np

    # float, int, unsigned and bool: text and objects would be converted element by element
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.array("")
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{name} must be an array of numbers, not {type(values).__name__}.")
    return array


def path_of(place: Any) -> Path:
    """Path of a text, a path or an outcome."""
    found = getattr(place, "folder", place)
    if isinstance(found, str | Path):
        return Path(found)
    raise UsageError(f"Give a path or what a run returned, not {type(place).__name__}.")


def limits_of(settings: BakeoffSettings) -> dict[str, Any]:
    """Keywords of the functions that decode images."""
    reading = settings.reading
    return {"max_pixels": reading.max_pixels, "allow_truncated": reading.allow_truncated}


def images_to_time(
    settings: BakeoffSettings, catalog: Any, sample: Sequence[Path], tagger: Tagger
) -> list[bytes]:
    """Readable encoded images: of a sample, or test images of a catalogue or the recorded one."""
    from retailtag.bakeoffs.pairs import readable_images, readable_sample
    from retailtag.images.listing import list_images

    if sample:
        return readable_sample(list_images(sample)[0], tagger.pixels)
    source = settings.catalog.path if catalog is None else catalog
    if source is None:
        source, settings = recorded_source(tagger, settings)
        if source is None:
            raise UsageError(
                f"The catalogue {tagger.head.facts.get('catalog') or 'of the model'} is not there; "
                "name it with --catalogue, or images with --sample."
            )
    return readable_images(read_source(source, settings)[0], tagger.pixels)


def recorded_source(
    tagger: Tagger, settings: BakeoffSettings
) -> tuple[str | None, BakeoffSettings]:
    """The catalogue that a model was fitted on, and how it was read; None where it is not there."""
    facts = tagger.head.facts
    source, how = facts.get("catalog"), facts.get("catalog_args") or {}
    if source is None or not as_path(source).exists():
        return None, settings
    known = {k: v for k, v in how.items() if k in vars(settings.catalog) and v is not None}
    return source, replace(settings, catalog=replace(settings.catalog, **known))


def paths_of(runs: Any) -> list[Path]:
    """Paths of one run or of several."""
    several = isinstance(runs, Sequence) and not isinstance(runs, str | bytes)
    return [path_of(run) for run in (runs if several else [runs])]


def tagger_of(model: Any, settings: BakeoffSettings, progress: Progress) -> Tagger:
    """The model itself if it is a `Tagger`, else the one in a folder or of an outcome.

    A `Tagger` keeps the assignment that it is set to, unless the settings name another.
    """
    from retailtag.outcomes import load_tagger
    from retailtag.statistics.exclusive import AT_MOST_ONE
    from retailtag.tagger.tagger import Tagger

    assignment, one_of = settings.score.assign, settings.catalog.one_of
    if not isinstance(model, Tagger):
        return load_tagger(
            path_of(model),
            settings.compute,
            progress=progress,
            assignment=assignment,
            one_of=one_of,
            **limits_of(settings),
        )
    if assignment or one_of:
        return model.assigning(assignment or AT_MOST_ONE, one_of)
    return model
