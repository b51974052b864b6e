"""Flower's processes, started by ours and ended with them."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partwise.core.errors import PartwiseError
from partwise.deploy.files import NodeFile, ServerFile
from partwise.deploy.post import PARENT

__all__ = ["LINK_LOG", "NODE_LOG", "end", "free_port", "register", "start_link", "start_node", "submit", "tail"]

LINK_LOG, NODE_LOG = "superlink.log", "supernode.log"
_PR_SET_PDEATHSIG = 1
_UP_SECONDS = 120.0  # for Flower's server to answer
_NOISE = re.compile(r"^INFO|https://flower.ai|SuperExec|Connection attempt failed")
_ALREADY = "already in use"  # what Flower says of a key that is registered


# Of the server's folder, for Flower's commands.
_NEEDED = ("keys/server.pem", "keys/server.key", "keys/authority.pem", "app/pyproject.toml", "flwr/config.toml")


def _environment(folder: Path) -> dict[str, str]:
    """Flower's settings: nothing is told to anybody, looked up or installed, and its files are in the folder."""
    ours = {
        PARENT: str(os.getpid()),
        "FLWR_HOME": str((folder / "flwr").absolute()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return {**os.environ, **ours}


def _command(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise PartwiseError(f"{name}: must be installed, got no such command. Run: pip install 'partwise[flower]'")
    return found


def _start(arguments: Sequence[str], folder: Path, log: str) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def settle() -> None:  # in the child, which dies with us, and is not interrupted with us
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with (folder / log).open("ab") as file:
        return subprocess.Popen(
            [_command(arguments[0]), *arguments[1:]],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(folder),
            preexec_fn=settle,  # noqa: PLW1509 - there is one thread, and nothing else ties its life to ours
        )


def end(process: subprocess.Popen[bytes], seconds: float = 5.0) -> None:
    """Have a process end; make it, if it does not."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_link(file: ServerFile) -> subprocess.Popen[bytes]:
    """Flower's server with TLS and authentication of nodes; its state is in a file, so that it may be killed.

    Raises:
        PartwiseError: the folder lacks what Flower needs, without which its commands begin an open server of their own.
    """
    missing = [name for name in _NEEDED if not (file.folder / name).is_file()]
    if missing:
        raise PartwiseError(
            f"{file.folder}: must have {', '.join(_NEEDED)}, got none of the name {', '.join(missing)}. "
            "`partwise deploy init` makes them."
        )
    keys = file.folder / "keys"
    arguments = ["flower-superlink", "--host", file.host, "--port", str(file.port), "--enable-supernode-auth"]
    arguments += ["--ssl-certfile", str(keys / "server.pem"), "--ssl-keyfile", str(keys / "server.key")]
    arguments += ["--ssl-ca-certfile", str(keys / "authority.pem"), "--database", str(file.folder / "superlink.sqlite")]
    return _start([*arguments, "--disable-runtime-dependency-installation"], file.folder, LINK_LOG)


def _flower(file: ServerFile, *arguments: str) -> Mapping[str, Any]:
    """What `flwr ... --format json` says."""
    ran = subprocess.run(
        [_command("flwr"), *arguments, "--format", "json"],
        env=_environment(file.folder),
        capture_output=True,
        text=True,
        timeout=_UP_SECONDS,
        check=False,
    )
    at = ran.stdout.find("{")
    try:
        found: Mapping[str, Any] = json.loads(ran.stdout[at:]) if at >= 0 else {}
    except ValueError:
        found = {}
    return found or {"success": False, "error-message": (ran.stderr or ran.stdout).strip()[-500:]}


def register(file: ServerFile, link: subprocess.Popen[bytes]) -> None:
    """Wait until Flower's server answers, and have it know the nodes' keys; those it knows already are no matter.

    Raises:
        PartwiseError: it does not answer, or refuses a key.
    """
    until = time.monotonic() + _UP_SECONDS
    while not _flower(file, "supernode", "list").get("success"):
        if link.poll() is not None or time.monotonic() > until:
            raise PartwiseError(
                f"flower-superlink: must answer at {file.address}, got {tail(file.folder / LINK_LOG)!r}. "
                f"Look at {file.folder / LINK_LOG}; perhaps another process has the port."
            )
        time.sleep(0.5)
    for node in file.nodes:
        found = _flower(file, "supernode", "register", str(node.key), "--name", node.name)
        if not found.get("success") and _ALREADY not in str(found.get("error-message")):
            raise PartwiseError(
                f"node {node.name}: its key must be taken by Flower's server, got: {found.get('error-message')} "
                f"Look at {node.key}."
            )


def submit(file: ServerFile) -> str:
    """Have Flower start our part of the run; its number.

    Raises:
        PartwiseError: it does not.
    """
    setting = f"server={json.dumps(str(file.folder.absolute()))}"
    found = _flower(file, "run", str(file.folder / "app"), "here", "--run-config", setting)
    if not found.get("success"):
        raise PartwiseError(f"flwr run: must begin, got: {found.get('error-message')}. See {file.folder / LINK_LOG}.")
    return str(found["run-id"])


def start_node(file: NodeFile) -> subprocess.Popen[bytes]:
    """Flower's part of a node: the connection to the server, with the node's key."""
    setting = f"socket={json.dumps(str(file.socket.absolute()))}"
    arguments = ["flower-supernode", "--superlink", file.server, "--root-certificates", str(file.authority)]
    arguments += ["--auth-supernode-private-key", str(file.key), "--node-config", setting]
    return _start([*arguments, "--host", "127.0.0.1", "--port", str(free_port())], file.folder, NODE_LOG)


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tail(path: Path, characters: int = 300) -> str:
    """The last words of a log, without colours, and without what Flower says whenever it ends."""
    text = re.sub(r"\x1b\[\d+m", "", path.read_text(encoding="utf-8", errors="replace")) if path.exists() else ""
    lines = [line for line in text.splitlines() if line.strip() and not _NOISE.search(line)]
    return " ".join(line.strip() for line in lines)[-characters:] or "nothing"
