"""A tagger behind HTTP: dynamic batches, limits, metrics."""

from importlib.util import find_spec

from retailtag.errors import Unavailable

_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def check_installed() -> None:
    """Raise `Unavailable` unless the packages of the extra ``serve`` are installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise Unavailable(
            f"retailtag serve needs {missing[0].replace('_', '-')}, which is not installed; run "
            "pip install 'retailtag[serve]'."
        )
