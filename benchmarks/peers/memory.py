"""The peak memory of a process and all its descendants, on Linux."""

from __future__ import annotations

import threading
from pathlib import Path

__all__ = ["Peak"]

_EVERY_SECONDS = 0.1


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found, new = [root], [root]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found += new
    return found


def _kib(process: int) -> int:
    """Proportional set size: a page that several processes share is divided among them."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


class Peak:
    """Watches a process from a thread of its own while the block runs; `mib` is nan where there is no /proc."""

    def __init__(self, process: int) -> None:
        self._process, self._over = process, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.mib = float("nan")

    def __enter__(self) -> Peak:  # noqa: PYI034 - Python 3.10 has no typing.Self
        if Path("/proc/self/smaps_rollup").exists():
            self.mib = 0.0
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self.mib = max(self.mib, sum(_kib(process) for process in _descendants(self._process)) / 1024)
