"""Several stores side by side: one embedding per image, the parts' joined end to end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import DataError, UsageError
from retailtag.store.spec import FeatureSpec
from retailtag.store.store import NOT_EXTRACTED, FeatureStore
from retailtag.store.view import FeatureView

OTHER_BYTES = "its bytes changed between two extractions; run extract again for every part"


class Identity(Protocol):
    """What must be equal for embeddings to be interchangeable; a `FeatureSpec` is one."""

    @property
    def backbone(self) -> str:
        """Resolved id, or several joined by ``+``."""
        ...

    @property
    def engine(self) -> str:
        """Compute engine and precision."""
        ...

    @property
    def dtype(self) -> str:
        """Stored dtype."""
        ...

    @property
    def dim(self) -> int:
        """Length of one embedding."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of every fact, hexadecimal."""
        ...


class EmbeddingSource(Protocol):
    """What a probe reads: a `FeatureStore`, or several as a `JointStore`."""

    @property
    def spec(self) -> Identity:
        """Identity of the embeddings."""
        ...

    @property
    def path(self) -> Path:
        """Where they lie, for messages."""
        ...

    @property
    def n_rows(self) -> int:
        """Images with an embedding."""
        ...

    @property
    def seconds(self) -> float:
        """Wall seconds that computing them took, over all runs."""
        ...

    def known(self) -> dict[str, str]:
        """Image id to SHA-256 of its bytes, for every image with an embedding."""
        ...

    def load(self, image_ids: Sequence[str] | NDArray[np.str_]) -> FeatureView:
        """Read the embeddings of `image_ids`, in that order."""
        ...

    def digest_for(self, image_ids: Sequence[str] | NDArray[np.str_]) -> str:
        """SHA-256 over ids and embeddings."""
        ...


@dataclass(frozen=True)
class JointSpec:
    """Identities of parts that stand side by side, in order.

    Parameters
    ----------
    parts : tuple of FeatureSpec
        Two or more, of one dtype.

    Raises
    ------
    UsageError
        If they differ in dtype.
    """

    parts: tuple[FeatureSpec, ...]

    def __post_init__(self) -> None:
        if len({part.dtype for part in self.parts}) > 1:
            raise UsageError(f"{self.backbone} mixes dtypes; extract all with one --dtype.")

    @property
    def backbone(self) -> str:
        """Ids of the parts joined by ``+``."""
        return "+".join(part.backbone for part in self.parts)

    @property
    def engine(self) -> str:
        """Compute engine and precision of every part; where they differ, joined by ``+``."""
        engines = [part.engine for part in self.parts]
        return engines[0] if len(set(engines)) == 1 else "+".join(engines)

    @property
    def dtype(self) -> str:
        """Stored dtype of every part."""
        return self.parts[0].dtype

    @property
    def dim(self) -> int:
        """Length of one joined embedding."""
        return sum(part.dim for part in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 of the parts' digests in order, hexadecimal."""
        return hashlib.sha256("+".join(part.digest for part in self.parts).encode()).hexdigest()


class JointStore:
    """Embeddings of the images that every part holds, joined end to end; read only.

    Parameters
    ----------
    parts : sequence of FeatureStore
        Two or more, in the order of the columns.
    """

    def __init__(self, parts: Sequence[FeatureStore]) -> None:
        self.parts = tuple(parts)
        self.spec = JointSpec(tuple(part.spec for part in parts))
        self.path = Path("+".join(str(part.path) for part in parts))

    def known(self) -> dict[str, str]:
        """Image id to SHA-256 of its bytes, for images that every part knows by the same bytes."""
        first, *others = (part.known() for part in self.parts)
        return {i: s for i, s in first.items() if all(other.get(i) == s for other in others)}

    def load(self, image_ids: Sequence[str] | NDArray[np.str_]) -> FeatureView:
        """Read the joined embeddings of `image_ids`, in that order; see `FeatureStore.load`.

        An image that one part lacks is absent, for the reason that this part gives.
        """
        ids = np.asarray(image_ids, dtype=np.str_)
        if len(np.unique(ids)) != len(ids):
            raise DataError("The same image id was asked for twice.")
        known = self.known()
        found = np.array([i in known for i in ids.tolist()], bool)
        X = np.empty((int(found.sum()), self.spec.dim), np.float32)
        start = 0
        for part in self.parts:
            X[:, start : start + part.spec.dim] = part.load(ids[found]).X
            start += part.spec.dim
        return FeatureView(ids, X, found, self._reasons(ids[~found].tolist()))

    def _reasons(self, image_ids: list[str]) -> dict[str, str]:
        reasons = dict.fromkeys(image_ids, OTHER_BYTES)
        for part in reversed(self.parts):
            known, absent = part.known(), part.absent()
            for image_id in image_ids:
                if image_id in absent:
                    reasons[image_id] = absent[image_id].reason
                elif image_id not in known:
                    reasons[image_id] = NOT_EXTRACTED
        return reasons

    def digest_for(self, image_ids: Sequence[str] | NDArray[np.str_]) -> str:
        """SHA-256 over ids and joined embeddings, for provenance."""
        return self.load(image_ids).digest

    @property
    def n_rows(self) -> int:
        """Images with an embedding of every part."""
        return len(self.known())

    @property
    def seconds(self) -> float:
        """Wall seconds that computing these rows took: of every part, in proportion."""
        return self.n_rows * sum(part.seconds / max(part.n_rows, 1) for part in self.parts)


def join(stores: Sequence[FeatureStore]) -> EmbeddingSource:
    """Stand several stores side by side; one store is itself.

    Raises
    ------
    UsageError
        If they differ in dtype.
    """
    return stores[0] if len(stores) == 1 else JointStore(stores)
