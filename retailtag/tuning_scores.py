"""The scores that thresholds were tuned on, kept beside the model so that they can be tuned again.

They are of images that the fit behind each score has not seen: out-of-fold scores of the training
images for a probe, scores of the validation set for a fine-tune.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.artefacts import BOUND, FINITE, Rule, StoredModel, TensorRule
from retailtag.errors import ArtefactError

# float16 holds a logit to three digits, at half the size. Thresholds tuned on it differ from those
# of float32 by as much.
LARGEST = 60_000.0  # logits beyond are as certain as this; float16 ends at 65,504
NO_FOLDS = -1
TENSORS = {
    "scores": TensorRule("F16", ("images", "tags"), FINITE),
    "fold": TensorRule("I32", ("images",), Rule("-1 or more", lambda fold: fold >= NO_FOLDS)),
    # JSON of the image ids, in UTF-8: a file of tensors holds no text
    "ids": TensorRule("U8", ("bytes",), Rule("a byte", lambda byte: byte >= 0)),
}


@dataclass(frozen=True, eq=False)
class TuningScores:
    """Logits, images and folds behind the thresholds of one model."""

    image_ids: NDArray[np.str_]  # (n_images,)
    logits: NDArray[np.float32]  # (n_images, n_tags)
    fold: NDArray[np.intp] | None = None  # (n_images,); None: the images are not in folds

    def to_bytes(self) -> bytes:
        """The file of tensors, float16."""
        from safetensors.numpy import save

        fold = np.full(len(self.image_ids), NO_FOLDS) if self.fold is None else self.fold
        ids = json.dumps(self.image_ids.tolist(), ensure_ascii=False).encode()
        return save(
            {
                "scores": np.clip(self.logits, -LARGEST, LARGEST).astype(np.float16),
                "fold": fold.astype(np.int32),
                "ids": np.frombuffer(ids, np.uint8),
            },
            metadata=BOUND,
        )

    @classmethod
    def read(cls, stored: StoredModel, file: str) -> TuningScores:
        """Scores in the folder of a model.

        Raises `ArtefactError` if the model was written without them, or by the rules of
        `StoredModel.tensors`.
        """
        from safetensors.numpy import load

        if file not in stored.header.get("files", {}):
            raise ArtefactError(
                f"{stored.folder} holds no {file}, the scores that thresholds are tuned on, which "
                "earlier versions did not keep; remove this folder and run the same command again."
            )
        tensors = stored.tensors(file, TENSORS, load)
        try:
            ids = json.loads(tensors["ids"].tobytes())
        except ValueError:
            ids = None
        n = len(tensors["fold"])
        named = isinstance(ids, list) and all(isinstance(i, str) and i for i in ids)
        if not named or len(ids) != n or len(set(ids)) != n:
            raise ArtefactError(
                f"{stored.folder / file}: ids is not a list of {n} different image ids; "
                f"{stored.again}"
            )
        fold = tensors["fold"].astype(np.intp)
        return cls(
            np.array(ids),
            tensors["scores"].astype(np.float32),
            None if (fold == NO_FOLDS).all() else fold,
        )
