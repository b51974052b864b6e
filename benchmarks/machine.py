"""What a benchmark prints about where it ran."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

__all__ = ["describe", "mnist_folder", "plays_folder", "spread"]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def describe(seed: int) -> str:
    """One line: machine, versions, commit, seed."""
    versions = f"Python {sys.version.split()[0]}, torch {version('torch')}, partwise {version('partwise')}"
    return f"{_processor()}, {os.cpu_count()} cores; {versions}, commit {_commit()}, seed {seed}"


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation; of one value, that alone."""
    deviation = f" ± {format(statistics.stdev(values), form)}" if len(values) > 1 else ""
    return format(statistics.mean(values), form) + deviation


def mnist_folder() -> Path | None:
    """Where MNIST is: `data` in $PARTWISE_SHARED or in `shared` beside the repository; None without it."""
    return _data() if (_data() / "mnist.npz").is_file() else None


def plays_folder() -> Path | None:
    """Where Shakespeare's plays are: `shakespeare` beside MNIST; None without them."""
    found = _data() / "shakespeare"
    return found if found.is_dir() else None


def _data() -> Path:
    return Path(os.environ.get("PARTWISE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
