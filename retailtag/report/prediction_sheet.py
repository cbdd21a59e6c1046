"""Pictures with the tags that they were given and those that are uncertain, in one file."""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailtag.display import printable
from retailtag.errors import UsageError
from retailtag.files import write_whole
from retailtag.report.gallery import jpeg_uri, thumbnail
from retailtag.report.templates import environment

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont

MAX_IMAGES = 240  # on a page; as many pictures as a person looks through
MAX_BYTES = 4_000_000  # of a file's pictures
HTML = (".html", ".htm")
PNG = (".png",)
MAX_PERHAPS = 5  # uncertain tags of an image that were not given
SIDE = 160  # pixels of a picture on a page
# Of a PNG, whose text has 11 pixels where a phone of 390 shows it whole.
WIDTH, COLUMNS, PADDING, FONT_SIZE = 780, 3, 10, 22
MAX_DRAWN = 60
_INK, _DOUBT, _MUTED, _PAPER = "#1c2430", "#9a4b00", "#5b6673", "#ffffff"


@dataclass(frozen=True)
class Shown:
    """One image, its tags with their probabilities, and which tags are uncertain."""

    name: str
    read: Callable[[], bytes]
    tags: tuple[tuple[str, float], ...]
    uncertain: tuple[tuple[str, float], ...]

    @property
    def perhaps(self) -> list[str]:
        """Uncertain tags that were not given, the closest few, and how many more there are."""
        given = {tag for tag, _ in self.tags}
        others = [f"not {tag} {p:.2f}" for tag, p in self.uncertain if tag not in given]
        more = [f"and {len(others) - MAX_PERHAPS} more"] if len(others) > MAX_PERHAPS else []
        return others[:MAX_PERHAPS] + more

    @property
    def doubted(self) -> set[str]:
        """Names of the uncertain tags."""
        return {tag for tag, _ in self.uncertain}


class Sheet:
    """Images with the most uncertain tags of those added, up to a number.

    Raises `UsageError` for a path whose ending tells no format.
    """

    def __init__(self, path: Path, max_images: int = MAX_IMAGES) -> None:
        if path.suffix.lower() not in (*HTML, *PNG):
            raise UsageError(f"--contact-sheet {path} must end in .html or .png.")
        self.path = path
        self.n = 0  # added
        self._max = max_images
        self._order = count()
        self._kept: list[tuple[int, int, Shown]] = []  # a heap, the least uncertain first

    def add(self, image: Shown) -> None:
        """Take an image, which then may replace a less uncertain one."""
        self.n += 1
        entry = (len(image.uncertain), -next(self._order), image)
        if len(self._kept) < self._max:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    @property
    def images(self) -> list[Shown]:
        """The images kept, the most uncertain first, equal ones as they were added."""
        return [image for _, _, image in sorted(self._kept, key=lambda e: e[:2], reverse=True)]

    def write(self, title: str) -> int:
        """Write HTML or PNG, by the path, within `MAX_BYTES`; returns the images on it."""
        is_png = self.path.suffix.lower() in PNG
        data, n = _png(self, title) if is_png else _html(self, title)
        with write_whole(self.path) as handle:
            handle.write(data)
        return n


def _headline(n: int, sheet: Sheet) -> str:
    if n == sheet.n:
        return f"{n:,} images, those with the most uncertain tags first."
    return f"{n:,} of {sheet.n:,} images: those with the most uncertain tags, first."


LEGEND = "? marks an uncertain tag, whose probability is close to where it is decided."


def _html(sheet: Sheet, title: str) -> tuple[bytes, int]:
    cards: list[dict[str, Any]] = []
    left = MAX_BYTES
    for image in sheet.images:
        source = jpeg_uri(thumbnail(image.read, SIDE))
        left -= len(source)
        if left < 0:
            break
        cards.append(
            {
                "name": printable(image.name, keep=""),
                "source": source,
                "tags": [(tag, p, tag in image.doubted) for tag, p in image.tags],
                "perhaps": image.perhaps,
            }
        )
    assets = resources.files("retailtag.report") / "assets"
    template = environment().get_template("predictions.html.jinja")
    text = template.render(
        title=title,
        headline=_headline(len(cards), sheet),
        legend=LEGEND,
        cards=cards,
        css=(assets / "report.css").read_text(encoding="utf-8"),
    )
    return text.encode(), len(cards)


def _png(sheet: Sheet, title: str) -> tuple[bytes, int]:
    images = sheet.images[:MAX_DRAWN]
    while True:
        picture = _drawn(images, [title, _headline(len(images), sheet), LEGEND])
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_BYTES or len(images) <= 1:
            return buffer.getvalue(), len(images)
        # By the bytes that each has taken; at least one fewer, so that this ends.
        images = images[: min(len(images) - 1, int(len(images) * MAX_BYTES / buffer.tell()))]


def _drawn(images: Sequence[Shown], head: Sequence[str]) -> Image.Image:
    """The sheet as a picture: a grid of cells under a few lines."""
    from PIL import Image, ImageDraw

    font = _font()
    inner = WIDTH - 2 * PADDING
    lines = [(line, _INK) for text in head for line in _wrapped(text, font, inner)]
    top = _block(lines, inner)
    cells = [_cell(image, font) for image in images]
    rows = [cells[at : at + COLUMNS] for at in range(0, len(cells), COLUMNS)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (WIDTH, top.height + sum(heights) + 2 * PADDING), _PAPER)
    sheet.paste(top, (PADDING, PADDING))
    y = top.height + 2 * PADDING
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * (WIDTH // COLUMNS), y))
        ImageDraw.Draw(sheet).line([(0, y - 1), (WIDTH, y - 1)], fill="#d8dde4")
        y += height
    return sheet


def _cell(image: Shown, font: FreeTypeFont) -> Image.Image:
    """One image with its name and tags below."""
    from PIL import Image

    width = WIDTH // COLUMNS - 2 * PADDING
    lines = [(line, _MUTED) for line in _wrapped(printable(image.name, keep=""), font, width)]
    for tag, p in image.tags:
        mark, ink = ("? ", _DOUBT) if tag in image.doubted else ("", _INK)
        lines += [(line, ink) for line in _wrapped(f"{mark}{tag} {p:.2f}", font, width)]
    for words in image.perhaps:
        lines += [(line, _MUTED) for line in _wrapped(f"? {words}", font, width)]
    text = _block(lines, width)
    jpeg = thumbnail(image.read, width)
    picture: Image.Image = (
        Image.open(io.BytesIO(jpeg)) if jpeg else Image.new("RGB", (width, 1), _PAPER)
    )
    if picture.width < width // 2:  # small ones twice as large: a phone shows half of the pixels
        picture = picture.resize((2 * picture.width, 2 * picture.height))
    height = picture.height + text.height + 4 * PADDING
    cell = Image.new("RGB", (WIDTH // COLUMNS, height), _PAPER)
    cell.paste(picture, (PADDING, PADDING))
    cell.paste(text, (PADDING, picture.height + 2 * PADDING))
    return cell


def _block(lines: Sequence[tuple[str, str]], width: int) -> Image.Image:
    """Lines of text in their colours."""
    from PIL import Image, ImageDraw

    step = round(FONT_SIZE * 1.3)
    block = Image.new("RGB", (width, max(step * len(lines), 1)), _PAPER)
    draw = ImageDraw.Draw(block)
    for number, (line, ink) in enumerate(lines):
        draw.text((0, number * step), line, fill=ink, font=_font())
    return block


def _font() -> FreeTypeFont:
    """The font of the figures: it has more letters than Pillow's own."""
    from matplotlib import font_manager
    from PIL import ImageFont

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), FONT_SIZE)


def _wrapped(text: str, font: FreeTypeFont, width: int) -> Iterator[str]:
    """Lines of a text that fit into a width, broken between words, and in words that do not fit."""
    line = ""
    for word in text.split(" "):
        whole = f"{line} {word}" if line else word
        if font.getlength(whole) <= width:
            line = whole
            continue
        if line:
            yield line
        line = word
        while font.getlength(line) > width:
            fits = next(n for n in range(len(line) - 1, 0, -1) if font.getlength(line[:n]) <= width)
            yield line[:fits]
            line = line[fits:]
    yield line
