"""A second real catalogue: the Open Clip Art Library 0.18, as Debian packages it.

    python benchmarks/clipart.py --out FOLDER [--deb PNG.deb --deb SVG.deb] [--test 1000]

Thousands of drawings by hundreds of people, in the public domain, with keywords of many people and
a folder for each subject. apt downloads the two packages into FOLDER/packages (no root needed), or
`--deb` names them; their SHA-256 are checked and nothing of them is executed. FOLDER gets
``images/``, ``drawings.csv`` (everything but a split), ``catalogue.csv`` (the same, split by
retailtag) and ``README.md`` with the counts. The rules, of which none looks at a model:

- **Drawings.** PNG files that the SVG of the same name declares to be in the public domain, of at
  least 16 pixels a side and at most 89 million in all (Pillow's limit). What is longer than 320
  pixels is scaled down; all other files stay as they are, transparency included. A link is no
  drawing of its own.
- **Tags.** The keywords (dc:subject) of a drawing and of its copies where the PNG files of these
  are links to it, and the folders in which it or such a link lies.
  Spellings that differ in case, separators or a plural s are one tag, under the commonest of them.
  Left out: the author's own name, what has no letter a to z, `NO_SUBJECTS`, and in the end tags of
  fewer than 8 drawings or 4 groups. A drawing without any tag left is left out.
- **Series.** Of drawings by one author, in one folder, with equal tags, 20 are kept at most, evenly
  over their names: a program drew 1,375 stars.
- **Groups.** A series is one group, and so are drawings by one author in one folder whose names
  begin with the same word (apple, apple_bw, apple_wedge), and what `--group-by similar` finds.
"""

from __future__ import annotations

import argparse
import html
import io
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

import retailtag as rt
from retailtag.catalog.manifest import csv_text
from retailtag.catalog.products import joined
from retailtag.catalog.split import SplitCatalog
from retailtag.errors import DataError, RetailtagError, Unavailable, UsageError
from retailtag.files import file_sha256, write_text

VERSION = "1:0.18+dfsg-19"
PACKAGES = {  # SHA-256 of each package at that version
    "openclipart-png": "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "openclipart-svg": "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
}
POOL = "https://deb.debian.org/debian/pool/main/o/openclipart/"
ROOT = PurePosixPath("usr/share/openclipart")
MIN_SIDE, MAX_SIDE = 16, 320
SERIES = 20  # drawings of a series that are kept
MIN_DRAWINGS, MIN_GROUPS = 8, 4  # of a tag
# Leftovers of the library's own tools and its folders for what has no subject: `hash` was printed
# by a script in place of keywords.
NO_SUBJECTS = frozenset({"hash", "unsorted", "duplicate", "special", "example", "openclipart"})


class File(NamedTuple):
    """A file or link of a package."""

    name: str  # below its folder of format, without suffix: food/fruit/apple
    data: bytes  # of a link: none
    target: str = ""  # of a link


class About(NamedTuple):
    """Metadata of an SVG."""

    title: str
    author: str
    keywords: tuple[str, ...]
    is_free: bool  # whether it declares the public domain


@dataclass(frozen=True)
class Drawing:
    """A picture with what its SVG and its folders say."""

    name: str
    data: bytes = field(repr=False)
    title: str
    author: str
    words: tuple[str, ...]  # keywords and folders as written

    @property
    def place(self) -> tuple[str, str]:
        """Author and folder."""
        return self.author, str(PurePosixPath(self.name).parent)

    @property
    def first_word(self) -> str:
        """First word of the name: apple of apple_bw, of apple-core_01 and of apple2."""
        name = PurePosixPath(self.name).name.lower()
        found = re.match(r"[\W\d_]*[^\W\d_]+", name)
        return found.group() if found else name


def fetched(folder: Path) -> list[Path]:
    """The two packages, downloaded by apt into `folder`."""
    if shutil.which("apt-get") is None:
        raise Unavailable(
            f"apt-get is missing here; download openclipart-png and openclipart-svg {VERSION} "
            f"from {POOL} and name both files with --deb."
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", *(f"{name}={VERSION}" for name in PACKAGES)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(
            f"apt-get could not download openclipart {VERSION} ({why}); try apt-get update, or "
            f"download both packages from {POOL} and name them with --deb."
        )
    return sorted(folder.glob("*.deb"))


def checked(debs: Sequence[Path], packages: Mapping[str, str]) -> dict[str, Path]:
    """Each package's file, known by its SHA-256."""
    missing = [str(deb) for deb in debs if not deb.is_file()]
    if missing:
        raise UsageError(f"--deb {missing[0]}: there is no such file.")
    digests = {file_sha256(deb): deb for deb in debs}
    for name, digest in packages.items():
        if digest not in digests:
            given = ", ".join(deb.name for deb in debs) or "no file"
            raise DataError(
                f"{given}: none has the SHA-256 {digest} of {name} {VERSION}; download that "
                f"version from {POOL} and name it with --deb."
            )
    return {name: digests[digest] for name, digest in packages.items()}


def files_of(deb: Path, kind: str) -> Iterator[File]:
    """Files and links of one format (png or svg) in a package, an ar archive around a tar file."""
    folder = ROOT / kind
    with deb.open("rb") as file:
        file.read(8)  # the magic number
        while header := file.read(60):
            size = int(header[48:58])
            if not header.startswith(b"data.tar"):
                file.seek(size + size % 2, io.SEEK_CUR)
                continue
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    if path.suffix != f".{kind}" or not path.is_relative_to(folder):
                        continue
                    name = str(path.relative_to(folder).with_suffix(""))
                    if member.issym():
                        yield File(name, b"", _target(name, member.linkname))
                    elif content := archive.extractfile(member):
                        yield File(name, content.read())
            return


def _target(name: str, link: str) -> str:
    """Name of the file that a relative link leads to."""
    parts: list[str] = []
    for part in (*PurePosixPath(name).parts[:-1], *PurePosixPath(link).with_suffix("").parts):
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    return "/".join(parts)


def described(svg: bytes) -> About:
    """What the metadata of an SVG say.

    ElementTree fetches nothing, and expat stops entities that grow out of proportion.
    """
    found: dict[str, list[str]] = defaultdict(list)
    works = (e for e in ElementTree.fromstring(svg).iter() if _tag(e) == "Work")
    for part in (part for work in works for part in work):
        if _tag(part) == "license":
            found["license"] += map(str, part.attrib.values())
        else:
            found[_tag(part)] += filter(None, (" ".join(t.split()) for t in part.itertext()))
    keywords = [w for text in found["subject"] for w in re.split(r"[,;/]", html.unescape(text))]
    licences = {text.rpartition("/")[2].lower().replace(" ", "") for text in found["license"]}
    is_free = licences == {"publicdomain"}
    return About(" ".join(found["title"]), " ".join(found["creator"]), tuple(keywords), is_free)


def _tag(element: ElementTree.Element) -> str:
    """Name of an element without its namespace; namespaces differ between SVG editors."""
    return str(element.tag).rpartition("}")[2]


def read_drawings(packages: Mapping[str, Path], left_out: Counter[str]) -> list[Drawing]:
    """All drawings in the public domain, by name; counts those left out under their reason."""
    svgs = files_of(packages["openclipart-svg"], "svg")
    said = {svg.name: described(svg.data) for svg in svgs if not svg.target}
    pictures = sorted(files_of(packages["openclipart-png"], "png"), key=lambda file: file.name)
    words: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        found = words[picture.target or picture.name]
        found += PurePosixPath(picture.name).parts[:-1]
        if picture.name in said:  # of a link, the copy of the SVG in its folder
            found += said[picture.name].keywords
    drawings = []
    for picture in pictures:
        about = said.get(picture.name)
        if picture.target:
            left_out["links to another drawing"] += 1
        elif about is None or not about.is_free:
            left_out["without an SVG that declares the public domain"] += 1
        elif not _fits(picture.data):
            left_out[f"under {MIN_SIDE} pixels a side, or over 89 million in all"] += 1
        else:
            found = words[picture.name]
            drawings.append(
                Drawing(picture.name, picture.data, about.title, about.author, tuple(found))
            )
    return drawings


def _fits(data: bytes) -> bool:
    """Whether a picture has a size that is used; its header tells."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return min(image.size) >= MIN_SIDE
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            return False


def spelling(word: str) -> str:
    """A word in small letters, with one space where any separators are."""
    return " ".join(re.split(r"[\s_-]+", word.lower())).strip()


def tags_of(drawings: Sequence[Drawing]) -> list[frozenset[str]]:
    """Tags of each drawing, before the rare ones are left out."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    rows: list[set[str]] = []
    for drawing in drawings:
        author = _key(drawing.author)
        words = {s for s in map(spelling, drawing.words) if re.search("[a-z]", s)}
        words = {s for s in words if _key(s) != author}
        rows.append({_key(s) for s in words})
        for word in words:
            spellings[_key(word)][word] += 1
    singular = {k: k[:-1] if k[-1] == "s" and k[:-1] in spellings else k for k in spellings}
    for key, one in singular.items():
        if key != one:
            spellings[one] += spellings[key]
    name = {k: min(c, key=lambda s: (-c[s], s)) for k, c in spellings.items()}
    kept = {k for k in spellings if singular[k] == k and k not in NO_SUBJECTS}
    return [frozenset(name[singular[k]] for k in row if singular[k] in kept) for row in rows]


def _key(word: str) -> str:
    """What all spellings of a word share."""
    return spelling(word).replace(" ", "")


def thinned(
    drawings: Sequence[Drawing], tags: Sequence[frozenset[str]]
) -> tuple[list[int], list[int]]:
    """Rows of the drawings with a tag that are kept, and the series of each of them."""
    series: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for row, drawing in enumerate(drawings):
        if tags[row]:
            series[*drawing.place, tags[row]].append(row)
    kept: list[tuple[int, int]] = []
    for code, rows in enumerate(series.values()):
        n = min(len(rows), SERIES)
        kept += [(rows[i * len(rows) // n], code) for i in range(n)]
    kept.sort()
    return [row for row, _ in kept], [code for _, code in kept]


def groups_of(drawings: Sequence[Drawing], series: Sequence[int]) -> list[str]:
    """Group of each drawing, named by its first one."""
    keys = [(*d.place, d.first_word) for d in drawings]
    words = np.unique(["\0".join(key) for key in keys], return_inverse=True)[1]
    first: dict[int, str] = {}
    for drawing, code in zip(drawings, series, strict=True):
        first.setdefault(code, drawing.name)
    names = np.array([first[code] for code in series])
    return joined(names, words.astype(np.int64)).tolist()


def without_rare(tags: Sequence[frozenset[str]], groups: Sequence[str]) -> list[frozenset[str]]:
    """The same tags less those of too few drawings or groups."""
    n = Counter(tag for row in tags for tag in row)
    spread: dict[str, set[str]] = defaultdict(set)
    for row, group in zip(tags, groups, strict=True):
        for tag in row:
            spread[tag].add(group)
    kept = {t for t in n if n[t] >= MIN_DRAWINGS and len(spread[t]) >= MIN_GROUPS}
    return [row & kept for row in tags]


def write_drawings(drawings: Sequence[Drawing], out: Path, left_out: Counter[str]) -> None:
    """Write the pictures and ``drawings.csv``."""
    tags = tags_of(drawings)
    left_out["without a tag"] += sum(not row for row in tags)
    rows, series = thinned(drawings, tags)
    left_out[f"beyond the {SERIES} kept of a series"] += sum(map(bool, tags)) - len(rows)
    drawings, tags = [drawings[row] for row in rows], [tags[row] for row in rows]
    for drawing in drawings:
        path = out / place(drawing)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(scaled(drawing.data))
    manifest = out / "drawings.csv"
    write_table(manifest, drawings, tags, groups_of(drawings, series))
    # Groups do not depend on the split's size; this split is thrown away.
    groups = rt.split(manifest, test=0.2, group_by="similar").catalog.group.tolist()
    tags = without_rare(tags, groups)
    for drawing, row in zip(drawings, tags, strict=True):
        if not row:
            left_out["without a tag"] += 1
            (out / place(drawing)).unlink()
    write_table(manifest, drawings, tags, groups)


def place(drawing: Drawing) -> str:
    """Path of a picture in the catalogue's folder."""
    return f"images/{drawing.name}.png"


def write_table(
    path: Path,
    drawings: Sequence[Drawing],
    tags: Sequence[frozenset[str]],
    groups: Sequence[str],
) -> None:
    """Write a manifest of the drawings that have a tag."""
    table = [
        (drawing.name, place(drawing), "|".join(sorted(row)), group, drawing.title)
        for drawing, row, group in zip(drawings, tags, groups, strict=True)
        if row
    ]
    if not table:
        raise DataError("The packages hold no drawing that the rules keep.")
    write_text(path, csv_text(("image_id", "path", "tags", "group", "title"), table))


def scaled(data: bytes) -> bytes:
    """A picture of at most `MAX_SIDE` pixels a side."""
    with Image.open(io.BytesIO(data)) as image:
        if max(image.size) <= MAX_SIDE:
            return data
        # Pillow scales RGBA with colours weighted by their opacity.
        small = image.convert("RGBA")
    small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "PNG")
    return file.getvalue()


def page(made: SplitCatalog, left_out: Counter[str]) -> str:
    """What the folder holds, where it is from and what was left out."""
    table = made.catalog.table
    n_groups, largest = made.product_sizes
    sizes = ", ".join(f"{n:,} {name}" for name, n in made.sizes.items() if n)
    per_drawing = (table.labels == 1).sum(axis=1).mean()
    tail = int((table.group == "tail").sum())
    lines = [
        "# Drawings of the Open Clip Art Library",
        "",
        f"{len(made.catalog):,} drawings ({sizes}) in {n_groups:,} groups, the largest of "
        f"{largest:,}; {len(table.tags)} tags, {tail} of them tail, {per_drawing:.1f} per drawing. "
        f"Written by `benchmarks/clipart.py` from the Debian packages openclipart-png and "
        f"openclipart-svg {VERSION}.",
        "",
        "Every drawing was dedicated to the public domain by its author; the packages' copyright "
        "file has the text of the dedication.",
        "",
        "| left out | files |",
        "|---|---|",
        *(f"| {reason} | {n:,} |" for reason, n in left_out.items() if n),
        "",
        "Keywords were given by many people and are incomplete: a tag that is missing counts as "
        "absent.",
        "",
    ]
    return "\n".join(lines)


def build(
    out: Path,
    debs: Sequence[Path],
    *,
    test: float,
    packages: Mapping[str, str] = PACKAGES,
    fetch: Callable[[Path], Sequence[Path]] = fetched,
) -> SplitCatalog:
    """Write the catalogue into a folder that has none yet."""
    taken = [name for name in ("images", "drawings.csv", "catalogue.csv") if (out / name).exists()]
    if taken:
        raise UsageError(f"{out / taken[0]} exists; give another --out.")
    left_out: Counter[str] = Counter()
    found = checked(debs or fetch(out / "packages"), packages)
    write_drawings(read_drawings(found, left_out), out, left_out)
    made = rt.split(out / "drawings.csv", test=test, out=out / "catalogue.csv")
    write_text(out / "README.md", page(made, left_out))
    return made


def main() -> None:
    """Build the catalogue, or end with one sentence and an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--deb", type=Path, action="append", default=[], help="a package; repeat")
    parser.add_argument("--test", type=int, default=1000, help="drawings of the test split")
    args = parser.parse_args()
    try:
        build(args.out, args.deb, test=args.test)
    except RetailtagError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print((args.out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
