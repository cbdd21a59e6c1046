"""Published weights: where they are, fetched once, then read from the local cache."""

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
        Repository on the Hugging Face hub, empty if there is none.
    filenames : tuple of str
        Files to try there, best first.
    url : str
        Plain address, used where there is no repository.
    """

    backbone: str
    repo: str = ""
    filenames: tuple[str, ...] = ()
    url: str = ""

    @property
    def exists(self) -> bool:
        """Whether anything is published."""
        return bool(self.repo or self.url)

    def cached(self) -> Path | None:
        """The file if this machine has it; never asks the network."""
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
        """Return the cached file, downloading it if it is not there.

        Raises
        ------
        Unavailable
            If it is not on this machine and cannot be downloaded; says which file to put where.
        """
        here = self.cached()
        if here is not None:
            return here
        return self._from_hub() if self.repo else self._from_url()

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
        try:  # writes under a temporary name and renames
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
            f"({reason}); on another machine fetch {what}, and give it here as --weights FILE or "
            f"bring it {where}."
        )


def _resolves(endpoint: str) -> bool:
    """Whether the name resolves: the hub client would retry for half a minute where none does."""
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
    """What the hub client and urllib raise when something cannot be fetched.

    OSError covers urllib, requests and a full disk; the hub client's newer HTTP libraries have
    their own root, which is the first base of its own error whatever the library is called.
    """
    from huggingface_hub.errors import HfHubHTTPError

    root: type[Exception] = HfHubHTTPError.__bases__[0]
    return OSError, root
