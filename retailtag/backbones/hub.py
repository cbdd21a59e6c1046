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
    """Where a library publishes the weights of one id.

    Parameters
    ----------
    backbone : str
        The id, for messages.
    repo : str
        Repository on the Hugging Face hub; empty if there is none.
    filenames : tuple of str
        Files of the repository to try, best first.
    url : str
        Address to download from if there is no repository.
    """

    backbone: str
    repo: str = ""
    filenames: tuple[str, ...] = ()
    url: str = ""

    def cached(self) -> Path | None:
        """The file in the local cache, without asking the network."""
        if not self.repo:
            target = self._url_target()
            return target if target.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        for name in self.filenames:
            found = try_to_load_from_cache(self.repo, name)
            if isinstance(found, str):
                return Path(found)
        return None

    def fetch(self) -> Path:
        """Return the cached file, after downloading it if necessary.

        Raises
        ------
        Unavailable
            If it is not cached and cannot be downloaded; the message names the file and its place.
        """
        return self.cached() or (self._from_hub() if self.repo else self._from_url())

    def _from_hub(self) -> Path:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if constants.HF_HUB_OFFLINE:
            raise Unavailable(self._remedy("HF_HUB_OFFLINE is set"))
        if not _resolves(constants.ENDPOINT):
            raise Unavailable(self._remedy(f"{constants.ENDPOINT} cannot be reached"))
        reason = "the repository has no file of a known name"
        for name in self.filenames:
            try:
                return Path(hf_hub_download(self.repo, name))
            except LocalEntryNotFoundError:
                reason = f"{constants.ENDPOINT} cannot be reached"
                break
            except EntryNotFoundError:
                continue
            except _network_errors() as error:
                reason = _first_line(error)
                break
        raise Unavailable(self._remedy(reason))

    def _from_url(self) -> Path:
        import torch.hub

        target = self._url_target()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:  # torch writes to a temporary file and renames it
            torch.hub.download_url_to_file(self.url, str(target), progress=False)
        except OSError as error:
            raise Unavailable(self._remedy(_first_line(error))) from error
        return target

    def _url_target(self) -> Path:
        import torch.hub

        return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(self.url).path).name

    def _remedy(self, reason: str) -> str:
        if self.repo:
            from huggingface_hub import constants

            what = f"{self.filenames[0]} from the Hugging Face repository {self.repo}"
            where = f"into the cache {constants.HF_HUB_CACHE}"
        else:
            what, where = self.url, f"to {self._url_target()}"
        return (
            f"The weights of {self.backbone} are not on this machine and cannot be downloaded "
            f"({reason}); on another machine download {what}, and give it here as --weights FILE "
            f"or copy it {where}."
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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _network_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the hub client and urllib if a download fails."""
    from huggingface_hub.errors import HfHubHTTPError

    # OSError covers urllib, requests and a full disk. Newer hub clients use httpx, whose root
    # exception is the first base of their own error.
    root: type[Exception] = HfHubHTTPError.__bases__[0]
    return OSError, root
