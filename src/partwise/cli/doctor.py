"""`partwise doctor`: what is here, what is missing, and what brings it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import typer

from partwise import __version__
from partwise.cli.app import FAILED
from partwise.core.errors import DataError

__all__ = ["Finding", "doctor_command", "findings"]

_OLDEST_PYTHON = (3, 10)
_ENOUGH_DISK = 1 << 30  # bytes; a run of the demo takes a hundredth of it


class Finding(NamedTuple):
    """One thing that was looked at.

    Args:
        what: it is.
        state: `ok`; `missing`, where something can be added; `wrong`, where Partwise cannot work.
        said: what was found, and the remedy.
    """

    what: str
    state: str
    said: str


def doctor_command() -> None:
    """What is installed, and what is missing.

    And which extra brings it. The exit code is 1 if Partwise cannot work here.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = list(findings())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    colours = {"ok": "green", "missing": "yellow", "wrong": "bold red"}
    for finding in found:
        table.add_row(Text(finding.state, style=colours[finding.state]), finding.what, Text(finding.said))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if any(f.state == "wrong" for f in found):
        raise typer.Exit(FAILED)


def findings() -> Iterator[Finding]:
    """Look at everything Partwise needs or can use."""
    yield Finding("partwise", "ok", __version__)
    yield _python()
    yield from _packages()
    yield from _compute()
    yield from _places()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("Python", "wrong", f"must be at least {'.'.join(map(str, _OLDEST_PYTHON))}, got {version}.")
    return Finding("Python", "ok", version)


def _packages() -> Iterator[Finding]:
    """Required packages, then a line for each extra; read from what Partwise itself says it needs."""
    from importlib import metadata

    try:
        lines = metadata.requires("partwise") or []
    except metadata.PackageNotFoundError:
        said = "Partwise is not installed, only found, so its extras are not known. pip install -e ."
        yield Finding("packages", "missing", said)
        return
    extras: dict[str, list[str]] = {}
    for line in lines:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if extra and name != "partwise":
            extras.setdefault(extra[1], []).append(name)
        elif not extra and "python_version" not in line:
            version = _version(name)
            yield Finding(name, "ok" if version else "wrong", version or f"pip install {name}")
    for extra_name, names in extras.items():
        yield _extra(extra_name, {name: _version(name) for name in names})


def _extra(name: str, versions: Mapping[str, str | None]) -> Finding:
    absent = [n for n, version in versions.items() if version is None]
    if absent:
        return Finding(f"extra {name}", "missing", f"{', '.join(absent)}: pip install 'partwise[{name}]'")
    return Finding(f"extra {name}", "ok", ", ".join(f"{n} {version}" for n, version in versions.items()))


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compute() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if importlib.util.find_spec("torch") is None:
        yield Finding("threads", "wrong", f"{cores} cores, and no torch to use them. pip install torch")
        return
    import torch

    yield Finding(
        "threads", "ok", f"torch would use {torch.get_num_threads()} of {cores} cores; a run uses 1 unless told"
    )
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("CUDA", "ok", f"{names}; clients train on it with runtime.executor=OnDevice")
    else:
        yield Finding("CUDA", "missing", "none; everything runs on the CPU")


def _places() -> Iterator[Finding]:
    from partwise.workloads.cache import cache_dir

    try:
        yield _writable("cache", cache_dir())
    except DataError as error:
        yield Finding("cache", "missing", str(error))
    yield _writable("this folder", Path.cwd())


def _writable(what: str, folder: Path) -> Finding:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        remedy = "Set XDG_CACHE_HOME to a folder that can be written" if what == "cache" else "Work in another folder"
        return Finding(what, "wrong" if what != "cache" else "missing", f"{folder}: {error.strerror}. {remedy}.")
    free = shutil.disk_usage(there).free
    state, hint = ("ok", "") if free >= _ENOUGH_DISK else ("missing", "; little for runs")
    return Finding(what, state, f"{folder}, {free / 1e9:.1f} GB free{hint}")
