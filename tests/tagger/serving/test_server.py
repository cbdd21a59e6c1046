"""A real server in a process of its own: the model's tags, hostile clients, overload, its end."""

import asyncio
import io
import json
import os
import re
import signal
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image

import retailtag as rt
from retailtag.cli.main import run

JPEG = {"Content-Type": "image/jpeg"}
LIMITS = (
    *("--queue", 4, "--max-request-mib", 0.25, "--timeout", 2),
    *("--max-pixels", 1_000_000, "--max-batch", 2),
)


@pytest.fixture(scope="module")
def server(start_server):
    """A server with narrow limits, which all tests below share."""
    return start_server(*LIMITS)


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def image(picture) -> bytes:
    return picture(90)


def _post(client, body, headers=JPEG):
    return client.post("/predict", content=body, headers=headers)


def _form(*images):
    return [("images", (f"{i}.jpg", image)) for i, image in enumerate(images)]


def _raw(server, request: bytes, seconds: float = 30.0) -> bytes:
    """All that the server answers to some bytes, until it closes the connection."""
    with socket.create_connection(server.address, timeout=seconds) as connection:
        connection.sendall(request)
        return _rest(connection)


def _rest(connection) -> bytes:
    found = b""
    try:
        while chunk := connection.recv(65_536):
            found += chunk
    except ConnectionError:
        pass  # closed with something of ours unread
    return found


def _lives(server, image):
    with server.client() as client:
        assert _post(client, image).status_code == 200
    assert server.process.is_alive()


def _bomb(width=60_000, height=60_000) -> bytes:
    """A PNG of a few bytes that declares billions of pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_its_tags_are_those_of_the_model(client, server, model_folder, picture):
    images = [picture(shade) for shade in (0, 120, 250)]
    expected = rt.load(model_folder, device="cpu").predict(images)
    assert any(expected)
    found = client.post("/predict", files=_form(*images)).json()
    assert found["model"] == {k: v for k, v in server.facts.items() if k != "url"}
    for answer, tags in zip(found["images"], expected, strict=True):
        given = {t["tag"]: t["probability"] for t in answer["tags"]}
        assert list(given) == list(tags)
        assert np.allclose(list(given.values()), list(tags.values()), atol=1e-5)
    (alone,) = _post(client, images[1]).json()["images"]
    assert [t["tag"] for t in alone["tags"]] == list(expected[1])


def test_the_version_says_which_model_it_is(server, model_folder):
    from retailtag.tagger.serving.server import facts_of

    tagger = rt.load(model_folder, device="cpu")
    assert facts_of(tagger).version == server.facts["version"]
    assert facts_of(tagger).operating_point == server.facts["operating_point"] == "f1"
    tagger.head.thresholds[0] += 1
    assert facts_of(tagger).version != server.facts["version"]


def test_drift_is_watched(client, image):
    _post(client, image)
    figures = dict(
        re.findall(r'retailtag_drift{figure="(\w+)"} (\S+)', client.get("/metrics").text)
    )
    assert float(figures["images"]) >= 1
    assert float(figures["embedding_shift"]) > 10  # gradients are no noise
    assert float(figures["sharpness_superiority"]) == 0


def test_a_reference_of_another_model_is_a_warning(model_folder, caplog):
    from retailtag.tagger.serving.server import monitor_of

    tagger = rt.load(model_folder, device="cpu")
    assert monitor_of(model_folder, tagger) is not None
    assert monitor_of(model_folder.parent, tagger) is None  # without a reference
    assert not caplog.records
    tagger.head.bias[0] += 1
    assert monitor_of(model_folder, tagger) is None
    assert "Drift is not watched" in caplog.text


def test_a_decoder_that_dies_costs_no_request(server, client, image):
    _post(client, image)
    for decoder in psutil.Process(server.process.pid).children():
        decoder.kill()
        with suppress(psutil.NoSuchProcess):  # the server may already have seen its end
            while decoder.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
    _lives(server, image)


def test_what_is_no_image_is_a_4xx(client, server, image):
    wrong = io.BytesIO()
    Image.new("RGB", (2000, 1000)).save(wrong, "PNG")
    for body, reason in (
        (image[:-200], "truncated"),
        (b"<!DOCTYPE html>", "web page"),
        (_bomb(), "pixels"),
        (wrong.getvalue(), "above the limit of 1,000,000"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged"),
    ):
        answer = _post(client, body)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]
    more = client.post("/predict", files=_form(*[image] * 5))
    assert more.status_code == 413
    assert "more than 4 images" in more.json()["error"]  # no more than the queue takes
    found = client.post("/predict", files=_form(image, _bomb())).json()["images"]
    assert found[0]["tags"] is not None
    assert "pixels" in found[1]["error"]
    _lives(server, image)


def test_large_headers_and_nonsense_are_refused(server, image):
    for request, status in (
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 400_000, b"400"),  # goes on
        (b"\x16\x03\x01nonsense\r\n\r\n", b"400"),
    ):
        answer = _raw(server, request)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 " + status)
    _lives(server, image)


def test_slow_clients_and_endless_bodies_end(server, image):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    endless = threading.Event()

    def send_for_ever(connection, chunk):
        try:
            while not endless.is_set():
                connection.sendall(chunk)
                time.sleep(0.01)
        except OSError:
            pass  # closed, as it should be

    def ends(start, chunk=b""):
        with socket.create_connection(server.address, timeout=60) as connection:
            connection.sendall(start)
            sender = threading.Thread(target=send_for_ever, args=(connection, chunk))
            if chunk:
                sender.start()
            answer = _rest(connection)
        if chunk:
            sender.join()
        return answer[:12]

    kilobyte = b"400\r\n" + b"x" * 1024 + b"\r\n"
    cases = [
        (b"", b"", b""),  # says nothing
        (b"GET / HTTP/1.1\r\nX-Slow: ", b"a", b""),  # a header byte by byte
        (head + b"Content-Length: 100\r\n\r\nabc", b"", b"HTTP/1.1 408"),  # a body that stays away
        (head + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"HTTP/1.1 408"),
        (head + b"Transfer-Encoding: chunked\r\n\r\n", kilobyte * 64, b"HTTP/1.1 413"),
        # an endless body of a route that reads none: its answer, and then the end
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", kilobyte,
         b"HTTP/1.1 405"),
    ]  # fmt: skip
    with ThreadPoolExecutor(len(cases)) as pool:
        found = list(pool.map(lambda case: ends(*case[:2]), cases))
    endless.set()
    for (_, _, status), answer in zip(cases, found, strict=True):
        # a client that still sends may lose the answer to the reset of its connection
        assert answer in (status, b"")
    assert found[2] == b"HTTP/1.1 408"
    _lives(server, image)


def test_too_much_is_refused_and_what_was_admitted_is_answered(server, client, image):
    _lives(server, image)
    server.hold()
    try:
        with ThreadPoolExecutor(4) as pool:
            admitted = [pool.submit(_post, client, image)]
            server.wait_until_held()
            admitted += [pool.submit(client.post, "/predict", files=_form(image, image, image))]
            while "retailtag_queue_images 4.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            for refused in (
                _post(client, image),
                client.post("/predict", files=_form(image, image)),
            ):
                assert refused.status_code == 429
                assert 1 <= int(refused.headers["Retry-After"]) <= 60
            server.release()
            assert [future.result().status_code for future in admitted] == [200, 200]
    finally:
        server.release()
    assert client.get("/readyz").status_code == 200


def test_a_client_that_hangs_up_leaves_the_queue(server, client, image):
    server.hold()
    try:
        held = threading.Thread(target=_lives, args=(server, image))
        held.start()
        server.wait_until_held()
        length = f"Content-Length: {len(image)}\r\n\r\n"
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n" + length
        with socket.create_connection(server.address) as connection:
            connection.sendall(head.encode() + image)
            while "retailtag_queue_images 2.0" not in client.get("/metrics").text:
                time.sleep(0.01)
    finally:
        server.release()
    held.join()
    while "retailtag_queue_images 0.0" not in client.get("/metrics").text:
        time.sleep(0.01)
    while not any(line.get("status") == 499 for line in server.log()):
        time.sleep(0.01)


def test_the_log_is_json_with_the_request_ids(server, client, image):
    _post(client, image, JPEG | {"X-Request-ID": "mine-1"})
    client.get("/no%1Bne", headers={"X-Request-ID": "mine-2"})

    one, two = server.line_of("mine-1"), server.line_of("mine-2")
    assert one.items() >= {"path": "/predict", "status": 200, "images": 1}.items()
    assert one["bytes"] == len(image)
    assert two.items() >= {"path": "/no\x1bne", "status": 404}.items()
    assert not any("Traceback" in json.dumps(line) for line in server.log())


def test_sigterm_finishes_what_is_in_flight(start_server, image, tmp_path):
    (tmp_path / "key").write_text("correct-horse-battery\n")
    server = start_server("--timeout", 60, "--api-key-file", tmp_path / "key")
    right = JPEG | {"Authorization": "Bearer correct-horse-battery"}
    server.hold()
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        assert _post(client, image).status_code == 401
        in_flight = pool.submit(_post, client, image, right)
        server.wait_until_held()
        os.kill(server.process.pid, signal.SIGTERM)
        with server.client() as other:
            while other.get("/readyz").status_code != 503:
                time.sleep(0.01)
            assert _post(other, image, right).status_code == 503
        server.release()
        answer = in_flight.result()
    assert answer.status_code == 200
    assert answer.json()["images"][0]["tags"] is not None
    server.process.join(60)
    assert server.process.exitcode == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(server.url, trust_env=False)
    assert "correct-horse" not in server.text("err") + server.text("out")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--host", "no such host"), "--host no such host is no address"),
        (("--host", "192.0.2.1"), "--host 192.0.2.1 is no address of this machine"),
        (("--port", "99999"), "--port 99999 is out of range"),
        (("--api-key-file", "gone"), "--api-key-file gone cannot be read"),
        (("--api-key-file", "short"), "holds no key of at least 16"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(capsys, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("abc\n")
    assert run(["serve", "nowhere", *options]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_port_in_use_and_a_missing_extra_are_one_sentence(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "nowhere", "--port", str(port)]) == 6
    assert re.match(f"retailtag: --port {port} of 127.0.0.1 is in use", capsys.readouterr().err)
    monkeypatch.setattr("retailtag.tagger.serving._PACKAGES", ("no_such_server",))
    assert run(["serve", "nowhere"]) == 6
    assert (
        "needs no-such-server, which is not installed; run pip install" in capsys.readouterr().err
    )


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import serve

    return serve


def test_the_load_test_measures_everything_and_loses_nothing(bench, server, model_folder, picture):
    tagger = rt.load(model_folder, device="cpu")
    images = [picture(50 * i) for i in range(3)]
    target = bench.target_of(server.url, server.process.pid, tagger, images)
    amounts = {"seconds": 0.2, "minutes": 0.01, "clients_": (1, 4)}
    rows = asyncio.run(bench.measure(target, tagger, **amounts))
    named = {(row["measure"], row["clients"]): row for row in rows}
    assert named["clients", 1]["tagged"] > 0
    assert named["one-by-one", ""]["p50_ms"] > 0
    over = next(row for row in rows if row["measure"] == "overload")
    assert over["lost"] == 0
    assert over["tagged"] > 0
    assert over["memory_mib_late"] > 10
    hostile = {row["measure"]: row for row in rows if row["answer"]}
    assert len(hostile) == len(bench.HOSTILE)
    for name, row in hostile.items():
        assert bench.is_safe(row), (name, row)
    assert hostile["hostile: wrong type"]["answer"] == "415"


def test_the_load_test_notices_other_tags_than_those_of_the_tagger(bench):
    bench.check_tags({"a": 0.5, "b": 0.2}, {"a": 0.5})
    for found in ({"a": 0.6}, {}, {"a": 0.5, "b": 0.2, "c": 0.2}):
        with pytest.raises(AssertionError):
            bench.check_tags(found, {"a": 0.5} if found else {"a": 0.5, "b": 0.1})
