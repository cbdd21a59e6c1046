"""The web application: a tagger's routes."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse

from retailtag.tagger.serving.answers import (
    Answer,
    GivenTag,
    ImageTags,
    ModelFacts,
    Problem,
    Status,
)
from retailtag.tagger.serving.batching import Batcher, Outcome, Overloaded
from retailtag.tagger.serving.metrics import Metrics
from retailtag.tagger.serving.page import POLICY, asset, upload_page
from retailtag.tagger.serving.reading import FORM, RAW, Bodies, Limits, NamedImage, Refusal
from retailtag.tagger.serving.trace import Stopping, Trace, problem
from retailtag.version import __version__

_STOPPING = "The server is stopping; send the request to another one, or again in 5 s."
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {
    "schema": {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "items": _BINARY["schema"]}},
    }
}
_REFUSALS = {
    400: "No image, a form that cannot be read, or the only image of the request is unreadable.",
    401: "The API key is missing or wrong.",
    408: "The request took too long to arrive.",
    413: "The request has too many bytes or images.",
    415: "The request is neither a form nor an image.",
    429: "Too much is waiting; Retry-After says when to try again.",
    431: "The headers are too large.",
    500: "The server failed; its log has the reason under the request_id.",
    503: "The server is stopping.",
}
_PREDICT: dict[str, Any] = {
    "response_model": Answer,
    "response_description": "Tags of each image, or why it is unreadable.",
    "responses": {code: {"model": Problem, "description": d} for code, d in _REFUSALS.items()},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "A form with one or many image files, or the bytes of one image.",
            "content": {FORM: _FILES, **dict.fromkeys(RAW, _BINARY)},
        }
    },
}


@dataclass(frozen=True)
class Service:
    """What the routes need."""

    model: ModelFacts
    limits: Limits
    batcher: Batcher
    metrics: Metrics
    state: Stopping
    api_key: str = ""  # that clients must send; empty: none


def make_app(service: Service) -> FastAPI:
    """The application of one model."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(
        title="retailtag",
        version=__version__,
        description=f"Tags of images, by {service.model.name}.",
        docs_url=None,  # FastAPI's own pages load their scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    bodies = Bodies(service.limits)
    _add_predict(app, service, bodies)
    _add_watching(app, service)
    _add_pages(app)
    routes = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(Trace, metrics=service.metrics, state=service.state, routes=routes)
    _add_errors(app, bodies)
    return app


def _add_predict(app: FastAPI, service: Service, bodies: Bodies) -> None:
    @app.post("/predict", dependencies=_key(service), tags=["tags"], **_PREDICT)
    async def predict(request: Request) -> Response:
        """Tags of one or many images: those above their thresholds, likeliest first.

        An unreadable image among several gets an error of its own, the others their tags.
        """
        with bodies.body(request) as body:
            request.state.body = body
            if service.state.stopping:
                raise Refusal(503, _STOPPING, {"Retry-After": "5"})
            service.batcher.check()
            images = await body.images()
            request.state.notes.update(images=len(images), bytes=body.size)
            outcomes = await _outcomes(request, service.batcher, images)
        service.metrics.given(outcomes)
        if len(outcomes) == 1 and outcomes[0].tags is None:
            sentence = f"The image {outcomes[0].reason.rstrip('.')}."
            return problem(400, sentence, request.state.request_id)
        answer = Answer(
            request_id=request.state.request_id,
            model=service.model,
            images=[_image(i.name, o) for i, o in zip(images, outcomes, strict=True)],
        )
        return Response(answer.model_dump_json(), media_type="application/json")


async def _outcomes(request: Request, batcher: Batcher, images: list[NamedImage]) -> list[Outcome]:
    """What becomes of the images; raises `ClientDisconnect` if nobody waits for it any more."""
    job = batcher.submit([image.data for image in images])
    answer = asyncio.wrap_future(job.future)
    # The body is complete: the next message is the end of the connection.
    gone = asyncio.ensure_future(request.receive())
    waiting: set[asyncio.Future[Any]] = {answer, gone}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        if not answer.done():
            batcher.drop(job)


def _image(name: str | None, outcome: Outcome) -> ImageTags:
    if outcome.tags is None:
        return ImageTags(name=name, tags=None, error=outcome.reason)
    tags = [GivenTag(tag=tag, probability=p) for tag, p in outcome.tags.items()]
    return ImageTags(name=name, tags=tags, error=None)


def _key(service: Service) -> list[Any]:
    """What a route depends on that needs the key; nothing where there is none."""
    if not service.api_key:
        return []
    expected = service.api_key.encode()

    def check(
        given: Annotated[
            HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))
        ],
    ) -> None:
        # compare_digest takes the same time wherever the first difference is
        if given is None or not hmac.compare_digest(given.credentials.encode(), expected):
            raise Refusal(
                401,
                "The API key is missing or wrong; send the header Authorization: Bearer KEY.",
                {"WWW-Authenticate": "Bearer"},
            )

    return [Depends(check)]


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_model=Status, tags=["watching"])
    async def healthz() -> Status:
        """Whether the server lives."""
        return Status(status="ok")

    @app.get(
        "/readyz",
        response_model=Status,
        responses={503: {"model": Status, "description": "The server is stopping."}},
        tags=["watching"],
    )
    async def readyz(response: Response) -> Status:
        """Whether the server takes requests; 503 once it is to stop."""
        if service.state.stopping:
            response.status_code = 503
            return Status(status="stopping")
        return Status(status="ok")

    @app.get("/metrics", dependencies=_key(service), response_class=Response, tags=["watching"])
    async def metrics() -> Response:
        """Latency, queue, batches, tags given, drift and more, for Prometheus."""
        # in a thread: figures of drift take some milliseconds
        text = await asyncio.to_thread(service.metrics.text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        html = upload_page(app.openapi())
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    @app.get("/assets/{name}", include_in_schema=False)
    async def assets(name: str) -> Response:
        found = asset(name)
        if found is None:
            raise HTTPException(404)
        body, kind = found
        return Response(body, media_type=kind)


def _add_errors(app: FastAPI, bodies: Bodies) -> None:
    """Answer every error with one sentence; a connection with an unread body is closed."""

    async def refused(request: Request, error: Refusal) -> JSONResponse:
        body = getattr(request.state, "body", None) or bodies.body(request)
        await body.linger()
        headers = error.headers if body.complete else {**error.headers, "Connection": "close"}
        return problem(error.status, str(error), request.state.request_id, headers)

    @app.exception_handler(Refusal)
    async def _(request: Request, error: Refusal) -> JSONResponse:
        return await refused(request, error)

    @app.exception_handler(Overloaded)
    async def _(request: Request, full: Overloaded) -> JSONResponse:
        sentence = f"Too many images are waiting; try again in {full.seconds} s."
        headers = {"Retry-After": str(full.seconds)}
        return await refused(request, Refusal(429, sentence, headers))

    @app.exception_handler(ClientDisconnect)
    async def _(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # goes nowhere

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        """Error of the framework, such as an unknown path."""
        unknown = error.status_code in (404, 405)
        sentence = f"{error.detail}; see /docs." if unknown else error.detail
        headers = dict(error.headers or {})
        return problem(error.status_code, sentence, request.state.request_id, headers)
