"""Predicting streams: rows as of single images, bounded memory, files that read back."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retailtag as rt
from retailtag import api
from retailtag.backbones.factory import load_backbone
from retailtag.catalog.manifest import read_csv
from retailtag.catalog.named import NamedImage, NamedImages, _Group
from retailtag.catalog.tag_cells import parse_cell
from retailtag.cli.main import run
from retailtag.errors import Interrupted, UsageError
from retailtag.extraction.embed import Loading
from retailtag.probes.artefact import Probe
from retailtag.runs import predict as runs_predict
from retailtag.runs.predict import Predicting, Prediction, _Stream, record_batch
from retailtag.runs.prediction_files import csv_lines, format_of, json_lines, text_lines, written
from retailtag.tagger.predicting import Choice
from retailtag.tagger.tagger import Tagger

TAGS = ("colour:navy blue", "colour:red", "striped", "x|y")


@pytest.fixture(scope="module")
def tagger():
    backbone = load_backbone("demo:cnn", random_weights=True)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, backbone.dim)).astype(np.float32)
    zeros = np.zeros(4, np.float32)
    return Tagger((backbone,), Probe(TAGS, weight, zeros, zeros, np.ones(4), facts={}), "probe")


@pytest.fixture
def here(shop, monkeypatch, tagger):
    """Four images below images/, one file that is none, and a model that any folder loads as."""
    monkeypatch.chdir(shop)
    monkeypatch.setattr(api, "tagger_of", lambda *given: tagger)
    Path("images/broken.jpg").write_text("no image")
    return shop


def rows(tagger, images, batch_size=3, workers=0):
    loading = Loading(batch_size, workers)
    return [p for batch in Predicting(tagger, images, Choice(), loading) for p in batch]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (64, 2)])
def test_rows_are_those_of_single_images_in_the_order_named(tagger, here, batch_size, workers):
    found = rows(tagger, rt_images("images"), batch_size, workers)
    assert [p.path for p in found] == [*(f"images/{i}.jpg" for i in range(4)), "images/broken.jpg"]
    for one in found[:4]:
        (alone,) = tagger.predict([one.path])
        assert set(one.tags) == set(alone)
        assert one.probabilities == pytest.approx([alone[t] for t in one.tags], abs=1e-5)
    assert found[4].error.startswith("is of no image format")
    assert found[4].tags == ()


def rt_images(*sources):
    from retailtag.catalog.named import named_images

    return named_images(sources)


def test_several_backbones_share_what_is_read(tagger, here):
    (backbone,) = tagger.embedders
    weight = np.concatenate([tagger.head.weight] * 2, axis=1) / 2
    zeros = np.zeros(4, np.float32)
    both = Tagger((backbone, backbone), Probe(TAGS, weight, zeros, zeros, np.ones(4), facts={}), "")
    one, two = rows(tagger, rt_images("images")), rows(both, rt_images("images"))
    for a, b in zip(one, two, strict=True):
        assert (a.tags, a.error) == (b.tags, b.error)
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_only_the_images_under_way_are_held(tagger, picture, monkeypatch):
    """However many there are: a few batches, before and after their tags are known."""
    largest = 0
    real = _Stream.take

    def take(self, row):
        nonlocal largest
        largest = max(largest, len(self._held))
        return real(self, row)

    monkeypatch.setattr(_Stream, "take", take)
    data = picture()
    images = (NamedImage(str(i), "", lambda: data) for i in range(120))
    found = rows(tagger, NamedImages([_Group(images, 120)]), batch_size=8, workers=1)
    assert len(found) == 120
    assert largest <= 4 * 8


def test_whole_batches_run_in_the_engine_of_the_features(tagger, monkeypatch):
    from dataclasses import replace

    built = []

    def embedder_of(backbone, name, *, batch_size):
        built.append((str(name), batch_size))
        return backbone

    monkeypatch.setattr(runs_predict, "embedder_of", embedder_of)
    facts = {"stored_as": {"engine": "openvino-float32", "dtype": "float32"}}
    stored = replace(tagger, head=replace(tagger.head, facts=facts))
    assert runs_predict._with_engines(stored, 8, 255) is stored
    # an engine that is none after all is not used
    assert runs_predict._with_engines(stored, 8, None).embedders == stored.embedders
    assert built == [("openvino-float32", 8)]
    eager = replace(
        tagger, head=replace(tagger.head, facts={"stored_as": {"engine": "eager-float32"}})
    )
    assert runs_predict._with_engines(eager, 8, None).embedders == eager.embedders
    assert len(built) == 1


def test_an_engine_that_gives_other_embeddings_is_not_used(tagger):
    from retailtag.backbones.engines.embedder import EngineEmbedder
    from retailtag.backbones.engines.names import EngineName

    (backbone,) = tagger.embedders

    def engine(sign):
        def run(parts):
            return [sign * backbone.embed(part) for part in parts]

        return EngineEmbedder(backbone, EngineName("openvino"), lambda: run, 8)

    assert runs_predict._agrees(engine(1), backbone)
    assert not runs_predict._agrees(engine(-1), backbone)


# --- files

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
CELLS = NAMES.map(str.strip).filter(bool)
PREDICTIONS = st.builds(
    Prediction,
    image_id=CELLS,
    path=CELLS,
    tags=st.lists(st.sampled_from(TAGS[:3]), unique=True).map(tuple),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(PREDICTIONS, min_size=1, max_size=5))
def test_csv_reads_back_as_a_manifest(tmp_path_factory, predictions):
    path = tmp_path_factory.mktemp("csv") / "tags.csv"
    with written("csv", path) as out:
        out.add(predictions)
    columns = read_csv(path).columns
    assert columns["image_id"] == [p.image_id for p in predictions]
    assert columns["path"] == [p.path for p in predictions]
    tags = [tuple(parse_cell(cell, "|")[0]) for cell in columns["tags"]]
    assert tags == [p.tags for p in predictions]


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=20).map(os.fsdecode), PREDICTIONS)
def test_names_of_any_bytes_are_written_in_every_format(name, prediction):
    one = Prediction(name, name, prediction.tags, (0.5,) * len(prediction.tags))
    assert json.loads(json_lines([one]))["path"] == name
    assert text_lines([one]).count(b"\n") == 1
    cells = list(
        csv.reader(io.StringIO(csv_lines([one]).decode(errors="surrogateescape"), newline=""))
    )
    assert cells[0][1] == name
    (row,) = record_batch([one]).to_pylist()
    assert row["tags"] == list(prediction.tags)
    raw = os.fsencode(name)
    assert row["path"] == raw.decode(errors="backslashreplace")


def test_a_tag_with_the_separator_in_it_is_a_list():
    line = csv_lines([Prediction("a", "a.jpg", ("x|y",), (0.5,))]).decode()
    assert next(csv.reader([line]))[2] == '["x|y"]'


def test_failures_are_in_the_files_that_can_hold_them(tmp_path):
    bad = Prediction("b", "b.jpg", error="is damaged")
    good = Prediction("a", "a.jpg", ("striped",), (0.75,), ("colour:red",), (0.5,))
    assert [json.loads(line) for line in json_lines([bad, good]).splitlines()] == [
        {"image_id": "b", "path": "b.jpg", "error": "is damaged"},
        {
            "image_id": "a",
            "path": "a.jpg",
            "tags": ["striped"],
            "probabilities": [0.75],
            "uncertain": ["colour:red"],
        },
    ]
    with written("parquet", tmp_path / "tags.parquet") as out:
        out.add([bad])
        out.add([good])
    first, second = pq.read_table(tmp_path / "tags.parquet").to_pylist()
    assert (first["tags"], first["error"]) == (None, "is damaged")
    assert (second["tags"], second["error"]) == (["striped"], None)
    assert csv_lines([bad, good]) == b"a,a.jpg,striped,0.7500,colour:red\n"
    assert text_lines([bad, good]) == b"a.jpg: striped 0.75\n"


@pytest.mark.parametrize("form", ["text", "csv", "jsonl", "parquet"])
def test_ctrl_c_keeps_whole_rows_and_says_how_many(tmp_path, form):
    out = tmp_path / "tags.out"
    out.write_text("earlier")
    one = Prediction("a", "a.jpg", ("striped",), (0.75,))

    def stop():
        with written(form, out) as rows:
            rows.add([one, one])
            rows.add([one])
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"^interrupted; .*tags\.out\.partial holds the first 3"):
        stop()
    assert out.read_text() == "earlier"
    partial = tmp_path / "tags.out.partial"
    if form == "parquet":
        assert pq.read_table(partial).num_rows == 3
    else:
        assert partial.read_bytes().count(b"a.jpg") == 3


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where the tests were started with it ignored, in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_waits_for_the_end_of_a_batch():
    class Torn:
        def add(self, predictions):
            os.kill(os.getpid(), signal.SIGINT)
            self.done = sum(1 for _ in range(1000))

        def end(self):
            pass

    from retailtag.runs.prediction_files import Counted

    rows_ = Counted(torn := Torn())
    with pytest.raises(KeyboardInterrupt):
        rows_.add([Prediction("a", "a")])
    assert torn.done == 1000
    assert rows_.n == 1


def test_any_other_error_leaves_nothing(tmp_path):
    def fail():
        with written("csv", tmp_path / "tags.csv") as out:
            out.add([Prediction("a", "a.jpg")])
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_format_is_told_by_option_or_ending():
    assert format_of(None, None) == "text"
    assert format_of(None, Path("a.JSONL")) == "jsonl"
    assert format_of("csv", Path("a.dat")) == "csv"
    for asked, out, sentence in [
        (None, "a.dat", "does not tell the format; give --format, or one of the endings"),
        ("csv", "a.jpg", "named like an image"),
        ("parquet", None, "--format parquet needs a file"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            format_of(asked, out and Path(out))


# --- the command


def test_predictions_are_a_catalogue(here, capsys):
    args = ["predict", "model", "images", "--out", "tags.csv", "--device", "cpu", "--quiet"]
    assert run(args) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "images/broken.jpg could not be read: is of no image format" in said.err
    catalog = rt.read_catalog("tags.csv", tag_separator="|")
    assert len(catalog) == 4
    assert run(["catalog", "check", "tags.csv", "--tag-separator", "|", "--workers", "0"]) in (0, 3)


def test_json_has_tags_probabilities_and_what_decided(here, capsys):
    args = ["predict", "model", "images/1.jpg", "gone.jpg", "--top-k", "2", "--json"]
    assert run(args) == 3
    value = json.loads(capsys.readouterr().out)
    assert list(value["tags"]) == ["images/1.jpg"]
    assert len(value["tags"]["images/1.jpg"]) == len(value["probabilities"]["images/1.jpg"]) == 2
    assert list(value["unreadable"]) == ["gone.jpg"]
    assert (value["top_k"], value["assignment"], value["one_of"]) == (2, "independent", [])
    assert value["calibrated"] is False


def test_rows_go_to_stdout_in_the_format_asked_for(here, capsys):
    assert run(["predict", "model", "images/1.jpg", "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "images/1.jpg"
    assert run(["predict", "model", "images/1.jpg"]) == 0
    assert capsys.readouterr().out.startswith("images/1.jpg: ")


def test_a_contact_sheet_shows_the_images_that_could_be_read(here, capsys):
    args = ["predict", "model", "images", "--contact-sheet", "sheet.html", "--out", "tags.csv"]
    assert run(args) == 3
    assert "sheet.html shows 4 of 4 images." in capsys.readouterr().err
    page = Path("sheet.html").read_text()
    assert page.count("<img ") == 4
    assert "images/3.jpg" in page
    assert "broken" not in page


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--json", "--format", "csv"], "--json and --format csv both go to stdout"),
        (["--out", "images/1.jpg"], "named like an image"),
        (["--contact-sheet", "a.pdf"], "must end in .html or .png"),
        (["--top-k", "0"], "--top-k 0 is out of range"),
        (["--operating-point", "f1", "--top-k", "2"], "which --top-k replaces; drop one"),
        (["--operating-point", "f2"], "--operating-point f2 is not known to this model"),
        (["--min-probability", "2"], "--min-probability 2.0 is out of range"),
    ],
)
def test_contradictions_are_refused(here, capsys, args, sentence):
    assert run(["predict", "model", "images/1.jpg", *args]) == 2
    assert sentence in capsys.readouterr().err


def test_a_list_on_stdin_and_ctrl_c(here, capsys, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"images/1.jpg\nimages/2.jpg\nimages/1.jpg\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run(["predict", "model", "-", "--format", "csv"]) == 0
    said = capsys.readouterr()
    assert [line.split(",")[0] for line in said.out.splitlines()] == [
        "image_id",
        "images/1.jpg",
        "images/2.jpg",
    ]
    assert "1 images are named more than once" in said.err

    def interrupted(self):
        yield [Prediction("a", "a.jpg", ("striped",), (0.5,))]
        raise KeyboardInterrupt

    monkeypatch.setattr(Predicting, "__iter__", interrupted)
    assert run(["predict", "model", "images", "--out", "tags.jsonl"]) == 130
    assert "tags.jsonl.partial holds the first 1 images" in capsys.readouterr().err


# --- Python


def test_tables_and_batches_from_python(tagger, here, picture):
    table = rt.predict(tagger, "images", workers=0)
    assert table.column_names[:3] == ["image_id", "path", "tags"]
    assert table["error"].null_count == 4
    batches = list(
        rt.predict_batches(tagger, ["images/0.jpg", picture(2)], batch_size=1, workers=0)
    )
    assert [batch.num_rows for batch in batches] == [1, 1]
    assert batches[1].to_pylist()[0]["image_id"] == "image-000000001"
    one = rt.predict(tagger, picture(2), top_k=1, workers=0)
    assert len(one["tags"][0]) == 1
    with pytest.raises(UsageError, match="top_l is not an option of predict; did you mean top_k"):
        rt.predict(tagger, "images", top_l=1)
