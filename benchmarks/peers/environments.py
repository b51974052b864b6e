"""One environment per peer, made from its lock file where it is missing or of an older lock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["HERE", "python_of"]

HERE = Path(__file__).parent


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment.

    Raises:
        RuntimeError: it could not be made; what pip said last.
    """
    folder, lock = HERE / ".envs" / peer, HERE / peer / "requirements.lock"
    python, stamp = folder / "bin" / "python", folder / "made-from.lock"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return python
    print(f"making the environment of {peer}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch by itself first: resolved together with the rest, a much larger build might be chosen
    torch = [line for line in lock.read_text().splitlines() if line.startswith("torch==")]
    for wanted in ([*torch], ["-r", str(lock)]):
        if wanted:
            _run([*pip, *wanted])
    shutil.copyfile(lock, stamp)
    return python


def _run(command: list[str]) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    if found.returncode:
        said = (found.stderr or found.stdout).strip().splitlines()
        raise RuntimeError(said[-1] if said else f"{command[0]} ended with {found.returncode}")
