"""The page in a real browser, against a real server: files are chosen, sent and shown."""

import fcntl
import json
import os
import shutil
import signal
from contextlib import contextmanager
from itertools import count

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Debian's package chromium")

WIDTHS = (390, 1280)


class Page:
    """A page of a browser, spoken to by the DevTools protocol over pipes."""

    def __init__(self, commands, answers):
        self._commands, self._answers = commands, answers
        self._numbers = count(1)
        self._session = None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser ended"
            text += byte
        return json.loads(text)

    def wait(self, method):
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._next())

    def run(self, script):
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def complaints(self):
        """What the page or the browser complained of."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Network.loadingFailed")
        return [event for event in self.events if event["method"] in kinds]


@contextmanager
def _browser(folder):
    theirs_in, commands = os.pipe()
    answers, theirs_out = os.pipe()
    arguments = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-proxy-server",
        f"--user-data-dir={folder}", "--remote-debugging-pipe",
    )  # fmt: skip
    # It reads commands from 3 and writes answers to 4; copies from 10 on are in nobody's way.
    reads, writes = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out))
    streams = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    pipes = [(os.POSIX_SPAWN_DUP2, reads, 3), (os.POSIX_SPAWN_DUP2, writes, 4)]
    pid = os.posix_spawn(
        BROWSER, [BROWSER, *arguments], os.environ, file_actions=[*streams, *pipes]
    )
    for fd in (theirs_in, theirs_out, reads, writes):
        os.close(fd)
    try:
        with os.fdopen(commands, "wb") as writing, os.fdopen(answers, "rb") as reading:
            yield Page(writing, reading)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


SHOWN = """({
  width: document.documentElement.scrollWidth,
  unlabelled: [...document.querySelectorAll("input")].filter((i) => !i.labels.length).length,
  small: [...document.querySelectorAll("input, button")].filter(
    (i) => i.getBoundingClientRect().height < 44).length,
  alert: document.querySelector("[role=alert]").textContent,
  status: document.querySelector("[role=status]").textContent,
  items: [...document.querySelectorAll("#found > li")].map((item) => ({
    name: item.querySelector("h3").textContent,
    tags: [...item.querySelectorAll("dt")].map((tag) => tag.textContent),
    text: item.textContent,
    seen: item.querySelector("img").naturalWidth,
  })),
})"""
DONE = """new Promise((done) => {
  const button = document.querySelector("button");
  const look = () => (button.disabled ? setTimeout(look, 10) : setTimeout(done, 50));
  look();
})"""


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("--max-images", 3)


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    with _browser(tmp_path_factory.mktemp("browser")) as page:
        page.call("Page.navigate", url=f"{server.url}/docs")
        page.wait("Page.loadEventFired")
        yield page


def _send(page, *files):
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#images")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])
    page.run('document.querySelector("button").click()')
    page.run(DONE)


@pytest.fixture(scope="module")
def files(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("files")
    for i in range(4):
        (folder / f"{i}<b>.jpg").write_bytes(picture(60 * i))
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("width", WIDTHS)
def test_files_are_sent_and_their_tags_shown(page, server, files, width):
    page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
        mobile=width < 500,
    )  # fmt: skip
    sent = [files / "0<b>.jpg", files / "1<b>.jpg", files / "broken.jpg"]
    _send(page, *sent)
    shown = page.run(SHOWN)
    assert shown["width"] <= width
    assert shown["unlabelled"] == shown["small"] == 0
    assert shown["alert"] == ""
    assert shown["status"].startswith("Tagged by demo:cnn probe, version")
    form = [("images", (path.name, path.read_bytes())) for path in sent]
    with server.client() as client:
        expected = client.post("/predict", files=form).json()["images"]
    for item, image in zip(shown["items"], expected, strict=True):
        assert item["name"] == image["name"]
        assert item["tags"] == [tag["tag"] for tag in image["tags"] or ()]
        assert (item["seen"] > 0) is (image["error"] is None)
        assert (image["error"] or "") in item["text"]
    assert not page.complaints()


def test_a_refusal_is_said_and_nothing_shown(page, files):
    _send(page, *(files / f"{i}<b>.jpg" for i in range(4)))
    shown = page.run(SHOWN)
    assert shown["alert"] == "The request has more than 3 images; send fewer at once."
    assert shown["items"] == []
    assert shown["status"] == ""
