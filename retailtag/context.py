"""What the runs over one catalogue share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from retailtag.catalog.catalog import Catalog
from retailtag.compute import n_workers, resolve_device
from retailtag.progress import SILENT, Progress
from retailtag.ranks import ALONE, Ranks
from retailtag.settings import ComputeSettings, ReadingSettings


@dataclass(frozen=True, eq=False)
class RunContext:
    """A catalogue, how its images are read, where to compute, and who hears of the progress.

    Parameters
    ----------
    catalog : Catalog
    reading : ReadingSettings
    compute : ComputeSettings
    provenance : mapping
        Recorded in predictions: where the catalogue was read from.
    progress : Progress
    ranks : Ranks
        This process, and those that compute the run together with it.
    """

    catalog: Catalog
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = SILENT
    ranks: Ranks = ALONE

    @cached_property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return resolve_device(self.compute.device)

    @cached_property
    def workers(self) -> int:
        """Decoding processes; 0: images are decoded in this process."""
        return n_workers(self.compute, self.ranks.on_machine)

    @property
    def limits(self) -> dict[str, Any]:
        """Keywords of the functions that decode images."""
        return {
            "max_pixels": self.reading.max_pixels,
            "allow_truncated": self.reading.allow_truncated,
        }
