"""Populations from a CSV or Parquet file.

Shapes: n rows.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from partwise.core.errors import DataError
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.columns import known
from partwise.populations.sources import Options, from_arrays

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["from_table"]

_WHOLE = re.compile(r"[+-]?\d{1,18}")


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
    where = f"from_table({str(path)!r})"
    header, read = _reader(where, Path(path))
    known(f"{where}: client", client, header)
    wanted: dict[str, str | Sequence[str]]
    if isinstance(columns, Mapping):
        wanted = dict(columns)
    else:
        wanted = {"x": list(columns) or [name for name in header if name not in (client, target)]}
    if target:
        wanted["y"] = target
    needed = {name for names in wanted.values() for name in ([names] if isinstance(names, str) else names)}
    for name in sorted(needed):
        known(where, name, header)
    table = read([*sorted(needed), client])
    taken = {name: _stack(where, table, names) for name, names in wanted.items()}
    if not isinstance(columns, Mapping):
        taken["x"] = taken["x"].astype(np.float32)
    return from_arrays(taken, table[client], **options)


Columns = dict[str, Any]


def _stack(where: str, table: Columns, names: str | Sequence[str]) -> Any:
    if isinstance(names, str):
        return _numbers(where, names, table[names])
    if not names:
        raise DataError(f"{where}: needs at least one column of features, got none. Name them with columns=[...].")
    return np.stack([_numbers(where, name, table[name]) for name in names], 1)


def _numbers(where: str, name: str, values: Any) -> Any:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: columns must hold numbers, got {str(array[0])!r} in column {name!r}. "
            "Leave it out of columns, or encode it as integers first."
        )
    return array


def _reader(where: str, path: Path) -> tuple[list[str], Any]:
    """The header, and a function that reads columns by name."""
    if not path.is_file():
        raise DataError(f"{where}: must be a file, got a path where there is none. Check the path.")
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _read_csv(where, path, "\t" if kind == ".tsv" else ",")
    if kind == ".parquet":
        return _read_parquet(where, path)
    raise DataError(
        f"{where}: must be a .csv, .tsv or .parquet file, got {kind or 'no ending'!r}. Rename or convert it."
    )


def _read_csv(where: str, path: Path, delimiter: str) -> tuple[list[str], Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file, delimiter=delimiter))
    if len(rows) < 2:
        raise DataError(f"{where}: needs a header and at least one row, got {len(rows)} lines. Check the file.")
    header = rows[0]
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise DataError(
                f"{where}: every line must have {len(header)} fields, got {len(row)} in line {line}. Correct that line."
            )

    def read(names: Sequence[str]) -> Columns:
        return {name: _parsed(where, name, [row[header.index(name)] for row in rows[1:]]) for name in names}

    return header, read


def _parsed(where: str, name: str, texts: list[str]) -> Any:
    """Integers if all are, else numbers if all are, else text."""
    missing = [i for i, text in enumerate(texts) if not text.strip()]
    if missing:
        raise DataError(
            f"{where}: every value must be there, got an empty one in column {name!r}, line {missing[0] + 2}. "
            "Fill or drop those rows."
        )
    if all(_WHOLE.fullmatch(text.strip()) for text in texts):
        return np.array([int(text) for text in texts], np.int64)
    try:
        return np.array([float(text) for text in texts])
    except ValueError:
        return np.array(texts)


def _read_parquet(where: str, path: Path) -> tuple[list[str], Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{where}: a Parquet file needs the package pyarrow, got an environment without it. "
            "Install it with: pip install 'partwise[tables]'."
        ) from error
    try:
        header = list(parquet.read_schema(path).names)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{where}: must be a Parquet file, got something else ({error}). Check how it was made."
        ) from error

    def read(names: Sequence[str]) -> Columns:
        table = parquet.read_table(path, columns=list(dict.fromkeys(names)))
        for name in names:
            if table[name].null_count:
                raise DataError(
                    f"{where}: every value must be there, got {table[name].null_count} missing in column {name!r}. "
                    "Fill or drop those rows."
                )
        return {name: table[name].to_numpy() for name in names}

    return header, read
