"""Extraction on Ray Data gives the very store that one process writes, whatever dies meanwhile."""

import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

import retailtag as rt
from retailtag.cli.main import run
from retailtag.errors import Unavailable, UsageError
from retailtag.extraction import cluster as module
from retailtag.extraction.cluster import Cluster, Origin, _Recipe, connected
from retailtag.extraction.costs import ExtractCost
from retailtag.extraction.embed import Block, BlockRequest, Loading
from retailtag.extraction.verify import SOUND, verify
from retailtag.images.loader import Failure
from retailtag.images.memory import MemoryImages
from retailtag.settings import ComputeSettings

BACKBONE, OTHER = "demo:cnn", "demo:clip"
# Ray Data's own, and of the processes that it starts
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
N_BLOCKS = 18  # of 8 images: the catalogue has 140


@pytest.fixture(scope="module")
def ray():
    """A cluster of one CPU, for all tests: it takes seconds to start."""
    pytest.importorskip("ray.data", reason="Ray is not installed: pip install 'retailtag[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("retailtag.extraction.extract.IMAGES_PER_BLOCK", 8)
    monkeypatch.setattr(module, "IMAGES_PER_HASHING", 32)


@pytest.fixture(scope="module")
def shop(tiny_csv, tmp_path_factory):
    """The catalogue `tiny` in two tar files; one is damaged in the middle and holds a web page."""
    folder = tmp_path_factory.mktemp("shop")
    names = sorted(p.name for p in (tiny_csv.parent / "images").iterdir())
    for number, half in enumerate((names[:70], names[70:])):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for name in half:
                data = (tiny_csv.parent / "images" / name).read_bytes()
                data = b"<html>" if name == names[9] else data
                member = tarfile.TarInfo(f"images/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    rows = tiny_csv.read_text().splitlines()
    (folder / "catalogue.csv").write_text("\n".join([rows[0], *sorted(rows[1:])]) + "\n")
    damaged = bytearray((folder / "0.tar").read_bytes())
    start = damaged.find(b"\x89PNG", len(damaged) // 2) + 100
    damaged[start : start + 200] = bytes(200)
    (folder / "0.tar").write_bytes(damaged)
    return folder


def options(shop, features):
    images = [shop / "0.tar", shop / "1.tar"]
    return {"images": images, "features": features, "workers": 1, "device": "cpu"}


def extracted(shop, features, backbones=(BACKBONE,), **more):
    given = options(shop, features) | more
    return rt.extract(shop / "catalogue.csv", backbones, **given).summaries


@pytest.fixture(scope="module")
def alone(shop, tmp_path_factory):
    """What one process extracts, by two backbones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retailtag.extraction.extract.IMAGES_PER_BLOCK", 8)
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # as an actor of one CPU has: the last digits depend on it
        try:
            return extracted(shop, tmp_path_factory.mktemp("alone"), (OTHER, BACKBONE))
        finally:
            torch.set_num_threads(before)


def segments(path):
    return {file.name: file.read_bytes() for file in Path(path).glob("*.h5")}


class Listening:
    """A progress that calls a function after each block, with the number of blocks so far."""

    def __init__(self, on_block=lambda n: None):
        self.said = []
        self._on_block = on_block
        self._n = 0

    @contextmanager
    def task(self, name, total, unit="images"):
        yield self._advance

    def _advance(self, n, note=""):
        self._n += 1
        self._on_block(self._n)

    def say(self, line):
        self.said.append(line)


def test_the_command_writes_the_stores_of_one_process(ray, shop, alone, tmp_path, capsys):
    words = ["extract", "--ray", str(shop / "catalogue.csv"), f"--backbones={OTHER},{BACKBONE}"]
    words += [f"--features={tmp_path}", "--workers=1", "--device=cpu", "--json"]
    words += [f"--images={shop / name}" for name in ("0.tar", "1.tar")]
    assert run(words) == 0
    told = capsys.readouterr()
    for store, of_one in zip(json.loads(told.out)["stores"], alone, strict=True):
        assert segments(store["store"]) == segments(of_one.store.path)
        assert len(segments(store["store"])) == N_BLOCKS
        assert (store["absent"], store["n_computed"]) == (of_one.absent, of_one.n_computed)
        assert store["images_per_second"] * store["seconds"] > store["n_computed"]
        assert store["why_engine"] == "not measured here: name another with --engine"
        assert verify(tmp_path / Path(store["store"]).name).verdict == SOUND
    assert len(alone[0].absent) >= 2  # in the tar that is damaged, and a web page
    assert "Ray: 1 actors on CPUs, 1 CPUs each" in told.err


def map_workers():
    """Processes of the actors."""
    running = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                running.append(process)
    return running


def kill_a_new_one(killed):
    """Kill an actor while it loads its model: later it could have computed every block."""
    before = {process.pid for process in map_workers()}
    while not killed:
        for process in map_workers():
            if process.pid not in before:
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)


def test_what_a_killed_actor_and_a_killed_run_left_is_continued(ray, shop, alone, tmp_path):
    killed = []
    killer = threading.Thread(target=kill_a_new_one, args=[killed], daemon=True)

    def disturb(n):
        if n == N_BLOCKS - 5:
            raise KeyboardInterrupt

    progress = Listening(disturb)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        extracted(shop, tmp_path, ray=True, progress=progress)
    killer.join()
    assert killed
    assert "Ray has started an actor again whose process or node ended." in progress.said
    (path,) = (file.parent for file in tmp_path.glob("*/spec.json"))
    before = segments(path)
    assert N_BLOCKS - 7 <= len(before) < N_BLOCKS
    (found,) = extracted(shop, tmp_path, ray=True)
    assert 0 < found.n_reused < found.n_reused + found.n_computed == alone[1].n_computed
    assert segments(path) == segments(alone[1].store.path)
    assert before.items() <= segments(path).items()


def test_images_that_no_node_sees_are_refused(shop):
    images = rt.read_catalog(shop / "catalogue.csv", images=[shop / "0.tar", shop / "1.tar"]).images
    cluster = Cluster([], "cpu", 1, 1, 1, lambda line: None)
    request = BlockRequest(np.array([20, 21]), ())
    unseen = [Failure(i, None, "is missing") for i in range(2)]
    block = Block(np.array([], np.intp), [], np.empty((0, 3), np.float32), unseen, ExtractCost())
    with pytest.raises(Unavailable, match=r"p010-0\.png can be read where extract runs but not on"):
        cluster._check_visible(images, request, block)
    broken = [Failure(i, "ab" * 32, "is no image") for i in range(2)]
    cluster._check_visible(images, request, replace(block, failures=broken))
    images.faults = {20: "is missing"}  # here too
    cluster._check_visible(images, request, block)


def test_an_error_on_a_node_is_an_answer(alone):
    """It would be a traceback of Ray's otherwise."""
    recipe = _Recipe(Origin("demo:nothing"), alone[0].store.spec)
    payload = pickle.dumps((MemoryImages(Path("shop"), ["a"], [b""]), [0]))
    table = module._Embedding([recipe], Loading(), "cpu")(pa.table({"payload": [payload]}))
    answer = module._payload(table)
    assert isinstance(answer, UsageError)
    assert "demo:nothing" in str(answer)


def test_a_node_with_another_model_is_refused(alone):
    other = replace(alone[1].store.spec, weights_sha256="cd" * 32)
    with pytest.raises(Unavailable, match=r"A node of Ray loads another demo:cnn: .*weights"):
        _Recipe(Origin(BACKBONE), other).embedder("cpu")


@pytest.mark.parametrize(
    ("nodes", "compute", "expected"),
    [
        ([{"CPU": 16}, {"CPU": 4}], {}, ("cpu", 4, 4, 5)),
        ([{"CPU": 16}], {}, ("cpu", 8, 8, 2)),
        ([{"CPU": 16}], {"workers": 3}, ("cpu", 3, 3, 5)),
        ([{"CPU": 2}], {"workers": 0}, ("cpu", 1, 0, 2)),
        ([{"CPU": 32, "GPU": 4}, {"CPU": 8}], {}, ("cuda", 8, 8, 4)),
        ([{"CPU": 32, "GPU": 4}, {"CPU": 8}], {"device": "cpu"}, ("cpu", 8, 8, 5)),
        ([{"CPU": 96, "GPU": 1}], {"device": "cuda"}, ("cuda", 16, 16, 1)),
        ([{"CPU": 8, "GPU": 8}], {"workers": 4}, ("cuda", 4, 4, 2)),
    ],
)
def test_actors_share_the_nodes(ray, monkeypatch, nodes, compute, expected):
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead])
    found = module._cluster([], ComputeSettings(**compute), lambda line: None)
    assert (found.device, found.cpus, found.workers, found.n_actors) == expected


@pytest.mark.parametrize(
    ("nodes", "compute", "sentence"),
    [
        ([{"CPU": 8}], {"device": "cuda"}, "--device cuda: no node of the Ray cluster has a GPU"),
        ([{"CPU": 8}], {"workers": 9}, "--workers 9: no node of the Ray cluster has as many CPUs"),
        ([{}], {}, "has no node with a CPU"),
    ],
)
def test_what_a_cluster_lacks_is_one_sentence(ray, monkeypatch, nodes, compute, sentence):
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    with pytest.raises(Unavailable, match=sentence):
        module._cluster([], ComputeSettings(**compute), lambda line: None)


def test_without_ray_one_sentence_says_what_to_install(shop, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r"pip install 'retailtag\[ray\]'"):
        extracted(shop, tmp_path, ray=True)
    assert list(tmp_path.iterdir()) == []


def test_ray_client_is_refused(shop, tmp_path):
    with pytest.raises(UsageError, match=r"--ray ray://head:10001: .* --ray auto, or give HOST"):
        extracted(shop, tmp_path, ray="ray://head:10001")


def test_what_ray_prints_on_stdout_is_no_part_of_the_result(monkeypatch, capsys):
    ray = pytest.importorskip("ray")
    ended = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(sys.stdout.write("ended\n")))
    monkeypatch.setattr(module, "_connect", lambda address: None)
    monkeypatch.setattr(module, "_cluster", lambda *given: None)
    with connected("local", [], ComputeSettings()):
        sys.stdout.write("(raylet) A worker died\n")
    assert ended
    assert capsys.readouterr() == ("", "(raylet) A worker died\nended\n")


def test_what_is_no_address_is_refused(shop, tmp_path):
    with pytest.raises(UsageError, match="--ray catalogue is no address; give HOST:PORT, auto"):
        extracted(shop, tmp_path, ray="catalogue")


def test_an_address_where_nothing_listens_is_one_sentence():
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(Unavailable, match=f"--ray {address}: nothing answers there"):
        module._connect(address)


def test_nothing_of_ray_is_imported_otherwise():
    code = "import retailtag.extraction.cluster, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
