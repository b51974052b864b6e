"""Folders of runs, and the environment a run was made in."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from partwise import __version__
from partwise.core.errors import CheckpointError
from partwise.core.files import write_file
from partwise.experiment.lock import writer_of
from partwise.experiment.store import RECORD, RunStore

__all__ = ["RunInfo", "environment", "list_runs", "new_run_folder", "save_environment", "status_of"]


class RunInfo(NamedTuple):
    """A run as its folder shows it.

    Args:
        folder: where it is.
        meta: what the run said about itself; empty if the record cannot be read.
        writer: the process that is writing it, if any.
        fault: why the record cannot be read, if so.
    """

    folder: Path
    meta: Mapping[str, Any]
    writer: int | None = None
    fault: str | None = None


def new_run_folder(root: Path | str, name: str, *, now: datetime | None = None) -> Path:
    """Make a folder of its own for a run: `<name>-<YYYYmmdd-HHMMSS>`, with `-2`, `-3` ... where that is taken.

    Args:
        root: made if it is missing.
        name: other characters than letters, digits, `.`, `_` and `-` become `-`.
        now: None asks the clock, in local time.

    Raises:
        CheckpointError: it cannot be made.
    """
    moment = now if now is not None else datetime.now(timezone.utc).astimezone()
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "run"
    stem = f"{plain}-{moment:%Y%m%d-%H%M%S}"
    folder, n = Path(root) / stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not Path(root).is_dir():
                raise CheckpointError(
                    f"new_run_folder({str(root)!r}): needs a folder, got a file. Name another."
                ) from None
        except OSError as error:
            raise CheckpointError(
                f"new_run_folder({str(root)!r}): needs a folder it may write to, got: {error.strerror}. Name another."
            ) from error
        else:
            return folder
        n += 1
        folder = Path(root) / f"{stem}-{n}"


def list_runs(root: Path | str) -> list[RunInfo]:
    """The runs in a folder, by name; [] where there are none."""
    return [_info(path.parent) for path in sorted(Path(root).glob(f"*/{RECORD}"))]


def _info(folder: Path) -> RunInfo:
    try:
        with RunStore(folder, "read") as store:
            return RunInfo(folder, store.meta(), writer_of(folder))
    except CheckpointError as error:
        return RunInfo(folder, {}, writer_of(folder), str(error))


def status_of(meta: Mapping[str, Any], folder: Path) -> str:
    """How a run stands, in words; one that runs begins with `running`."""
    status = str(meta.get("status", "unknown"))
    if status != "running":
        return status
    writer = writer_of(folder)
    return f"running (pid {writer})" if writer else "killed; can be resumed"


def environment(folder: Path | str = ".") -> dict[str, Any]:
    """What a run's numbers depend on besides its specification: versions, machine, commit. No name of a host or user.

    Args:
        folder: whose git commit is meant; the user's working directory.
    """
    return {
        "partwise": __version__,
        "python": platform.python_version(),
        "torch": getattr(sys.modules.get("torch"), "__version__", None) or _version("torch"),  # it says which build
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": _threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "git": _git(folder),
    }


def save_environment(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write `environment.json` into a run's folder."""
    path = folder / "environment.json"
    try:
        write_file(path, [json.dumps(found, indent=2).encode() + b"\n"])
    except OSError as error:
        raise CheckpointError(
            f"{path}: must be writable, got: {error.strerror}. Free the disk or unlock it."
        ) from error
    return path


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _threads() -> int | None:
    """Threads torch uses; where it is not loaded, what it was told to use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else None


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def _git(folder: Path | str) -> dict[str, Any] | None:
    """Commit of the repository around a folder, and whether files in it differ; None where there is none."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
        return done.stdout.decode(errors="replace").strip()  # names of files may be any bytes

    try:
        return {"commit": ask("rev-parse", "HEAD"), "is_dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
