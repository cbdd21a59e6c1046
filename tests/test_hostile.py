"""Mutants of every file format: one sentence and a documented exit code, or the right result."""

import pytest
from reference_attack import Attack
from reference_readings_together import FORMATS

MUTANTS = 50  # a format; benchmarks/hostile.py tries 1,000


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_mutant_is_refused_or_read_right(form, tmp_path):
    tally = Attack(form, tmp_path / "files").run(range(MUTANTS))
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.refused + tally.right == MUTANTS
