"""Published weights: downloaded once, then read from the local cache."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from retailtag.errors import Unavailable


@dataclass(frozen=True)
class Published:
    """Where a library publishes the weights of one id."""

    backbone: str  # the id, for messages
    repo: str  # on the Hugging Face hub
    filenames: tuple[str, ...]  # to try, best first

    def cached(self) -> Path | None:
        """The file in the local cache, without asking the network."""
        from huggingface_hub import try_to_load_from_cache

        for name in self.filenames:
            found = try_to_load_from_cache(self.repo, name)
            if isinstance(found, str):
                return Path(found)
        return None

    def fetch(self) -> Path:
        """Return the cached file, after downloading it if necessary.

        `Unavailable`, with the file and its place, if it is not cached and cannot be downloaded.
        """
        return self.cached() or self._download()

    def _download(self) -> Path:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
        )

        # OSError covers a full disk and clients that use requests. Newer ones use httpx, whose root
        # exception is the first base of the client's own error.
        network_error: type[Exception] = HfHubHTTPError.__bases__[0]
        if constants.HF_HUB_OFFLINE:
            raise self._unavailable("HF_HUB_OFFLINE is set")
        if not _resolves(constants.ENDPOINT):
            raise self._unavailable(f"{constants.ENDPOINT} cannot be reached")
        for name in self.filenames:
            try:
                return Path(hf_hub_download(self.repo, name))
            except LocalEntryNotFoundError as error:
                raise self._unavailable(f"{constants.ENDPOINT} cannot be reached") from error
            except EntryNotFoundError:
                continue
            except (OSError, network_error) as error:
                reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
                raise self._unavailable(reason) from error
        raise self._unavailable("the repository has no file of a known name")

    def _unavailable(self, reason: str) -> Unavailable:
        from huggingface_hub import constants

        return Unavailable(
            f"The weights of {self.backbone} are not on this machine and cannot be downloaded "
            f"({reason}); on another machine download {self.filenames[0]} from the Hugging Face "
            f"repository {self.repo}, and give it here as --weights FILE or copy it into the cache "
            f"{constants.HF_HUB_CACHE}."
        )


def _resolves(endpoint: str) -> bool:
    """Whether the host name resolves; if not, the hub client would retry for half a minute."""
    if getproxies():
        return True  # the proxy resolves names
    try:
        socket.getaddrinfo(urlparse(endpoint).hostname, None)
    except OSError:
        return False
    return True
