"""Messages stay readable whatever they quote."""

import copy

import pytest

from retailtag.errors import BadCatalogue, DataError, UsageError


@pytest.mark.parametrize("kind", [DataError, UsageError])
def test_a_quotation_of_any_length_leaves_the_file_and_the_remedy(kind):
    said = str(kind(f"shop.csv: the split {'x' * 100_000} is unknown; use train."))
    assert len(said) < 2100
    assert said.startswith("shop.csv: the split xxx")
    assert said.endswith("xxx is unknown; use train.")
    assert str(copy.copy(kind(said))) == said  # as from a process of workers


def test_each_row_is_shortened_on_its_own():
    error = BadCatalogue("shop.csv", [f"row {i}: {'x' * 5000}" for i in (1, 2)])
    assert [len(line) < 2100 for line in str(error).split("\n")] == [True] * 3
    assert len(error.problems[0]) > 5000  # for programs
