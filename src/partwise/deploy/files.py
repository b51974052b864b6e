"""The two files of a deployment: what the server knows of its nodes, and what a node knows of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from partwise.core.codec import DEFAULT_MAX_BYTES
from partwise.core.errors import DataError, SpecError
from partwise.deploy.enrolled import Member
from partwise.experiment.toml import parse

__all__ = ["NODE", "SERVER", "NodeFile", "NodeKey", "ServerFile"]

SERVER, NODE = "server.toml", "node.toml"


class NodeKey(NamedTuple):
    """A node and the key by which it is known."""

    name: str
    key: Path


@dataclass(frozen=True)
class ServerFile:
    """What `server.toml` says; paths are relative to its folder.

    Args:
        folder: where it is.
        spec: the experiment.
        address: `host:port` on which the server listens.
        nodes: the nodes and their keys.
        members: the same nodes and their clients.
        run: the folder of the run.
        test: a population whose first client's examples the server measures on; None for no such thing.
        patience_seconds: an answer that takes longer is not waited for.
        max_message_bytes: a longer message is refused.
    """

    folder: Path
    spec: Path
    address: str
    nodes: Sequence[NodeKey]
    members: Sequence[Member]
    run: Path
    test: Path | None = None
    patience_seconds: float = 3600.0
    max_message_bytes: int = DEFAULT_MAX_BYTES

    @classmethod
    def read(cls, folder: Path) -> ServerFile:
        """Read it from a folder.

        Raises:
            SpecError: it cannot be used; all faults are told.
            DataError: it cannot be read.
        """
        table = _Table(folder / SERVER)
        nodes: list[NodeKey] = []
        members: list[Member] = []
        first = 0
        for number, entry in enumerate(table.rows("nodes")):
            name = str(entry.get("name", ""))
            examples: Any = entry.get("examples")
            if not name.replace("-", "").replace("_", "").isalnum() or name in {node.name for node in nodes}:
                table.fault(f"nodes[{number}].name must be a name of its own of letters, digits, - and _, got {name!r}")
            if not _are_counts(examples):
                table.fault(
                    f"nodes[{number}].examples must be one whole number from 1 on per client, got {examples!r}. "
                    "`partwise node check` prints the line"
                )
                examples = [1]
            nodes.append(NodeKey(name, folder / str(entry.get("key", f"nodes/{name}.pub"))))
            members.append(Member(name, first, examples))
            first += len(examples)
        test = table.take("test", str, "")
        found = cls(
            folder,
            folder / table.take("spec", str, "spec.toml"),
            table.address("address"),
            nodes,
            members,
            folder / table.take("run", str, "run"),
            folder / test if test else None,
            table.take("patience_seconds", float, 3600.0),
            table.take("max_message_bytes", int, DEFAULT_MAX_BYTES),
        )
        if not nodes:
            table.fault("nodes: there must be at least one [[nodes]], got none")
        table.end()
        return found

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.address.rpartition(":")[2])

    @property
    def host(self) -> str:
        """The interface it listens on; of the sixth version of IP without its brackets."""
        return self.address.rpartition(":")[0].strip("[]")


@dataclass(frozen=True)
class NodeFile:
    """What `node.toml` says; paths are relative to its folder.

    Args:
        folder: where it is.
        name: as the server calls it.
        server: `host:port` of the server.
        spec: the experiment.
        data: a population: a folder, or a `.safetensors` file.
        first: number of its first client in the whole deployment.
        total: how many clients there are in all.
        key: its private key; the public one has `.pub` behind it.
        authority: the certificate by which it knows the server.
        memory: the file in which it remembers its clients' states and answers.
        socket: over which the part that Flower starts reaches it.
        max_message_bytes: a longer message is refused.
    """

    folder: Path
    name: str
    server: str
    spec: Path
    data: Path
    first: int
    total: int
    key: Path
    authority: Path
    memory: Path
    socket: Path
    max_message_bytes: int = DEFAULT_MAX_BYTES

    @classmethod
    def read(cls, folder: Path) -> NodeFile:
        """Read it from a folder.

        Raises:
            SpecError: it cannot be used; all faults are told.
            DataError: it cannot be read.
        """
        table = _Table(folder / NODE)
        found = cls(
            folder,
            table.take("name", str),
            table.address("server"),
            folder / table.take("spec", str, "spec.toml"),
            folder / table.take("data", str, "data"),
            table.take("first", int),
            table.take("total", int),
            folder / table.take("key", str, "keys/node"),
            folder / table.take("authority", str, "keys/authority.pem"),
            folder / table.take("memory", str, "memory.sqlite"),
            folder / table.take("socket", str, "node.sock"),
            table.take("max_message_bytes", int, DEFAULT_MAX_BYTES),
        )
        if len(str(found.socket.absolute())) > 100:
            table.fault(f"socket: a path must have at most 100 characters, got {str(found.socket.absolute())!r}")
        table.end()
        return found

    def members(self, examples: Sequence[int]) -> list[Member]:
        """All clients of the deployment; of those of others nothing is known but that they are there.

        Raises:
            DataError: the node's clients are not all among them.
        """
        after = self.first + len(examples)
        if after > self.total:
            raise DataError(
                f"{NODE}: clients {self.first} to {after - 1}, of which the data are here, must be among the "
                f"total={self.total} of the federation, numbered from 0. Correct first or total."
            )
        parts = [
            Member("/before", 0, [1] * self.first),  # no node's name has a stroke
            Member(self.name, self.first, examples),
            Member("/after", after, [1] * (self.total - after)),
        ]
        return [part for part in parts if part.examples]


class _Table:
    """A TOML table of which every key is asked for once."""

    def __init__(self, path: Path) -> None:
        self._path, self._faults = path, list[str]()
        try:
            self._left: dict[str, Any] = dict(parse(path.read_text(encoding="utf-8")))
        except OSError as error:
            remedy = "Name a folder that `partwise deploy init` has made"
            raise DataError(f"{path}: must be there to be read, got: {error.strerror}. {remedy}.") from error
        except ValueError as error:
            raise SpecError([f"{path}: must be TOML, got: {error}"]) from error

    def fault(self, sentence: str) -> None:
        self._faults.append(f"{self._path.name}: {sentence}.")

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._left.pop(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (isinstance(value, int | float) and value < 0):
            self.fault(f"{key} must be {'text' if kind is str else 'a number from 0 on'}, got {value!r}")
            return kind()
        return value

    def address(self, key: str) -> str:
        """A host and a port."""
        value: str = self.take(key, str)
        host, _, port = value.rpartition(":")
        is_number = port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16
        if value and not (host and is_number and (host.startswith("[") or ":" not in host)):
            self.fault(f"{key} must be host:port, with brackets around an IPv6 address, got {value!r}")
        return value

    def rows(self, key: str) -> list[Mapping[str, Any]]:
        found = self._left.pop(key, [])
        return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []

    def end(self) -> None:
        self._faults += [f"{self._path.name}: knows no {key!r}. Leave it out." for key in self._left]
        if self._faults:
            raise SpecError(self._faults)


def _are_counts(examples: Any) -> bool:
    return isinstance(examples, list) and bool(examples) and all(type(n) is int and n > 0 for n in examples)
