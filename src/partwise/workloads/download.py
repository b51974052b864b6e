"""Files from their original hosts: announced, checked, kept, and whole or absent."""

from __future__ import annotations

import hashlib
import sys
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from partwise.core.errors import DataError
from partwise.workloads.cache import cache_dir, whole_file

__all__ = ["Remote", "digest_of"]

_PIECE = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A file on the web and what it must be.

    Args:
        name: the file's name in the cache.
        urls: where it may be found, tried in order.
        digest: `sha256:...` or `md5:...`, lower-case hexadecimal.
        timeout_seconds: how long a host may be silent.
    """

    name: str
    urls: tuple[str, ...]
    digest: str
    timeout_seconds: float = 30.0

    def fetch(self, folder: Path | None = None) -> Path:
        """The file's path, after a download if it is not there yet. Announced on stderr.

        Args:
            folder: where to keep it. Default: the user's cache.

        Raises:
            DataError: no host delivers it, or only with another digest; then nothing is kept.
        """
        path = (folder or cache_dir() / "downloads") / self.name
        if path.exists():
            if digest_of(path, self._kind) == self.digest:
                return path
            path.unlink()
            _say(f"{path} was damaged and is fetched again")
        refusals = []
        for url in self.urls:
            try:
                self._fetch_one(url, path)
                return path
            except (OSError, HTTPException) as error:  # includes urllib's errors, timeouts, and an answer that is cut
                refusals.append(f"{url}: {str(error).strip() or type(error).__name__}")
        raise DataError(
            f"Remote({self.name!r}): must be delivered by one of its hosts, got {'; '.join(refusals)}. "
            "Download it yourself and name its folder."
        )

    @property
    def _kind(self) -> str:
        return self.digest.split(":")[0]

    def _fetch_one(self, url: str, path: Path) -> None:
        _say(f"downloading {url} to {path}")
        state = hashlib.new(self._kind, usedforsecurity=False)
        with urllib.request.urlopen(url, timeout=self.timeout_seconds) as source, whole_file(path) as file:
            while piece := source.read(_PIECE):
                state.update(piece)
                file.write(piece)
            found = f"{self._kind}:{state.hexdigest()}"
            if found != self.digest:
                raise OSError(f"the digest must be {self.digest}, got {found}")


def digest_of(path: Path, kind: str = "sha256") -> str:
    """`kind:hexadecimal` of a file, read piece by piece."""
    # md5 guards against damage, not against malice; some hosts publish nothing better.
    state = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            state.update(piece)
    return f"{kind}:{state.hexdigest()}"


def _say(text: str) -> None:
    sys.stderr.write(f"partwise: {text}\n")
