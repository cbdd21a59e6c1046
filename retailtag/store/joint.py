"""Several stores read as one: the embeddings of an image are concatenated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.memory import empty_rows
from retailtag.store.segment import UNKNOWN_BYTES
from retailtag.store.spec import FeatureSpec
from retailtag.store.store import FeatureStore
from retailtag.store.view import FeatureView

OTHER_BYTES = "its bytes changed between two extractions; run extract again for every component"


@dataclass(frozen=True)
class JointSpec:
    """Identities of the components of ``A+B``, two or more, in order.

    Raises
    ------
    UsageError
        If they differ in dtype.
    """

    components: tuple[FeatureSpec, ...]

    def __post_init__(self) -> None:
        if len({component.dtype for component in self.components}) > 1:
            raise UsageError(f"{self.backbone} mixes dtypes; extract all with one --dtype.")

    @property
    def backbone(self) -> str:
        """Ids of the components joined by ``+``."""
        return "+".join(component.backbone for component in self.components)

    @property
    def engine(self) -> str:
        """Compute engine and precision of every component; where they differ, joined by ``+``."""
        engines = [component.engine for component in self.components]
        return engines[0] if len(set(engines)) == 1 else "+".join(engines)

    @property
    def dtype(self) -> str:
        """Stored dtype of every component."""
        return self.components[0].dtype

    @property
    def dim(self) -> int:
        """Length of one joined embedding."""
        return sum(component.dim for component in self.components)

    @property
    def digest(self) -> str:
        """SHA-256 of the components' digests in order, hexadecimal."""
        return hashlib.sha256(
            "+".join(component.digest for component in self.components).encode()
        ).hexdigest()


class JointStore:
    """Embeddings of the images that every component holds, concatenated; read only."""

    def __init__(self, components: Sequence[FeatureStore]) -> None:
        self.components = tuple(components)
        self.spec = JointSpec(tuple(component.spec for component in components))
        self.path = Path("+".join(str(component.path) for component in components))

    def known(self) -> dict[str, str]:
        """SHA-256 of the bytes by image id, where every component has an image of these bytes."""
        first, *others = (component.known() for component in self.components)
        found: dict[str, str] = {}
        for image_id in first.keys() & set.intersection(*map(set, others)):
            hashes = {first[image_id], *(other[image_id] for other in others)} - {UNKNOWN_BYTES}
            if len(hashes) <= 1:  # imported embeddings may know no bytes
                found[image_id] = next(iter(hashes), UNKNOWN_BYTES)
        return found

    def load(self, image_ids: Sequence[str] | NDArray[np.str_]) -> FeatureView:
        """Read the joined embeddings of `image_ids`, in that order; see `FeatureStore.load`.

        An image that one component lacks is absent, for the reason that this component gives.
        """
        ids = np.asarray(image_ids, dtype=np.str_)
        known = self.known()
        found = np.array([i in known for i in ids.tolist()], bool)
        X = empty_rows((int(found.sum()), self.spec.dim))
        absent = dict.fromkeys(ids[~found].tolist(), OTHER_BYTES)
        # From the last component to the first, so that the first one's reason remains.
        stop = self.spec.dim
        for component in reversed(self.components):
            view = component.load(ids)
            start = stop - component.spec.dim
            # Rows (n_found, dim of this component) into its columns: no copy of the whole.
            np.compress(found[view.found], view.X, axis=0, out=X[:, start:stop])
            absent |= view.absent
            stop = start
        return FeatureView(ids, X, found, absent)

    def digest_for(self, image_ids: Sequence[str] | NDArray[np.str_]) -> str:
        """`FeatureView.digest` of these images, for provenance."""
        return self.load(image_ids).digest

    @property
    def n_rows(self) -> int:
        """Images with an embedding of every component."""
        return len(self.known())

    @property
    def seconds(self) -> float:
        """Wall seconds that computing these rows took: of every component, in proportion."""
        return self.n_rows * sum(
            component.seconds / max(component.n_rows, 1) for component in self.components
        )


# What a probe reads.
EmbeddingSource = FeatureStore | JointStore


def join(stores: Sequence[FeatureStore]) -> EmbeddingSource:
    """Read several stores as one, see `JointStore`; a single store is returned as it is."""
    return stores[0] if len(stores) == 1 else JointStore(stores)
