"""Populations from a CSV or Parquet file.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from partwise.core.errors import DataError
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.columns import known
from partwise.populations.readers import Columns, is_number, open_table
from partwise.populations.sources import Options, from_arrays

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["from_table"]


def from_table(
    path: str | Path,
    client: str,
    columns: Sequence[str] | Mapping[str, str | Sequence[str]] = (),
    target: str = "",
    **options: Unpack[Options],
) -> ArrayPopulation:
    """Clients from a table, one per value of a column.

    Args:
        path: a `.csv` or `.tsv` file with a header, or a `.parquet` file (extra `partwise[tables]`).
        client: the column with the keys.
        columns: a list: these columns side by side as `x` (n, len) float32. A mapping gives other names: a column
            of the batch to one column of the table, (n,), or to a list of them, (n, len); integers stay integers.
            Default (): `x` of all columns but `client` and `target`.
        target: the column that becomes `y`. Default: none.
        **options: see `Options`.

    Raises:
        DataError: a file that is missing or not a table, an unknown column, a value that is missing or no number.
    """
    if not isinstance(path, str | Path):
        raise DataError(
            f"from_table(): must be given the path of a file, got a {type(path).__name__}. "
            'Give columns of a data frame to from_arrays({"x": frame[["age"]], "y": frame["y"]}, client=frame["id"]).'
        )
    where = f"from_table({str(path)!r})"
    header, read, place, keys = open_table(where, Path(path))
    known(f"{where}: client", client, header)
    wanted: dict[str, str | Sequence[str]]
    if isinstance(columns, Mapping):
        wanted = dict(columns)
    else:
        wanted = {"x": list(columns) or _others(where, header, (client, target))}
    if target and "y" in wanted:
        raise DataError(
            f"{where}: y must be one thing, got columns['y'] = {wanted['y']!r} and target={target!r}. Give one of them."
        )
    if target:
        wanted["y"] = target
    needed = {name for names in wanted.values() for name in ([names] if isinstance(names, str) else names)}
    for name in sorted(needed):
        known(where, name, header)
    table = read(sorted(needed))
    taken = {name: _stack(where, table, names, place) for name, names in wanted.items()}
    if not isinstance(columns, Mapping):
        taken["x"] = taken["x"].astype(np.float32)
    return from_arrays(taken, keys(client), **options)


def _others(where: str, header: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The columns that are features where none are named."""
    nameless = next((at for at, name in enumerate(header, 1) if not name.strip()), None)
    if nameless is not None:  # mostly the numbers of a data frame's rows, which say nothing of the world
        raise DataError(
            f"{where}: a column of features must have a name, got none for column {nameless}. Name it, save a data "
            "frame with to_csv(index=False), or choose columns=[...]."
        )
    return [name for name in header if name not in taken]


def _stack(where: str, table: Columns, names: str | Sequence[str], place: Callable[[int], str]) -> Any:
    if isinstance(names, str):
        return _numbers(where, names, table[names], place)
    if not names:
        raise DataError(f"{where}: needs at least one column of features, got none. Name them with columns=[...].")
    return np.stack([_numbers(where, name, table[name], place) for name in names], 1)


def _numbers(where: str, name: str, values: Any, place: Callable[[int], str]) -> Any:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        at = next((row for row, value in enumerate(array) if not is_number(value)), 0)
        raise DataError(
            f"{where}: columns must hold numbers, got {str(array[at])!r} in column {name!r}, {place(at)}. "
            "Leave it out of columns, or encode it as integers first."
        )
    return array
