"""Around every request: an id, a line of JSON in the log, metrics, and one sentence for errors."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retailtag.tagger.serving.metrics import Metrics

REQUEST_ID = "X-Request-ID"
MAX_HEADERS = 16 << 10  # bytes of a request line with its headers
_LARGE_HEADERS = f"The headers are larger than {MAX_HEADERS >> 10} KiB; send fewer cookies."
# Ids of clients are taken over if they cannot disturb a log or a shell.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
INTERNAL = "The server failed; its log has the reason under this request_id."

log = logging.getLogger(__name__)


class Stopping:
    """Whether the server is to stop, and how many requests are in flight."""

    def __init__(self) -> None:
        self.stopping = False
        self.in_flight = 0


class Trace:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, metrics: Metrics, state: Stopping, routes: set[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._state = state
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID, ""))
        notes: dict[str, Any] = {}  # of the handler, for the log
        scope.setdefault("state", {}).update(request_id=request_id, notes=notes)
        status = 0  # until the response starts

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers[REQUEST_ID] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        start = time.perf_counter()
        self._state.in_flight += 1
        try:
            # uvicorn's own limit holds only for what does not arrive at once
            if _header_bytes(scope) > MAX_HEADERS:
                answer = problem(431, _LARGE_HEADERS, request_id, {"Connection": "close"})
                await answer(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except Exception as error:  # no client may see a traceback
            log.error("A request failed.", exc_info=error, extra={"request_id": request_id})
            if not status:
                await problem(500, INTERNAL, request_id)(scope, receive, sending)
        finally:
            self._state.in_flight -= 1
            seconds = time.perf_counter() - start
            route = scope["path"] if scope["path"] in self._routes else "other"
            # 499 is what nginx writes for a client that hung up before its answer
            self._metrics.answered(route, status or 499, seconds)
            _log(scope, route, {"status": status or 499, "ms": round(1000 * seconds, 3), **notes})


def problem(
    status: int, sentence: str, request_id: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Answer to a request that failed: one sentence and the request's id."""
    content = {"request_id": request_id, "error": sentence}
    return JSONResponse(content, status, headers)


def _header_bytes(scope: Scope) -> int:
    line = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    return line + sum(len(name) + len(value) for name, value in scope["headers"])


def _request_id(given: str) -> str:
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


def _log(scope: Scope, route: str, facts: dict[str, Any]) -> None:
    # Probes and scrapes come every few seconds; they are logged only if they fail.
    quiet = route in ("/healthz", "/readyz", "/metrics") and facts["status"] < 400
    client = scope.get("client")
    log.log(
        logging.DEBUG if quiet else logging.INFO,
        "request",
        extra={
            "request_id": scope["state"]["request_id"],
            "client": client[0] if client else "",
            "method": scope["method"],
            "path": scope["path"],
            **facts,
        },
    )


class JsonLines(logging.Formatter):
    """One JSON object per record, with the fields of ``extra``."""

    _known = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        """Line of one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in self._known},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
