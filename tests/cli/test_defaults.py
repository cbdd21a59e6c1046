"""The command line shows defaults without importing what they belong to; they must be the same."""

import inspect

import pytest

from retailtag.cli import options
from retailtag.cli.bakeoff import bakeoff
from retailtag.cli.finetune import finetune
from retailtag.finetuning.config import FinetuneConfig
from retailtag.images import decode, sources
from retailtag.runs.finetune import Means
from retailtag.runs.probe import ProbeSettings
from retailtag.scoring import bootstrap, permutation


def test_defaults_shown_are_those_of_the_library():
    assert options.MAX_PIXELS == decode.MAX_PIXELS
    assert options.MAX_BYTES == sources.MAX_BYTES
    assert options.REPLICATES == bootstrap.N_REPLICATES
    assert options.PERMUTATIONS == permutation.PERMUTATIONS
    settings = ProbeSettings()
    assert (settings.grid, settings.heads) == (options.GRID, options.HEADS)


OTHER_NAMES = {"choose_epoch": "choose", "amp": "precision", "precision": "of the features"}
APART = ("workers", "blocks", "thresholds", "choose")  # texts, or of the probe in a bake-off
LEFT_OPEN = (bakeoff, "batch_size")  # of extraction and fine-tune, which have their own


@pytest.mark.parametrize("command", [finetune, bakeoff])
def test_defaults_of_a_fine_tune_are_those_of_its_settings(command):
    known = {**vars(FinetuneConfig()), **vars(Means())}
    for name, parameter in inspect.signature(command).parameters.items():
        setting = OTHER_NAMES.get(name, name)
        if setting in known and name not in APART and (command, name) != LEFT_OPEN:
            assert parameter.default == known[setting], name
    assert inspect.signature(finetune).parameters["blocks"].default == str(known["blocks"])
