"""Mutants of every file format: one sentence and a documented exit code, or the right result."""

import pytest
from reference_attack import Attack
from reference_readings_together import FORMATS

MUTANTS = 50  # a format; benchmarks/hostile.py tries 1,000
# Formats some of whose mutants are still served or end in a traceback.
FAULTY = {
    "shop.tsv", "shop.json", "shop.jsonl", "metadata.jsonl", "predictions.npz", "scores.tsv",
    "scores.parquet", "scores.npz", "weights.safetensors", "weights.pt", "weights.pth",
}  # fmt: skip


def _case(form):
    marks = [pytest.mark.xfail(strict=False)] if form.name in FAULTY else []
    return pytest.param(form, id=form.name, marks=marks)


@pytest.mark.parametrize("form", [_case(form) for form in FORMATS])
def test_every_mutant_is_refused_or_read_right(form, tmp_path):
    tally = Attack(form, tmp_path / "files").run(range(MUTANTS))
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.refused + tally.right == MUTANTS
