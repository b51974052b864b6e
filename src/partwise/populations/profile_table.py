"""Profiles from a file.

Shapes: N clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partwise.core.errors import DataError
from partwise.core.population import Client, Profile
from partwise.populations.columns import known
from partwise.populations.profiles import BOUNDS, Clients, ProfileArrays, Profiles, Reals
from partwise.populations.readers import Table, is_number, open_table

__all__ = ["ProfileTable", "client_numbers", "numbers"]

_CLIENT = "client"


@dataclass(frozen=True)
class ProfileTable(Profiles):
    """Profiles from a table with one row per client.

    The file is read when a profile is first asked for, which a population does when it is made.

    Args:
        path: a `.csv` or `.tsv` file with a header, or a `.parquet` file (extra `partwise[tables]`). Its columns:
            `client`, numbers from 0 on, in any order (without it, the first row is client 0, and so on);
            `seconds_per_step`, `uplink`, `downlink`, `memory`, `width`, as in `Constant`, each of which may be left
            out. `inf` is a number.

    Raises:
        DataError: from the first use on: a file that is missing or no table, an unknown column, a bad value (with
            its line), a client twice or not at all, fewer rows than clients.
    """

    path: Path | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @cached_property
    def arrays(self) -> ProfileArrays:
        """What the file holds."""
        where = f"ProfileTable({str(self.path)!r})"
        table = open_table(where, Path(self.path))
        for name in table.header:
            known(where, name, [_CLIENT, *BOUNDS])
        given = [name for name in BOUNDS if name in table.header]
        columns = table.read(table.header)
        rows = _rows(where, table, columns, len(columns[table.header[0]]))
        values = {name: numbers(where, table, name, columns[name]) for name in given}
        for name in given:
            wrong = (~BOUNDS[name].holds(values[name])).nonzero()[0]
            if len(wrong):
                raise DataError(
                    f"{where}: {name} must be {BOUNDS[name].rule}, got {values[name][wrong[0]]} in "
                    f"{table.place(int(wrong[0]))}. Correct that line."
                )
        pace = values.pop("seconds_per_step", np.zeros(len(rows)))
        return ProfileArrays(pace[rows], **{name: column[rows] for name, column in values.items()})

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        if not 0 <= client < len(self.arrays):
            raise DataError(
                f"ProfileTable({str(self.path)!r}): needs a row for each client, got {len(self.arrays)} rows and "
                f"client {client}. Add rows, or leave clients out."
            )
        return self.arrays.profile(client)

    def table(self, clients: Clients, now: float = 0.0) -> ProfileArrays:
        return self.arrays.table(clients)


def numbers(where: str, table: Table, name: str, values: Any) -> Reals:
    """A column as real numbers.

    Raises:
        DataError: a value that is no number, with its line.
    """
    if values.dtype.kind not in "iuf":
        wrong = next((i for i, value in enumerate(values.tolist()) if not is_number(value)), 0)
        raise DataError(
            f"{where}: {name} must be a number, got {str(values[wrong])!r} in {table.place(wrong)}. Correct that line."
        )
    found: Reals = values.astype(np.float64)
    return found


def client_numbers(where: str, table: Table, name: str, values: Any) -> NDArray[np.int64]:
    """A column of clients' numbers.

    Raises:
        DataError: a value that is no whole number from 0 on, with its line.
    """
    found = numbers(where, table, name, values)
    wrong = (~((found >= 0) & (found == np.floor(found)) & (found < 2**53))).nonzero()[0]
    if len(wrong):
        raise DataError(
            f"{where}: {name} must be a whole number from 0 on, got {values[wrong[0]]} in "
            f"{table.place(int(wrong[0]))}. Number the clients as the population does."
        )
    return found.astype(np.int64)


def _rows(where: str, table: Table, columns: dict[str, Any], n: int) -> NDArray[np.int64]:
    """Client -> its row, (N,)."""
    if _CLIENT not in columns:
        return np.arange(n)
    clients = client_numbers(where, table, _CLIENT, columns[_CLIENT])
    order = np.argsort(clients, kind="stable")
    again = (np.diff(clients[order]) == 0).nonzero()[0]
    if len(again):
        row = int(order[again[0] + 1])
        raise DataError(
            f"{where}: every client may have one row, got client {clients[row]} again in {table.place(row)}. "
            "Drop that line."
        )
    absent = (clients[order] != np.arange(n)).nonzero()[0]
    if len(absent):
        raise DataError(
            f"{where}: {n} rows must be of the clients 0 to {n - 1}, got none for client {absent[0]}. Add its row."
        )
    return order
