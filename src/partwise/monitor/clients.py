"""What every client did, added up as it comes: a few numbers each, however many replies there were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from partwise.experiment.runs import read_population
from partwise.experiment.words import one_line

__all__ = ["ORDERS", "ClientLine", "Names", "Order", "Tallies"]

Order = Literal["recent", "number", "replies", "lost", "refused", "staleness", "uplink", "downlink"]
ORDERS: tuple[Order, ...] = ("recent", "number", "replies", "lost", "refused", "staleness", "uplink", "downlink")

_ROW = np.dtype(
    [
        ("replies", "<i8"),
        ("lost", "<i8"),
        ("refused", "<i8"),
        ("uplink", "<i8"),
        ("downlink", "<i8"),
        ("stale", "<i8"),  # the staleness of all replies, summed
        ("version", "<i8"),  # of the last reply, and so the next three
        ("staleness", "<i8"),
        ("seconds", "<f8"),
        ("loss", "<f8"),
    ]
)


class ClientLine(NamedTuple):
    """A client so far.

    Args:
        client: its number.
        name: what a person would call it.
        replies: that arrived.
        lost: tasks of it that were lost.
        refused: replies of it that were refused.
        uplink: bytes from it, with its replies.
        downlink: bytes to it, with the tasks that it answered.
        version: that its last reply could become part of at the earliest; 0 if it gave none.
        staleness: of its last reply.
        mean_staleness: of its replies; nan if it gave none.
        seconds: when its last reply was in, on the run's clock; nan if it gave none.
        loss: that it reported last; nan if it gave none.
    """

    client: int
    name: str
    replies: int
    lost: int
    refused: int
    uplink: int
    downlink: int
    version: int
    staleness: int
    mean_staleness: float
    seconds: float
    loss: float


class Tallies:
    """Client -> what it did, in 88 bytes each."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.int64)  # ascending
        self._rows = np.empty(0, _ROW)

    def __len__(self) -> int:
        return len(self._numbers)

    def add_replies(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add what `RunStore.replies_between` gave."""
        found = list(rows)
        if not found:
            return
        client, count, up, down, stale, _, version, arrived, staleness, loss = zip(*found, strict=True)
        at = self._places(client)  # each client is there once
        self._rows["replies"][at] += np.array(count)
        self._rows["uplink"][at] += np.array(up)
        self._rows["downlink"][at] += np.array(down)
        self._rows["stale"][at] += np.array(stale)
        self._rows["version"][at], self._rows["staleness"][at] = version, staleness
        self._rows["seconds"][at], self._rows["loss"][at] = arrived, np.array(loss, np.float64)

    def add_trouble(self, kind: Literal["lost", "refused"], clients: Sequence[int]) -> None:
        """Add one for each time that a client is named."""
        at = self._places(clients)  # first, for it makes room
        np.add.at(self._rows[kind], at, 1)

    def _places(self, clients: Sequence[int]) -> Any:
        """Where they are; who is new gets a place."""
        asked = np.array(clients, np.int64)
        at = np.searchsorted(self._numbers, asked)
        is_new = np.append(self._numbers, -1)[at] != asked  # at the end stands nobody
        new = np.unique(asked[is_new])
        if len(new):
            blank = np.zeros(len(new), _ROW)
            blank["seconds"] = blank["loss"] = np.nan
            at = np.searchsorted(self._numbers, new)
            self._numbers, self._rows = np.insert(self._numbers, at, new), np.insert(self._rows, at, blank)
        return np.searchsorted(self._numbers, asked)

    def lines(self, names: Names, order: Order = "recent", find: str = "", limit: int = 20) -> list[ClientLine]:
        """Some clients, those first that have most of what is asked for; numbers ascend, and decide where all is equal.

        Args:
            names: of the clients.
            order: by what; by default the time of the last reply, and its version where no time passed between.
            find: only those with this number, or with this in their names.
            limit: how many at most.
        """
        among = self._among(names, find)
        if order != "number":
            first, then = ("seconds", "version") if order == "recent" else (order, order)
            rows = self._rows[among]
            most = -np.nan_to_num(rows[first].astype(np.float64), nan=-np.inf)
            among = among[np.lexsort((-rows[then], most))]  # stable, by the last of these first
        return [self._line(int(at), names) for at in among[:limit]]

    def count(self, names: Names, find: str = "") -> int:
        """How many clients there are, or are found."""
        return len(self._among(names, find))

    def _among(self, names: Names, find: str) -> Any:
        """Where they are, ascending by number."""
        return np.flatnonzero(np.isin(self._numbers, names.like(find))) if find else np.arange(len(self))

    def _line(self, at: int, names: Names) -> ClientLine:
        replies, lost, refused, up, down, stale, version, staleness, seconds, loss = self._rows[at].item()
        client, mean = int(self._numbers[at]), stale / replies if replies else float("nan")
        name = names.of(client)
        return ClientLine(client, name, replies, lost, refused, up, down, version, staleness, mean, seconds, loss)


class Names:
    """What clients are called.

    Args:
        folder: of the run, which may have said so in `population.json`.
    """

    def __init__(self, folder: Path) -> None:
        about: Mapping[str, Any] = read_population(folder) or {}
        names: Sequence[Any] = about.get("names") or ()
        numbers: Sequence[int] = about.get("numbers") or range(len(names))
        self._names = dict(zip(numbers, map(str, names), strict=False))

    def of(self, client: int) -> str:
        """A client's name; its number where it has none."""
        return one_line(self._names.get(client, "")) or f"client {client}"

    def like(self, text: str) -> list[int]:
        """The clients with this number, or with this in their names, in small letters or large ones."""
        low = text.strip().lower()
        number = low.removeprefix("client").strip()
        found = [int(number)] if number.isdecimal() and len(number) < 19 else []
        return found + [client for client, name in self._names.items() if low in name.lower()]
