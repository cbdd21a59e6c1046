"""Similar products: exact search, queries of every kind, and what is refused."""

import io
import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retailtag as rt
from retailtag.cli.main import run
from retailtag.errors import (
    EXIT_BAD_DATA,
    EXIT_STALE,
    EXIT_USAGE,
    DataError,
    StaleFeatures,
    UsageError,
)
from retailtag.neighbours import directions
from retailtag.runs import similar
from retailtag.runs.similar import Query, Space, nearest_products


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 50),
    n_products=st.integers(1, 50),
    top=st.integers(1, 60),
    look=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_products_are_those_of_a_plain_sort(n, n_products, top, look, seed):
    rng = np.random.default_rng(seed)
    keys = directions(rng.standard_normal((n, 4)).astype(np.float32), np.float32(0))
    asked = directions(rng.standard_normal((6, 4)).astype(np.float32), np.float32(0))
    # the first product has most of the photographs, which take the first places
    product = np.where(rng.random(n) < 0.6, 0, rng.integers(n_products, size=n))
    left_out = rng.integers(-1, n_products, size=6)
    with patch.object(similar, "FIRST_LOOK", look):
        found = nearest_products(keys, asked, product, left_out, top)
    for q, (index, similarity) in enumerate(found):
        best = {}
        for image in np.argsort(-(keys @ asked[q]), kind="stable").tolist():
            if product[image] != left_out[q]:
                best.setdefault(product[image], image)
        expected = list(best.values())[:top]
        np.testing.assert_allclose(similarity, keys[expected] @ asked[q], atol=1e-6)
        assert product[index].tolist() == product[expected].tolist()


def test_the_first_of_equal_images_comes_first():
    keys = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    ((index, _),) = nearest_products(keys, keys[:1], np.array([3, 2, 1, 0]), np.array([-1]), 4)
    assert index.tolist() == [0, 2, 3, 1]


def test_backbones_side_by_side_count_alike():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7, 3)).astype(np.float32)
    zero = np.zeros(3, np.float32)
    together = Space((zero, zero)).directions(np.hstack([a, 1000 * b]))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    expected = sum(x @ x.T for x in unit) / 2
    np.testing.assert_allclose(together @ together.T, expected, atol=1e-6)


def test_a_product_is_searched_by_the_mean_direction_of_its_images():
    images = np.array([[3, 0], [0, 1]], np.float32)
    found = Query("product", "p", images).direction(Space((np.zeros(2, np.float32),)))
    np.testing.assert_allclose(found, np.sqrt([0.5, 0.5]), atol=1e-6)


@pytest.fixture(scope="module")
def searched(small, small_store):
    """Search the small world by demo:cnn."""
    features = small_store.path.parent
    return lambda **given: rt.similar(small, "demo:cnn", features=features, workers=0, **given)


def test_the_own_product_is_left_out_and_others_come_once(searched, small):
    made = searched(ids=["images/p003-0"], products=["p3"], top=50)
    for one in made.found:
        products = [hit.product for hit in one.hits]
        assert sorted(products) == sorted(set(small.group.tolist()) - {"p3"})
        similarity = [hit.similarity for hit in one.hits]
        assert similarity == sorted(similarity, reverse=True)
        assert all(hit.n_images == 2 for hit in one.hits)
    assert made.table.num_rows == 2 * 35
    assert "Similar products" in repr(made)


def test_a_hit_is_the_image_most_alike(searched, small, small_store):
    X = small_store.load(small.image_ids).X
    Z = X - X.mean(axis=0)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    own = 10
    ids = small.image_ids.tolist()
    (one,) = searched(ids=[ids[own]], top=3).found
    closeness = np.where(small.group == small.group[own], -np.inf, Z @ Z[own])
    best = int(closeness.argmax())
    assert one.hits[0].image_id == ids[best]
    assert one.hits[0].similarity == pytest.approx(closeness[best], abs=1e-5)
    labels = small.table.labels[best] == 1
    assert one.hits[0].tags == tuple(np.array(small.table.tags)[labels].tolist())


def test_a_file_of_the_catalogue_finds_itself_marked(searched, small, small_csv):
    file = small_csv.parent / "images" / "p007-1.png"
    (by_path, by_bytes) = searched(queries=[file, file.read_bytes()], top=2).found
    assert by_path.query.name == str(file)
    for one in (by_path, by_bytes):
        assert one.hits[0].product == "p7"
        assert one.hits[0].same_file
        assert one.hits[0].similarity == pytest.approx(1, abs=1e-4)
        assert not one.hits[1].same_file


def test_images_that_cannot_be_read_are_named(searched, small_csv, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    good = small_csv.parent / "images" / "p000-0.png"
    made = searched(queries=[good, broken], top=1)
    assert [one.query.name for one in made.found] == [str(good)]
    assert any("broken.png is left out" in note for note in made.notes)
    with pytest.raises(DataError, match=r"No image to search for can be read: .*broken\.png"):
        searched(queries=broken)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Nothing to search for"),
        ({"ids": ["images/p003-9"]}, r"--id .* is no image of .*; did you mean images/p003"),
        ({"products": ["zzz"]}, r"--product zzz is no product of .*; name one"),
        ({"texts": [" "]}, "--text is empty"),
        ({"texts": ["a red dress"]}, "demo:cnn has no text tower; use an image-text model"),
        ({"ids": ["x"], "top": 0}, "--top 0 is out of range"),
        ({"queries": b"x", "rerank": "tags"}, "--rerank tags needs queries whose tags are known"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(searched, given, message):
    with pytest.raises(UsageError, match=message):
        searched(**given)


def test_other_weights_and_changed_images_are_stale(small, small_csv, small_store, tmp_path):
    from retailtag.backbones import load_backbone
    from retailtag.store import FeatureStore

    spec = replace(small_store.spec, weights_sha256="0" * 64)
    FeatureStore.create_or_open(tmp_path, spec)
    with pytest.raises(StaleFeatures, match="weights_sha256"):
        rt.similar(small, "demo:cnn", ids=["images/p003-0"], features=tmp_path)
    with pytest.raises(DataError, match="holds no features of demo:dino"):
        rt.similar(small, "demo:dino", ids=["x"], features=small_store.path.parent)
    changed = ["images/p003-0"]
    with (
        patch.object(similar, "changed_since_extract", lambda *given: changed),
        pytest.raises(StaleFeatures, match=r"1 image of .* changed .* Run retailtag extract"),
    ):
        rt.similar(small, "demo:cnn", ids=changed, features=small_store.path.parent)
    assert load_backbone("demo:cnn").weights_sha256 == small_store.spec.weights_sha256


def test_imported_embeddings_are_searched_by_id_but_not_by_image(small, tmp_path):
    X = np.random.default_rng(0).standard_normal((len(small), 6)).astype(np.float32)
    ids = small.image_ids.tolist()
    rt.import_features(X[1:], ids[1:], name="mine", features=tmp_path)
    made = rt.similar(small, "own:mine", ids=[ids[1]], features=tmp_path)
    assert len(made.found[0].hits) == 10
    assert not any(hit.same_file for hit in made.found[0].hits)
    assert made.notes[0].startswith("1 image has no embedding")
    with pytest.raises(UsageError, match=r"were imported.*search by --id or --product"):
        rt.similar(small, "own:mine", queries=b"x", features=tmp_path)
    with pytest.raises(UsageError, match="no single image-text model"):
        rt.similar(small, "own:mine", texts=["red"], features=tmp_path)
    with pytest.raises(UsageError, match=r"this image of .* has no embedding \(not extracted"):
        rt.similar(small, "own:mine", ids=ids[:1], features=tmp_path)


def test_tags_order_the_first_products_anew(searched, small):
    (plain,) = searched(ids=["images/p007-1"], top=35).found
    (one,) = searched(ids=["images/p007-1"], top=4, rerank="tags").found
    own = small.table.labels[small.image_ids.tolist().index("images/p007-1")] == 1
    has = small.table.labels[[hit.row for hit in plain.hits]] == 1
    jaccard = (has & own).sum(axis=1) / (has | own).sum(axis=1)
    order = np.lexsort((np.arange(35), -jaccard))[:4]
    assert [hit.product for hit in one.hits] == [plain.hits[i].product for i in order]
    assert [hit.reranked for hit in one.hits] == jaccard[order].tolist()
    assert [hit.rank for hit in one.hits] == [1, 2, 3, 4]
    assert plain.hits[0].reranked is None


def test_another_backbone_orders_the_first_products_anew(small, small_store, tmp_path):
    """The second one knows not all of the images, and has other weights."""
    rng = np.random.default_rng(0)
    ids = small.image_ids.tolist()
    X = rng.standard_normal((len(ids) - 4, 6)).astype(np.float32)
    rt.import_features(X, ids[4:], name="mine", features=tmp_path)
    (tmp_path / small_store.path.name).symlink_to(small_store.path)
    given = {"ids": [ids[20]], "features": tmp_path}
    (plain,) = rt.similar(small, "demo:cnn", top=40, **given).found
    (one,) = rt.similar(small, "demo:cnn", top=40, rerank="own:mine", **given).found
    Z = X - X.mean(axis=0)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    expected = {hit.image_id: float(Z[hit.row - 4] @ Z[16]) for hit in plain.hits if hit.row >= 4}
    scored = [hit for hit in one.hits if hit.reranked is not None]
    assert [h.image_id for h in scored] == sorted(expected, key=expected.get, reverse=True)
    assert [h.reranked for h in scored] == pytest.approx(sorted(expected.values())[::-1], abs=1e-5)
    assert {h.product for h in one.hits[len(scored) :]} == {"p0", "p1"}
    assert sorted(h.product for h in one.hits) == sorted(h.product for h in plain.hits)


@pytest.fixture(scope="module")
def world(small_csv, tmp_path_factory):
    """Manifest and features of half of the small world by an image-text model."""
    features = tmp_path_factory.mktemp("clip")
    lines = small_csv.read_text(encoding="utf-8").splitlines()[:31]
    manifest = features / "shop.csv"
    manifest.write_text("\n".join(lines), encoding="utf-8")
    images = small_csv.parent
    rt.extract(manifest, "demo:clip", features=features, workers=0, images=images)
    shared = ["--features", str(features), "--images", str(images), "--workers", "0"]
    return ["similar", str(manifest), "--backbones", "demo:clip", *shared]


def test_the_command_prints_tables_of_80_columns_and_draws_a_sheet(
    world, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("COLUMNS", "80")
    sheet = tmp_path / "found.html"
    argv = ["--product", "p1", "--text", "a red thing", "--top", "3"]
    assert run([*world, *argv, "--contact-sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "Similar to product p1:" in out
    assert "Similar to text a red thing:" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    page = sheet.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 1 + 3 + 3
    assert "<h2>text a red thing</h2>" in page
    assert 'src="http' not in page


def test_the_command_prints_one_json_object(world, capsys):
    assert run([*world, "--id", "images/p001-0", "--text", "blue", "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backbone"] == "demo:clip"
    assert [one["kind"] for one in found["queries"]] == ["id", "text"]
    assert [one["own_product_left_out"] for one in found["queries"]] == [True, False]
    hit = found["queries"][0]["hits"][0]
    assert set(hit) == {
        *("rank", "similarity", "product", "image_id", "path", "title", "tags", "n_images"),
        *("same_file", "reranked"),
    }


def test_texts_are_compared_with_images_as_they_are(world, small_csv):
    features = world[world.index("--features") + 1]
    given = {"features": features, "images": small_csv.parent}
    made = rt.similar(world[1], "demo:clip", texts=["colour:red"], top=15, **given)
    store = rt.extract(world[1], "demo:clip", workers=0, **given).stores["demo:clip"]
    X = store.load(made.gallery.ids).X
    from retailtag.backbones import load_backbone
    from retailtag.probes.heads.text_prior import text_embeddings

    model = load_backbone("demo:clip")
    (text,) = text_embeddings(["colour:red"], lambda asked: model.encode_text(asked).numpy())
    cosine = (X @ text) / np.linalg.norm(X, axis=1) / np.linalg.norm(text)
    assert made.found[0].hits[0].similarity == pytest.approx(cosine.max(), abs=1e-5)


def test_paths_of_images_come_from_stdin(world, small_csv, capsys, monkeypatch):
    image = small_csv.parent / "images" / "p002-1.png"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{image}\n".encode())))
    assert run([*world, "--query", "-", "--top", "1", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["queries"]
    assert one["query"] == str(image)
    assert one["hits"][0]["same_file"]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--text", "x", "--contact-sheet", "a.png"], EXIT_USAGE, "must end in .html"),
        (["--query", "missing.jpg"], EXIT_BAD_DATA, "missing.jpg"),
        (["--text", "x", "--engine", "openvino"], EXIT_STALE, "computed by eager-float32"),
        ([], EXIT_USAGE, "Nothing to search for"),
    ],
)
def test_bad_input_is_one_sentence(world, argv, code, message, capsys):
    assert run([*world, *argv]) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not said.out
