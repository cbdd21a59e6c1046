"""The one file that both strategies write and the scorer reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import ArtefactError, DataError
from retailtag.files import parse_json, write_whole
from retailtag.npz import Form, NpzFile, open_npz

FORMAT = 1
_CLAIM = "is damaged or not a predictions file of retailtag"
_REMEDY = "run probe or finetune again"
# Facts of the provenance that retailtag reads again, each None where it is not recorded.
_FACTS: dict[str, type | tuple[type, ...]] = {
    "backbone": str, "strategy": str, "settings": dict, "catalog": str, "catalog_args": dict,
    "catalog_digest": str, "exclusive": list, "notes": list, "thresholds": (str, dict),
    "threshold_f1": dict, "copies": dict, "similar": dict,
    "similar_up_to": str,
}  # fmt: skip
_WORDS = {
    str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a number",
    float: "a number",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of one fitted model for some images, and what it was fitted on.

    Parameters
    ----------
    image_ids : ndarray of str, shape (n_images,)
        Images that were scored; unique.
    tags : tuple of str, length n_tags
        Tag axis of the logits.
    logits : ndarray of float32, shape (n_images, n_tags)
        Log-odds of each tag; larger means more likely present. Never probabilities.
    thresholds : ndarray of float32, shape (n_tags,)
        A tag is predicted where its logit is >= its threshold (``inf``: never predicted).
    fitted_ids : ndarray of str, shape (n_fitted,)
        Images whose labels took any part in fitting: weights, strength, epoch or thresholds.
    provenance : dict
        JSON-able facts: backbone, strategy, catalogue path and digest, store digest, seed,
        threshold rule, and so on.

    Raises
    ------
    DataError
        If shapes disagree, an id or a tag repeats, or a logit or threshold is NaN.
    """

    image_ids: NDArray[np.str_]
    tags: tuple[str, ...]
    logits: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    fitted_ids: NDArray[np.str_]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image_ids.ndim != 1 or self.fitted_ids.ndim != 1:
            raise DataError("Image ids and fitted ids must be one-dimensional arrays.")
        if self.logits.shape != (len(self.image_ids), len(self.tags)):
            raise DataError(
                f"Logits have shape {self.logits.shape}, expected "
                f"({len(self.image_ids)} images, {len(self.tags)} tags)."
            )
        if self.thresholds.shape != (len(self.tags),):
            raise DataError("There must be one threshold per tag.")
        if len(np.unique(self.image_ids)) != len(self.image_ids):
            raise DataError(f"Predictions name the image {_repeated(self.image_ids)} twice.")
        if len(set(self.tags)) != len(self.tags):
            raise DataError(f"Predictions name the tag {_repeated(self.tags)} twice.")
        bad = np.argwhere(np.isnan(self.logits))
        if len(bad) or np.isnan(self.thresholds).any():
            where = "the thresholds"
            if len(bad):
                i, j = bad[0]
                where = f"image {self.image_ids[i]}, tag {self.tags[j]}"
            raise DataError(f"Predictions hold NaN ({where}); the model that made them diverged.")

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """Whether each tag is predicted, shape (n_images, n_tags)."""
        return self.logits >= self.thresholds

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Attributes with one value an image, as the model's catalogue recorded them."""
        return tuple(map(str, self.provenance.get("exclusive") or ()))

    def save(self, path: Path) -> None:
        """Write an ``.npz`` whole or not at all (no pickled objects inside)."""
        header = json.dumps(
            {"format": FORMAT, "tags": list(self.tags), "provenance": self.provenance},
            sort_keys=True,
            ensure_ascii=False,
            allow_nan=False,
        )
        with write_whole(path) as handle:
            np.savez(
                handle,
                header=np.frombuffer(header.encode(), np.uint8),
                image_ids=self.image_ids,
                logits=self.logits.astype(np.float32, copy=False),
                thresholds=self.thresholds.astype(np.float32, copy=False),
                fitted_ids=self.fitted_ids,
            )

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote.

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
                header = _header(file)
                if header["format"] != FORMAT:
                    raise ArtefactError(
                        f"{path} has format {header['format']}, this version reads {FORMAT}; "
                        "write it again."
                    )
                fields = _fields(file, header)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; run probe or finetune first.") from None
        try:
            return cls(**fields)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _repeated(names: Iterable[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _header(file: NpzFile) -> dict[str, Any]:
    """The JSON header of a predictions file, whose types `_check_header` checks."""
    raw = file.read("header", Form("u", (None,)))
    try:
        header = parse_json(raw.tobytes(), strict=True)
    except ValueError as error:
        raise file.error(f"its header is not JSON ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise file.error("its header lacks the number of its format")
    return header


def _fields(file: NpzFile, header: dict[str, Any]) -> dict[str, Any]:
    """Fields of `Predictions`, each of its type; `DataError` names the first that is not."""
    _check(file, "tags", header.get("tags"), list)
    _check(file, "provenance", header.get("provenance"), dict)
    for number, tag in enumerate(header["tags"], start=1):
        _check(file, f"tag {number}", tag or None, str)
        if "\0" in tag:
            raise file.error(f"the tag {number} of its header holds a NUL character")
    for name, kind in _FACTS.items():
        value = header["provenance"].get(name)
        if value is not None:
            _check(file, f"provenance {name}", value, kind)
        for item in value if kind is list and value else ():
            _check(file, f"provenance {name}", item, str)
    for scope, scores in (header["provenance"].get("threshold_f1") or {}).items():
        _check(file, f"provenance threshold_f1 {scope}", scores, dict)
        for score in scores.values():
            _check(file, f"provenance threshold_f1 {scope}", score or 0.0, (int, float))
    if (seed := (header["provenance"].get("settings") or {}).get("seed")) is not None:
        _check(file, "provenance settings seed", seed, int)
    tags = tuple(header["tags"])
    image_ids = _names(file, "image_ids")
    return {
        "image_ids": image_ids,
        "tags": tags,
        "logits": _float32(file, "logits", len(image_ids), len(tags)),
        "thresholds": _float32(file, "thresholds", len(tags)),
        "fitted_ids": _names(file, "fitted_ids"),
        "provenance": header["provenance"],
    }


def _check(file: NpzFile, what: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """Raise `DataError` unless a field of the header is of a type."""
    if value is None:
        raise file.error(f"its header lacks {what}")
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_WORDS[k] for k in kinds)
        raise file.error(f"the {what} of its header is {_WORDS[type(value)]} instead of {wanted}")


def _float32(file: NpzFile, name: str, *shape: int) -> NDArray[np.float32]:
    array: NDArray[np.float32] = file.read(name, Form("f", shape))
    if array.dtype != np.float32:
        raise file.error(f"its array {name} holds {array.dtype.name} instead of float32")
    return array


def _names(file: NpzFile, name: str) -> NDArray[np.str_]:
    ids = file.read(name, Form("U", (None,)))
    if not ids.all():
        raise file.error(f"row {int(np.argmin(ids.astype(bool))) + 1} of its array {name} is empty")
    return ids
