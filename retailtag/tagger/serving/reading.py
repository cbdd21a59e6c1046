"""Requests read within limits: bytes, images and seconds; whatever exceeds them is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

# Bodies of all requests together, in largest requests; beyond, new ones get status 429.
_BODIES_AT_ONCE = 8
# A client that still sends sees an answer only if its bytes are taken; for so long they are.
_LINGER_SECONDS = 2.0
_FIELDS = 16  # of a form, beside its files
RAW = ("image/*", "application/octet-stream")
FORM = "multipart/form-data"


class Refusal(Exception):
    """A request that gets an error status; the sentence names the remedy."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}


@dataclass(frozen=True)
class Limits:
    """What one request may have."""

    images: int
    bytes: int
    seconds: float  # from its headers to the end of its body


class NamedImage(NamedTuple):
    """An encoded image, and the name that the client gave it."""

    name: str | None
    data: bytes


class Bodies:
    """Counts the bytes of all bodies that the server holds."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    def body(self, request: Request) -> Body:
        """Body of a request, to be read as ``with`` statement: its end releases the bytes."""
        return Body(self, request)


class Body:
    """Body of one request, read within the limits."""

    def __init__(self, bodies: Bodies, request: Request) -> None:
        self._bodies = bodies
        self._limits = bodies.limits
        self._request = request
        self._deadline = asyncio.get_running_loop().time() + self._limits.seconds
        self.size = 0  # bytes received
        self.complete = False

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.held -= self.size
        self.size = 0

    async def images(self) -> list[NamedImage]:
        """Images of a multipart form, or the one that is the body.

        Raises
        ------
        Refusal
            If the body is of another type, exceeds a limit, or has no image.
        ClientDisconnect
            If the client hangs up.
        """
        headers = self._request.headers
        kind = headers.get("content-type", "application/octet-stream").partition(";")[0]
        kind = kind.strip().lower()
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limits.bytes:
            raise self._too_large()
        if kind == FORM:
            return await self._form()
        if kind.startswith("image/") or kind in RAW:
            data = b"".join([chunk async for chunk in self._chunks()])
            if not data:
                raise Refusal(400, "The request has no body; send the bytes of an image.")
            return [NamedImage(None, data)]
        raise Refusal(
            415,
            f"Content-Type {kind[:100]} is not accepted; send a multipart form of image files, or "
            "one image with its own type, such as image/jpeg.",
        )

    async def linger(self) -> None:
        """Take and forget what the client still sends, for a while, so that it sees the answer."""
        self.__exit__()
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + _LINGER_SECONDS
        taken = 0
        try:
            while not self.complete and taken <= self._limits.bytes:
                taken += len(await self._receive())
        except (Refusal, ClientDisconnect):
            pass

    async def _receive(self) -> bytes:
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._request.receive(), max(left, 0))
        except TimeoutError:
            raise Refusal(
                408, f"The request took more than {self._limits.seconds:g} s to arrive; send it "
                "again, or fewer images at once."
            ) from None  # fmt: skip
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.complete = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        while not self.complete:
            chunk = await self._receive()
            self.size += len(chunk)
            self._bodies.held += len(chunk)
            if self.size > self._limits.bytes:
                raise self._too_large()
            if self._bodies.held > _BODIES_AT_ONCE * self._limits.bytes:
                raise Refusal(
                    429,
                    "The server holds as many bytes of images as it may; try again in 1 s.",
                    {"Retry-After": "1"},
                )
            yield chunk

    async def _form(self) -> list[NamedImage]:
        parser = _InMemory(
            self._request.headers,
            self._chunks(),
            max_files=self._limits.images,
            max_fields=_FIELDS,
        )
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if "Too many files" in error.message:
                raise Refusal(
                    413,
                    f"The request has more than {self._limits.images} images; send fewer at once.",
                ) from None
            raise Refusal(400, f"The form cannot be read: {error.message}") from None
        try:
            if not parser.ended:
                raise Refusal(400, "The form ends early; send it again.")
            found = []
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    raise Refusal(400, f"The form's field {name[:100]} is no file; send images.")
                found.append(NamedImage(value.filename, await value.read()))
        finally:
            parser.close()
        if not found:
            raise Refusal(400, "The form has no file; send at least one image.")
        return found

    def _too_large(self) -> Refusal:
        mib = self._limits.bytes / (1 << 20)
        return Refusal(413, f"The request is larger than {mib:g} MiB; send fewer images at once.")


class _InMemory(MultiPartParser):
    """Keeps files in memory: their bytes are counted, and nothing is written to a disk."""

    spool_max_size = 0  # of SpooledTemporaryFile: no limit
    ended = False

    def on_end(self) -> None:
        """Note the last boundary: the parser itself takes a form that was cut off."""
        self.ended = True

    def close(self) -> None:
        """Free all files, also one whose end is missing."""
        for file in self._files_to_close_on_error:
            file.close()
