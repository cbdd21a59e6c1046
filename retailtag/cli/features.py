"""`retailtag features`: look at stored embeddings, check, tidy, join, export and import them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.output import warn
from retailtag.cli.verb import Call, command
from retailtag.errors import EXIT_STALE, EXIT_UNAVAILABLE, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.catalog.catalog import Catalog
    from retailtag.extraction.garbage import CollectionPlan
    from retailtag.extraction.verify import Verdict
    from retailtag.settings import CatalogSettings
    from retailtag.store.inventory import StoreFacts

SAMPLE = 64
SHORT = 8  # digits of a digest shown to a person

app = typer.Typer(
    name="features",
    help="List, show, verify, tidy, join, export and import feature stores.",
    no_args_is_help=True,
)

NAME = "Store: its folder, its backbone, or the beginning of its digest."
CatalogueOption = Annotated[
    list[Path] | None,
    typer.Option("--catalogue", metavar="CATALOGUE", help="Catalogue in use; repeatable."),
]


@command(app, "features", "ls", catalogue=False)
def list_stores(call: Call) -> None:
    """List every store with its size, rows and identity; damaged and foreign folders too."""
    from retailtag.store.inventory import survey

    output, features = call.output, call.settings.compute.features
    found = survey(features)
    output.print(_inventory(found, features))
    for facts in found:
        if facts.problem:
            output.print(f"{facts.path}: {facts.problem}")
    output.result({"features": str(features), "stores": [facts.to_json() for facts in found]})


@command(app, "features", "show", catalogue=False)
def show(call: Call, name: Annotated[str, typer.Argument(metavar="NAME", help=NAME)]) -> None:
    """Show one store: its whole identity, its shards, what they cost and with which versions."""
    from retailtag.store import FeatureStore
    from retailtag.store.inventory import describe, find_named

    output, features = call.output, call.settings.compute.features
    facts = describe(FeatureStore.open(find_named(features, name)))
    output.print(*_description(facts))
    output.result(facts)


@command(app, "verify", catalogue=False)
def verify(
    call: Call,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=NAME)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every store.")] = False,
    sample: Annotated[
        int,
        typer.Option(
            "--sample",
            min=1,
            max=10**9,
            help="Images of --catalogue to embed again, drawn at random.",
        ),
    ] = SAMPLE,
) -> None:
    """Check every checksum of stores, and with a catalogue a random sample against the backbone.

    Ends with exit code 4 if a file is damaged, or embeddings are not what the backbone gives now.
    """
    from retailtag.backbones.ids import local_weights
    from retailtag.context import RunContext
    from retailtag.extraction.verify import Sample
    from retailtag.extraction.verify import verify as verify_store
    from retailtag.store.inventory import find_named, store_folders

    output, s = call.output, call.settings
    if bool(names) == every:
        raise UsageError("Name the stores to verify, or give --all, but not both.")
    features = s.compute.features
    paths = [find_named(features, name) for name in names or []] or store_folders(features)
    drawn = None
    if s.catalog.path is not None:
        context = RunContext(_read(s.catalog.path, s.catalog), s.reading, s.compute)
        local = local_weights(s.compute.weights, _backbones(paths))
        drawn = Sample(context, sample, s.probe.seed, local)
    verdicts = [verify_store(path, drawn, output.progress) for path in paths]
    output.print(_verdicts(verdicts))
    output.result({"stores": [verdict.to_json() for verdict in verdicts]})
    _end(verdicts)


@command(app, "gc", catalogue=False)
def gc(
    call: Call,
    catalogue: CatalogueOption = None,
    stores: Annotated[
        list[str] | None,
        typer.Option("--stores", metavar="NAME", help="Delete this whole store; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
) -> None:
    """Free what no catalogue given here uses; asks first, and off a terminal needs --yes.

    Dropped are rows of images that are in none of the catalogues, or there with other bytes;
    entries that a later one of the same image replaces; files that a killed run left behind, and
    damaged ones that were set aside.
    Whole stores go only by --stores.
    """
    from retailtag.compute import n_workers
    from retailtag.extraction.garbage import plan_collection
    from retailtag.store import FeatureStore
    from retailtag.store.inventory import find_named

    output, s = call.output, call.settings
    features = s.compute.features
    if not (catalogue or stores):
        raise UsageError("Give --catalogue, what is still used, or --stores, what is to go.")
    doomed = [FeatureStore.identify(find_named(features, name)) for name in stores or []]
    catalogs = [_read(path, s.catalog) for path in catalogue or []]
    plan = plan_collection(
        features, catalogs, doomed, workers=n_workers(s.compute), progress=output.progress
    )
    output.print(_freed(plan))
    for sentence in plan.skipped.values():
        warn(f"Left as it is: {sentence}")
    # An empty plan asks nothing: a cron job without --yes then ends quietly.
    done = bool(plan) and (yes or _confirmed())
    freed = plan.apply() if done else 0
    if done:
        output.print(f"{freed / 1e6:,.1f} MB freed.")
    output.result({**plan.to_json(), "done": done, "freed": freed})


@command(app, "merge", catalogue=False)
def merge(
    call: Call,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Features folder; the store is made or added to.")
    ],
    stores: Annotated[
        list[Path],
        typer.Argument(metavar="STORE...", help="Stores to join, or folders of them; only read."),
    ],
) -> None:
    """Join stores of one identity, such as the shards of extract --shard, in the folder OUT."""
    from retailtag.store.maintenance import merge as merge_stores

    output = call.output
    merged = merge_stores(out, stores, progress=output.progress)
    output.print(
        f"{merged.store.path}: {merged.n_added:,} images added, {merged.n_present:,} were there; "
        f"{merged.store.n_rows:,} embeddings in all"
    )
    output.result(merged.to_json())


@command(app, "import", catalogue=False)
def import_features(
    call: Call,
    vectors: Annotated[
        Path,
        typer.Argument(metavar="VECTORS", help="Array (.npy), or Parquet with a vector column."),
    ],
    name: Annotated[str, typer.Option("--name", help="Name: probes find own:NAME.")],
    ids: Annotated[
        Path | None,
        typer.Option("--ids", help="Text file: one image id per vector; Parquet may hold them."),
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", help="Parquet's column of vectors, of several.")
    ] = None,
) -> None:
    """Store embeddings that were computed elsewhere, to be probed and scored as own:NAME.

    With --catalogue the ids are compared with it, and its images are hashed.
    """
    from retailtag import api
    from retailtag.errors import named

    output, s = call.output, call.settings
    made = api.import_features(
        vectors, ids, name=name, column=column, settings=s, progress=output.progress
    )
    spec = made.store.spec
    output.print(
        f"{made.store.path}: {made.n_added:,} vectors of {spec.dim} values added, "
        f"{made.store.n_rows:,} in all; probe them with --backbones {made.backbone}"
    )
    for found, what in (
        (made.without_vector, f"images of {s.catalog.path} have no vector and are left out"),
        (made.not_in_catalogue, f"ids are not in {s.catalog.path}"),
    ):
        if found:
            output.progress.say(f"{len(found):,} {what} ({named(found)}).")
    output.result(made.to_json())


@command(app, "vectors", "export")
def export_features(
    call: Call,
    out: Annotated[Path, typer.Option("--out", help="File to write: .parquet.")],
) -> None:
    """Write the embeddings of a catalogue's images as Parquet, for vector databases.

    One row per image: id, product, split, path, title, tags and vector.
    """
    from retailtag import api

    catalogue, output = call.catalogue, call.output
    call.require("backbones")
    made = api.export_features(catalogue, out=out, settings=call.settings, progress=output.progress)
    output.print(f"{out}: {made.n_images:,} vectors of {made.dim:,} values, by {made.backbone}")
    if made.n_absent:
        output.progress.say(f"{made.n_absent:,} images have no embedding and are left out.")
    output.result(made.to_json())


def _read(path: Path, settings: CatalogSettings) -> Catalog:
    from retailtag.catalog.readers import read_catalog

    return read_catalog(path, settings)


def _backbones(paths: Sequence[Path]) -> list[str]:
    """Backbones of those of the stores whose identity can be read."""
    from retailtag.errors import ArtefactError, DataError
    from retailtag.store import FeatureStore

    # A store whose identity is damaged gets its own verdict later; here it only names no backbone.
    found = []
    for path in paths:
        with suppress(DataError, ArtefactError):
            found.append(FeatureStore.identify(path).spec.backbone)
    return list(dict.fromkeys(found))


def _confirmed() -> bool:
    """Ask on a terminal; elsewhere say that nothing is done without ``--yes``."""
    if not sys.stdin.isatty():
        warn("Nothing was changed; give --yes to free it.")
        return False
    typer.echo("Free this? [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _end(verdicts: Sequence[Verdict]) -> None:
    """Say every problem on stderr, and end with the exit code of the worst."""
    for problem in (p for verdict in verdicts for p in verdict.problems):
        warn(problem)
    # What is known to be wrong outweighs what could not be checked.
    found = {verdict.verdict for verdict in verdicts}
    if found & {"damaged", "drifted", "stale"}:
        raise typer.Exit(EXIT_STALE)
    if "unchecked" in found:
        raise typer.Exit(EXIT_UNAVAILABLE)


def _columns(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _inventory(found: Sequence[StoreFacts], features: Path) -> Table:
    """One row a folder: what it holds and whether it is whole."""
    left = ("backbone", "identity", "state", "dtype")
    table = _columns(f"Stores in {features}", left, ("rows", "absent", "MB", "written"))
    for s in found:
        part = s.name.rpartition("/")[0]
        backbone = f"{s.spec.backbone} {part}".strip() if s.spec else s.name
        table.add_row(
            backbone,
            s.spec.digest[:SHORT] if s.spec else "-",
            s.state,
            s.spec.dtype if s.spec else "-",
            "-" if s.n_rows is None else f"{s.n_rows:,}",
            "-" if s.n_absent is None else f"{s.n_absent:,}",
            f"{s.n_bytes / 1e6:,.1f}",
            (s.last_written or "-")[:10],
        )
    return table


def _description(facts: dict[str, Any]) -> list[str]:
    """Identity, totals and segments, a fact a line."""
    lines = [f"{facts['path']}", f"identity: {facts['identity']}"]
    lines += [f"  {name}: {value}" for name, value in facts["spec"].items()]
    lines.append(
        f"{facts['rows']:,} rows and {facts['absent']:,} absent in {facts['segments']:,} segments "
        f"of {facts['bytes'] / 1e6:,.1f} MB; {facts['seconds']:,.1f} s to compute"
    )
    lines += [f"  {name} {', '.join(found)}" for name, found in facts["versions"].items()]
    lines += [_segment_line(segment) for segment in facts["segment_files"]]
    return lines


def _segment_line(segment: dict[str, Any]) -> str:
    cost = "" if segment["seconds"] is None else f", {segment['seconds']:,.1f} s"
    return f"  {segment['name']}: {segment['rows']:,} rows, {segment['absent']:,} absent{cost}"


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    """One row a store: what was read, what was embedded again, and what came of it."""
    right = ("segments", "rows", "sample", "smallest cosine", "at least")
    table = _columns("Verified", ("store",), right)
    table.add_column("verdict")
    for v in verdicts:
        table.add_row(
            v.path.name,
            f"{v.n_segments:,}",
            f"{v.n_rows:,}",
            f"{v.n_sampled:,}" + (f" ({v.n_changed:,} changed)" if v.n_changed else ""),
            "-" if v.smallest_cosine is None else f"{v.smallest_cosine:.6f}",
            "-" if v.tolerance is None else f"{v.tolerance}",
            v.verdict,
        )
    return table


def _freed(plan: CollectionPlan) -> Table | str:
    """One row a store: what would go."""
    if not plan:
        return "There is nothing to free."
    right = ("unused images", "superseded entries", "leftover files", "MB")
    table = _columns("To be freed", ("store",), right)
    for store, waste in plan.waste:
        counts = (waste.n_unused, waste.n_superseded, waste.n_leftovers)
        table.add_row(store.path.name, *(f"{n:,}" for n in counts), f"{waste.n_bytes / 1e6:,.1f}")
    for store in plan.whole_stores:
        table.add_row(f"{store.path.name}, all of it", "", "", "", f"{store.nbytes / 1e6:,.1f}")
    return table
