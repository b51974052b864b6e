"""`partwise deploy`: a server and nodes on a network."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from partwise.cli.app import FAILED, INTERRUPTED, EndedError

if TYPE_CHECKING:
    import subprocess

    from partwise.deploy.files import ServerFile

__all__ = ["deploy"]

deploy = typer.Typer(help="A server and nodes on a network, over Flower.", no_args_is_help=True)

_LOOK_SECONDS = 0.5
_AGAIN_SECONDS = 5.0  # between two tries of a node to join
_RESTARTS = 5  # of our part of the run, if its process ends without having said why
_ENDED = ("done", "target reached", "time is up", "nothing left to do", "client ")


@deploy.callback()
def _deploy() -> None:
    pass


@deploy.command("init")
def init_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="What is to run.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to it.")] = None,
    folder: Annotated[Path, typer.Option("--folder", "-f", help="A new one.")] = Path("deployment"),
    nodes: Annotated[int, typer.Option("--nodes", "-n", help="How many.")] = 3,
    address: Annotated[str, typer.Option(help="host:port on which the server listens.")] = "127.0.0.1:9443",
    host: Annotated[list[str] | None, typer.Option(help="How nodes call the server, if not by its address.")] = None,
) -> None:
    """Write a ready folder for a test network.

    Keys, certificates, a file for the server and one for each node, its part of the data, units for systemd.
    """
    from partwise.deploy.prepare import prepare

    server, *rest = prepare(
        spec, folder, nodes=nodes, address=address, hosts=list(host or ()), overrides=list(overrides or ())
    )
    typer.echo(f"{folder} is ready. On the server:\n  partwise deploy server {shlex.quote(str(server))}")
    typer.echo("On each node, with its own folder alone:")
    for node in rest:
        typer.echo(f"  partwise node check {node}\n  partwise deploy node {node}")
    typer.echo(f"The key in {folder / 'authority'} makes certificates: keep it elsewhere.")


@deploy.command("server")
def server_command(folder: Annotated[Path, typer.Argument(help="With a server.toml.")]) -> None:
    """Run the server, from the beginning or from where it was; ends when the run has."""
    from partwise.deploy.files import ServerFile
    from partwise.deploy.launch import end, register, start_link

    file = ServerFile.read(folder)
    if _ended(status := _status(file)):
        raise EndedError(f"{file.run}: the run has ended: {status}. Name another folder in server.toml.", FAILED)
    _end_on_sigterm()
    link = start_link(file)
    try:
        register(file, link)
        typer.echo(f"listening on {file.address} for {', '.join(node.name for node in file.nodes)}")
        status = _follow(file, link)
    except KeyboardInterrupt:
        said = f"interrupted; go on with: partwise deploy server {shlex.quote(str(folder))}"
        raise EndedError(said, INTERRUPTED) from None
    finally:
        end(link)
    typer.echo(f"{status}. See: partwise show {shlex.quote(str(file.run))}")
    if not status.startswith(("done", "target reached")):
        raise EndedError(f"the run ended: {status}.", FAILED)


def _end_on_sigterm() -> None:
    """Let `systemctl stop` end us as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _status(file: ServerFile) -> str:
    """What the run's record says of itself; "" if there is none."""
    from partwise.core.errors import CheckpointError
    from partwise.experiment.store import RunStore

    with contextlib.suppress(CheckpointError), RunStore(file.run, "read") as store:
        return str(store.meta().get("status", ""))
    return ""


def _ended(status: str) -> bool:
    return status.startswith(_ENDED)


def _follow(file: ServerFile, link: subprocess.Popen[bytes]) -> str:
    """Have the run go on until it ends; how it ended."""
    from partwise.core.errors import PartwiseError
    from partwise.deploy.launch import LINK_LOG, submit
    from partwise.experiment.lock import writer_of

    seen = _Seen()
    for _ in range(_RESTARTS + 1):
        run, was_there, began = submit(file), False, time.monotonic()
        typer.echo(f"run {run}")
        while link.poll() is None:
            is_there = writer_of(file.run) is not None
            was_there = was_there or is_there
            status = _status(file)
            seen.tell(file)
            if not is_there and (_ended(status) or (was_there and status not in ("", "running", "failed"))):
                return status
            if not is_there and (was_there or time.monotonic() - began > 60.0):
                typer.echo(f"our part of the run has ended ({status or 'before it began'}); it is started again")
                break
            time.sleep(_LOOK_SECONDS)
        else:
            raise PartwiseError(
                f"flower-superlink: must run, ended with {link.returncode}. See {file.folder / LINK_LOG}."
            )
    raise PartwiseError(
        f"the run: may be started again {_RESTARTS} times, ended once more. See {file.folder / LINK_LOG}."
    )


class _Seen:
    """Tells what is new in a run's record."""

    def __init__(self) -> None:
        self._number = 0

    def tell(self, file: ServerFile) -> None:
        for event in _events(file, self._number):
            self._number = event["seq"]
            if text := _line(event["kind"], event["body"]):
                typer.echo(f"{event['time']:9.1f} s  {text}")


def _events(file: ServerFile, after: int) -> Iterator[Mapping[str, Any]]:
    from partwise.core.errors import CheckpointError
    from partwise.experiment.store import RunStore

    with contextlib.suppress(CheckpointError), RunStore(file.run, "read") as store:
        yield from [event for event in store.events() if event["seq"] > after]


def _line(kind: str, body: Any) -> str:
    match kind:
        case "commit":
            return f"version {body['version']} of {body['replies']} replies, loss {body['loss']:.4f}"
        case "node":
            return f"node {body['node']} {'is there' if body['is_there'] else 'is gone'}"
        case "lost" | "refused":
            return f"client {body['client']} was {kind}: {_shown(body['reason'])}"
        case "rejected":
            return f"rejected: {_shown(body['reason'])}"
        case "node_error":
            lines = body["text"].strip().splitlines()
            return f"node {body['node']} failed: {_shown(lines[-1] if lines else '')}"
    return ""


def _shown(text: str) -> str:
    """What a node has said, in one line, and without what a terminal would obey."""
    from partwise.experiment.words import printable

    return " ".join(printable(text).split()) or "nothing was said of why"


@deploy.command("node")
def node_command(folder: Annotated[Path, typer.Argument(help="With a node.toml.")]) -> None:
    """Run a node until it is stopped: its data stay here."""
    from partwise.deploy import line
    from partwise.deploy.files import NodeFile
    from partwise.deploy.launch import NODE_LOG, end, start_node, tail
    from partwise.deploy.local import open_node
    from partwise.deploy.node import serve
    from partwise.experiment.lock import WriterLock, writer_of

    file = NodeFile.read(folder)
    if (other := writer_of(folder)) is not None:
        raise EndedError(f"{folder}: one process serves a node, got a second beside pid {other}. End that one.", FAILED)
    lock = WriterLock(folder)  # or the second would take the first one's socket, and take it away when it ends
    _end_on_sigterm()
    node = open_node(file)
    listening = line.listen(file.socket)
    typer.echo(f"node {file.name} serves {file.server}")
    threading.Thread(target=serve, args=(node, listening), daemon=True).start()
    links = [start_node(file)]
    said = ""
    try:
        while True:
            code, words = links[0].wait(), tail(file.folder / NODE_LOG)
            if words != said:
                said = words
                typer.echo(f"flower-supernode ended with {code}, and is started again and again. {words}")
            time.sleep(_AGAIN_SECONDS)
            links = [start_node(file)]
    except KeyboardInterrupt:
        said = f"node {file.name} was stopped; what its clients know is in {file.memory}."
        raise EndedError(said, INTERRUPTED) from None
    finally:
        end(links[0])
        file.socket.unlink(missing_ok=True)
        lock.release()


@deploy.command("status")
def status_command(
    folder: Annotated[Path, typer.Argument(help="With a server.toml.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of words.")] = False,
) -> None:
    """How a deployment stands, as its record tells."""
    from partwise.deploy.files import ServerFile
    from partwise.experiment.lock import writer_of

    file = ServerFile.read(folder)
    there = dict.fromkeys((node.name for node in file.nodes), False)
    version, lost, refused, errors = 0, 0, 0, list[str]()
    for event in _events(file, 0):
        kind, body = event["kind"], event["body"]
        there.update({body["node"]: body["is_there"]} if kind == "node" else {})
        version = body["version"] if kind == "commit" else version
        lost, refused = lost + (kind == "lost"), refused + (kind in ("refused", "rejected"))
        errors += [_line(kind, body)] if kind in ("node_error", "rejected", "refused") else []
    is_running = writer_of(file.run) is not None
    found = {
        "status": _status(file) or "not begun",
        "is_running": is_running,
        "version": version,
        "nodes": {name: is_there and is_running for name, is_there in there.items()},
        "lost": lost,
        "refused": refused,
        "last_errors": errors[-5:],
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{found['status']}, version {version}; {lost} tasks lost, {refused} messages refused")
    for name, is_there in there.items():
        typer.echo(f"  {name}: {'there' if is_there and is_running else 'not there'}")
    for text in errors[-5:]:
        typer.echo(f"  {text}")
