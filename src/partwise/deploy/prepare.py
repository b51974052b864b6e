"""A ready folder for a deployment: files, keys, certificates and units for the server and each node."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partwise.core.errors import CompositionError, DataError, PartwiseError
from partwise.core.population import Client, Dataset, Population
from partwise.core.workload import Workload
from partwise.deploy.files import NODE, SERVER
from partwise.experiment.spec import dump, load
from partwise.experiment.toml import write
from partwise.populations.files import ClientColumns, write_folder
from partwise.populations.sizes import clients_with_tests

__all__ = ["prepare"]

_SPEC = "spec.toml"
_ANY = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # all interfaces, and how this machine reaches itself
_APP = {
    "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
    "project": {
        "name": "partwise-run",
        "version": "1.0.0",
        "description": "A run of Partwise; the code is in the package that each side has installed.",
        "license": "Apache-2.0",
        "dependencies": [],
    },
    "tool": {
        "flwr": {
            "app": {
                "publisher": "partwise",
                "components": {
                    "serverapp": "partwise.deploy.flower:server_app",
                    "clientapp": "partwise.deploy.flower:client_app",
                },
                "config": {"server": ""},
            }
        }
    },
}
_UNIT = """[Unit]
Description=Partwise {what}
After=network-online.target
Wants=network-online.target

[Service]
User={user}
WorkingDirectory={folder}
ExecStart={python} -m partwise deploy {command} {folder}
Restart=on-failure
RestartSec=5
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={folder}
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def prepare(
    spec: Path, folder: Path, *, nodes: int, address: str, hosts: Sequence[str] = (), overrides: Sequence[str] = ()
) -> list[Path]:
    """Write the folder of a test network; its server's folder and its nodes'.

    The clients of the specification's workload are dealt out to the nodes in order, and each node gets the data of its
    own. What they are tested on, or the workload's central test set, goes to the server. Files with parts of one's own
    that the specification names are copied to each side.

    Args:
        spec: the experiment.
        folder: a new or empty one.
        nodes: how many, >= 1.
        address: `host:port` on which the server listens.
        hosts: under what names or addresses nodes reach the server, beside its own.
        overrides: changes to the specification, as for `load`.

    Raises:
        CompositionError: the experiment has trusted examples, which are not there on a network.
        DataError: the folder has files or cannot be made, or there are fewer clients than nodes; or two files of parts
            have one name.
        PartwiseError: the package cryptography is not installed.
        ValueError: the address is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f"prepare(address={address!r}): must be host:port, got {address!r}. Use 127.0.0.1:9443.")
    with _made(folder):
        is_taken = folder.exists() and any(folder.iterdir())
    if is_taken:
        raise DataError(f"prepare({str(folder)!r}): needs a new or empty folder, got one with files. Name another.")
    experiment = load(spec, overrides)
    if experiment.trusted is not None:
        raise CompositionError(
            f"prepare(): a network has no examples for {experiment.trusted!r}, which takes them where server and "
            "clients are one process. Leave `trusted` out with what needs it, or simulate the specification."
        )
    text, files = _with_files(dump(experiment), spec.parent)  # as it was read: paths, overrides and defaults in full
    source = experiment.workload
    population = (source if isinstance(source, Workload) else source.build(experiment.seed)).population
    if not 1 <= nodes <= len(population.clients):
        raise DataError(
            f"prepare(nodes={nodes}): every node must have a client, got {len(population.clients)} of them. "
            f"{'Ask for fewer nodes' if nodes > 0 else 'Ask for one at least'}."
        )
    try:
        from partwise.deploy import keys
    except ImportError as error:
        raise PartwiseError(
            "prepare(): makes keys and certificates with the package cryptography, got none. "
            "Run: pip install 'partwise[flower]'."
        ) from error

    server, authority = folder / "server", folder / "authority"
    with _made(folder):
        for made in (server / "keys", server / "nodes", server / "app", server / "flwr", authority):
            made.mkdir(parents=True)
    keys.make_authority(authority / "authority.key", authority / "authority.pem")
    shutil.copyfile(authority / "authority.pem", server / "keys" / "authority.pem")
    names = list(dict.fromkeys([h for h in (*hosts, host) if h not in _ANY] + ["localhost", "127.0.0.1"]))
    pair = (authority / "authority.key", authority / "authority.pem")
    keys.make_server_certificate(pair, server / "keys" / "server.key", server / "keys" / "server.pem", names)
    bare = names[0].strip("[]")
    reached = f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"
    parts = [list(population.clients)[at] for at in _cuts(len(population.clients), nodes)]
    entries = [_node(folder, f"node-{number}", text, population, part, reached) for number, part in enumerate(parts, 1)]
    _server(server, text, population, entries, address, f"{_ANY[host]}:{port}" if host in _ANY else address)
    sides = [server, *(folder / str(entry["name"]) for entry in entries)]
    for side, file in itertools.product(sides, files):
        shutil.copyfile(file, side / file.name)
    return sides


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Says so where a folder cannot be looked into, or made."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"prepare({str(folder)!r}): needs a folder that can be made, got: {error.strerror}. Name another."
        ) from error


def _with_files(text: str, base: Path) -> tuple[str, list[Path]]:
    """A specification that finds the files of its own parts beside it, and where they are now."""
    files: dict[str, Path] = {}
    for where in sorted(set(re.findall(r"""["']([^"'\n]+\.py):\w+["']""", text))):
        path = (base / where).expanduser().resolve()
        if not path.is_file():
            continue  # in a comment, or the specification would not have been read
        if files.setdefault(path.name, path) != path:
            raise DataError(
                f"prepare(): files of parts must have names of their own, got {files[path.name]} and {path}. "
                "Rename one."
            )
        text = re.sub(rf"""(["']){re.escape(where)}:""", rf"\1{path.name}:", text)
    return text, list(files.values())


def _cuts(count: int, parts: int) -> list[slice]:
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _node(
    folder: Path, name: str, spec: str, population: Population, clients: Sequence[Client], server: str
) -> dict[str, Any]:
    """A node's folder; its entry in the server's file."""
    from partwise.deploy import keys

    mine = folder / name
    (mine / "keys").mkdir(parents=True)
    (mine / "flwr").mkdir()
    keys.make_node_key(mine / "keys" / "node", mine / "keys" / "node.pub")
    shutil.copyfile(folder / "authority" / "authority.pem", mine / "keys" / "authority.pem")
    shutil.copyfile(mine / "keys" / "node.pub", folder / "server" / "nodes" / f"{name}.pub")
    (mine / _SPEC).write_text(spec, encoding="utf-8")
    write_folder(mine / "data", (ClientColumns(population.data(c).columns(), name=population.name(c)) for c in clients))
    about = {"name": name, "server": server, "spec": _SPEC, "data": "data"}
    first = list(population.clients).index(clients[0])
    (mine / NODE).write_text(write({**about, "first": first, "total": len(population.clients)}), encoding="utf-8")
    (mine / f"partwise-{name}.service").write_text(_unit(mine, f"node {name}", "node"), encoding="utf-8")
    return {"name": name, "key": f"nodes/{name}.pub", "examples": [len(population.data(c)) for c in clients]}


def _server(
    server: Path, spec: str, population: Population, nodes: Sequence[dict[str, Any]], address: str, here: str
) -> None:
    (server / _SPEC).write_text(spec, encoding="utf-8")
    test = _test(population)
    about: dict[str, Any] = {"spec": _SPEC, "address": address, "run": "run"}
    if test is not None:
        write_folder(server / "test", [test])
        about["test"] = "test"
    (server / SERVER).write_text(write({**about, "nodes": list(nodes)}), encoding="utf-8")
    (server / "app" / "pyproject.toml").write_text(write(_APP), encoding="utf-8")
    certificate = str((server / "keys" / "authority.pem").absolute())
    connection = {"default": "here", "here": {"address": here, "root-certificates": certificate}}
    (server / "flwr" / "config.toml").write_text(write({"superlink": connection}), encoding="utf-8")
    (server / "partwise-server.service").write_text(_unit(server, "server", "server"), encoding="utf-8")


def _unit(folder: Path, what: str, command: str) -> str:
    user = getpass.getuser()
    return _UNIT.format(what=what, user=user, folder=folder.absolute(), python=sys.executable, command=command)


def _test(population: Population) -> dict[str, Tensor] | None:
    """What the server measures on, column by column; None if there is nothing."""
    central = population.central_test()
    if central is not None and len(central):
        return dict(central.columns())
    held: list[Dataset] = [
        found for c in clients_with_tests(population) if (found := population.test_data(c)) is not None and len(found)
    ]
    if not held:
        return None
    columns = [found.columns() for found in held]
    return {name: torch.cat([c[name] for c in columns]) for name in columns[0]}
