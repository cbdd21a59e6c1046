"""`retailtag catalog`: look at a catalogue, and split it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from retailtag.cli.verb import Call, command
from retailtag.errors import EXIT_BAD_DATA, UsageError, named

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.catalog.check import CatalogReport, Duplicate, ImageFinding
    from retailtag.catalog.similar import SimilarImages
    from retailtag.catalog.split import SplitCatalog

SHOWN = 20  # rows of a list printed to a person; --json gives all
PLOT_WIDTH, PLOT_HEIGHT = 60, 10

app = typer.Typer(name="catalog", help="Check a catalogue, or split it.", no_args_is_help=True)


GroupByOption = Annotated[
    list[str] | None,
    typer.Option(
        "--group-by",
        metavar="WHAT",
        help="What shows one product: columns (brand,style), id:REGEX, path:REGEX or similar; "
        "repeatable. Default: the column group.",
    ),
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        "--features",
        metavar="STORE",
        help="Store whose embeddings --group-by similar compares; default: thumbnails.",
    ),
]
FoldsOption = Annotated[
    int | None,
    typer.Option(
        "--folds",
        metavar="K",
        min=2,
        max=1000,
        help="Write K manifests, each with another fold as test.",
    ),
]
SeedsOption = Annotated[
    str | None,
    typer.Option("--seeds", metavar="SEED,...", help="Write one manifest per seed."),
]


@command(app, "check")
def check(call: Call) -> None:
    """Decode every image and print what the catalogue holds and what is odd about it.

    Ends with exit code 3 if an image is unreadable or has an exact duplicate in another split.
    """
    from retailtag.catalog.check import check_catalog
    from retailtag.catalog.readers import read_catalog

    output, s = call.output, call.settings
    catalog = read_catalog(call.catalogue, s.catalog, max_bytes=s.reading.max_bytes)
    report = check_catalog(
        catalog,
        workers=s.compute.workers,
        progress=output.progress,
        max_pixels=s.reading.max_pixels,
    )
    output.print(*_report(report))
    output.result(report.to_json())
    if report.unreadable or report.duplicates_across:
        raise typer.Exit(EXIT_BAD_DATA)


@command(app, "split")
def split(
    call: Call,
    out: Annotated[Path, typer.Option("--out", help="CSV manifest to write.")],
    test: Annotated[
        str | None, typer.Option("--test", help="Test images: a number or a fraction.")
    ] = None,
    val: Annotated[str, typer.Option("--val", help="Val images: a number or a fraction.")] = "0",
    group_by: GroupByOption = None,
    features: FeaturesOption = None,
    folds: FoldsOption = None,
    seeds: SeedsOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite --out, be it the input itself.")
    ] = False,
) -> None:
    """Stratify over tags into train, val and test of given sizes, with no product separated."""
    from retailtag import api

    made = api.splits(
        call.catalogue,
        test=None if test is None else _amount(test, "--test"),
        val=_amount(val, "--val"),
        folds=folds,
        seeds=_seeds(seeds),
        grouping=api.grouping_of(group_by or (), features, call.settings, call.output.progress),
        out=out,
        force=force,
        settings=call.settings,
    )
    call.output.print(*_sentences(made, call.settings.catalog.allow_root))
    results = [found.to_json() for found in made]
    call.output.result(results[0] if len(results) == 1 else {"splits": results})


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"--seeds {text}: give whole numbers such as 0,1,2.") from None


def _sentences(made: Sequence[SplitCatalog], roots: Sequence[Path]) -> list[str]:
    """What was written, what was not possible, and where the images are if not beside it."""
    from retailtag.catalog.split import beside, without_products

    lines = [*made[0].catalog.notes]
    for found, following in zip(made, (*made[1:], None), strict=True):
        sizes = ", ".join(f"{n:,} {name}" for name, n in found.sizes.items() if n)
        lines.append(f"{found.out}: {sizes}")
        # Folds share one assignment, whose remarks follow the last of them.
        if following is None or following.fold in (None, 1):
            lines += found.summary or ["Every size is exact, and every tag is in every split."]
    found = made[0]
    out = found.out or Path()
    n_products, largest = found.product_sizes
    if remark := without_products(found.catalog):
        lines.append(remark)
    else:
        lines.append(f"{n_products:,} products, the largest of {largest:,} images.")
    if found.similar is not None:
        lines.append(_similar(found.similar, beside(out, "similar.html")))
    # Paths in the new manifest are relative to the images' folder, not to the manifest.
    places = [p for p in found.catalog.images.places if not _is_found(p, out)]
    needed = [f"--images {quote(str(place))}" for place in places]
    needed += [f"--allow-root {quote(str(root))}" for root in roots]
    if needed:
        lines.append(f"The images stay where they are: read it with {' '.join(needed)}")
    return lines


def _is_found(place: Path, manifest: Path) -> bool:
    """Whether a manifest finds its images in a folder or archive without being told."""
    from retailtag.catalog.locate import ARCHIVE_NAMES

    folder = manifest.resolve().parent
    beside = place.name in ARCHIVE_NAMES and place.resolve().parent == folder
    return beside or place.resolve() == folder


def _similar(similar: SimilarImages, sheet: Path) -> str:
    """What --group-by similar found, and where it can be looked at."""
    members = similar.members
    n_images = sum(map(len, members))
    by = "their looks and equal tags" if similar.by_tags else "their looks alone"
    plural = "cluster" if len(members) == 1 else "clusters"
    unseen = f"; {similar.n_unseen:,} images could not be compared" if similar.n_unseen else ""
    return (
        f"{n_images:,} images are similar to another, in {len(members):,} {plural}, by {by}"
        f"{unseen}; look at them in {sheet}"
    )


def _amount(text: str, option: str) -> int | float:
    """A number of images, or a fraction where there is a point."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise UsageError(f"{option} {text}: give a number of images or a fraction.") from None


def _report(report: CatalogReport) -> list[Table | str]:
    parts: list[Table | str] = [_facts(report), *_frequency_plot(report)]
    parts += report.notes
    parts += _findings("Unreadable images", report.unreadable)
    parts += _duplicates("Exact duplicates", report.duplicates_across)
    parts += _duplicates("Near-duplicates", report.near_across)
    parts += [
        f"Without a positive in {name}: {named(tags, SHOWN)}"
        for name, tags in report.without_positive.items()
        if tags
    ]
    parts += _findings("Suspicious rows", report.suspicious)
    parts += report.tag_notes
    if report.missing_products:
        parts.append(f"Warning: {report.missing_products}")
    return parts


def _facts(report: CatalogReport) -> Table:
    from rich.table import Table

    table = Table(title=report.path, show_header=False, title_justify="left")
    spread = report.tags_per_image
    splits = ", ".join(f"{n:,} {name}" for name, n in report.splits.items())
    groups = ", ".join(f"{n} {name}" for name, n in report.groups.items())
    for name, fact in (
        ("images", f"{report.n_images:,} ({splits}) of {report.products:,} products"),
        ("tags", f"{len(report.tags)} ({groups})"),
        (
            "tags per image",
            f"{spread['mean']:.2f} on average, median {spread['median']:g}, "
            f"{spread['min']:g} to {spread['max']:g}",
        ),
        *([("one value an image", ", ".join(report.exclusive))] if report.exclusive else []),
        ("unreadable", f"{len(report.unreadable):,}"),
        ("duplicates across splits", f"{len(report.duplicates_across):,}"),
        ("duplicates within a split", f"{report.duplicates_within:,}"),
        ("near-duplicates across splits", f"{len(report.near_across):,} pairs"),
        ("near-duplicates within a split", f"{report.near_within:,} pairs"),
        ("suspicious rows", f"{len(report.suspicious):,}"),
    ):
        table.add_row(name, fact)
    return table


def _frequency_plot(report: CatalogReport) -> list[str]:
    """Bars of training images, tags from the most to the least frequent, on a log scale."""
    import numpy as np

    counts = np.sort([row.positives.get("train", 0) for row in report.tags])[::-1]
    if not len(counts) or counts[0] == 0:
        return ["No tag has a training image."]
    # Hundreds of tags share columns: each shows the median of its tags. log10(count + 1) keeps
    # tags with one image apart from tags with none.
    width = min(PLOT_WIDTH, len(counts))
    shown = np.array([np.median(bin_) for bin_ in np.array_split(counts, width)])
    top = int(np.ceil(np.log10(counts[0] + 1)))
    height = np.log10(shown + 1) / top * PLOT_HEIGHT
    lines = ["Training images of each tag, most frequent first (log scale)"]
    for level in range(PLOT_HEIGHT, 0, -1):
        value = 10 ** (level * top / PLOT_HEIGHT)
        bars = "".join(_bar(h - level + 1) for h in height)
        lines.append(f"{value:>9,.0f} {bars}")
    return [*lines, " " * 10 + f"tags 1 to {len(counts)}"]


def _bar(part: float) -> str:
    """A cell that is full, empty or filled by eighths."""
    return " ▁▂▃▄▅▆▇█"[round(8 * min(max(part, 0.0), 1.0))]


def _findings(title: str, findings: Sequence[ImageFinding]) -> list[Table]:
    from rich.table import Table

    if not findings:
        return []
    table = Table(title=f"{title} ({len(findings):,})", title_justify="left")
    for name in ("image", "reason", "place"):
        table.add_column(name, overflow="fold")
    for row in findings[:SHOWN]:
        table.add_row(row.image_id, row.reason, row.place)
    if len(findings) > SHOWN:
        table.add_row("...", f"and {len(findings) - SHOWN:,} more; --json lists all", "")
    return [table]


def _duplicates(title: str, found: Sequence[Duplicate]) -> list[Table]:
    from rich.table import Table

    if not found:
        return []
    title = f"{title} across splits ({len(found):,})"
    table = Table("images", "tags agree", title=title, title_justify="left")
    for row in found[:SHOWN]:
        pairs = zip(row.image_ids, row.splits, strict=True)
        table.add_row(", ".join(f"{i} ({s})" for i, s in pairs), "yes" if row.same_labels else "no")
    return [table]
