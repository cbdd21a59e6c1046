"""The templates of the pages."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(*, keep_trailing_newline: bool = False) -> Environment:
    """Templates of the assets, which escape what comes from data and refuse unknown names."""
    return Environment(
        loader=PackageLoader("retailtag.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
    )
