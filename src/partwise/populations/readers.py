"""Columns by name from a CSV, TSV or Parquet file.

Shapes: n rows.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from partwise.core.errors import DataError

__all__ = ["Columns", "Table", "is_number", "open_table"]

Columns = dict[str, Any]

_WHOLE = re.compile(r"[+-]?\d{1,19}")
_INDEX = re.compile(r"__index_level_\d+__")  # what a data frame's rows were called, where nobody gave it a name


class Table(NamedTuple):
    """A file that was opened.

    Args:
        header: the names of its columns.
        read: reads columns by name, (n,) each.
        place: row, from 0 on -> where a person finds it.
        keys: reads one column whose values name somebody, (n,): as text, where the number that a value is would be
            written otherwise ("007", "12345678901234567890"), so that two keys never become one.
    """

    header: list[str]
    read: Callable[[Sequence[str]], Columns]
    place: Callable[[int], str]
    keys: Callable[[str], Any]


def open_table(where: str, path: Path) -> Table:
    """The header, and a function that reads columns by name.

    Args:
        where: who asks, in front of every refusal.
        path: a `.csv` or `.tsv` file with a header, or a `.parquet` file (extra `partwise[tables]`).

    Raises:
        DataError: there is no such file, or it is no table; `read` refuses values that are missing.
    """
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


def _read_csv(where: str, path: Path, delimiter: str) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            rows, ends = [], array("q", [0])  # a quoted field may have several lines
            for row in reader:
                rows.append(row)
                ends.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: must be UTF-8, got the byte 0x{error.object[error.start]:02x}. Save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise DataError(f"{where}: must be CSV, got: {error}. Check how it was made.") from error
    if len(rows) < 2:
        raise DataError(f"{where}: needs a header and at least one row, got {len(rows)} lines. Check the file.")
    header = rows[0]
    _each_once(where, header)

    def place(row: int) -> str:
        return f"line {ends[row + 1] + 1}"

    for at, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise DataError(
                f"{where}: every line must have {len(header)} fields, got {len(row)} in {place(at)}. Correct that line."
            )

    def parsed(name: str, texts: list[str]) -> Any:
        missing = next((at for at, text in enumerate(texts) if not text.strip()), None)
        if missing is not None:
            raise DataError(
                f"{where}: every value must be there, got an empty one in column {name!r}, {place(missing)}. "
                "Fill or drop those rows."
            )
        return _parsed(texts)

    def read(names: Sequence[str]) -> Columns:
        return {name: parsed(name, [row[header.index(name)] for row in rows[1:]]) for name in names}

    def keys(name: str) -> Any:
        texts = [row[header.index(name)] for row in rows[1:]]
        found = parsed(name, texts)
        is_odd = found.dtype.kind == "f" and not np.isfinite(found).all()  # left to who asks, to be refused
        return found if is_odd or list(map(str, found.tolist())) == [t.strip() for t in texts] else np.array(texts)

    return Table(header, read, place, keys)


def _each_once(where: str, header: Sequence[str]) -> None:
    twice = next((name for at, name in enumerate(header) if name in header[:at]), None)
    if twice is not None:
        raise DataError(f"{where}: every column must have a name of its own, got {twice!r} twice. Rename one.")


def _parsed(texts: list[str]) -> Any:
    """Integers if all are, else numbers if all are, else text."""
    if all(_WHOLE.fullmatch(text.strip()) for text in texts):
        whole = [int(text) for text in texts]
        if min(whole) >= -(2**63) and max(whole) < 2**63:
            return np.array(whole, np.int64)
    if all(map(is_number, texts)):
        return np.array([float(text) for text in texts])
    return np.array(texts)


def is_number(value: Any) -> bool:
    """Whether a value of a table is a number, as a person writes one: to Python, so is "2024_01"."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool) and "_" not in str(value)


def _read_parquet(where: str, path: Path) -> Table:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{where}: a Parquet file needs the package pyarrow, got an environment without it. "
            "Install it with: pip install 'partwise[tables]'."
        ) from error

    @contextmanager
    def refused() -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{where}: must be a Parquet file, got something else, or one that is damaged ({error}). "
                "Check how it was made."
            ) from error

    def taken(names: Sequence[str]) -> Any:
        with refused():
            table = parquet.read_table(path, columns=list(dict.fromkeys(names)))
        for name in names:
            if table[name].null_count:
                raise DataError(
                    f"{where}: every value must be there, got {table[name].null_count} missing in column {name!r}. "
                    "Fill or drop those rows."
                )
        return table

    def read(names: Sequence[str]) -> Columns:
        table = taken(names)
        # NumPy would have decimals as objects, which are no numbers to it.
        columns = {n: table[n].cast(pa.float64()) if pa.types.is_decimal(table[n].type) else table[n] for n in names}
        return {name: column.to_numpy() for name, column in columns.items()}

    with refused():
        header = [name for name in parquet.read_schema(path).names if not _INDEX.fullmatch(name)]
    _each_once(where, header)
    return Table(header, read, lambda row: f"row {row + 1}", lambda name: taken([name])[name].to_numpy())
