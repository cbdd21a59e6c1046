"""What two people compare before they compare results: weights, preprocessing, pixels, embeddings.

Ten pictures ship with the package (``pictures/``, drawn by the demo): JPEG and PNG, with and
without EXIF orientation, transparency, palette, grey and 16 bits. A fingerprint holds the hash of
the weights as loaded, the resolved preprocessing, and for each picture the decoded pixels, the
pixels that the model gets, and its embedding.

Hashes are equal on equal machines only: processors sum in different orders. Pixels and embeddings
are therefore also given as `N_PROJECTIONS` random projections each. For independent random signs s
and any vector d, (s·d)² has the mean |d|²; so the differences of the projections of two arrays give
the distance of the arrays, over ten pictures within about a tenth.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retailtag.backbones.backbone import Backbone
from retailtag.errors import DataError, named
from retailtag.files import read_json
from retailtag.images.decode import decode_pixels

FORMAT = 1
N_PROJECTIONS = 8
DIGITS = 6  # of a projection; float32 has seven
TEXTS = ("a photo of a shoe", "a product photo, colour: blue", "striped")
# Root mean square of the differences of pixels, of 255, up to which decoders of several versions
# are taken to agree: most pixels are equal, some differ by 1 or 2.
PIXELS_AGREE = 0.5
# Distance of two embeddings as a share of their spread over the pictures. Exact engines, with a
# centred cosine of 0.99999 or more, are within 0.0045.
EMBEDDINGS_AGREE = 0.005

Facts = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What differs between two fingerprints, and what was noticed but agrees: sentences."""

    differences: list[str]
    notes: list[str]


def pictures() -> dict[str, bytes]:
    """The shipped test pictures by file name, in order."""
    folder = files("retailtag.backbones") / "pictures"
    found = sorted((p for p in folder.iterdir() if p.name.endswith((".jpg", ".png"))), key=str)
    return {p.name: p.read_bytes() for p in found}


def fingerprint(backbone: Backbone) -> Facts:
    """Facts of a loaded backbone and its embeddings of the shipped pictures, JSON-able."""
    spec = backbone.spec()
    decoded = {name: decode_pixels(data) for name, data in pictures().items()}
    inputs = {name: backbone.preprocess.of_pixels(pixels) for name, pixels in decoded.items()}
    embedded = backbone.embed(torch.from_numpy(np.stack(list(inputs.values())))).cpu().numpy()
    rows = {
        name: {
            "size": [decoded[name].shape[1], decoded[name].shape[0]],
            "decoded_sha256": _sha256(decoded[name]),
            "pixels_sha256": _sha256(inputs[name]),
            "pixels": projections(inputs[name]),
            "embedding_sha256": _sha256(embedding),
            "embedding": projections(embedding),
        }
        for name, embedding in zip(decoded, embedded, strict=True)
    }
    facts = {
        "fingerprint": FORMAT,
        "id": spec.backbone,
        "weights_sha256": spec.weights_sha256,
        "architecture": json.loads(spec.architecture),
        "output": spec.output,
        "dim": spec.dim,
        "preprocessing": json.loads(spec.preprocessing),
        "pictures": rows,
    }
    if backbone.has_text:
        # The hash is that of the image model: tokeniser and text tower show in these alone.
        encoded = backbone.encode_text(list(TEXTS)).cpu().numpy()
        facts["texts"] = {t: projections(v) for t, v in zip(TEXTS, encoded, strict=True)}
    return facts


def projections(values: NDArray[Any]) -> list[float]:
    """`N_PROJECTIONS` sums of all values under random signs, to `DIGITS` digits.

    Examples
    --------
    >>> projections(np.zeros(5))[:2]
    [0.0, 0.0]
    """
    flat = np.asarray(values, np.float64).ravel()
    return [float(f"{s @ flat:.{DIGITS}g}") for s in _signs(len(flat))]


@cache
def _signs(n: int) -> NDArray[np.int8]:
    """Signs (N_PROJECTIONS, n), the same everywhere: bits of a hash, not of a generator."""
    draws = [
        np.frombuffer(hashlib.shake_256(f"retailtag {k}".encode()).digest(-(-n // 8)), np.uint8)
        for k in range(N_PROJECTIONS)
    ]
    return np.unpackbits(np.stack(draws), axis=1)[:, :n].astype(np.int8) * 2 - 1


def read_fingerprint(path: Path) -> Facts:
    """A fingerprint as `fingerprint` made it; `DataError` for any other file."""
    facts = read_json(path)
    try:
        rows = list(facts["pictures"].values())
        words = [facts[name] for name in ("id", "weights_sha256", "output")]
        words += [row[f"{n}_sha256"] for row in rows for n in ("decoded", "pixels", "embedding")]
        sizes = np.array([_side(facts), *(row["size"] for row in rows)])
        numbers = [row[name] for row in rows for name in ("pixels", "embedding")]
        projected = np.array([*numbers, *facts.get("texts", {}).values()], np.float64)
        sound = facts["fingerprint"] == FORMAT and bool(rows)
        sound &= all(isinstance(w, str) for w in words)
        sound &= sizes.shape == (len(rows) + 1, 2) and sizes.dtype.kind == "i" and sizes.min() > 0
        sound &= projected.shape[1] == N_PROJECTIONS and bool(np.isfinite(projected).all())
        sound &= all(isinstance(facts[name], dict) for name in ("architecture", "preprocessing"))
        if not sound:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path} is not a fingerprint of format {FORMAT}; write one with retailtag models "
            "verify ID --fingerprint --json > FILE."
        ) from error
    return dict(facts)


def compare(theirs: Facts, here: Facts) -> Comparison:
    """What differs between two fingerprints, in the order of cause and effect."""
    differences: list[str] = []
    notes: list[str] = []
    if theirs["id"] != here["id"]:
        is_same = theirs["architecture"] == here["architecture"]
        told = notes if is_same else differences
        told.append(f"The backbone is {theirs['id']} there and {here['id']} here.")
    if theirs["weights_sha256"] != here["weights_sha256"]:
        there, at_hand = (facts["weights_sha256"][:16] for facts in (theirs, here))
        differences.append(
            f"The weights have SHA-256 {there}... there and {at_hand}... here; load the same file."
        )
    for what in ("architecture", "preprocessing"):
        differences += _differing(what, theirs[what], here[what])
    if theirs["output"] != here["output"]:
        differences.append(f"The output is {theirs['output']} there and {here['output']} here.")
    if theirs["pictures"].keys() != here["pictures"].keys():
        differences.append("The test pictures differ; use the same version of retailtag.")
        return Comparison(differences, notes)
    differences += _other_pictures(theirs["pictures"], here["pictures"])
    if differences:
        notes.append("Embeddings were not compared: what differs changes them.")
        return Comparison(differences, notes)
    for sentence, is_difference in (
        *_other_pixels(theirs, here),
        *_other_embeddings(theirs["pictures"], here["pictures"]),
        *_other_texts(theirs.get("texts", {}), here.get("texts", {})),
    ):
        (differences if is_difference else notes).append(sentence)
    return Comparison(differences, notes)


def _differing(what: str, theirs: Facts, here: Facts) -> list[str]:
    """One sentence on each key that differs."""
    pairs = {k: (theirs.get(k, "nothing"), here.get(k, "nothing")) for k in {**theirs, **here}}
    return [
        f"The {what} has {key} {there} there and {at_hand} here."
        for key, (there, at_hand) in pairs.items()
        if there != at_hand
    ]


def _other_pictures(theirs: Facts, here: Facts) -> list[str]:
    """A sentence on pictures that decode to another size, such as unturned ones."""
    other = [name for name in here if theirs[name]["size"] != here[name]["size"]]
    if not other:
        return []
    there, at_hand = (" x ".join(map(str, rows[other[0]]["size"])) for rows in (theirs, here))
    return [f"{named(other)} decodes to {there} pixels there and {at_hand} here."]


def _other_pixels(theirs: Facts, here: Facts) -> Iterator[tuple[str, bool]]:
    """How far the pixels that the model gets are apart, and whether that is too far."""
    rows = here["pictures"]
    other = [n for n in rows if theirs["pictures"][n]["pixels_sha256"] != rows[n]["pixels_sha256"]]
    if not other:
        return
    moved = _moved(theirs["pictures"], rows, "pixels") / math.sqrt(3 * math.prod(_side(here)))
    is_decoded = [
        theirs["pictures"][n]["decoded_sha256"] != rows[n]["decoded_sha256"] for n in other
    ]
    yield (
        f"{len(other)} of {len(rows)} pictures have other pixels after "
        f"{'decoding' if any(is_decoded) else 'resizing'} ({named(other)}), {moved.max():.2g} of "
        "255 apart (root mean square); versions of pillow, simplejpeg or torch differ.",
        bool(moved.max() > PIXELS_AGREE),
    )


def _other_embeddings(theirs: Facts, here: Facts) -> Iterator[tuple[str, bool]]:
    """How far the embeddings are apart, and whether that is too far."""
    if all(theirs[n]["embedding_sha256"] == here[n]["embedding_sha256"] for n in here):
        return
    table = np.array([row["embedding"] for row in here.values()])
    spread = math.sqrt(((table - table.mean(axis=0)) ** 2).mean())
    moved = float(np.sqrt((_moved(theirs, here, "embedding") ** 2).mean()))
    share = moved / spread if spread else math.inf
    is_too_far = share > EMBEDDINGS_AGREE
    means = "another engine, precision or device" if is_too_far else "as other processors do"
    yield f"The embeddings differ by {share:.2%} of their spread: {means}.", is_too_far


def _other_texts(theirs: Facts, here: Facts) -> Iterator[tuple[str, bool]]:
    """Which texts the text towers embed otherwise."""
    for text in {**theirs, **here}:
        there, at_hand = (np.array(t.get(text, [0.0] * N_PROJECTIONS)) for t in (theirs, here))
        if np.linalg.norm(there - at_hand) > EMBEDDINGS_AGREE * np.linalg.norm(at_hand):
            yield f"The text {text!r} has another embedding: another tokeniser or tower.", True


def _moved(theirs: Facts, here: Facts, name: str) -> NDArray[np.float64]:
    """Distance of each picture's arrays, from their projections."""
    there, at_hand = (np.array([rows[n][name] for n in here]) for rows in (theirs, here))
    return np.asarray(np.sqrt(((there - at_hand) ** 2).mean(axis=1)))


def _side(facts: Facts) -> list[int]:
    """Height and width of the model's pixels."""
    height, width = facts["preprocessing"]["size"]
    return [height, width]


def _sha256(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
