"""Embeddings as Parquet: every column, what comes back by an import, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import retailtag as rt
from retailtag.cli.main import run
from retailtag.errors import EXIT_USAGE
from retailtag.runs import vectors


@pytest.fixture
def argv(small_csv, small_store):
    features = ["--features", str(small_store.path.parent)]
    return ["features", "export", str(small_csv), "--backbones", "demo:cnn", *features]


def test_a_file_has_a_row_for_every_image(small, small_store, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "ROWS", 20)
    out = tmp_path / "vectors.parquet"
    features = small_store.path.parent
    made = rt.export_features(small, "demo:cnn", out=out, features=features)
    assert (made.n_images, made.dim, made.n_absent) == (72, small_store.spec.dim, 0)
    table = parquet.read_table(out)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), made.dim)
    X = np.stack(table["vector"].to_numpy())
    np.testing.assert_array_equal(X, small_store.load(small.image_ids).X)
    assert table["image_id"].to_pylist() == small.image_ids.tolist()
    assert table["product"].to_pylist() == small.group.tolist()
    assert table["split"].to_pylist() == small.split.tolist()
    labels = small.table.labels[7] == 1
    assert table["tags"][7].as_py() == np.array(small.table.tags)[labels].tolist()
    about = json.loads(table.schema.metadata[b"retailtag"])
    assert about["identity"] == small_store.spec.digest
    np.testing.assert_allclose(about["mean"], X.mean(axis=0), rtol=1e-5, atol=1e-7)


def test_what_was_exported_can_be_imported(argv, small, small_store, tmp_path, capsys):
    out = tmp_path / "vectors.parquet"
    assert run([*argv, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_images"] == 72
    made = rt.import_features(out, name="back", features=tmp_path / "features")
    again = made.store.load(small.image_ids).X
    np.testing.assert_array_equal(again, small_store.load(small.image_ids).X)


def test_another_ending_is_refused_before_anything_is_read(argv, tmp_path, capsys):
    assert run([*argv, "--out", str(tmp_path / "vectors.csv")]) == EXIT_USAGE
    assert "must end in .parquet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
