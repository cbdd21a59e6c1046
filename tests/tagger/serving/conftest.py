"""A small fitted model in a folder, and a real server of it."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from retailtag.backbones.factory import load_backbone
from retailtag.probes.artefact import Probe
from retailtag.tagger.drift.properties import OF_FILE, pixel_properties
from retailtag.tagger.drift.reference import FILE, Reference, model_digest
from retailtag.tagger.drift.sample import Sample, confidences_of, given_cells
from retailtag.tagger.tagger import Tagger

TAGS = ("colour:red", "<b>striped</b>", "cotton", "café")
# The model waits while the file `hold` exists, so that tests decide what is in flight.
SCRIPT = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
from retailtag.tagger.serving import server
model = server._Model.__call__
def held(*given):
    (folder / "computing").touch()
    while (folder / "hold").exists():
        time.sleep(0.01)
    return model(*given)
server._Model.__call__ = held
from retailtag.cli.main import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A probe of random weights that gives an image about half of its tags."""
    backbone = load_backbone("demo:cnn")
    rng = np.random.default_rng(0)
    facts = {
        "backbone": "demo:cnn",
        "features": backbone.spec().digest,
        "stored_as": {"engine": "eager-float32", "dtype": "float32"},
        "thresholds": {"rule": "per-tag", "objective": "f1"},
    }
    weight = rng.normal(size=(len(TAGS), backbone.dim)).astype(np.float32)
    zeros = np.zeros(len(TAGS), np.float32)
    folder = tmp_path_factory.mktemp("model")
    probe = Probe(TAGS, weight, zeros, zeros, np.ones(len(TAGS)), facts=facts)
    probe.save(folder)
    tagger = Tagger((backbone,), probe, "probe")
    Reference(_sample(tagger), TAGS, model_digest(tagger), "of the tests").save(folder / FILE)
    return folder


def _sample(tagger: Tagger, n: int = 30) -> Sample:
    """Images of noise, as the model sees them."""
    pixels = np.random.default_rng(1).integers(0, 256, (n, 40, 48, 3), np.uint8)
    embeddings = tagger.embeddings([tagger.preprocessed(Image.fromarray(p)) for p in pixels])
    logits = tagger.head.logits(embeddings)
    given = given_cells(tagger, logits)
    of_pixels = np.stack([pixel_properties(p) for p in pixels])
    of_files = np.zeros((n, len(OF_FILE)))
    names = np.array([str(i) for i in range(n)])
    return Sample(
        embeddings=embeddings,
        given=given,
        confidences=confidences_of(logits, given),
        properties=np.concatenate([of_pixels, of_files], axis=1),
        kinds=np.full(n, "PNG"),
        group=names,
        names=names,
        digests=np.arange(n, dtype=np.uint64),
        has_groups=False,
    )


@dataclass
class Served:
    """A server in a process of its own."""

    folder: Path
    process: object
    facts: dict = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.facts["url"]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.text("out").endswith("\n") or not self.process.is_alive())
        self.facts = json.loads(self.text("out"))

    def text(self, name: str) -> str:
        with suppress(FileNotFoundError):
            return (self.folder / name).read_text(encoding="utf-8")
        return ""

    def log(self) -> list[dict]:
        whole, _, _ = self.text("err").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def line_of(self, request_id: str) -> dict:
        """Line of the log on a request, which is written once its answer is sent."""
        found: list[dict] = []

        def is_there() -> bool:
            found[:] = [line for line in self.log() if line.get("request_id") == request_id]
            return bool(found)

        wait_for(is_there)
        return found[-1]

    def hold(self) -> None:
        """Let the model wait, from its next batch on."""
        (self.folder / "computing").unlink(missing_ok=True)
        (self.folder / "hold").touch()

    def wait_until_held(self) -> None:
        wait_for((self.folder / "computing").exists)

    def release(self) -> None:
        (self.folder / "hold").unlink(missing_ok=True)

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, trust_env=False)


def wait_for(condition, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory, model_folder, fork_script):
    """Start a server with options; it is killed at the end of the session if it still runs."""
    started = []

    def start(*options: object) -> Served:
        folder = tmp_path_factory.mktemp("server")
        common = ("serve", model_folder, "--port", 0, "--workers", 1, "--json", "--quiet")
        served = Served(folder, fork_script(SCRIPT, folder, *common, *options))
        started.append(served)
        served.wait_until_ready()
        return served

    yield start
    for served in started:
        served.process.kill()
        served.process.join()
