"""Throughput and latency of `retailtag serve`, overload, and hostile clients; loopback only.

    python benchmarks/serve.py MODEL IMAGES [--seconds 20] [--minutes 10] [--out FILE] [--dry]
    python benchmarks/serve.py MODEL IMAGES --tiny

MODEL is a fitted model, IMAGES a folder. A real server is started, with its defaults. In the same
run, in this order:

- ``one-by-one``: ``tagger.tag([image])`` in this process, before and after the clients' turns.
- ``clients``: 1, 8 and 64 clients, each of which sends one image and waits for its tags. The
  largest rate of requests per second counts as sustainable.
- ``overload``: requests at twice that rate for `--minutes`, whatever the server answers. A request
  is lost if it was neither answered with tags nor refused with 429 or 503; tags are compared with
  those of the tagger. Memory is that of the server with its decoding processes, the mean over the
  second and the last quarter of the time.
- ``hostile``: files and clients of `HOSTILE`, all at once. Each must get a 4xx or a closed
  connection, and the server must tag an image after it.

``cpu_ms`` is processor time per tagged image, of the server with its decoding processes or of this
process. Clients run in this process and take time from the server where there are few cores.
Appends to ``results/serve.csv``; `--tiny` takes seconds and records nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from record import append, stamp

import retailtag as rt
from retailtag.tagger.tagger import Tagger

IMAGES = 200  # different ones
CLIENTS = (1, 8, 64)
REFUSED = (429, 503)  # the queue is full; there are too many connections
WARM_SECONDS = 2.0
ANSWER_SECONDS = 120.0
CLOSE_ENOUGH = 1e-3  # of probabilities: batches of different sizes round differently


@dataclass
class Target:
    """A running server, and the images that it is sent."""

    host: str
    port: int
    pid: int
    images: list[bytes]
    expected: list[dict[str, float]]  # of each image: what the tagger itself gives
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def post(self, body: bytes, path: str = "/predict") -> tuple[int, bytes]:
        """Status and body of one answer, over a connection that is used again."""
        is_used = bool(self.idle)
        if not is_used:
            self.idle.append(await asyncio.open_connection(self.host, self.port))
        reader, writer = self.idle.pop()
        method = "POST" if body else "GET"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            status, headers, answer = await read_answer(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            if not is_used:
                raise
            writer.close()  # the server had ended it: it had been idle for long
            return await self.post(body, path)
        if headers.get("connection") == "close":
            writer.close()
        else:
            self.idle.append((reader, writer))
        return status, answer

    async def tag(self, number: int) -> int:
        """Status of a request for one image; raises if its tags are not those of the tagger."""
        number %= len(self.images)
        status, answer = await self.post(self.images[number])
        if status == 200:
            (image,) = json.loads(answer)["images"]
            found = {tag["tag"]: tag["probability"] for tag in image["tags"]}
            check_tags(found, self.expected[number])
        return status

    async def metric(self, name: str) -> float:
        """Value of one metric of the server."""
        _, text = await self.post(b"", "/metrics")
        lines = [line.rpartition(" ") for line in text.decode().splitlines()]
        return sum(float(value) for key, _, value in lines if key == name)

    def memory_mib(self) -> float:
        """Memory of the server and its decoding processes."""
        return sum(process.memory_info().rss for process in self._processes()) / 2**20

    def cpu_seconds(self) -> float:
        """Processor time of the server and its decoding processes."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        server = psutil.Process(self.pid)
        return [server, *server.children()]

    def close(self) -> None:
        """Hang up."""
        while self.idle:
            self.idle.pop()[1].close()


def check_tags(found: dict[str, float], expected: dict[str, float]) -> None:
    """Raise unless both give the same tags; one at its threshold may go either way."""
    common = found.keys() & expected.keys()
    worst = max((abs(found[tag] - expected[tag]) for tag in common), default=0.0)
    if worst > CLOSE_ENOUGH or len(found.keys() ^ expected.keys()) > 1:
        raise AssertionError(f"The server gave {found}, the tagger {expected}.")


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; raises if the connection ends before."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.splitlines()
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(first.split()[1]), headers, body


@dataclass
class Load:
    """What clients saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # of requests answered with tags
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)  # of requests without an answer
    cpu_seconds: float = 0.0

    @property
    def lost(self) -> dict[str, int]:
        """Requests neither tagged nor refused, by what became of them."""
        known = (200, *REFUSED)
        others = {str(s): n for s, n in self.statuses.items() if s not in known}
        return others | self.failures

    def row(self, measure: str, clients: int | str) -> dict[str, object]:
        """Row of the table."""
        p50, p99 = np.percentile(self.latencies, [50, 99]) if self.latencies else (np.nan,) * 2
        return row(
            measure,
            clients=clients,
            seconds=round(self.seconds, 1),
            requests_per_s=round(len(self.latencies) / self.seconds, 2),
            p50_ms=round(1000 * p50, 2),
            p99_ms=round(1000 * p99, 2),
            cpu_ms=round(1000 * self.cpu_seconds / max(len(self.latencies), 1), 2),
            tagged=self.statuses[200],
            refused=sum(self.statuses[status] for status in REFUSED),
            lost=" ".join(f"{name}:{n}" for name, n in sorted(self.lost.items())) or 0,
        )


COLUMNS = (
    "model", "measure", "clients", "seconds", "requests_per_s", "p50_ms", "p99_ms", "cpu_ms",
    "mean_batch",
    "tagged", "refused", "lost", "memory_mib_early", "memory_mib_late", "answer", "server_lives",
)  # fmt: skip


def row(measure: str, **values: object) -> dict[str, object]:
    """Row with all columns, empty where they do not apply."""
    return dict.fromkeys(COLUMNS, "") | {"measure": measure} | values


def one_by_one(tagger: Tagger, images: Sequence[bytes], seconds: float) -> Load:
    """Tag images one after the other, without a server."""
    load = Load(cpu_seconds=-time.process_time())
    start = now = time.perf_counter()
    while now - start < seconds:
        tagger.tag([images[len(load.latencies) % len(images)]])
        before, now = now, time.perf_counter()
        load.latencies.append(now - before)
    load.seconds = now - start
    load.cpu_seconds += time.process_time()
    load.statuses[200] = len(load.latencies)
    return load


async def clients(target: Target, n: int, seconds: float) -> dict[str, object]:
    """`n` clients, each of which waits for its answer before it sends the next image."""
    load = Load()
    names = ("retailtag_batch_images_sum", "retailtag_batch_images_count")
    before = [await target.metric(name) for name in names]
    load.cpu_seconds -= target.cpu_seconds()
    start = time.perf_counter()

    async def client(number: int) -> None:
        while (sent := time.perf_counter()) - start < seconds:
            status = await target.tag(number)
            load.statuses[status] += 1
            load.latencies.append(time.perf_counter() - sent)
            number += n

    await asyncio.gather(*map(client, range(n)))
    load.seconds = time.perf_counter() - start
    load.cpu_seconds += target.cpu_seconds()
    images, batches = [await target.metric(name) - b for name, b in zip(names, before, strict=True)]
    return load.row("clients", n) | {"mean_batch": round(images / batches, 2)}


async def overload(target: Target, rate: float, seconds: float) -> dict[str, object]:
    """Send `rate` requests a second, whatever happens to them."""
    load = Load()
    memory: list[float] = []
    counted = 'retailtag_requests_total{route="/predict",status="200"}'
    before = await target.metric(counted)
    load.cpu_seconds -= target.cpu_seconds()
    start = time.perf_counter()

    async def one(number: int) -> None:
        sent = time.perf_counter()
        try:
            status = await asyncio.wait_for(target.tag(number), ANSWER_SECONDS)
        except (OSError, EOFError, TimeoutError) as error:
            load.failures[type(error).__name__] += 1
            return
        load.statuses[status] += 1
        if status == 200:
            load.latencies.append(time.perf_counter() - sent)

    open_: set[asyncio.Task[None]] = set()
    number = 0
    while (now := time.perf_counter() - start) < seconds:
        while number < now * rate:
            task = asyncio.create_task(one(number))
            open_.add(task)
            task.add_done_callback(open_.discard)
            number += 1
        if now >= len(memory) * seconds / 100:
            memory.append(target.memory_mib())
        await asyncio.sleep(0.005)
    load.seconds = time.perf_counter() - start
    await asyncio.gather(*open_)
    load.cpu_seconds += target.cpu_seconds()
    if await target.metric(counted) - before != load.statuses[200]:
        raise AssertionError("The server counted other answers than its clients.")
    quarter = max(len(memory) // 4, 1)
    return load.row("overload", round(rate, 2)) | {
        "memory_mib_early": round(float(np.mean(memory[quarter : 2 * quarter] or memory)), 1),
        "memory_mib_late": round(float(np.mean(memory[-quarter:])), 1),
    }


def _png_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def _request(headers: str, body: bytes = b"", path: str = "/predict") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode() + body


def _image(body: bytes, kind: str = "image/jpeg") -> bytes:
    return _request(f"Content-Type: {kind}\r\nContent-Length: {len(body)}", body)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((400, 300), 90).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


CHUNKED = "Content-Type: image/jpeg\r\nTransfer-Encoding: chunked"
FORM = "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}"
PART = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
# What is sent first, and what then follows for ever; nothing: the client waits.
HOSTILE: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "truncated": lambda: (_image(_jpeg()[:-2000]), b""),
    "bomb": lambda: (_image(_png_bomb(), "image/png"), b""),
    "no image": lambda: (_image(b"<!DOCTYPE html>"), b""),
    "wrong type": lambda: (_image(b"{}", "application/json"), b""),
    "empty": lambda: (_image(b""), b""),
    "form cut off": lambda: (_request(FORM.format(len(PART) + 9), PART + b"123456789"), b""),
    "form of many files": lambda: (
        _request(FORM.format(65 * (len(PART) + 3) + 7), 65 * (PART + b"x\r\n") + b"--b--\r\n"), b"",
    ),
    "huge header": lambda: (_request("X-Large: " + "a" * 1_000_000), b""),
    "endless header": lambda: (b"GET / HTTP/1.1\r\nX-Large: ", b"a" * 1000),
    "no header": lambda: (b"", b""),
    "slow header": lambda: (b"GET / HTTP/1.1\r\nX-Slow: ", b"a"),
    "slow body": lambda: (_request(CHUNKED), b"1\r\nx\r\n"),
    "body that stays away": lambda: (
        _request("Content-Type: image/jpeg\r\nContent-Length: 9"), b"",
    ),
    "declared too large": lambda: (
        _request(f"Content-Type: image/jpeg\r\nContent-Length: {10**15}"), b"",
    ),
    "endless body": lambda: (_request(CHUNKED), b"10000\r\n" + bytes(65_536) + b"\r\n"),
    "endless body of another route": lambda: (
        _request(CHUNKED, path="/healthz"), b"10000\r\n" + bytes(65_536) + b"\r\n",
    ),
    "no HTTP": lambda: (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b""),
}  # fmt: skip


async def hostile(target: Target, name: str) -> dict[str, object]:
    """What one hostile client gets, and whether the server tags an image after it."""
    first, then = HOSTILE[name]()
    reader, writer = await asyncio.open_connection(target.host, target.port)
    start = time.perf_counter()

    async def send() -> None:
        with suppress(OSError):
            writer.write(first)
            await writer.drain()
            while then:
                writer.write(then)
                await writer.drain()
                await asyncio.sleep(0.01)

    sending = asyncio.create_task(send())
    try:
        status, *_ = await asyncio.wait_for(read_answer(reader), ANSWER_SECONDS)
        answer = str(status)
    except TimeoutError:
        answer = "none"
    except (OSError, EOFError):
        answer = "closed"
    sending.cancel()
    seconds = time.perf_counter() - start
    writer.close()
    while (status := await target.tag(0)) == 429:  # others may fill a small queue
        await asyncio.sleep(0.1)
    return row(
        f"hostile: {name}",
        seconds=round(seconds, 1),
        answer=answer,
        server_lives=int(status == 200),
    )


def is_safe(found: dict[str, Any]) -> bool:
    """Whether a hostile client was refused and the server lives."""
    answer = found["answer"]
    return bool(found["server_lives"]) and (answer == "closed" or answer.startswith("4"))


async def measure(
    target: Target, tagger: Tagger, *, seconds: float, minutes: float, clients_: Sequence[int]
) -> list[dict[str, object]]:
    """All rows; raises `AssertionError` if tags differ."""
    await clients(target, max(clients_), min(WARM_SECONDS, seconds))
    before = one_by_one(tagger, target.images, seconds / 2)
    rows: list[dict[str, object]] = [await clients(target, n, seconds) for n in clients_]
    after = one_by_one(tagger, target.images, seconds / 2)
    alone = Load(
        before.seconds + after.seconds,
        before.latencies + after.latencies,
        before.statuses + after.statuses,
        cpu_seconds=before.cpu_seconds + after.cpu_seconds,
    )
    rate = 2 * max(float(str(found["requests_per_s"])) for found in rows)
    rows = [alone.row("one-by-one", ""), *rows]
    rows.append(await overload(target, rate, 60 * minutes))
    target.close()
    rows += await asyncio.gather(*(hostile(target, name) for name in HOSTILE))
    target.close()
    return rows


def start(model: Path, options: Sequence[str]) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A server of a model, and what it says of itself."""
    command = [sys.executable, "-m", "retailtag", "serve", str(model), "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"The server of {model} did not start; run: {' '.join(command)}")
    return process, json.loads(line)


def target_of(url: str, pid: int, tagger: Tagger, images: Sequence[bytes]) -> Target:
    """A server to measure, with what the tagger gives for each image."""
    host, _, port = url.removeprefix("http://").partition(":")
    return Target(host, int(port), pid, list(images), [tagger.predict([i])[0] for i in images])


def show(rows: Sequence[dict[str, object]]) -> None:
    """Print the rows without their empty columns."""
    for found in rows:
        print("  ".join(f"{name} {value}" for name, value in found.items() if value != ""))


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of clients")
    parser.add_argument("--minutes", type=float, default=10.0, help="of overload")
    parser.add_argument("--option", action="append", default=[], help="of retailtag serve")
    parser.add_argument("--out", default="serve.csv")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    files = sorted(path for path in options.images.rglob("*.jpg"))[:IMAGES]
    tagger = rt.load(options.model, device="cpu")
    process, facts = start(options.model, ["--device", "cpu", *options.option])
    try:
        target = target_of(facts["url"], process.pid, tagger, [f.read_bytes() for f in files])
        amounts: dict[str, Any] = {
            "seconds": options.seconds, "minutes": options.minutes, "clients_": CLIENTS
        }  # fmt: skip
        if options.tiny:
            amounts = {"seconds": 0.5, "minutes": 0.02, "clients_": (1, 4)}
        rows = asyncio.run(measure(target, tagger, **amounts))
    finally:
        process.terminate()
        process.wait()
    rows = [found | {"model": facts["name"]} for found in rows]
    show(rows)
    unsafe = [found["measure"] for found in rows if found["answer"] and not is_safe(found)]
    if unsafe or process.returncode:
        raise SystemExit(f"Not refused: {unsafe}; exit code of the server: {process.returncode}.")
    if not (options.dry or options.tiny):
        append(options.out, [stamp() | found for found in rows])


if __name__ == "__main__":
    main()
