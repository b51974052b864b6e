"""The commands of `docs/deploy.md` as processes, and what they have come to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Command:
    """A command of `docs/deploy.md` in a process group of its own, so that it can be killed with all it has started."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        print("  $ partwise", *self.arguments, flush=True)
        with Path(f"{self.arguments[2]}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "partwise", *self.arguments], stdout=log, stderr=log, start_new_session=True
            )
        return self.process

    def kill(self) -> None:
        """As a power cut would."""
        print("  kill -9:", *self.arguments, flush=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


def call(*arguments: str) -> str:
    """A command that ends by itself; what it says."""
    print("  $ partwise", *arguments, flush=True)
    command = [sys.executable, "-m", "partwise", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def status(server: Path) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "partwise", "deploy", "status", str(server), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def wait_for(server: Path, version: int, until: float, running: Command) -> dict[str, Any]:
    """Until the run has made a version, or has ended."""
    while True:
        found = status(server)
        if found["version"] >= version and (version < 10**9 or running.process.poll() is not None):
            return found
        if running.process.poll() is not None:
            if version >= 10**9:
                return status(server)
            raise SystemExit(f"the server ended early: {found}")
        if time.monotonic() > until:
            raise SystemExit(f"took too long: {found}")
        time.sleep(1.0)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
