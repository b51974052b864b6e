"""Whether a population's columns are what a model asks for.

Shapes: V rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from partwise.core.errors import DataError
from partwise.core.model import Model, Params
from partwise.core.population import Batch, Population
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.columns import known

__all__ = ["check_fits"]


class _Part(NamedTuple):
    """Some of the data, and whose they are."""

    whose: str
    columns: Batch


def check_fits(population: Population, model: Model, params: Params) -> None:
    """Check that every column a model reads is there, and that ids are rows of its tables.

    Args:
        population: the clients; their test data and a central test set are checked too.
        model: which columns it reads, and which of them are row numbers.
        params: the model's parameters; only shapes are looked at.

    Raises:
        DataError: a column is missing, or an id is no whole number in 0..V-1; the message names the client.
    """
    rows = {column: (table, len(params[table])) for table, columns in model.tables.items() for column in columns}
    for part in _parts(population):
        for name in dict.fromkeys([*model.inputs, *rows]):
            known(f"Model(inputs={model.inputs}): {part.whose}", name, part.columns)
        for name, (table, limit) in rows.items():
            if _is_outside(part.columns[name], limit):
                _complain(population, part, name, (table, limit))


def _parts(population: Population) -> Iterator[_Part]:
    central = population.central_test()
    if central is not None:
        yield _Part("the central test set", central.columns())
    if isinstance(population, ArrayPopulation):  # all clients at once, however many there are
        yield _Part("the clients", population.columns)
        if population.test_offsets is not None:
            yield _Part("the clients' test data", population.test_columns)
        return
    yield from _by_client(population)


def _by_client(population: Population) -> Iterator[_Part]:
    for client in population.clients:
        yield _Part(f"client {client} ({population.name(client)})", population.data(client).columns())
        test = population.test_data(client)
        if test is not None:
            yield _Part(f"the test data of client {client} ({population.name(client)})", test.columns())


def _is_outside(ids: Tensor, limit: int) -> bool:
    if not _is_of_ids(ids.dtype):
        return True
    return bool(ids.numel()) and (int(ids.min()) < 0 or int(ids.max()) >= limit)


def _is_of_ids(dtype: torch.dtype) -> bool:
    """Whether numbers of a type can be rows: not those that torch cannot even compare, uint16 to uint64."""
    return dtype == torch.uint8 or (dtype.is_signed and not dtype.is_floating_point)


def _complain(population: Population, part: _Part, name: str, table: tuple[str, int]) -> None:
    """Name the client and the id."""
    if part.whose.startswith("the clients"):
        part = next(p for p in _by_client(population) if name in p.columns and _is_outside(p.columns[name], table[1]))
    ids = part.columns[name]
    got, remedy = str(ids.dtype), "Give them as int64."
    if _is_of_ids(ids.dtype):
        wrong = ids[(ids < 0) | (ids >= table[1])]
        got, remedy = str(int(wrong[0])), "Number the ids from 0, or give the table more rows."
    raise DataError(
        f"Model(tables={{{table[0]!r}: ({name!r}, ...)}}): ids must be whole numbers in 0..{table[1] - 1}, got "
        f"{got} in column {name!r} of {part.whose}. {remedy}"
    )
