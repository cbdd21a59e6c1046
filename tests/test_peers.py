"""The comparison with other tools: its common catalogue, its runs, what it counts and records."""

import argparse
import csv
import importlib.util
import runpy
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import joblib
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import TunedThresholdClassifierCV

from retailtag.catalog.readers import read_catalog
from retailtag.runs.foreign import Declared, foreign_predictions
from retailtag.scoring.score import score_predictions

SCRIPTS = Path(__file__).parents[1] / "benchmarks" / "peer_scripts"
# A tool that scores the test images by their names: a tag is likely where its letter is.
SCORER = """
import csv, sys
import numpy as np

rows = list(csv.DictReader(open(sys.argv[1], newline="")))
tags = sorted({tag for row in rows for tag in row["tags"].split("|")})
ids = [row["image_id"] for row in rows if row["split"] == "test"]
scores = [[0.9 if tag in image else 0.2 for tag in tags] for image in ids]
np.savez("scores.npz", image_ids=ids, tags=tags, scores=scores, thresholds=[0.5] * len(tags))
"""


@pytest.fixture
def modules(monkeypatch):
    """The script and its two modules, with quick samples of the memory."""
    monkeypatch.syspath_prepend(str(SCRIPTS.parent))
    import peer_catalogue
    import peer_process
    import peers

    monkeypatch.setattr(peer_process, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(peer_process, "SAMPLE_SECONDS", 0.02)
    monkeypatch.setattr(peer_process, "SAMPLE_SHARE", 1.0)
    return peers, peer_catalogue, peer_process


def write_catalogue(folder, rows, unknown=MappingProxyType({})):
    """Write a manifest of (id, tags, split, product) with one small image each."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "catalogue.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "path", "tags", "split", "group", "tags_unknown"])
        for k, (name, tags, split, group) in enumerate(rows):
            Image.new("RGB", (8, 8), (k, 2 * k, 99)).save(folder / f"{name}.png")
            writer.writerow([name, f"{name}.png", tags, split, group, unknown.get(name, "")])
    return folder / "catalogue.csv"


@pytest.fixture
def catalogue(tmp_path):
    """Twelve training and six test images of products of two; tag c is on one training image."""
    rows = []
    for k in range(18):
        name = f"{'ab'[k % 2]}{k:02d}"
        tags = f"{name[0]}|c" if k in (0, 12) else name[0]
        rows.append((name, tags, "train" if k < 12 else "test", f"p{k // 2}"))
    return write_catalogue(tmp_path / "shop", rows)


@pytest.fixture
def bench(modules, catalogue, tmp_path):
    """What stub peers share: all images, tags on two of them or more."""
    peers, peer_catalogue, _ = modules
    part = peer_catalogue.write_part(read_catalog(catalogue), tmp_path / "part", None, None, 2)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "scorer.py").write_text(SCORER, encoding="utf-8")
    return peers.Bench(part, tmp_path / "w", tmp_path / "envs", tmp_path / "runs", 60, scripts)


# --- the common catalogue ---------------------------------------------------------------------


def test_a_draw_takes_whole_products_and_contains_the_smaller_draws(modules, catalogue):
    draw = modules[1].draw
    catalog = read_catalog(catalogue)
    drawn = [set(draw(catalog, "train", n).tolist()) for n in range(1, 13)]
    for n, rows in enumerate(drawn, start=1):
        assert n <= len(rows) <= n + 1
        inside = np.isin(catalog.group, catalog.group[sorted(rows)])
        assert rows == set(np.flatnonzero(inside).tolist())
    assert all(small <= large for small, large in pairwise(drawn))
    assert draw(catalog, "test", None).tolist() == catalog.rows("test").tolist()


def test_a_draw_does_not_depend_on_the_order_of_the_rows(modules, tmp_path, catalogue):
    draw = modules[1].draw
    forward = read_catalog(catalogue)
    lines = catalogue.read_text(encoding="utf-8").splitlines()
    backward = catalogue.with_name("backward.csv")
    backward.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    other = read_catalog(backward)
    for split, n in (("train", 4), ("test", 2)):
        first, second = draw(forward, split, n), draw(other, split, n)
        assert sorted(forward.image_ids[first]) == sorted(other.image_ids[second])


def test_the_manifest_of_a_part_keeps_whole_products_and_all_other_splits(modules, catalogue):
    import part

    kept = list(csv.DictReader(part.part(catalogue, 6).splitlines()))
    rows = list(csv.DictReader(catalogue.read_text(encoding="utf-8").splitlines()))
    products = {row["group"] for row in kept if row["split"] == "train"}
    assert len(products) == 3
    assert kept == [row for row in rows if row["split"] == "test" or row["group"] in products]


def test_more_images_than_there_are_is_refused(modules, catalogue):
    with pytest.raises(SystemExit, match=r"has 12 images in its train split; ask for at most"):
        modules[1].draw(read_catalog(catalogue), "train", 13)


def test_the_part_has_the_images_the_products_and_the_tags_that_are_frequent_enough(
    modules, catalogue, tmp_path
):
    whole = read_catalog(catalogue)
    part = read_catalog(modules[1].write_part(whole, tmp_path / "part", 6, 4, 2))
    assert part.table.tags == ("a", "b")
    assert (len(part.rows("train")), len(part.rows("test"))) == (6, 4)
    for row, name in enumerate(part.image_ids.tolist()):
        there = whole.image_ids.tolist().index(name)
        assert part.images.read(row) == whole.images.read(there)
        assert part.group[row] == whole.group[there]
        assert part.split[row] == whole.split[there]
        assert part.table.labels[row].tolist() == whole.table.labels[there, :2].tolist()


def test_images_without_a_kept_tag_are_left_out(modules, tmp_path):
    rows = [(f"i{k}", "a" if k else "b", "train", "") for k in range(4)]
    path = write_catalogue(tmp_path / "shop", [*rows, ("t", "a", "test", "")])
    part = read_catalog(modules[1].write_part(read_catalog(path), tmp_path / "part", None, None, 2))
    assert part.image_ids.tolist() == ["i1", "i2", "i3", "t"]


def test_a_catalogue_that_peers_cannot_use_is_refused(modules, tmp_path):
    write_part = modules[1].write_part
    rows = [(f"i{k}", "ab"[k % 2], "train", "") for k in range(4)] + [("t", "a", "test", "")]
    known = read_catalog(write_catalogue(tmp_path / "known", rows))
    with pytest.raises(SystemExit, match="No tag has 3 training images"):
        write_part(known, tmp_path / "part", None, None, 3)
    unknown = read_catalog(write_catalogue(tmp_path / "unknown", rows, {"i0": "b"}))
    with pytest.raises(SystemExit, match="cells that nobody annotated"):
        write_part(unknown, tmp_path / "part", None, None, 2)


# --- lines --------------------------------------------------------------------------------------


def test_lines_count_code_of_a_script_and_of_its_neighbours_once(modules, tmp_path):
    (tmp_path / "one.py").write_text(
        '"""Two lines\nof text."""\n\nimport two\nfrom two import x\n\n# why\n'
        'def f():\n    """Say."""\n    return """a\nb"""  # not a docstring\n',
        encoding="utf-8",
    )
    (tmp_path / "two.py").write_text("x = [\n    1,\n\n    2,\n]\n", encoding="utf-8")
    (tmp_path / "three.py").write_text("import two\n", encoding="utf-8")
    lines_of = modules[2].lines_of
    assert lines_of([tmp_path / "two.py"]) == 4
    assert lines_of([tmp_path / "one.py"]) == 5 + 4
    assert lines_of([tmp_path / "one.py", tmp_path / "three.py"]) == 5 + 4 + 1


# --- runs ---------------------------------------------------------------------------------------


def test_a_peer_is_scored_by_the_scorer_and_its_costs_are_recorded(modules, bench):
    peers = modules[0]
    catalog = read_catalog(bench.catalogue)
    (bench.scripts / "before.py").write_text("import time; time.sleep(0.1)\n", encoding="utf-8")
    peer = peers.Peer("Stub, 0.5", "numpy", ("before.py", "scorer.py"))
    shared = {}
    row = peers.measure(bench, peer, catalog, shared)
    assert row["status"] == "done", row["note"]
    file = bench.out / "Stub-0.5" / "scores.npz"
    card = peers.scored(file, catalog)
    assert row["macro_f1"] == round(card.summaries["all"].macro_f1, 4) == 1.0
    assert row["micro_f1"] == round(card.micro_f1, 4)
    summary = card.summaries["all"]
    assert row["macro_f1_population"] == round(summary.macro_f1_population, 4)
    assert row["tail_macro_f1_low"] == round(card.summaries["tail"].macro_f1_low, 4)
    assert row["lines"] == 1 + 7
    assert row["version"] == np.__version__
    assert row["seconds"] > shared["before.py"].seconds >= 0.1
    assert row["cpu_seconds"] > 0
    assert row["peak_mib"] > 0
    # the second peer takes the shared script's cost over and does not run it again
    (bench.scripts / "before.py").write_text("raise SystemExit(1)\n", encoding="utf-8")
    again = peers.measure(bench, peers.Peer("Other", "numpy", peer.scripts), catalog, shared)
    assert again["status"] == "done"
    assert again["seconds"] >= round(shared["before.py"].seconds, 1)


def test_a_program_that_fails_is_noted_with_its_last_words(modules, bench):
    peers = modules[0]
    text = "import sys; print('epoch 1'); print('no room\\n', file=sys.stderr); sys.exit(3)\n"
    (bench.scripts / "fails.py").write_text(text, encoding="utf-8")
    peer = peers.Peer("Fails", "numpy", ("fails.py", "scorer.py"))
    row = peers.measure(bench, peer, read_catalog(bench.catalogue), {})
    assert (row["status"], row["note"], row["macro_f1"]) == ("failed", "no room", "")
    assert isinstance(row["seconds"], float)


def test_the_last_words_are_those_that_a_terminal_shows(modules):
    last_line = modules[2].last_line
    assert last_line("step 1\n\x1b[31mstep 2\rstep 3\x1b[0m\n\x1b[0m\n \n") == "step 3"
    assert last_line("\n") == ""


def test_scores_that_cannot_be_read_are_a_failure_with_the_reason(modules, bench):
    peers = modules[0]
    (bench.scripts / "strange.py").write_text(SCORER.replace("0.9", "1.9"), encoding="utf-8")
    catalog = read_catalog(bench.catalogue)
    row = peers.measure(bench, peers.Peer("Strange", "numpy", ("strange.py",)), catalog, {})
    assert row["status"] == "failed"
    assert "is not a probability" in row["note"]
    (bench.scripts / "silent.py").write_text("", encoding="utf-8")
    row = peers.measure(bench, peers.Peer("Silent", "numpy", ("silent.py",)), catalog, {})
    assert row["status"] == "failed"
    assert row["note"] == "it wrote no scores.npz; last: "


def test_a_program_is_stopped_at_the_limit_with_its_children(modules, bench):
    peers = modules[0]
    (bench.scripts / "slow.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    limited = peers.Bench(**{**vars(bench), "limit_s": 0.6})
    peer = peers.Peer("Slow", "numpy", ("slow.py",))
    row = peers.measure(limited, peer, read_catalog(bench.catalogue), {})
    assert row["status"] == "stopped"
    assert row["note"].startswith("after 0.01 minutes at: child ")
    child = int(row["note"].split()[-1])
    for _ in range(100):  # the kernel takes a moment
        if not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie":
            break
        time.sleep(0.02)
    else:
        pytest.fail("the child still runs")


def test_the_memory_of_children_counts(modules, tmp_path):
    code = "x = bytearray(60 << 20); import time; time.sleep(0.6)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    cost = modules[2].run([sys.executable, "-c", parent], tmp_path, tmp_path / "log", 60, {})
    assert cost.code == 0
    assert 60 < cost.peak_mib < 140


def test_a_peer_that_cannot_be_installed_is_skipped_with_the_reason(modules, bench, monkeypatch):
    peers, _, process = modules
    ran = []

    def fail(command):
        ran.append(command)
        if "pip" in command:
            raise process.UnavailableError("no matching distribution")
        (bench.envs / "gone/lib" / f"python3.{sys.version_info.minor}" / "site-packages").mkdir(
            parents=True
        )

    monkeypatch.setattr(process, "_quietly", fail)
    peer = peers.Peer("Gone", "gone", ("scorer.py",), requirements=("gone==1",))
    row = peers.measure(bench, peer, read_catalog(bench.catalogue), {})
    assert row["status"] == "skipped"
    assert row["note"] == "cannot be installed: no matching distribution"
    assert row["lines"] == 7
    assert ran[-1][-1] == "gone==1"
    refused = peers.Peer("No", "no", refused="it has no such task")
    row = peers.measure(bench, refused, read_catalog(bench.catalogue), {})
    assert (row["status"], row["note"], row["lines"]) == ("skipped", "it has no such task", "")


def test_an_environment_is_made_once_and_again_for_other_requirements(
    modules, tmp_path, monkeypatch
):
    process = modules[2]
    made = []

    def pretend(command):
        made.append(command)
        packages = f"lib/python3.{sys.version_info.minor}/site-packages"
        (tmp_path / "env" / packages).mkdir(parents=True, exist_ok=True)
        (tmp_path / "env/bin").mkdir(exist_ok=True)
        (tmp_path / "env/bin/python").touch()

    monkeypatch.setattr(process, "_quietly", pretend)
    for wanted in (["a==1"], ["a==1"], ["a==2"]):
        python = process.environment(tmp_path / "env", wanted)
    assert python == tmp_path / "env/bin/python"
    assert [command[-1] for command in made if "pip" in command] == ["a==1", "a==2"]


def test_the_output_must_lie_outside_and_be_empty(modules, catalogue, tmp_path):
    peers = modules[0]
    weights = tmp_path / "model.safetensors"
    weights.touch()
    args = {"only": None, "weights": weights, "envs": tmp_path, "catalogue": catalogue}
    with pytest.raises(SystemExit, match="lies in the repository"):
        peers.compare(argparse.Namespace(**args, out=SCRIPTS / "new"))
    with pytest.raises(SystemExit, match="is not empty"):
        peers.compare(argparse.Namespace(**args, out=catalogue.parent))


def test_only_takes_peers_by_a_part_of_their_name(modules):
    peers = modules[0]
    names = [peer.name for peer in peers.chosen("Frozen,autogluon")]
    assert names == ["lightly-train, frozen", "AutoGluon-MultiModal"]
    with pytest.raises(SystemExit, match="--only keras is part of no peer's name"):
        peers.chosen("fastai,keras")


def test_rows_are_recorded_one_by_one_and_print_as_a_table(
    modules, catalogue, tmp_path, monkeypatch
):
    peers = modules[0]
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "scorer.py").write_text(SCORER, encoding="utf-8")
    stubs = (
        peers.Peer("stub", "numpy", ("scorer.py",)),
        peers.Peer("absent", "no", refused="no | task"),
    )
    monkeypatch.setattr(peers, "PEERS", stubs)
    monkeypatch.setattr(peers.Bench, "scripts", scripts)
    monkeypatch.setattr(peers.Bench.__init__, "__defaults__", (scripts,))
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").touch()
    args = argparse.Namespace(
        catalogue=catalogue, weights=weights, envs=tmp_path / "envs", out=tmp_path / "out",
        images=4, test=4, least=2, only=None, minutes=1, name=None, dry=False,
        table_file=tmp_path / "peers.csv",
    )  # fmt: skip
    rows = peers.compare(args)
    recorded = peers.recorded(args.table_file)
    assert [row["peer"] for row in recorded] == ["stub", "absent"]
    assert recorded[0]["catalogue"] == "shop"
    assert (recorded[0]["images"], recorded[0]["test_images"]) == ("4", "4")
    table = peers.markdown(recorded)
    assert table == peers.markdown(rows)
    assert "| stub | 100.0 (" in table
    assert "| absent | skipped: no / task |" in table


def test_the_table_has_the_last_catalogue_and_the_latest_row_of_each_peer(modules, tmp_path):
    peers = modules[0]
    path = tmp_path / "peers.csv"
    sizes = [("one", 9), ("two", 9), ("one", 9), ("one", 8), ("one", 9)]
    names = ["a", "a", "b", "b", "a"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*peers.SIZE, "peer", "row"])
        for row, (name, (shop, images)) in enumerate(zip(names, sizes, strict=True)):
            writer.writerow([shop, images, 5, 4, 3, name, row])
    assert [(row["peer"], row["row"]) for row in peers.recorded(path)] == [("a", "4"), ("b", "2")]
    with pytest.raises(SystemExit, match="does not exist; run the peers first"):
        peers.recorded(tmp_path / "none.csv")


# --- scripts ------------------------------------------------------------------------------------


@pytest.fixture
def embeddings(tmp_path, monkeypatch):
    """What ``embed.py`` leaves, of a task that can be learned, and the folder of a peer."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((160, 6)).astype(np.float32)
    Y = (X[:, :3] + 0.3 * rng.standard_normal((160, 3)) > (0, 0.5, 1)).astype(np.float32)
    (tmp_path / "embed").mkdir()
    ids = np.array([f"i{k}" for k in range(60)])
    parts = {"X_train": X[:100], "Y_train": Y[:100], "X_test": X[100:], "Y_test": Y[100:]}
    np.savez(tmp_path / "embed/embeddings.npz", ids=ids, tags=["a", "b", "c"], **parts)
    folder = tmp_path / "peer"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return parts


def check_learned(truth):
    """The scores that a script wrote; most of them fit the labels."""
    with np.load("scores.npz") as file:
        found = dict(file)
    assert found["image_ids"].tolist() == [f"i{k}" for k in range(60)]
    assert found["tags"].tolist() == ["a", "b", "c"]
    given = found["scores"] >= found["thresholds"]
    assert ((given == (truth == 1)).mean(axis=0) > 0.75).all()
    return found


@pytest.mark.parametrize("script", ["sklearn_half.py", "sklearn_tuned.py"])
def test_scikit_learns_scripts_learn_the_task(script, embeddings, monkeypatch):
    defaults = TunedThresholdClassifierCV.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "thresholds", 10)  # of 100, for speed
    with joblib.parallel_config(backend="threading"):
        runpy.run_path(str(SCRIPTS / script))
    found = check_learned(embeddings["Y_test"])
    assert (found["thresholds"] == 0.5).all() == (script == "sklearn_half.py")


def test_joint_lbfgs_learns_the_task_by_the_objective_of_logistic_regression(
    embeddings, monkeypatch
):
    """The objective is scikit-learn's, divided by the number of cells."""
    strengths = np.logspace(-6, 4, 40)[[0, 20]]
    monkeypatch.setattr(np, "logspace", lambda *_: strengths)  # two of 40, for speed
    fit = runpy.run_path(str(SCRIPTS / "joint_lbfgs.py"))["fit"]
    assert (check_learned(embeddings["Y_test"])["thresholds"] == 0.5).all()
    X, Y = (torch.from_numpy(embeddings[name]) for name in ("X_train", "Y_train"))
    layer = fit(X, Y, 0.1)
    for tag in range(3):
        model = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(X, Y[:, tag])
        ours = layer.weight[tag].detach().numpy()
        np.testing.assert_allclose(ours, model.coef_[0], atol=0.02)


def test_the_data_set_of_the_scripts_agrees_with_the_catalogue(bench):
    spec = importlib.util.spec_from_file_location("photographs", SCRIPTS / "photographs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    catalog = read_catalog(bench.catalogue)
    for split in ("train", "test"):
        photographs = module.Photographs(bench.catalogue, split)
        rows = catalog.rows(split)
        assert tuple(photographs.tags) == catalog.table.tags
        assert photographs.ids.tolist() == catalog.image_ids[rows].tolist()
        np.testing.assert_array_equal(photographs.labels, catalog.table.labels[rows])
        image, labels = photographs[0]
        assert image.shape == (3, 224, 224)
        assert labels.tolist() == photographs.labels[0].tolist()


def test_retailtags_own_predictions_are_scored_alike(modules, bench):
    catalog = read_catalog(bench.catalogue)
    modules[0].measure(bench, modules[0].Peer("stub", "numpy", ("scorer.py",)), catalog, {})
    file = bench.out / "stub" / "scores.npz"
    own = foreign_predictions(file, catalog, Declared(scores="probabilities"), "test")
    own.save(file.with_name("predictions.npz"))
    card = modules[0].scored(file.with_name("predictions.npz"), catalog)
    assert card.tags == score_predictions(own, catalog).tags
    assert card.tags == modules[0].scored(file, catalog).tags
