"""Catalogues that predictions record, for the commands that score them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retailtag.catalog.catalog import Catalog
from retailtag.errors import UsageError
from retailtag.scoring.files import ReadCatalog, once
from retailtag.settings import CatalogSettings


def reader(new_cutoffs: str | None = None) -> ReadCatalog:
    """Reads catalogues as predictions record them (paths are text there), each only once."""

    def read(
        path: Path,
        *,
        attributes: Sequence[str] = (),
        images: str | None = None,
        cutoffs: str = CatalogSettings.cutoffs,
    ) -> Catalog:
        """Read one, grouped by the cut-offs it was fitted with unless there are new ones."""
        from retailtag.catalog.readers import read_catalog
        from retailtag.catalog.table import GroupCutoffs

        if not path.exists():
            raise UsageError(f"The catalogue {path} is not there; name it with --catalogue.")
        where = Path(images) if images else None
        groups = GroupCutoffs.parse(new_cutoffs or cutoffs)
        return read_catalog(path, attributes=attributes, images=where, cutoffs=groups)

    return once(read)
