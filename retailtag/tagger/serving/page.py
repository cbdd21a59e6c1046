"""The page of the server: a form to upload images, and its routes, without any other host."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_PACKAGE = "retailtag.tagger.serving"
_KINDS = {"upload.css": "text/css", "upload.js": "text/javascript"}
# Only our own files run; pictures are shown from what was chosen, without a round trip.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def upload_page(openapi: dict[str, Any]) -> str:
    """HTML of the form, and of the routes that an OpenAPI document describes."""
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    predict = openapi["paths"]["/predict"]["post"]
    return environment.get_template("upload.html.jinja").render(
        info=openapi["info"],
        paths=openapi["paths"],
        needs_key="security" in predict,
        statuses=predict["responses"],
    )


@cache
def asset(name: str) -> tuple[bytes, str] | None:
    """Body and type of a file of the page; None if it has no such file."""
    if name not in _KINDS:
        return None
    return files(_PACKAGE).joinpath("assets", name).read_bytes(), _KINDS[name]
