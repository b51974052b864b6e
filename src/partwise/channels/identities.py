"""Who clients are: signing keys, and how others know them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from partwise.channels.crypto import KEY_BYTES, sign, verifying_key
from partwise.core.errors import ProtocolError
from partwise.core.population import Client

__all__ = ["Identities", "KeyFolder", "SimulatedIdentities", "write_keys"]


class Identities(Protocol):
    """Keys by which clients know one another, whatever the server says."""

    def sign(self, client: Client, text: bytes) -> bytes:
        """A client's own signature, by the key that only it has."""
        ...

    def key_of(self, client: Client) -> bytes:
        """The key to check a client's signatures with; everybody has it from somebody else than the server.

        Raises:
            ProtocolError: the client is not known.
        """
        ...


@dataclass(frozen=True)
class KeyFolder:
    """Ed25519 keys in files: `<client>.pub` of everybody, and `<client>.key` of oneself; 64 hexadecimal digits each.

    Args:
        folder: where they are.
    """

    folder: str

    def sign(self, client: Client, text: bytes) -> bytes:
        return sign(self._read(f"{client}.key"), text)

    def key_of(self, client: Client) -> bytes:
        return self._read(f"{client}.pub")

    def _read(self, name: str) -> bytes:
        path = Path(self.folder) / name
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (OSError, ValueError) as error:
            raise ProtocolError(
                f"KeyFolder({self.folder!r}): needs {name}, got {type(error).__name__}. Write it with write_keys()."
            ) from error
        if len(key) != KEY_BYTES:
            raise ProtocolError(f"KeyFolder({self.folder!r}): {name} has 64 digits, got {2 * len(key)}. Write it anew.")
        return key


def write_keys(folder: str | Path, clients: Iterable[Client]) -> None:
    """Make signing keys for some clients, as `KeyFolder` reads them.

    Each client then gets its own `.key` and everybody's `.pub`, on a way that the server has no hand in.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for client in clients:
        secret = os.urandom(KEY_BYTES)
        with os.fdopen(os.open(path / f"{client}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret.hex())
        (path / f"{client}.pub").write_text(verifying_key(secret).hex(), encoding="ascii")


@dataclass(frozen=True)
class SimulatedIdentities:
    """Keys that anybody can work out from a number: for simulations. They protect nothing.

    Args:
        seed: any whole number.
    """

    seed: int = 0

    def sign(self, client: Client, text: bytes) -> bytes:
        return sign(self._secret(client), text)

    def key_of(self, client: Client) -> bytes:
        return verifying_key(self._secret(client))

    def _secret(self, client: Client) -> bytes:
        return hashlib.sha256(f"simulated identity|{self.seed}|{client}".encode()).digest()
