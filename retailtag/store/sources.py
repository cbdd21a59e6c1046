"""Whether the files behind stored embeddings are still those that were embedded.

Size and modification time of each image's file are recorded in the journal when it is embedded.
They only point at images worth hashing: a file may be copied or touched without a change, and the
hash decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from retailtag.errors import named
from retailtag.store.joint import EmbeddingSource, JointStore, join
from retailtag.store.segment import UNKNOWN_BYTES as UNKNOWN
from retailtag.store.store import FeatureStore, list_stores

# Hashing reads the files. A catalogue that was copied has new times everywhere, and then a sample
# must do.
MAX_HASHED_IMAGES = 1000

Stamp = tuple[int, int]  # bytes, and modification time in ns, of the file that holds an image
Hashes = Callable[[Sequence[int]], Iterable[str | None]]


class Stamped(Protocol):
    """Where images lie, by row."""

    def stamp(self, index: int) -> Stamp | None:
        """Stamp of the file of image `index`; None where there is none."""
        ...


def recorded_stamps(store: FeatureStore) -> dict[str, Stamp]:
    """Stamp by image id of the file that was embedded, as far as the journal records it."""
    found: dict[str, Stamp] = {}
    for entry in store.journal.entries():
        sources = entry.get("sources")
        # nothing protects a journal from a flipped bit: what is no stamp is as good as none
        for image_id, stamp in sources.items() if isinstance(sources, dict) else ():
            if _is_stamp(stamp):
                found[image_id] = (stamp[0], stamp[1])
    return found


def _is_stamp(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)


def changed_images(
    source: EmbeddingSource,
    image_ids: Sequence[str],
    rows: Sequence[int],
    images: Stamped,
    hash_rows: Hashes,
) -> list[str]:
    """Ids of those of `rows` whose bytes now differ from those that were embedded.

    `image_ids` are those of the whole catalogue, and ``hash_rows(rows)`` gives the SHA-256 of each,
    None where it cannot be read. Only images whose stamp differs from the recorded one are hashed,
    a sample of `MAX_HASHED_IMAGES` where there are more.
    """
    stores = source.components if isinstance(source, JointStore) else (source,)
    changed: dict[str, None] = {}
    for store in stores:
        recorded = recorded_stamps(store)
        suspects = [
            row
            for row in rows
            if image_ids[row] in recorded and images.stamp(row) != recorded[image_ids[row]]
        ]
        if not suspects:
            continue  # the usual case, in which no segment is read
        known = store.known()
        suspects = [r for r in suspects if known.get(image_ids[r], UNKNOWN) != UNKNOWN]
        if len(suspects) > MAX_HASHED_IMAGES:
            suspects = sorted(random.Random(0).sample(suspects, MAX_HASHED_IMAGES))
        for row, sha256 in zip(suspects, hash_rows(suspects), strict=True):
            if sha256 != known[image_ids[row]]:
                changed[image_ids[row]] = None
    return list(changed)


def changed_sentence(changed: Sequence[str], catalogue: object) -> str:
    """What is wrong with images that `changed_images` found."""
    plural = len(changed) > 1
    what = f"{len(changed):,} images" if plural else "1 image"
    return (
        f"{what} of {catalogue} changed after extraction ({named(changed)}): the stored "
        f"{'embeddings are' if plural else 'embedding is'} of the earlier bytes."
    )


EXTRACT_AGAIN = "Run retailtag extract again, which computes only these; then fit again."


def find_source(root: Path, backbone: str, digest: str) -> EmbeddingSource | None:
    """The stores of `backbone`, one or ``A+B``, of this identity under `root`; None: not there."""
    stores = list_stores(root)
    by_component = [[s for s in stores if s.spec.backbone == name] for name in backbone.split("+")]
    for combination in product(*by_component):
        if len({store.spec.dtype for store in combination}) == 1:
            source = join(combination)
            if source.spec.digest == digest:
                return source
    return None
