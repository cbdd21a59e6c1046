"""The server process: its socket, its signals, its log, and connections that stall."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from uvicorn.protocols.http.h11_impl import H11Protocol

from retailtag.backbones.weights import state_sha256
from retailtag.errors import RetailtagError, Unavailable, UsageError
from retailtag.settings import ServeSettings
from retailtag.tagger.drift.monitor import DriftMonitor
from retailtag.tagger.drift.properties import PixelProperties
from retailtag.tagger.drift.reference import FILE, Reference, model_digest
from retailtag.tagger.serving.answers import ModelFacts
from retailtag.tagger.serving.app import Service, make_app
from retailtag.tagger.serving.batching import Batcher, Sizes, Tags
from retailtag.tagger.serving.decoding import Decoding
from retailtag.tagger.serving.metrics import Metrics
from retailtag.tagger.serving.reading import Limits
from retailtag.tagger.serving.trace import MAX_HEADERS, JsonLines, Stopping
from retailtag.tagger.tagger import Tagger

API_KEY = "RETAILTAG_API_KEY"
_LEAST_KEY = 16  # characters
_MAX_CONNECTIONS = 1000
_WARM_EVERY = 30.0  # seconds; decoding processes end after 60 without work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How images are decoded."""

    workers: int
    max_pixels: int


def serve(
    tagger: Tagger,
    settings: ServeSettings,
    reading: Reading,
    listening: socket.socket,
    *,
    api_key: str = "",
    monitor: DriftMonitor | None = None,
    announce: Callable[[str, ModelFacts], None],
) -> None:
    """Serve a model until a signal, then finish what is in flight.

    Parameters
    ----------
    listening : socket
        As `bind` gives it.
    api_key : str
        That clients must send; empty: none.
    monitor : DriftMonitor, optional
        Is shown every image, and gives gauges.
    announce : callable
        Is given the address and the model once requests are answered.
    """
    _log_json_lines()
    facts = facts_of(tagger)
    metrics = Metrics(facts.model_dump(), tagger.tags, monitor)
    more = [] if monitor is None else [PixelProperties()]
    decoding = Decoding(tagger, reading.workers, reading.max_pixels, settings.timeout, more)
    decoding.warm()
    sizes = Sizes(settings.max_batch, settings.queue, max(reading.workers, 1))
    batcher = Batcher(decoding, _Model(tagger, monitor), sizes, metrics)
    limits = Limits(
        min(settings.max_images, settings.queue),
        int(settings.max_request_mib * (1 << 20)),
        settings.timeout,
    )
    state = Stopping()
    app = make_app(Service(facts, limits, batcher, metrics, state, api_key))
    host, port = listening.getsockname()[:2]
    if not api_key and not ip_address(host).is_loopback:
        log.warning(
            f"Anybody who reaches {host}:{port} can use this server; give --api-key-file or set "
            f"{API_KEY}, or listen on 127.0.0.1."
        )
    config = uvicorn.Config(
        app,
        http="h11",  # whose limits and states are relied on below
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_keep_alive=math.ceil(settings.timeout),
        timeout_graceful_shutdown=math.ceil(settings.timeout),
    )
    shown = f"[{host}]" if ":" in host else host
    server = _Server(config, state, decoding, settings.timeout)
    server.announce = lambda: announce(f"http://{shown}:{port}", facts)
    server.run(sockets=[listening])


def bind(host: str, port: int) -> socket.socket:
    """Socket bound to an address; port 0 takes any free one.

    Raises
    ------
    UsageError
        If the address is none of this machine.
    Unavailable
        If the port is in use, or only for the system.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise UsageError(
            f"--host {host} is no address; give one of this machine, such as 127.0.0.1."
        ) from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"--host {host} is no address of this machine; give one that it has."
            ) from None
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"({error.strerror})"
        raise Unavailable(
            f"--port {port} of {host} {reason}; give another one, or 0 for any that is free."
        ) from None
    return listening


def read_api_key(file: Path | None) -> str:
    """Key of a file or of the environment; empty: none.

    Raises
    ------
    UsageError
        If it is too short to be a secret, or cannot be sent in a header.
    """
    where = f"--api-key-file {file}" if file else API_KEY
    if file is None:
        if API_KEY not in os.environ:
            return ""
        key = os.environ[API_KEY]
    else:
        try:
            key = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            raise UsageError(
                f"{where} cannot be read ({reason}); give a file of one key."
            ) from None
    key = key.strip()
    printable = all("!" <= character <= "~" for character in key)
    if len(key) < _LEAST_KEY or not printable:
        raise UsageError(
            f"{where} holds no key of at least {_LEAST_KEY} letters, digits and signs without "
            "spaces; make one, such as with openssl rand -hex 32."
        )
    return key


def facts_of(tagger: Tagger) -> ModelFacts:
    """Name of a model, and a version that changes with anything that decides its tags."""
    digest = hashlib.sha256(model_digest(tagger).encode())
    for backbone in tagger.backbones:
        digest.update(state_sha256(backbone.module).encode())
    arrays: list[NDArray[Any]] = []
    if (vote := tagger.head.vote) is not None:
        digest.update(vote.bank.to_bytes())
        arrays += [vote.counts, np.array(vote.temperature)]
    if tagger.calibration is not None:
        arrays += [tagger.calibration.slope, tagger.calibration.offset]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    name = "+".join(backbone.id for backbone in tagger.backbones)
    return ModelFacts(
        name=f"{name} {tagger.strategy}",
        version=digest.hexdigest()[:12],
        operating_point=_point_of(tagger),
    )


def _point_of(tagger: Tagger) -> str:
    points = tagger.operating_points.items()
    names = (name for name, own in points if np.array_equal(own, tagger.thresholds))
    return next(names, "unnamed")


def monitor_of(folder: Path, tagger: Tagger) -> DriftMonitor | None:
    """Monitor of drift from the images that are kept with a model in `folder`, if there are any.

    A reference that is damaged or of another model is a warning: the model itself can be served.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        kept = Reference.load(path)
        kept.check(tagger, path)
    except RetailtagError as error:
        log.warning(f"Drift is not watched: {error}")
        return None
    return DriftMonitor(tagger, kept.sample)


@dataclass(frozen=True)
class _Model:
    """Gives the tags of decoded images, and shows them to the monitor."""

    tagger: Tagger
    monitor: DriftMonitor | None

    def __call__(self, decoded: list[list[Any]]) -> list[Tags]:
        n = len(self.tagger.embedders)
        embeddings = self.tagger.embeddings([parts[:n] for parts in decoded])
        logits = self.tagger.head.logits(embeddings)
        if self.monitor is not None:
            properties = np.stack([parts[n] for parts in decoded])
            self.monitor.add(embeddings, logits, properties=properties)
        return self.tagger.given(logits)


def _log_json_lines() -> None:
    """One JSON object per line on stderr, of this package, of uvicorn and of whatever else logs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("retailtag", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)


class _Server(uvicorn.Server):
    """uvicorn, which stops once nothing is in flight and closes connections that stall."""

    announce: Callable[[], None]

    def __init__(
        self, config: uvicorn.Config, state: Stopping, decoding: Decoding, seconds: float
    ) -> None:
        super().__init__(config)
        self._state = state
        self._decoding = decoding
        self._seconds = seconds
        self._stop_by = math.inf
        # By connection: its request and unsent bytes, and since when these are the same
        self._still: dict[H11Protocol, tuple[tuple[object, int], float]] = {}
        self._warmed = time.monotonic()
        self._warming: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal ends at once.

        uvicorn's own method would raise the signal again after the end, and so lose the exit code.
        """
        if self._state.stopping:
            self.should_exit = self.force_exit = True
        self._state.stopping = True
        self._stop_by = time.monotonic() + self._seconds

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: called ten times a second."""
        self._close_stalled(time.monotonic())
        self._keep_warm(time.monotonic())
        if await super().on_tick(counter):
            return True
        # Until then it listens, so that /readyz tells a load balancer to look elsewhere.
        late = time.monotonic() >= self._stop_by
        return self._state.stopping and (late or not self._state.in_flight)

    def _close_stalled(self, now: float) -> None:
        """Close connections that wait for their client, with nothing new, for too long.

        uvicorn limits the pause between two requests only: headers may arrive byte by byte, an
        answer may never be taken, and a body may go on behind its answer.
        """
        still: dict[H11Protocol, tuple[tuple[object, int], float]] = {}
        for connection in self.server_state.connections:
            assert isinstance(connection, H11Protocol)
            cycle = connection.cycle
            unsent = connection.transport.get_write_buffer_size()
            if cycle is not None and not cycle.response_complete and not unsent:
                continue  # the application has time limits of its own
            key = (cycle, unsent)
            known, since = self._still.get(connection, (key, now))
            still[connection] = (key, since if known == key else now)
            if now - still[connection][1] > self._seconds:
                connection.transport.abort()
        self._still = still

    def _keep_warm(self, now: float) -> None:
        if now - self._warmed > _WARM_EVERY and not self._state.in_flight:
            self._warmed = now
            self._warming = asyncio.create_task(asyncio.to_thread(self._decoding.warm))
