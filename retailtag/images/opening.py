"""Open a folder or archive, local or remote, as a source of images."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from retailtag.copies import LocalCopy
from retailtag.errors import DataError
from retailtag.files import HEAD_BYTES, check_kind, head_of, kind_of
from retailtag.images.remote import RemoteImages
from retailtag.images.sources import FolderImages, ImageSource, TarImages, ZipImages
from retailtag.remote import RemotePath, as_path

_TARS = ("a tar archive", "a gzip archive", "an xz archive", "a bzip2 archive")
# What a URL is is told by its name: a web server lists no folders.
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")


def is_archive(place: Path) -> bool:
    """Whether a file is a zip archive or one of the tar archives that `open_images` reads."""
    if isinstance(place, RemotePath):
        return place.name.lower().endswith(_ARCHIVES)
    return zipfile.is_zipfile(place) or kind_of(head_of(place)) in ("a zip archive", *_TARS)


def open_images(place: Path, paths: Sequence[str], allowed: Sequence[Path] = ()) -> ImageSource:
    """The source that serves `paths` out of a folder, a tar or a zip; `DataError` for all else.

    Of a folder, absolute paths, links and URLs may also lead into the roots `allowed`.
    """
    place = as_path(place)
    if isinstance(place, RemotePath):
        return _open_remote(place, paths, allowed)
    if place.is_dir():
        return FolderImages(place, paths, allowed)
    if not place.exists():
        raise DataError(f"{place} does not exist; give the folder or archive of the images.")
    if zipfile.is_zipfile(place):
        return ZipImages(place, paths)
    if kind_of(head_of(place)) == "a zip archive":
        raise DataError(f"{place} is a zip archive that breaks off; fetch it again.")
    check_kind(place, "an archive of images that retailtag reads", but=_TARS)
    return TarImages(place, paths)


def _open_remote(place: RemotePath, paths: Sequence[str], allowed: Sequence[Path]) -> ImageSource:
    if not is_archive(place):
        return RemoteImages(place, paths, allowed)
    with LocalCopy(place).open() as handle:
        is_zip = kind_of(handle.read(HEAD_BYTES)) == "a zip archive"
    return ZipImages(place, paths) if is_zip else TarImages(place, paths)
