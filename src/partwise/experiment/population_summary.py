"""What a report says about the clients and the model, as plain numbers.

Shapes: a table has V rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from partwise.core.algorithm import Site, Task
from partwise.core.given import check_given
from partwise.core.index import Index
from partwise.core.population import Client, Population
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.sizes import counts_of_test_examples, example_counts
from partwise.programs.schema import indexed
from partwise.programs.star import Star

__all__ = ["population_summary", "same_clients"]

_BEFORE_TRAINING = Task(-1, 0, 0, 0)
_KNOWN = 64  # indices, each of which may be that of many clients

_Sizes = dict[int, tuple[Index, dict[str, int]]]  # an index by its id, while it is there; name -> values held


def population_summary(star: Star, limit: int = 20_000) -> dict[str, Any]:
    """Who the clients are and what they hold, ready for JSON; a run keeps it as `population.json`.

    Args:
        star: the programs' definition.
        limit: of the clients whose parts are looked at, at least 1; a larger population is sampled evenly.

    Returns:
        `clients` N; `names`, `examples`, `test_examples` one each per client, in the order of `numbers`;
        `sampled`, how many clients the rest was counted over; `rows_touched` and `values_held` one per sampled
        client: rows of the tables that its examples touch, and parameters it holds under the algorithm, and no such
        list where the population is not open; `heat`
        table -> [holders, rows] pairs, hottest first; `model` with `parameters`, `bytes` and `tables`
        (name -> [V, ...]).

    Raises:
        ValueError: limit is below 1.
        DataError: a client's ids lie outside a table.
    """
    if limit < 1:
        raise ValueError(f"population_summary(limit={limit}): must be at least 1, got {limit}. 20000 takes seconds.")
    population, clients = star.population, star.population.clients
    sample = clients[:: -(-len(clients) // limit)] if clients and population.is_open else clients[:0]
    tables = [name for name in star.model.tables if name in star.like and population.is_open]
    holders = {name: torch.zeros(star.like[name].shape[0], dtype=torch.int64) for name in tables}
    touched, held = [], []
    sizes: _Sizes = {}
    for client in sample:
        site = star.site(client)
        rows = 0
        for name, count in holders.items():
            at = site.table_rows(name)
            count[at] += 1
            rows += len(at)
        touched.append(rows)
        held.append(_values_held(star, site, sizes))
    return {
        "clients": len(clients),
        "numbers": None if clients == range(len(clients)) else _numbers(clients),
        "names": _names(population, clients),
        "examples": example_counts(population).tolist(),
        "test_examples": counts_of_test_examples(population).tolist(),
        "sampled": len(sample),
        "rows_touched": touched if tables else None,
        "values_held": held if population.is_open else None,
        "heat": {name: _histogram(count) for name, count in holders.items()},
        "model": _model(star, tables),
    }


def same_clients(one: object, other: object, *, but_held: bool) -> bool:
    """Whether two summaries are of the same clients and examples. but_held: whatever they would hold."""
    if but_held and isinstance(one, Mapping) and isinstance(other, Mapping):
        one, other = ({key: value for key, value in of.items() if key != "values_held"} for of in (one, other))
    return one == other


def _values_held(star: Star, site: Site, sizes: _Sizes) -> int:
    own = star.algorithm.client_init(site)
    index = indexed(star.algorithm, star.algorithm.select(_BEFORE_TRAINING, own, site))
    if id(index) not in sizes:
        if len(sizes) == _KNOWN:
            sizes.clear()
        sizes[id(index)] = index, {name: prod(index.held_shape(name)) for name in index.shapes}
    _, held = sizes[id(index)]
    if not star.algorithm.is_personal:
        return sum(held.values())
    flat = {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in star.like.items()}  # takes no room
    used = star.algorithm.personalize(index.gather(flat), own)
    check_given(star.algorithm, "personalize", used, Mapping, "a dict of tensors by name")
    return sum({**{name: t.numel() for name, t in used.items()}, **held}.values())


def _numbers(clients: Sequence[Client]) -> list[Client] | None:
    """One per client; None where they are numbered from 0."""
    numbers = list(clients)
    return None if numbers == list(range(len(numbers))) else numbers


def _names(population: Population, clients: Sequence[Client]) -> list[str] | None:
    """One per client; None where nobody gave any, which saves a list of numbers."""
    if isinstance(population, ArrayPopulation) and not population.names:
        return None
    names = [population.name(client) for client in clients]
    return None if names == [str(client) for client in clients] else names


def _histogram(count: Tensor) -> list[list[int]]:
    values, rows = torch.unique(count, return_counts=True)
    return [[h, n] for h, n in zip(values.flip(0).tolist(), rows.flip(0).tolist(), strict=True)]


def _model(star: Star, tables: Sequence[str]) -> dict[str, Any]:
    return {
        "parameters": sum(tensor.numel() for tensor in star.like.values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in star.like.values()),
        "tables": {name: list(star.like[name].shape) for name in tables},
    }
