import pytest

from retailtag.files import read_json, write_json
from retailtag.runs.measure import StageCost
from retailtag.runs.stage import read_record, why_stale, write_record


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    write_record(tmp_path, ["a.txt"], {"x": 1, "y": [2]}, StageCost(3.0), facts={"n": 1})
    return tmp_path


def test_a_sealed_stage_is_current_and_says_what_it_cost(sealed):
    assert why_stale(sealed, {"x": 1, "y": [2]}) is None
    record = read_record(sealed)
    assert (record.seconds, record.facts) == (3.0, {"n": 1})


def test_every_reason_to_run_again_is_named(sealed, tmp_path):
    assert why_stale(tmp_path / "elsewhere", {}) == "not done"
    assert why_stale(sealed, {"x": 2, "y": [3]}) == "x, y changed"
    (sealed / "a.txt").write_text("hallo")
    assert why_stale(sealed, {"x": 1}) == "a.txt is missing or damaged"
    (sealed / "a.txt").unlink()
    assert why_stale(sealed, {"x": 1}) == "a.txt is missing or damaged"


WRONG_KINDS = (
    '{"format":1,"inputs":[],"outputs":{},"seconds":0,"peak_memory_mib":0,"facts":{}}',
    '{"format":1,"inputs":{},"outputs":{},"seconds":"0","peak_memory_mib":0,"facts":{}}',
)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": 99}', '{"format": 1}', "\x00", *WRONG_KINDS]
)
def test_a_damaged_record_is_no_record(sealed, text):
    (sealed / "stage.json").write_text(text)
    assert why_stale(sealed, {}) == "not done"


@pytest.mark.parametrize("name", ["inputs", "outputs", "seconds", "facts", "machine", "sha256"])
@pytest.mark.parametrize("new", [True, 9, "", [], {}, {"n": [1]}, {"a.txt": 1}])
def test_an_altered_record_is_no_record(sealed, name, new):
    value = read_json(sealed / "stage.json")
    if value[name] == new:
        return
    write_json(sealed / "stage.json", {**value, name: new})
    assert read_record(sealed) is None


def test_a_record_of_an_earlier_version_counts(sealed):
    value = read_json(sealed / "stage.json")
    del value["sha256"]
    write_json(sealed / "stage.json", value)
    assert why_stale(sealed, {"x": 1, "y": [2]}) is None
