"""A bake-off's catalogue and settings, checked, and the folders that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from retailtag.backbones import canonical, components_of, resolve_id
from retailtag.backbones.ids import local_weights
from retailtag.backbones.imported import refuse_imported
from retailtag.backbones.names import given_names
from retailtag.bakeoffs.checks import check_request
from retailtag.bakeoffs.t4 import check_merged
from retailtag.context import RunContext
from retailtag.errors import UsageError
from retailtag.files import slug
from retailtag.finetuning.checks import check_finetune_settings
from retailtag.report.write import PICTURES, TABLES
from retailtag.runs.probe import check_probe_settings
from retailtag.settings import BakeoffSettings
from retailtag.thresholds.tuning import Tuning

DEFAULT_OUT = Path("runs/bakeoff")
ONLY_PROBED = "Several backbones side by side can be probed but not fine-tuned together."
REPORT_FILES = ("bakeoff.json", "report.html", *TABLES, *PICTURES)


def pair_folder(run: Path, backbone: str, strategy: str) -> Path:
    """Folder of one (backbone, strategy) pair within the folder of a run."""
    return run / slug(canonical(backbone)) / strategy


@dataclass(frozen=True, eq=False)
class Request:
    """The catalogue and the settings of a bake-off, checked when it is made."""

    context: RunContext
    settings: BakeoffSettings

    def __post_init__(self) -> None:
        s = self.settings
        ids = [canonical(b) for b in s.backbones]
        if len(set(ids)) < len(ids):
            raise UsageError("--backbones names a backbone twice; name each once.")
        _ = self.names  # refuses a --name that cannot be used
        for component in (c for b in s.backbones for c in components_of(b)):
            refuse_imported(resolve_id(component))
        joint = [b for b in s.backbones if not self.strategies_of(b)]
        if joint:
            raise UsageError(f"{joint[0]}: {ONLY_PROBED} Add probe to --strategies.")
        check_merged(s.merge)
        check_probe_settings(s.probe)
        check_finetune_settings(s.finetune)
        Tuning(s.finetune.thresholds, s.finetune.objective)  # refuses an unknown rule
        check_request(self.context, s, self.fine_tuned, set(self.weights))

    @property
    def out(self) -> Path:
        """Folder of the run."""
        return self.settings.out or DEFAULT_OUT

    @cached_property
    def names(self) -> dict[str, str]:
        """Short names that were given, by canonical backbone id."""
        return given_names(self.settings.names, [canonical(b) for b in self.settings.backbones])

    @cached_property
    def weights(self) -> dict[str, Path]:
        """Local weights by backbone id as given, the components of ``A+B`` one by one."""
        return local_weights(self.settings.compute.weights, self.settings.backbones)

    def folder(self, backbone: str, strategy: str) -> Path:
        """Folder of one pair in the run."""
        return pair_folder(self.out, backbone, strategy)

    def strategies_of(self, backbone: str) -> tuple[str, ...]:
        """Strategies of one backbone; several side by side are only probed."""
        joint = len(components_of(backbone)) > 1
        return tuple(s for s in self.settings.strategies if s == "probe" or not joint)

    @property
    def fine_tuned(self) -> tuple[str, ...]:
        """Backbones that are fine-tuned."""
        return tuple(b for b in self.settings.backbones if "finetune" in self.strategies_of(b))

    @property
    def report_files(self) -> tuple[str, ...]:
        """What the report stage writes, by its path in the run."""
        cards = [
            (self.folder(b, s) / "scorecard.json").relative_to(self.out).as_posix()
            for b in self.settings.backbones
            for s in self.strategies_of(b)
        ]
        return (*REPORT_FILES, *cards)
