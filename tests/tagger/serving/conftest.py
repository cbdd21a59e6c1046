"""A small fitted model in a folder, and a real server of it."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import pytest

from retailtag.backbones.factory import load_backbone
from retailtag.probes.artefact import Probe

TAGS = ("colour:red", "<b>striped</b>", "cotton", "café")
# The model waits while the file `hold` exists, so that tests decide what is in flight.
SCRIPT = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
from retailtag.tagger.serving import server
tags = server._tags
def held(*given):
    (folder / "computing").touch()
    while (folder / "hold").exists():
        time.sleep(0.01)
    return tags(*given)
server._tags = held
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
    Probe(TAGS, weight, zeros, zeros, np.ones(len(TAGS)), facts=facts).save(folder)
    return folder


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
        return [json.loads(line) for line in self.text("err").splitlines()]

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
