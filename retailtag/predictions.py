"""The one file that both strategies write and the scorer reads."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import ArtefactError, DataError
from retailtag.files import parse_json, write_whole

FORMAT = 1
# What NumPy raises on a damaged archive, besides ValueError and OSError.
_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError)


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
        If shapes disagree, an id repeats, or a logit is NaN.
    """

    image_ids: NDArray[np.str_]
    tags: tuple[str, ...]
    logits: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    fitted_ids: NDArray[np.str_]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logits.shape != (len(self.image_ids), len(self.tags)):
            raise DataError(
                f"Logits have shape {self.logits.shape}, expected "
                f"({len(self.image_ids)} images, {len(self.tags)} tags)."
            )
        if self.thresholds.shape != (len(self.tags),):
            raise DataError("There must be one threshold per tag.")
        if len(np.unique(self.image_ids)) != len(self.image_ids):
            raise DataError("Predictions name an image twice.")
        if np.isnan(self.logits).any() or np.isnan(self.thresholds).any():
            raise DataError("Predictions hold NaN; the model that made them diverged.")

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
        problem = "is damaged or not a predictions file of retailtag; run probe or finetune again"
        try:
            # The file may come from anybody, and a pickle runs code when it is loaded.
            with Path(path).open("rb") as handle, np.load(handle, allow_pickle=False) as z:
                arrays = {name: z[name] for name in z.files}
            header = parse_json(arrays["header"].tobytes(), strict=True)
            if header["format"] == FORMAT:
                return cls(
                    image_ids=arrays["image_ids"],
                    tags=tuple(header["tags"]),
                    logits=arrays["logits"],
                    thresholds=arrays["thresholds"],
                    fitted_ids=arrays["fitted_ids"],
                    provenance=dict(header["provenance"]),
                )
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; run probe or finetune first.") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except KeyError as error:
            raise DataError(f"{path} {problem} (it lacks {error}).") from error
        except OSError as error:
            raise DataError(f"{path} {problem} ({error.strerror or 'it ends early'}).") from error
        except (ValueError, TypeError, AttributeError, EOFError, *_DAMAGED) as error:
            # Not the reason: NumPy's is advice to allow pickled code.
            raise DataError(f"{path} {problem}.") from error
        raise ArtefactError(
            f"{path} has format {header['format']}, this version reads {FORMAT}; write it again."
        )
