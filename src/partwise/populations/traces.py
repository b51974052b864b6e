"""When clients could answer, from what was recorded: intervals of a file or of arrays.

Shapes: N clients, n intervals.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partwise.core.errors import DataError
from partwise.core.population import Client
from partwise.populations.availability import Availability
from partwise.populations.profile_table import client_numbers, numbers
from partwise.populations.profiles import Reals
from partwise.populations.readers import open_table
from partwise.populations.slots import check_above_zero, slot_of

__all__ = ["Intervals", "Trace"]

_MANY = 64  # clients, from which on arrays are quicker
_MOST = 100_000_000  # clients: for each up to the largest 8 bytes are kept
_COLUMNS = ("client", "start_seconds", "end_seconds")


class _Rows(NamedTuple):
    """Intervals: (n,) each; the clients are whole numbers, of whatever type, once they have been checked."""

    client: NDArray[Any]
    start: Reals
    end: Reals


def _joined(where: str, rows: _Rows, period_seconds: float, place: Callable[[int], str]) -> _Rows:
    """The intervals, client by client, those that touch made one.

    Raises:
        DataError: as `Intervals` says; `place` tells where a row is.
    """
    _check(where, rows, period_seconds, place)
    order = np.argsort(rows.client, kind="stable")
    client, start, end = rows.client[order].astype(np.int64), rows.start[order], rows.end[order]
    same = client[1:] == client[:-1]
    wrong = (same & (start[1:] < end[:-1])).nonzero()[0]
    if len(wrong):
        i = int(wrong[0])
        what = "unsorted" if start[i + 1] < start[i] else "overlapping"
        raise DataError(
            f"{where}: a client's intervals must ascend and not overlap, got {what} ones of client {client[i]}: "
            f"{start[i]:g} to {end[i]:g}, then {start[i + 1]:g} to {end[i + 1]:g} in {place(int(order[i + 1]))}. "
            "Sort and merge them."
        )
    touch = same & (start[1:] == end[:-1])
    begins, ends = np.append(True, ~touch), np.append(~touch, True)
    return _Rows(client[begins], start[begins], end[ends])


def _check(where: str, rows: _Rows, period_seconds: float, place: Callable[[int], str]) -> None:
    """Refuse an interval that is none."""
    lengths = [len(column) for column in rows]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise DataError(
            f"{where}: needs client, start and end of at least one interval, got {lengths[0]}, {lengths[1]} and "
            f"{lengths[2]}. Give as many of each."
        )
    start, end = rows.start, rows.end
    for holds, rule, values in (
        (rows.client >= 0, "client must be at least 0", rows.client),
        (rows.client == np.floor(rows.client), "client must be a whole number", rows.client),
        (rows.client < _MOST, f"client must be a number of the population's, below {_MOST}", rows.client),
        ((start >= 0) & (start < np.inf), "start_seconds must be finite and at least 0", start),
        (end > start, "end_seconds must be after start_seconds", end),
        (end <= period_seconds, f"end_seconds must be at most the period, {period_seconds:g}", end),
    ):
        wrong = (~holds).nonzero()[0]
        if len(wrong):
            raise DataError(f"{where}: {rule}, got {values[wrong[0]]} in {place(int(wrong[0]))}. Correct that line.")


def _numbers(name: str, values: Any) -> NDArray[Any]:
    """Numbers in their own type: what is no whole number is not made one."""
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iuf":
        raise DataError(
            f"Intervals(): {name} must be one number per interval, (n,), got {found.shape} {found.dtype}. "
            "Give an array of numbers."
        )
    return found


@dataclass(frozen=True, eq=False)
class Intervals(Availability):
    """Availability in intervals that are kept: 40 bytes each, and 8 per client.

    Args:
        client: (n,), whose interval, in any order.
        start_seconds: (n,), finite and >= 0; ascending for each client.
        end_seconds: (n,), above the start, and not above the client's next start. inf: for ever.
        period_seconds: after that, all intervals come again; none may end later. Default: they do not.

    Raises:
        DataError: intervals that are none, negative, unsorted or overlapping, or beyond the period; clients that are
            no whole numbers from 0 to 99,999,999.

    Example:
        >>> world = Intervals(np.array([0, 0]), np.array([5.0, 20.0]), np.array([9.0, 30.0]))
        >>> world.next_available(0, 10.0), world.available_until(0, 6.0), world.next_available(1, 0.0)
        (20.0, 9.0, inf)
    """

    client: NDArray[np.int64] = field(repr=False)
    start_seconds: Reals = field(repr=False)
    end_seconds: Reals = field(repr=False)
    period_seconds: float = math.inf

    def __post_init__(self) -> None:
        if self.period_seconds != math.inf:
            check_above_zero(self, "period_seconds", self.period_seconds)
        client, start, end = (_numbers(name, getattr(self, name)) for name in _COLUMNS)
        given = _Rows(client, start.astype(np.float64, copy=False), end.astype(np.float64, copy=False))
        rows = _joined("Intervals()", given, self.period_seconds, lambda row: f"row {row}")
        object.__setattr__(self, "client", rows.client)
        object.__setattr__(self, "start_seconds", rows.start)
        object.__setattr__(self, "end_seconds", rows.end)

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.int64], Reals]:
        """Where the bounds of each client begin, for one client more; starts and ends in turn, which ascend for each.

        What belongs to one client lies together, and is had sooner.
        """
        offsets = 2 * np.searchsorted(self.client, np.arange(int(self.client[-1]) + 3))
        return offsets, np.append(np.stack([self.start_seconds, self.end_seconds], 1).ravel(), math.inf)

    @cached_property
    def _views(self) -> tuple[int, memoryview, memoryview]:
        """How many clients there are, and the arrays; an element of a view is had sooner."""
        offsets, bounds = self._arrays
        return len(offsets) - 2, offsets.data, bounds.data

    def next_available(self, client: Client, now: float) -> float:
        num_clients, offsets, bounds = self._views
        if not 0 <= client < num_clients:
            return math.inf
        first, last = offsets[client], offsets[client + 1]
        shift = self._shift(now) if now >= self.period_seconds else 0.0  # the usual one without a call
        at = _passed(bounds, first, last, now, shift) if shift else bisect_right(bounds, now, first, last)
        if (at - first) & 1:
            return now
        if at < last:
            return float(bounds[at] + shift)
        return math.inf if first == last or self.period_seconds == math.inf else bounds[first] + self._later(shift)

    def available_until(self, client: Client, now: float) -> float:
        num_clients, offsets, bounds = self._views
        if not 0 <= client < num_clients:
            return now
        first, last = offsets[client], offsets[client + 1]
        shift = self._shift(now) if now >= self.period_seconds else 0.0  # the usual one without a call
        at = _passed(bounds, first, last, now, shift) if shift else bisect_right(bounds, now, first, last)
        if not (at - first) & 1:
            return now
        if bounds[at] != self.period_seconds or bounds[first] != 0:
            return float(bounds[at] + shift)
        return math.inf if last - first == 2 else bounds[first + 1] + self._later(shift)

    def are_there(self, clients: Sequence[Client], now: float) -> list[bool]:
        if len(clients) < _MANY:
            return Availability.are_there(self, clients, now)
        found: list[bool] = (self.stays(clients, np.full(len(clients), now)) > now).tolist()
        return found

    def stays(self, clients: Sequence[Client], moments: Reals) -> Reals:
        shift = self._shift(float(moments.min()))
        if moments.max() >= self._later(shift):
            return Availability.stays(self, clients, moments)  # not all are in one period
        offsets, bounds = self._arrays
        who = np.minimum(clients, len(offsets) - 2)
        first = at = offsets[who]
        last = offsets[who + 1]
        for _ in range(int((last - first).max()).bit_length()):  # bisection, as in `_passed`
            middle = (at + last) >> 1
            is_passed = (at < last) & (bounds[middle] + shift <= moments)
            at, last = np.where(is_passed, middle + 1, at), np.where(is_passed, last, middle)
        is_there = (at - first) & 1 == 1
        found = np.where(is_there, bounds[at] + shift, moments)
        for i in (is_there & (bounds[at] == self.period_seconds)).nonzero()[0]:
            found[i] = self.available_until(clients[i], float(moments[i]))
        return found

    def _shift(self, now: float) -> float:
        """When the period began."""
        return slot_of(now, self.period_seconds) * self.period_seconds if now >= self.period_seconds else 0.0

    def _later(self, shift: float) -> float:
        """When the next period begins."""
        return (round(shift / self.period_seconds) + 1) * self.period_seconds


def _passed(bounds: memoryview, first: int, last: int, now: float, shift: float) -> int:
    """The first of some bounds that is later than now; an odd one is an end, so that its client is there."""
    at = bisect_right(bounds, now - shift, first, last)
    # The difference is rounded, and so are the moments that are told: these count.
    while at < last and bounds[at] + shift <= now:
        at += 1
    while at > first and bounds[at - 1] + shift > now:
        at -= 1
    return at


@dataclass(frozen=True)
class Trace(Availability):
    """Availability from a file of intervals; a client without one is never there.

    The file is read when it is first asked, which a population does when it is made.

    Args:
        path: a `.csv` or `.tsv` file with a header, or a `.parquet` file (extra `partwise[tables]`). Its columns:
            `client`, numbers from 0 to 99,999,999; `start_seconds`, `end_seconds`, from the beginning of the run on. A
            client's intervals ascend and do not overlap; those of different clients may be mixed.
        period_seconds: after that, all intervals come again. Default: they do not.

    Raises:
        DataError: from the first use on: a file that is missing or no trace, with the line that is wrong.
    """

    path: Path | str
    period_seconds: float = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.period_seconds != math.inf:
            check_above_zero(self, "period_seconds", self.period_seconds)

    @cached_property
    def intervals(self) -> Intervals:
        """What the file holds."""
        where = f"Trace({str(self.path)!r})"
        table = open_table(where, Path(self.path))
        if not set(_COLUMNS) <= set(table.header):
            raise DataError(
                f"{where}: needs the columns {', '.join(_COLUMNS)}, got {', '.join(table.header)}. "
                "Name them so in the header."
            )
        found = table.read(_COLUMNS)
        client = client_numbers(where, table, "client", found["client"])
        start, end = (numbers(where, table, name, found[name]) for name in _COLUMNS[1:])
        rows = _joined(where, _Rows(client, start, end), self.period_seconds, table.place)
        return Intervals(*rows, self.period_seconds)

    def are_there(self, clients: Sequence[Client], now: float) -> list[bool]:
        return self.intervals.are_there(clients, now)

    def stays(self, clients: Sequence[Client], moments: Reals) -> Reals:
        return self.intervals.stays(clients, moments)

    def next_available(self, client: Client, now: float) -> float:
        return self.intervals.next_available(client, now)

    def available_until(self, client: Client, now: float) -> float:
        return self.intervals.available_until(client, now)
