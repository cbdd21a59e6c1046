"""The reference that is kept with a model: a small sample of held-out images, without pixels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import ArtefactError, DataError
from retailtag.files import parse_json, write_whole
from retailtag.npz import Form, NpzFile, open_npz
from retailtag.tagger.drift.properties import PROPERTIES
from retailtag.tagger.drift.sample import CONFIDENCES, Sample, drawn_rows, group_digests

if TYPE_CHECKING:
    from retailtag.tagger.tagger import Tagger

FILE = "reference.npz"  # in the folder of an exported model
FORMAT = 1
MAX_BYTES = 4_500_000  # of all arrays together
_CLAIM = "is damaged or not a drift reference of retailtag"
_REMEDY = "write it again, or name images with --reference"


@dataclass(frozen=True, eq=False)
class Reference:
    """A sample of images, and the model that it was observed with."""

    sample: Sample
    tags: tuple[str, ...]
    model: str  # see `model_digest`
    described: str  # where the images come from, in words

    def save(self, path: Path) -> None:
        """Write an ``.npz`` of less than 5 MB, whole or not at all; images are drawn if need be.

        Embeddings are rounded to float16, and numbers stand for the names of products and images.
        """
        sample = self.sample
        n = rows_kept(sample.embeddings.shape[1], len(self.tags))
        sample = sample.take(drawn_rows(sample.group, n, seed=0)[:n])
        header = {
            "format": FORMAT,
            "tags": list(self.tags),
            "model": self.model,
            "described": self.described,
            "has_groups": sample.has_groups,
            "confidences": list(CONFIDENCES),
            "properties": list(PROPERTIES),
        }
        text = json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False)
        with write_whole(path) as handle:
            np.savez(
                handle,
                header=np.frombuffer(text.encode(), np.uint8),
                embeddings=rounded(sample.embeddings).astype(np.float16),
                given=np.packbits(sample.given, axis=1),
                confidences=sample.confidences.astype(np.float32),
                properties=sample.properties.astype(np.float32),
                kinds=sample.kinds,
                group=group_digests(sample.group),
                digests=sample.digests,
            )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote, every array checked.

        Raises
        ------
        DataError
            If the file is missing, damaged or not such a file.
        ArtefactError
            If it was written by a newer format.
        """
        path = Path(path)
        try:
            with open_npz(path, _CLAIM, _REMEDY) as file:
                return _read(file, path)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; name images with --reference.") from None

    def check(self, tagger: Tagger, path: Path) -> None:
        """Raise `ArtefactError` unless `tagger` is the model that the reference was made with."""
        if self.tags != tagger.tags or self.model != model_digest(tagger):
            raise ArtefactError(
                f"{path} was made with another model, or other thresholds, than this one; "
                f"{_REMEDY}."
            )


def rounded(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings as a file has them; both sides of a comparison are rounded alike."""
    largest = np.finfo(np.float16).max
    return embeddings.clip(-largest, largest).astype(np.float16).astype(np.float32)


def model_digest(tagger: Tagger) -> str:
    """SHA-256 over what gives an image its logits and tags, but for the backbone's weights."""
    head = tagger.head
    h = hashlib.sha256()
    for text in ("+".join(b.id for b in tagger.backbones), head.head, tagger.assignment):
        h.update(f"{len(text)}:{text}".encode())
    for tag in (*tagger.tags, *tagger.exclusive):
        h.update(f"{len(tag)}:{tag}".encode())
    for array in (head.weight, head.bias, tagger.thresholds):
        h.update(np.ascontiguousarray(array, "<f4").tobytes())
    return h.hexdigest()


def rows_kept(dim: int, n_tags: int) -> int:
    """Images that a file of `MAX_BYTES` has room for, one at least."""
    numbers = 4 * (len(CONFIDENCES) + len(PROPERTIES)) + 4 + 8
    kind = 4 * 8  # NumPy's text has four bytes a character
    return max(MAX_BYTES // (2 * dim + -(-n_tags // 8) + numbers + kind), 1)


def _read(file: NpzFile, path: Path) -> Reference:
    header = _header(file, path)
    n, dim = file.shape("embeddings", Form("f", (None, None)))
    n_tags = len(header["tags"])
    group = _numbers(file, "group", "u", np.uint32, n)
    given = _numbers(file, "given", "u", np.uint8, n, -(-n_tags // 8))
    confidences = _numbers(file, "confidences", "f", np.float32, n, len(CONFIDENCES))
    properties = _numbers(file, "properties", "f", np.float32, n, len(PROPERTIES))
    embeddings = _numbers(file, "embeddings", "f", np.float16, n, dim)
    if not n or not dim:
        raise file.error("it holds no images")
    for name, array in (("embeddings", embeddings), ("confidences", confidences)):
        if not np.isfinite(array).all():
            raise file.error(f"its array {name} holds numbers that are not finite")
    if np.isinf(properties).any():
        raise file.error("its array properties holds infinite numbers")
    names = np.array([f"reference-{row}" for row in range(n)], np.str_)
    sample = Sample(
        embeddings=embeddings.astype(np.float32),
        given=np.unpackbits(given, axis=1, count=n_tags).astype(bool),
        confidences=confidences.astype(np.float64),
        properties=properties.astype(np.float64),
        kinds=file.read("kinds", Form("U", (n,))),
        group=group.astype(np.str_) if header["has_groups"] else names,
        names=names,
        digests=_numbers(file, "digests", "u", np.uint64, n),
        has_groups=header["has_groups"],
    )
    return Reference(sample, tuple(header["tags"]), header["model"], header["described"])


def _header(file: NpzFile, path: Path) -> dict[str, Any]:
    raw = file.read("header", Form("u", (None,)))
    try:
        header = parse_json(raw.tobytes(), strict=True)
    except ValueError as error:
        raise file.error(f"its header is not JSON ({error})") from error
    version = header.get("format") if isinstance(header, dict) else None
    if type(version) is not int or version < 1:
        raise file.error("its header lacks the number of its format")
    if version > FORMAT:
        raise ArtefactError(f"{path} has format {version}, this version reads {FORMAT}; {_REMEDY}.")
    tags = header.get("tags")
    if not isinstance(tags, list) or not all(
        isinstance(tag, str) and tag and "\0" not in tag for tag in tags
    ):
        raise file.error("the tags of its header are not a list of texts")
    if not tags or len(set(tags)) != len(tags):
        raise file.error("the tags of its header are none, or repeat")
    for name in ("model", "described"):
        if not isinstance(header.get(name), str):
            raise file.error(f"its header lacks {name}")
    if not isinstance(header.get("has_groups"), bool):
        raise file.error("its header does not say whether products are known")
    for name, known in (("confidences", CONFIDENCES), ("properties", PROPERTIES)):
        if header.get(name) != list(known):
            raise file.error(f"its {name} are others than this version reads")
    return dict(header)


def _numbers(file: NpzFile, name: str, kind: str, dtype: Any, *shape: int) -> NDArray[Any]:
    array = file.read(name, Form(kind, shape))
    if array.dtype != dtype:
        raise file.error(f"its array {name} holds {array.dtype.name}, not {np.dtype(dtype).name}")
    return array
