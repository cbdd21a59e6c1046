"""The command line shows defaults without importing what they belong to; they must be the same."""

from retailtag.catalog import decode, sources
from retailtag.cli import options
from retailtag.pipeline.probe import ProbeSettings
from retailtag.scoring import bootstrap, permutation


def test_defaults_shown_are_those_of_the_library():
    assert options.MAX_PIXELS == decode.MAX_PIXELS
    assert options.MAX_BYTES == sources.MAX_BYTES
    assert options.REPLICATES == bootstrap.N_REPLICATES
    assert options.PERMUTATIONS == permutation.PERMUTATIONS
    settings = ProbeSettings()
    assert (settings.grid, settings.heads) == (options.GRID, options.HEADS)
