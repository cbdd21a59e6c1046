"""Images that changed after extraction are named wherever their embeddings are used."""

import json
import os
import shutil
from pathlib import Path

import pytest

import retailtag as rt
from retailtag.cli.main import run
from retailtag.errors import DataError
from retailtag.images.loader import hash_images
from retailtag.store import list_stores, sources
from retailtag.store.sources import changed_images, recorded_stamps

SHORT = {"sweep_C": "0.01", "folds": 2, "heads": "logistic", "device": "cpu"}


@pytest.fixture(scope="module")
def made(small_csv, tmp_path_factory):
    """A catalogue, its features and its probe."""
    root = tmp_path_factory.mktemp("sources")
    shutil.copytree(small_csv.parent, root / "shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        rt.extract("shop/catalogue.csv", "demo:cnn", device="cpu", workers=0)
        rt.probe("shop/catalogue.csv", "demo:cnn", **SHORT)
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it in the working directory; times of the files stay."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def change(name, picture):
    """Other bytes of another picture; time and size change with them."""
    Path(f"shop/images/{name}.png").write_bytes(picture(7, "PNG"))


def found(catalog="shop/catalogue.csv"):
    catalog, (store,), hashed = rt.read_catalog(catalog), list_stores("features"), []

    def hashes(rows):
        hashed.extend(rows)
        return hash_images(catalog.images, rows, workers=0)

    ids = catalog.image_ids.tolist()
    return changed_images(store, ids, range(len(ids)), catalog.images, hashes), len(hashed)


def test_every_use_names_them(here, picture, capsys):
    assert found() == ([], 0)
    change("p003-0", picture)  # a test image
    change("p000-0", picture)  # a training image
    assert found() == (["images/p000-0", "images/p003-0"], 2)
    csv = "shop/catalogue.csv"
    (code, sentence, remedy) = rt.probe(csv, "demo:cnn", **SHORT).run.findings[-1]
    assert code == "changed-sources"
    assert "2 images of shop/catalogue.csv changed after extraction (images/p000-0, " in sentence
    assert "retailtag extract again" in remedy
    with pytest.raises(DataError, match=r"2 images of .* changed after extraction"):
        rt.finetune(csv, "demo:cnn", epochs=0, device="cpu")
    (card,) = rt.score("runs/demo-cnn/probe", replicates=100).scorecards
    (finding,) = [f for f in card.findings if f.code == "changed-sources"]
    assert "1 image of the 18 scored in the test split" in finding.sentence
    plan = ["bakeoff", csv, "--backbones", "demo:cnn", "--strategies", "probe", "--device", "cpu"]
    assert run([*plan, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["why"] == (
        "2 changed images, eager-float32"
    )
    verify = ["features", "verify", "--all", "--catalogue", csv, "--device", "cpu", "--sample", "4"]
    assert run([*verify, "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)["stores"]
    assert verdict["verdict"] == "sound"
    assert "2 images of shop/catalogue.csv changed after extraction" in verdict["problems"][0]
    assert rt.extract(csv, "demo:cnn", device="cpu", workers=0).summaries[0].n_computed == 2
    assert found() == ([], 0)


def test_touched_files_are_hashed_once_and_are_no_finding(here):
    os.utime("shop/images/p000-0.png")
    assert found() == ([], 1)
    assert (
        rt.extract("shop/catalogue.csv", "demo:cnn", device="cpu", workers=0)
        .summaries[0]
        .n_computed
        == 0
    )
    assert found() == ([], 0)


def test_of_many_touched_files_a_sample_is_hashed(here, picture, monkeypatch):
    monkeypatch.setattr(sources, "MAX_HASHED_IMAGES", 5)
    for path in (here / "shop" / "images").iterdir():
        path.write_bytes(picture(7, "PNG"))
    changed, n_hashed = found()
    assert (len(changed), n_hashed) == (5, 5)


def test_stores_without_stamps_and_damaged_ones_say_nothing(here, picture):
    change("p003-0", picture)
    (store,) = list_stores("features")
    journal = store.path / "journal.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(recorded_stamps(store)) == 72
    for bad in (None, 3, {"images/p003-0": [1]}, {"images/p003-0": [1, "2"]}):
        lines = [json.dumps({**entry, "sources": bad}) for entry in entries]
        journal.write_text("\n".join(lines))
        assert recorded_stamps(store) == {}
        assert found() == ([], 0)


def test_an_archive_counts_by_its_own_stamp(shop, pack, manifest, picture, monkeypatch):
    monkeypatch.chdir(shop)
    csv = manifest("path,tags", *(f"images/{i}.jpg,{'red' if i % 2 else 'blue'}" for i in range(4)))
    (shop / "images" / "0.jpg").write_bytes(picture(9))
    archive = pack(shop, "images.zip")
    rt.extract(csv, "demo:cnn", device="cpu", workers=0)
    assert found(csv) == ([], 0)
    os.utime(archive)
    assert found(csv) == ([], 4)
