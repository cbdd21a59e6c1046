"""`retailtag latency`: rows, the file that is merged, and what is refused."""

import csv
import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest

import retailtag as rt
from retailtag.bakeoffs.pairs import readable_sample
from retailtag.cli.main import run
from retailtag.context import RunContext
from retailtag.errors import ArtefactError, DataError, Unavailable, UnreadableImage, UsageError
from retailtag.images.decode import decode_image
from retailtag.outcomes import fitted_models
from retailtag.runs import latency
from retailtag.runs.latency import Asked, LatencyRow, model_digest, read_merged, to_csv
from retailtag.runs.probe import run_probe
from retailtag.settings import ProbeSettings
from retailtag.tagger.latency import Schedule

QUICK = ProbeSettings(sweep_C="0.01", folds=2, heads="logistic")


@pytest.fixture(scope="module")
def probe(small, small_csv, small_store, tmp_path_factory):
    """A fitted probe that records its catalogue."""
    folder = tmp_path_factory.mktemp("timed") / "probe"
    context = RunContext(small, provenance={"catalog": str(small_csv), "catalog_args": {}})
    run_probe(context, small_store, folder, QUICK)
    return folder


def _shorten(patch, calls):
    few = Schedule(turns=6, calls=calls, visit_seconds=99, warm_up=1, extra_seconds=0)
    patch.setattr(latency, "SCHEDULE", few)
    patch.setattr(latency, "LARGEST_BATCH", 2)
    patch.setattr("retailtag.bakeoffs.pairs.LATENCY_IMAGES", 4)
    patch.setenv("RETAILTAG_DEVICE", "cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    _shorten(monkeypatch, 1)


@pytest.fixture(scope="module")
def measured(probe, tmp_path_factory):
    """Rows of the probe in eager float32, and their file."""
    out = tmp_path_factory.mktemp("rows") / "latency.csv"
    with pytest.MonkeyPatch.context() as patch:
        _shorten(patch, 4)
        options = {"engines": ("eager",), "batches": ("1", "2"), "price_per_hour": 0.36}
        return rt.latency(probe, out=out, **options)


def test_rows_are_those_of_every_batch_and_their_parts_add_up(measured, probe):
    assert [(r.pair, r.engine, r.batch_size) for r in measured.rows] == [
        (str(probe), "eager-float32", 1),
        (str(probe), "eager-float32", 2),
    ]
    assert sum(row.is_best_batch for row in measured.rows) == 1
    for row in measured.rows:
        assert row.is_fastest  # there is one engine
        assert row.agreement == 1
        assert (row.n_turns, row.n_calls) == (6, 24)
        assert row.tags_ms_p50_low <= row.tags_ms_p50 <= row.tags_ms_p50_high
        assert row.tags_ms_p95_low <= row.tags_ms_p95 <= row.tags_ms_p95_high
        assert np.isnan(row.tags_ms_p99)  # 24 calls have no 99th percentile
        assert 0 < row.model_ms_p50 < row.tags_ms_p50
        assert min(row.decode_ms, row.preprocess_ms, row.backbone_ms, row.head_ms) > 0
        assert row.images_per_second == pytest.approx(1000 * row.batch_size / row.tags_ms_p50)
        assert row.price_per_million == pytest.approx(100 / row.images_per_second)
        assert row.memory_mib > 1
    assert measured.table.num_rows == 2
    assert "images_per_second" in repr(measured)


def test_a_file_is_read_back_as_it_was_written(measured, probe):
    (back, *_) = read_merged(measured.out, {"here": model_digest(probe)})
    assert back.pair == "here"
    first = measured.rows[0]
    for f in fields(LatencyRow):
        if f.name != "pair":
            value = getattr(first, f.name)
            same = value if isinstance(value, str) else pytest.approx(value, rel=1e-5, nan_ok=True)
            assert getattr(back, f.name) == same, f.name


def test_without_a_price_there_is_no_column(measured):
    rows = [replace(row, price_per_million=float("nan")) for row in measured.rows]
    assert "price" not in to_csv(rows)
    assert to_csv(measured.rows).splitlines()[0].endswith("price_per_million")


def test_rows_of_another_machine_join_those_measured_here(measured, probe, tmp_path):
    copy = tmp_path / "copy"  # the same files elsewhere
    shutil.copytree(probe, copy)
    there = tmp_path / "there.csv"
    rows = [replace(row, pair="theirs", machine="T4 box") for row in measured.rows]
    there.write_text(to_csv(rows))
    words = ["latency", copy, "--merge", there, "--engines", "eager", "--batches", "1"]
    assert run([*map(str, words), "--out", str(tmp_path / "out.csv"), "--quiet"]) == 0
    with (tmp_path / "out.csv").open() as file:
        merged = list(csv.DictReader(file))
    assert [row["machine"] == "T4 box" for row in merged][-2:] == [True, True]
    assert {row["pair"] for row in merged} == {str(copy)}
    assert {row["price_per_million"] for row in merged[:-2]} == {""}


def test_a_file_of_another_model_is_refused(measured):
    with pytest.raises(ArtefactError, match=r"line 2: .* is another model than those here"):
        read_merged(measured.out, {"here": "0" * 64})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("decode_ms", "decoded"), "no column decode_ms"),
        (
            lambda text: text.replace(",true,", ",perhaps,", 1),
            "is_(best_batch|fastest) is 'perhaps'",
        ),
        (lambda text: text.replace(",6,", ",six,"), "n_turns is 'six', not a whole number"),
        (lambda text: text.replace(",6,", ",-6,"), "n_turns is '-6'"),
        (lambda text: text.replace("eager-float32", "eager-float32,more"), "row 2: "),
        (lambda text: "junk", "no column"),
        (lambda text: text.splitlines()[0], "holds no row"),
    ],
)
def test_a_damaged_file_is_refused_by_name(measured, probe, tmp_path, change, words):
    path = tmp_path / "bad.csv"
    path.write_text(change(measured.out.read_text()))
    with pytest.raises(DataError, match=words) as caught:
        read_merged(path, {"here": model_digest(probe)})
    assert "bad.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1: 10, 2: 9, 4: 30, 8: 31, 16: 30, 32: 99}, 8),  # one doubling may bring nothing, not two
        ({1: 10, 2: 9, 4: 8, 8: 99}, 1),
        ({1: 1, 2: 2, 4: 4, 8: 8, 16: 16, 32: 32, 64: 64}, 64),
        ({1: 0.1, 2: 99}, 1),  # takes too long
    ],
)
def test_the_best_batch_is_searched_by_doubling(monkeypatch, rates, best):
    monkeypatch.setattr(latency, "LARGEST_BATCH", 64)
    found = latency._best_batch(lambda size: lambda: [size / rates[size] / 4] * 4)
    assert found == best


def test_engines_and_batches_are_checked():
    for engines, batches, words in (
        (("magic",), ("1",), "--engines magic"),
        (("eager", "eager"), ("1",), "twice"),
        ((), (), "--batches"),
        ((), ("0",), "--batches"),
        ((), ("many",), "--batches"),
    ):
        with pytest.raises(UsageError, match=words):
            Asked.parse(engines, batches, None)


def test_a_named_engine_that_cannot_run_ends_the_command(probe, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "why_unavailable", lambda name, device: "it is not installed")
    with pytest.raises(Unavailable, match=r"openvino-\w+ cannot run here: it is not installed"):
        rt.latency(probe, engines=("openvino",), out=tmp_path / "no.csv")
    assert not (tmp_path / "no.csv").exists()


def test_an_engine_that_gives_other_tags_says_how_many_agree(probe, monkeypatch, tmp_path):
    class Other:
        def __init__(self, backbone):
            self.backbone, self.preprocess = backbone, backbone.preprocess

        def embed(self, pixels):
            return -self.backbone.embed(pixels)

    monkeypatch.setattr(latency, "embedder_of", lambda backbone, name, batch_size: Other(backbone))
    made = rt.latency(probe, engines=("eager",), batches=("1",), out=tmp_path / "other.csv")
    assert all(0 <= row.agreement < 0.9 for row in made.rows)


def test_images_may_be_named(probe, small_csv, tmp_path, capsys):
    images = small_csv.parent / "images"
    words = ["latency", probe, "--sample", images, "--engines", "eager", "--batches", "1", "--json"]
    assert run([*map(str, words), "--out", str(tmp_path / "x.csv"), "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["tags_ms_p50"] > 0
    assert rows[0]["tags_ms_p99"] is None
    with pytest.raises(UnreadableImage, match=r"None of the 1 images of --sample.*cannot be read"):
        readable_sample([tmp_path / "absent.jpg"], decode_image)


def test_the_table_marks_the_fastest(probe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    words = ["latency", probe, "--engines", "eager", "--batches", "1", "--price-per-hour", "1"]
    assert run([*map(str, words), "--out", str(tmp_path / "x.csv")]) == 0
    printed = capsys.readouterr().out
    assert "= fastest of its batch size" in printed
    assert "eager-float32" in printed


def test_a_catalogue_that_has_gone_is_named_with_the_remedy(small, small_store, tmp_path):
    run_probe(RunContext(small, provenance={"catalog": "gone.csv"}), small_store, tmp_path, QUICK)
    with pytest.raises(UsageError, match=r"gone\.csv is not there; name it with --cat"):
        rt.latency(tmp_path, out=tmp_path / "x.csv")


def test_folders_without_a_model_and_models_named_twice_are_refused(probe, tmp_path):
    with pytest.raises(DataError, match="holds no model"):
        fitted_models([tmp_path])
    with pytest.raises(UsageError, match="once"):
        fitted_models([probe, probe])
