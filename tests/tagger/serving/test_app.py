"""The routes, with a stand-in for the model: answers, limits, key, metrics, page."""

import json
import logging
import re

import pytest
from starlette.testclient import TestClient

from retailtag.errors import UnreadableImage
from retailtag.tagger.serving.answers import ModelFacts
from retailtag.tagger.serving.app import Service, make_app
from retailtag.tagger.serving.batching import Batcher, Sizes
from retailtag.tagger.serving.metrics import Metrics
from retailtag.tagger.serving.reading import Limits
from retailtag.tagger.serving.trace import JsonLines, Stopping

FACTS = ModelFacts(name="demo:cnn probe", version="0123456789ab", operating_point="default")
KEY = "a-key-of-enough-letters"
JPEG = {"Content-Type": "image/jpeg"}


def _decode(data):
    if data == b"bad":
        raise UnreadableImage("is damaged; fetch it again.")
    if data == b"defect":
        raise ValueError("secret")
    return data.decode()


def _service(api_key="", queue=100):
    metrics = Metrics(FACTS.model_dump(), ["colour:red", "<b>"])
    batcher = Batcher(
        _decode,
        lambda pixels: [{"colour:red": 0.9, "<b>": 0.25} if p != "none" else {} for p in pixels],
        Sizes(8, queue, 1),
        metrics,
    )
    return Service(FACTS, Limits(3, 1000, 5.0), batcher, metrics, Stopping(), api_key)


@pytest.fixture
def serve():
    """Client of the application of a service, which is closed at the end."""
    clients = []

    def serve(**options):
        service = _service(**options)
        client = TestClient(make_app(service), raise_server_exceptions=False)
        clients.append(client.__enter__())
        client.service = service
        return client

    yield serve
    for client in clients:
        client.__exit__(None, None, None)


def _form(*images):
    return [("images", (f"{i}.jpg", image, "image/jpeg")) for i, image in enumerate(images)]


def test_a_form_of_several_images_and_an_unreadable_one(serve):
    answer = serve().post("/predict", files=_form(b"a", b"bad", b"none"))
    assert answer.status_code == 200
    found = answer.json()
    assert found["model"] == FACTS.model_dump()
    tags = [{"tag": "colour:red", "probability": 0.9}, {"tag": "<b>", "probability": 0.25}]
    assert found["images"] == [
        {"name": "0.jpg", "tags": tags, "error": None},
        {"name": "1.jpg", "tags": None, "error": "is damaged; fetch it again."},
        {"name": "2.jpg", "tags": [], "error": None},
    ]


@pytest.mark.parametrize("kind", ["image/jpeg", "image/x-own; q=1", "application/octet-stream", ""])
def test_a_raw_body_is_one_image(serve, kind):
    answer = serve().post("/predict", content=b"a", headers={"Content-Type": kind} if kind else {})
    (image,) = answer.json()["images"]
    assert image["name"] is None
    assert image["tags"][0]["tag"] == "colour:red"


def _many(n):
    return _form(*[b"a"] * n)


@pytest.mark.parametrize(
    ("status", "sentence", "request_"),
    [
        (400, "The image is damaged; fetch it again.", {"content": b"bad", "headers": JPEG}),
        (400, "The request has no body", {"content": b"", "headers": JPEG}),
        (400, "The form has no file", {"data": {}, "files": {}, "headers": {
            "Content-Type": "multipart/form-data; boundary=x"}, "content": b"--x--\r\n"}),
        (400, "field url is no file", {"data": {"url": "http://other/a.jpg"}, "files": _many(1)}),
        (400, "Missing boundary", {"content": b"a", "headers": {
            "Content-Type": "multipart/form-data"}}),
        (400, "cannot be read", {"content": b"nonsense", "headers": {
            "Content-Type": "multipart/form-data; boundary=x"}}),
        (413, "more than 3 images", {"files": _many(4)}),
        (413, "larger than", {"content": b"x" * 1001, "headers": JPEG}),
        (413, "larger than", {"content": iter([b"x" * 600] * 2), "headers": JPEG}),
        (415, "Content-Type text/plain is not accepted", {"content": b"a", "headers": {
            "Content-Type": "text/plain"}}),
        (415, "application/json", {"json": {"url": "http://other/a.jpg"}}),
    ],
)  # fmt: skip
def test_what_is_refused_gets_one_sentence(serve, status, sentence, request_):
    client = serve()
    answer = client.post("/predict", **request_)
    assert answer.status_code == status
    assert answer.json().keys() == {"request_id", "error"}
    assert sentence in answer.json()["error"]
    assert client.post("/predict", content=b"a", headers=JPEG).status_code == 200


def test_a_form_cut_off_is_refused_or_has_its_whole_files_only(serve):
    body = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\na\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    client = serve()
    whole = client.post("/predict", content=body, headers=headers)
    assert whole.status_code == 200
    for size in range(len(body) - 4):
        cut = client.post("/predict", content=body[:size], headers=headers)
        assert cut.status_code == 400, size


def test_too_many_images_waiting_are_told_when_to_come_again(serve):
    client = serve(queue=2)
    answer = client.post("/predict", files=_many(3))
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1
    assert "try again in" in answer.json()["error"]


def test_held_bytes_are_limited_over_all_requests(serve):
    client = serve()
    app = client.app
    assert client.post("/predict", content=b"a" * 100, headers=JPEG).status_code == 200
    bodies = next(
        cell.cell_contents
        for route in app.routes
        if getattr(route, "path", "") == "/predict"
        for cell in route.endpoint.__closure__
        if hasattr(cell.cell_contents, "held")
    )
    assert bodies.held == 0
    bodies.held = 8 * 1000
    answer = client.post("/predict", content=b"a", headers=JPEG)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1"
    assert bodies.held == 8 * 1000


def test_no_answer_holds_a_traceback(serve, caplog):
    answer = serve().post("/predict", content=b"defect", headers=JPEG | {"X-Request-ID": "me-7"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == "me-7"
    reasons = [r.exc_info[1].args[0] for r in caplog.records if r.exc_info]
    assert reasons == ["secret", "secret"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_3:4", True), ("", False), ("a b", False), ("x" * 129, False), ("a\tb", False)],
)
def test_request_ids_are_taken_over_if_they_are_sane(serve, given, kept):
    answer = serve().get("/healthz", headers={"X-Request-ID": given} if given else {})
    found = answer.headers["X-Request-ID"]
    assert (found == given) is kept
    assert kept or re.fullmatch("[0-9a-f]{32}", found)


def test_unknown_routes_and_methods_are_one_sentence(serve):
    client = serve()
    for answer, status in ((client.get("/other"), 404), (client.get("/predict"), 405)):
        assert answer.status_code == status
        assert answer.json()["error"].endswith("see /docs.")
    assert client.get("/assets/app.py").status_code == 404


def test_the_key_guards_tags_and_metrics(serve):
    client = serve(api_key=KEY)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"},
                    {"Authorization": "Bearer caf\u00e9".encode()}):  # fmt: skip
        answer = client.post("/predict", content=b"a", headers=JPEG | headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert client.get("/metrics", headers=headers).status_code == 401
    right = {"Authorization": f"Bearer {KEY}"}
    assert client.post("/predict", content=b"a", headers=JPEG | right).status_code == 200
    assert client.get("/metrics", headers=right).status_code == 200
    for route in ("/", "/docs", "/healthz", "/readyz", "/openapi.json"):
        assert client.get(route).status_code == 200
    assert 'type="password"' in client.get("/").text
    assert "password" not in serve().get("/").text


def test_metrics_count_what_was_answered(serve):
    client = serve()
    client.post("/predict", files=_form(b"a", b"bad", b"none"))
    client.post("/predict", content=b"", headers=JPEG)
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    for line in (
        'retailtag_requests_total{route="/predict",status="200"} 1.0',
        'retailtag_requests_total{route="/predict",status="400"} 1.0',
        "retailtag_request_seconds_count 1.0",
        "retailtag_decode_seconds_count 3.0",
        "retailtag_batch_images_sum 2.0",
        "retailtag_queue_images 0.0",
        'retailtag_images_total{result="tagged"} 1.0',
        'retailtag_images_total{result="untagged"} 1.0',
        'retailtag_images_total{result="unreadable"} 1.0',
        'retailtag_tags_total{tag="colour:red"} 1.0',
    ):
        assert line in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)


def test_a_server_that_stops_is_not_ready_and_takes_nothing_new(serve):
    client = serve()
    assert client.get("/readyz").json() == {"status": "ok"}
    client.service.state.stopping = True
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    answer = client.post("/predict", content=b"a", headers=JPEG)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"


def test_openapi_describes_requests_and_answers(serve):
    document = serve(api_key=KEY).get("/openapi.json").json()
    predict = document["paths"]["/predict"]["post"]
    assert predict["requestBody"]["content"].keys() == {
        "multipart/form-data", "image/*", "application/octet-stream",
    }  # fmt: skip
    assert predict["security"] == [{"HTTPBearer": []}]
    assert {"200", "400", "401", "408", "413", "415", "429", "503"} <= predict["responses"].keys()
    assert "probability" in document["components"]["schemas"]["GivenTag"]["properties"]


def test_the_page_needs_no_other_host(serve):
    client = serve()
    page = client.get("/docs")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    linked = re.findall(r'(?:src|href|action)="([^"]*)"', page.text)
    own = {"assets/upload.css", "assets/upload.js", "openapi.json", "predict"}
    assert set(linked) == own | {"data:,"}
    for name, kind in (("upload.css", "text/css"), ("upload.js", "text/javascript")):
        answer = client.get(f"/assets/{name}")
        assert answer.headers["Content-Type"].startswith(kind)
        assert "//" not in re.sub(r"^\s*//.*$", "", answer.text, flags=re.MULTILINE)


def test_log_lines_are_json_whatever_they_say():
    record = logging.makeLogRecord(
        {"msg": "two\nlines", "levelname": "INFO", "path": "/\x1b[2J", "request_id": "7"}
    )
    line = JsonLines().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["message"] == "two\nlines"
    assert json.loads(line)["request_id"] == "7"
