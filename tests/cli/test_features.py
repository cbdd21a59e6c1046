"""The commands over feature stores: results, sentences, exit codes, and what they leave alone."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from retailtag.backbones import load_backbone
from retailtag.catalog.readers import read_catalog
from retailtag.cli import features as features_command
from retailtag.cli.main import run
from retailtag.context import RunContext
from retailtag.extraction.extract import extract
from retailtag.settings import ComputeSettings, ExtractSettings
from retailtag.store import FeatureStore, list_stores


def _extract(shop, features, dtype="float32"):
    context = RunContext(read_catalog(shop), compute=ComputeSettings(features=features))
    extract(context, load_backbone("demo:cnn"), ExtractSettings(dtype=dtype))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six images, their catalogue, and their embeddings by demo:cnn."""
    root = tmp_path_factory.mktemp("shop")
    (root / "shop").mkdir()
    for i in range(6):
        Image.new("RGB", (70, 66), (40 * i, 90, 255 - 40 * i)).save(root / "shop" / f"{i}.png")
    lines = [f"{i}.png,red,{'test' if i == 5 else 'train'}" for i in range(6)]
    (root / "shop" / "catalogue.csv").write_text("\n".join(["path,tags,split", *lines]))
    _extract(root / "shop", root / "features")
    return root


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, and the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "here"


@pytest.fixture
def store(place):
    (found,) = list_stores(place / "features")
    return found


@pytest.fixture
def call(capsys):
    """Run a command line; returns exit code, stdout and stderr."""

    def call(*words):
        code = run(list(map(str, words)))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def damage(store):
    segment = store.segment_paths()[0]
    segment.write_bytes(segment.read_bytes()[:-1])


def test_ls_lists_what_is_whole_damaged_and_foreign(call, store, place):
    (place / "features" / "holiday").mkdir()
    code, out, _ = call("features", "ls", "--json")
    listed = {s["name"]: s for s in json.loads(out)["stores"]}
    whole = listed[store.path.name]
    assert (code, whole["rows"], whole["state"], whole["bytes"]) == (0, 6, "whole", store.nbytes)
    assert whole["identity"] == store.spec.digest
    damage(store)
    code, out, _ = call("features", "ls")
    assert code == 0
    for word in ("demo:cnn", "damaged", "foreign", store.spec.digest[:6], "run extract again"):
        assert word in out.replace("\n", "")
    assert call("features", "ls", "--features", "nowhere")[0] == 3


def test_show_tells_the_whole_identity(call, store):
    code, out, _ = call("features", "show", "demo:cnn")
    assert code == 0
    for word in (
        store.spec.digest,
        store.spec.weights_sha256,
        "preprocessing.antialias: True",
        "preprocessing.decode.exif",
        "shard-000000.h5: 6 rows",
        "torch",
    ):
        assert word in out
    facts = json.loads(call("features", "show", store.spec.digest[:8], "--json")[1])
    assert facts["spec"]["engine"] == "eager-float32"
    assert call("features", "show", "clip")[0] == 2


def test_verify_ends_with_4_where_a_file_is_damaged(call, store):
    code, out, err = call("features", "verify", "demo:cnn", "--catalogue", "shop", "--json")
    (verdict,) = json.loads(out)["stores"]
    assert (code, verdict["verdict"], verdict["n_sampled"]) == (0, "sound", 6)
    code, out, _ = call("features", "verify", "--all", "--quiet")
    assert (code, out) == (0, "")
    damage(store)
    code, out, err = call("features", "verify", store.path.name)
    assert code == 4
    assert "damaged" in out
    assert f"{store.path.name}/shard-000000.h5 is damaged" in err
    assert "run extract again" in err


def test_verify_ends_with_4_where_rows_have_drifted_and_6_without_the_backbone(call, store, place):
    known = store.known()
    X = store.load(list(known)).X
    store.append(list(known), list(known.values()), X[::-1])
    code, out, err = call("features", "verify", "--all", "--catalogue", "shop", "--sample", "3")
    assert code == 4
    assert "drifted" in out
    assert "below 0.99999; run extract --recompute" in err
    assert call("features", "verify", "--all")[0] == 0  # the files are whole
    shutil.rmtree(store.path)
    facts = {**store.spec.to_json(), "backbone": "demo:retired"}
    other = FeatureStore.create_or_open(place / "features", type(store.spec)(**facts))
    other.append(list(known), list(known.values()), X)
    code, out, err = call("features", "verify", "--all", "--catalogue", "shop")
    assert (code, "unchecked" in out, "demo:retired" in err) == (6, True, True)


def test_verify_wants_names_or_all(call, store):
    assert call("features", "verify")[0] == 2
    assert call("features", "verify", "demo:cnn", "--all")[0] == 2
    assert call("features", "verify", "demo:dino")[0] == 2


@pytest.fixture
def smaller(place):
    """The catalogue without its last two images, and one image changed."""
    manifest = place / "shop" / "catalogue.csv"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:5]))
    Image.new("RGB", (70, 66), (1, 2, 3)).save(place / "shop" / "0.png")
    return place / "shop"


def test_gc_asks_and_off_a_terminal_changes_nothing(call, store, smaller):
    before = files(store.path)
    code, _, err = call("features", "gc", "--catalogue", smaller)
    assert code == 0
    assert "Nothing was changed; give --yes" in err
    assert files(store.path) == before
    value = json.loads(call("features", "gc", "--catalogue", smaller, "--json")[1])
    assert (value["done"], value["freed"], value["stores"][0]["n_unused"]) == (False, 0, 3)
    assert value["bytes"] > 0


@pytest.mark.parametrize(("answer", "rows"), [("y\n", 3), ("n\n", 6), ("", 6)])
def test_gc_on_a_terminal_does_what_is_answered(call, store, smaller, monkeypatch, answer, rows):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return answer

    monkeypatch.setattr(features_command.sys, "stdin", Terminal())
    _, _, err = call("features", "gc", "--catalogue", smaller)
    assert "Free this? [y/N]" in err
    assert FeatureStore.open(store.path).n_rows == rows


def test_gc_with_yes_keeps_what_any_catalogue_uses(call, store, smaller, made):
    code, out, _ = call("features", "gc", "--catalogue", smaller, "--yes")
    assert (code, "MB freed" in out) == (0, True)
    assert set(FeatureStore.open(store.path).known()) == {"1", "2", "3"}
    assert "nothing to free" in call("features", "gc", "--catalogue", smaller, "--yes")[1]


def test_gc_keeps_rows_that_one_of_several_catalogues_uses(call, store, smaller, made):
    before = files(store.path)
    value = json.loads(
        call(
            "features", "gc", "--catalogue", smaller, "--catalogue", made / "shop", "-y", "--json"
        )[1]
    )
    assert value["stores"] == []
    assert files(store.path) == before


def test_gc_deletes_whole_stores_only_when_asked(call, store, place):
    code, _, _ = call("features", "gc")
    assert code == 2
    call("features", "gc", "--stores", "demo:cnn")
    assert store.path.exists()
    value = json.loads(call("features", "gc", "--stores", "demo:cnn", "--yes", "--json")[1])
    assert value["whole_stores"] == [f"features/{store.path.name}"]
    assert value["freed"] > 0
    assert not store.path.exists()


def test_gc_leaves_a_damaged_store_as_it_is(call, store, smaller):
    damage(store)
    before = files(store.path)
    code, _, err = call("features", "gc", "--catalogue", smaller, "--yes")
    assert code == 0
    assert "Left as it is" in err
    assert "shard-000000.h5" in err
    assert files(store.path) == before


def test_shards_are_extracted_and_merged(call, store, place, monkeypatch):
    monkeypatch.setattr("retailtag.extraction.extract.IMAGES_PER_BLOCK", 2)
    options = ("--backbone", "demo:cnn", "--batch-size", "2", "--features", "apart")
    for i in (1, 2):
        code, out, _ = call("extract", "shop", *options, "--shard", f"{i}/2")
        assert code == 0
    command = f"retailtag features merge apart apart/shard-*-of-2/{store.path.name}"
    assert command in out
    inputs = sorted((place / "apart").glob(f"shard-*-of-2/{store.path.name}"))
    value = json.loads(call("features", "merge", "apart", *inputs, "--json")[1])
    assert (value["n_added"], value["n_rows"]) == (6, 6)
    ids = list(store.known())
    merged = FeatureStore.open(place / "apart" / store.path.name)
    assert merged.digest_for(ids) == store.digest_for(ids)
    code, out, _ = call("features", "merge", "apart", *inputs)
    assert (code, "0 images added, 6 were there" in out) == (0, True)


def test_auto_takes_the_shard_of_the_scheduler_and_says_so(call, store, place, monkeypatch):
    monkeypatch.setattr("retailtag.extraction.extract.IMAGES_PER_BLOCK", 2)
    options = ("--backbone", "demo:cnn", "--features", "auto", "--shard", "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        code, out, err = call("extract", "shop", *options)
        assert (code, "auto/shard-*-of-2/" in out) == (0, True)
        assert f"--shard auto: shard {rank + 1}/2, by RANK." in err
    shards = sorted((place / "auto").glob("shard-*-of-2/*/"))
    found = [FeatureStore.open(shard).known() for shard in shards]
    assert (len(found), found[0] | found[1]) == (2, store.known())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")  # the whole catalogue: nothing is to be joined
    code, out, _ = call("extract", "shop", *options)
    assert (code, "features merge" in out) == (0, False)
    assert (place / "auto" / store.path.name).is_dir()


@pytest.mark.parametrize("text", ["3/2", "0/1", "half"])
def test_an_impossible_shard_is_one_sentence(call, place, text):
    code, _, err = call("extract", "shop", "--backbone", "demo:cnn", "--shard", text)
    assert (code, err.count("\n")) == (2, 1)
    assert f"--shard {text}: give I/N" in err


def test_merge_names_what_differs(call, store, place):
    _extract(place / "shop", place / "half", dtype="float16")
    (half,) = list_stores(place / "half")
    code, _, err = call("features", "merge", "out", store.path, half.path)
    assert code == 4
    assert "dtype:" in err
    assert "'float32'" in err
    assert "'float16'" in err


SPECS = {
    "deep": b"[" * 100_000,
    "deep inside": b'{"format": 1, "digest": "", "spec": ' + b'{"a":' * 900 + b"1" + b"}" * 902,
    "no text": b"\xff\xfe\x00",
    "half a pair": rb'{"format": 3, "digest": "\ud800", "spec": {}}',
    "a list": b"[]",
    "long number": b"9" * 5000,
}


@pytest.mark.parametrize("kind", SPECS)
def test_one_bad_identity_leaves_the_other_stores_usable(call, store, place, kind):
    bad = place / "features" / "bad"
    bad.mkdir()
    (bad / "spec.json").write_bytes(SPECS[kind])
    code, out, _ = call("features", "ls", "--json")
    assert code == 0
    assert {s["name"]: s["state"] for s in json.loads(out)["stores"]} == {
        "bad": "damaged",
        store.path.name: "whole",
    }
    code, out, err = call("features", "verify", "--all", "--json")
    assert code == 4
    assert [v["verdict"] for v in json.loads(out)["stores"]] == ["damaged", "sound"]
    assert f"\n{bad.relative_to(place)}/spec.json is damaged (" in err
    assert [s.path for s in list_stores(place / "features")] == [store.path]  # what probe reads


def test_damaged_entries_of_the_journal_are_skipped(call, store):
    journal = store.path / "journal.jsonl"
    sound = json.loads(journal.read_text())
    wrong = {"shard": ["a"], "seconds": 10**400, "run": {"versions": []}}
    entries = [json.dumps({**sound, name: value}) for name, value in wrong.items()]
    entries += ["[" * 100_000, json.dumps({**sound, "seconds": float("nan")}), '{"run": "x"}']
    before = call("features", "show", "demo:cnn")
    journal.write_text("\n".join([json.dumps(sound), *entries]) + "\n")
    assert call("features", "show", "demo:cnn") == before
    assert before[0] == 0
