"""What every test may use: the reference implementations and the real data, where present."""

import csv
import gc
import importlib.util
import io
import multiprocessing
import os
import pickle
import socket
import sys
import tarfile
import uuid
import zipfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retailtag.allocator import keep_freed_memory

keep_freed_memory()  # as the program does; networks on a CPU run faster

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
FASHION = SHARED / "data" / "fashion"


def _load_reference() -> None:
    """Make `tests/reference/*.py` importable as `reference.*` without packages in tests."""
    for path in sorted((ROOT / "tests" / "reference").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"reference_{path.stem}"] = module
        spec.loader.exec_module(module)


_load_reference()


@pytest.fixture(scope="session", autouse=True)
def _state_of_all(tmp_path_factory):
    """Keep what retailtag remembers between runs out of the real home, shared fixtures' too."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAILTAG_STATE", str(folder / "shared"))
        yield folder


@pytest.fixture(autouse=True)
def state(_state_of_all, monkeypatch) -> Path:
    """Folder of what retailtag remembers, new and empty for every test (not created yet)."""
    folder = _state_of_all / uuid.uuid4().hex
    monkeypatch.setenv("RETAILTAG_STATE", str(folder))
    return folder


def pytest_collection_modifyitems(items):
    """Run files of whole commands first: one of them at the end would leave other workers idle."""
    items.sort(key=lambda item: len(item.path.relative_to(ROOT).parts))  # stable; tests/*.py first


def pytest_unconfigure():
    gc.unfreeze()  # else libraries report at the exit what they take for leaks


@pytest.fixture(scope="module", autouse=True)
def _freeze_what_is_loaded():
    """Keep garbage collections short: stages ask for them, and libraries are a million objects."""
    gc.collect(1)
    gc.freeze()


@pytest.fixture(scope="session")
def fashion() -> Path:
    """Folder of the real catalogue; the test is skipped where it is absent."""
    if not (FASHION / "catalogue.csv").exists():
        pytest.skip("the real catalogue (../shared/data/fashion) is not on this machine")
    return FASHION


COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 200), "grey": (128,) * 3}


def _draw(rng, colour, striped, dotted):
    """One 40x48 picture whose tags can be seen."""
    image = np.full((48, 40, 3), 250, np.uint8)
    image[8:40, 8:32] = COLOURS[colour]
    if striped:
        image[8:40:6, 8:32] = 20
    if dotted:
        image[20:28, 16:24] = 255
    noise = rng.integers(-12, 13, image.shape)
    return Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8))


def write_tiny_catalogue(root: Path, n_products: int = 70, seed: int = 0) -> Path:
    """A catalogue with every oddity of a real one, two images a product; returns the manifest.

    Tags: four colours (a long tail), ``striped``, ``dotted`` (rare), ``product`` (always on),
    ``once`` (a single positive, in training), ``never`` (known everywhere, present nowhere but
    in one test image) and some unknown labels.
    """
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows = [["path", "tags", "tags_unknown", "split", "group", "title"]]
    for product in range(n_products):
        colour = rng.choice(list(COLOURS), p=[0.5, 0.3, 0.15, 0.05])
        striped, dotted = rng.random() < 0.4, rng.random() < 0.08
        split = "test" if product % 4 == 3 else "train"
        for view in range(2):
            name = f"images/p{product:03d}-{view}.png"
            _draw(rng, colour, striped, dotted).save(root / name)
            tags = ["product", f"colour:{colour}"]
            tags += ["striped"] * bool(striped) + ["dotted"] * bool(dotted)
            tags += ["once"] * (product == 0 and view == 0) + ["never"] * (product == 3)
            unknown = "dotted" if product % 10 == 5 and not dotted else ""
            rows.append([name, "|".join(tags), unknown, split, f"p{product}", f"a {colour} thing"])
    with (root / "catalogue.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)
    return root / "catalogue.csv"


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory) -> Path:
    """Manifest of the small world that all stages are tried on; do not write beside it."""
    return write_tiny_catalogue(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_csv):
    """The same, read."""
    from retailtag.catalog.readers import read_catalog

    return read_catalog(tiny_csv)


@pytest.fixture(scope="session")
def small_csv(tmp_path_factory) -> Path:
    """Half of that world, 36 products, for what trains; do not write beside it."""
    return write_tiny_catalogue(tmp_path_factory.mktemp("small"), n_products=36)


@pytest.fixture(scope="session")
def small(small_csv):
    """The same, read."""
    from retailtag.catalog.readers import read_catalog

    return read_catalog(small_csv)


def encoded(shade: int = 0, kind: str = "JPEG", size: tuple[int, int] = (48, 40), **save) -> bytes:
    """A picture with a gradient whose red is `shade`, encoded."""
    x = np.linspace(0, 255, size[0], dtype=np.uint8)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = shade, x
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **save)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture():
    return encoded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RETAILTAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shop(tmp_path) -> Path:
    """A folder with four images under images/ and no manifest."""
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    for i in range(4):
        (folder / "images" / f"{i}.jpg").write_bytes(encoded(40 * i))
    return folder


@pytest.fixture
def pack():
    """Put a folder's images into an archive beside the manifest and delete the files."""

    def move(folder: Path, name: str) -> Path:
        archive = folder / name
        files = sorted((folder / "images").iterdir())
        if name.endswith(".zip"):
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
                for file in files:
                    z.write(file, f"images/{file.name}")
        else:
            mode = "w:" + {".tar": "", "r.xz": "xz", "r.gz": "gz", ".bz2": "bz2"}[name[-4:]]
            with tarfile.open(archive, mode) as t:
                for file in files:
                    t.add(file, f"./images/{file.name}")
        for file in files:
            file.unlink()
        return archive

    return move


@pytest.fixture
def manifest(shop):
    """Write a manifest of the given lines into the shop."""

    def write(*lines: str, name: str = "catalogue.csv") -> Path:
        path = shop / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def _store_of(catalog, features):
    from retailtag.backbones import load_backbone
    from retailtag.context import RunContext
    from retailtag.extraction.extract import extract
    from retailtag.settings import ComputeSettings

    compute = ComputeSettings(device="cpu", features=features)
    return extract(RunContext(catalog, compute=compute), load_backbone("demo:cnn")).store


@pytest.fixture(scope="session")
def tiny_store(tiny, tmp_path_factory):
    """Embeddings of the small world by demo:cnn; read only."""
    return _store_of(tiny, tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="session")
def small_store(small, tmp_path_factory):
    """Embeddings of half of it by demo:cnn; read only."""
    return _store_of(small, tmp_path_factory.mktemp("small-features"))


def _time_few(patch):
    """Let a latency be that of few images."""
    from retailtag.tagger import latency

    for name in ("SINGLE", "BATCHES"):
        patch.setattr(latency, name, latency.Schedule(2, 1, warm_up=1, extra_seconds=0))


@pytest.fixture
def few_timed(monkeypatch):
    """A latency measured in the test is that of few images."""
    _time_few(monkeypatch)


_TICK = count(1)  # a latency that is measured again is another


@contextmanager
def _quick_stages(*, timed: bool = False, drawn: bool = False):
    """Inside, a bake-off draws no report (unless `drawn`) and measures no latency (`timed`: few).

    Nor does it estimate what a T4 would take.

    Both take seconds a run, and most tests only ask whether these stages ran.
    """
    from retailtag.bakeoffs import pairs, stages
    from retailtag.files import write_json
    from retailtag.report.report import Report
    from retailtag.report.write import PICTURES, TABLES

    def write_report(report, out):
        for name in (*PICTURES, *TABLES):
            (out / name).write_bytes(b"picture")
        write_json(out / "bakeoff.json", report.result.to_json())
        (out / "report.html").write_text("page")
        return out / "report.html"

    names = ("latency_ms_p50", "latency_ms_p95", "images_per_second", "parameters", "weights_mib")
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            plain = lambda result, decision, *a, **k: Report(result, decision)  # noqa: E731
            patch.setattr(stages, "illustrated", plain)
            patch.setattr(stages, "write_report", write_report)
        patch.setattr(pairs, "LATENCY_IMAGES", 3)
        patch.setattr(stages, "measure_rates", lambda device: None)
        patch.setattr(stages, "t4_cost", lambda *given: {})
        _time_few(patch)
        if not timed:

            def measured(context, models):
                ticks = [dict.fromkeys(names, next(_TICK)) for _ in models]
                return {m: {**t, "network_seconds": {}} for m, t in zip(models, ticks, strict=True)}

            patch.setattr(stages, "measure_pairs", measured)
        yield


@pytest.fixture(scope="session")
def quick_stages():
    """Context manager for fixtures of a module; see `quick_bakeoffs`."""
    return _quick_stages


@pytest.fixture
def quick_bakeoffs():
    """The last stages of a bake-off write placeholders during the test."""
    with _quick_stages():
        yield


@pytest.fixture(scope="session")
def fork_script():
    """Start a script in a process of its own, which has the libraries loaded already.

    A new interpreter spends seconds on importing torch; the fork server of this session imports it
    once. ``fork_script(code, *args)`` gives the started process; ``sys.argv[1:]`` are the texts of
    `args`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["retailtag.runs.finetune", "retailtag.catalog.readers"])
    head = "import sys; sys.argv[1:] = ARGUMENTS; import torch; torch.set_num_threads(1)\n"

    def start(code: str, *args: object) -> multiprocessing.Process:
        names = {"ARGUMENTS": list(map(str, args)), "__name__": "__main__"}
        process = context.Process(target=exec, args=(head + code, names))
        process.start()
        return process

    return start


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _work_together(work, rank, size, port, out):
    given = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in given.items()})
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    from retailtag.ranks import joined

    with joined("cpu") as ranks:
        out.write_bytes(pickle.dumps(work(ranks)))


@pytest.fixture
def together(tmp_path):
    """Results of `work(ranks)` in `size` processes that are joined, by rank."""

    def run(size, work):
        # Forked: they have the imported libraries and fixtures already.
        fork, port = multiprocessing.get_context("fork"), _free_port()
        outs = [tmp_path / f"rank-{rank}.pickle" for rank in range(size)]
        args = [(work, rank, size, port, out) for rank, out in enumerate(outs)]
        processes = [fork.Process(target=_work_together, args=given) for given in args]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * size
        return [pickle.loads(out.read_bytes()) for out in outs]  # noqa: S301

    return run
