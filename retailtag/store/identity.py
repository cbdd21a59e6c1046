"""The identity file of a store, ``spec.json``, and the folder that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retailtag.errors import ArtefactError, DamagedFile, DataError, Unavailable
from retailtag.files import make_folder, read_json, sync_folder, write_json
from retailtag.store.segment import FORMAT
from retailtag.store.spec import FeatureSpec, explain_differences


def store_folder(root: Path, spec: FeatureSpec) -> Path:
    """Folder of a store: the backbone's id and 12 digits of the digest."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", spec.backbone).strip("-.")[:80]
    return Path(root) / f"{slug}-{spec.digest[:12]}"


def write_identity(path: Path, spec: FeatureSpec) -> None:
    """Make the store's folder and its identity, each on the disk before the next."""
    with writable(path):
        # Identity before the first row: segments without one would say nothing of what they are.
        make_folder(path)
        # A killed process may have made the folders and not brought them to the disk.
        sync_folder(path.parent)
        sync_folder(path.parent.parent)
        write_json(
            path / "spec.json", {"format": FORMAT, "digest": spec.digest, "spec": spec.to_json()}
        )


def read_identity(path: Path) -> FeatureSpec:
    """Read the identity of the store at `path`, checked against its own digest.

    Raises `DataError` if it is missing, `DamagedFile` if it is not as it was written, and
    `ArtefactError` if its format is another.
    """
    file = path / "spec.json"
    if not file.is_file():
        raise DataError(f"{path} is not a feature store (it has no spec.json); run extract first.")
    try:
        value = read_json(file)
    except DataError as error:
        raise _damaged_spec(file, str(error)) from error
    if not isinstance(value, dict) or set(value) != {"format", "digest", "spec"}:
        raise _damaged_spec(file, "it is not the identity of a feature store")
    if value["format"] != FORMAT:
        raise ArtefactError(
            f"{file} has format {value['format']} and this version of retailtag reads {FORMAT}; "
            "upgrade retailtag, or extract into another folder with --features."
        )
    try:
        spec = FeatureSpec.from_json(value["spec"])
    except DataError as error:
        raise _damaged_spec(file, str(error)) from error
    if spec.digest != value["digest"]:
        raise _damaged_spec(file, "it was edited or damaged: its digest is not that of its fields")
    return spec


def _damaged_spec(file: Path, reason: str) -> DamagedFile:
    return DamagedFile(
        f"{file} is damaged ({reason.rstrip('.')}); run the same extract again: it writes that "
        "file anew and keeps the features."
    )


def explain_stale(path: Path, stored: FeatureSpec, asked: FeatureSpec) -> str:
    """Name what differs between the store at `path` and the identity asked for, and the remedy."""
    return (
        f"{path} holds features of another identity: {explain_differences(stored, asked)}. "
        "Run extract with the settings asked for (it fills a store of its own), or go back to the "
        "stored ones."
    )


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{path} could not be written ({error.strerror or error}); what was there before is "
            "unchanged. Make room, or choose another folder with --features, and run the same "
            "command again."
        ) from error
