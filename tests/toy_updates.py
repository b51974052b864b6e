"""Updates by hand: rows, and submodels as position -> value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from partwise.core.index import Coords, Whole
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

# robustness.md §0.3: the last row is faulty
V = [[1.0, 2.0], [2.0, 1.0], [2.5, 2.0], [2.0, 4.0], [100.0, -100.0]]
# robustness.md §0.2: A, B, C, D over 5 coordinates
SUBMODELS = [{0: 1, 1: 2, 2: 3}, {1: 4, 2: 5, 3: 6}, {2: 7, 3: 8}, {2: 100}]


def whole(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64) -> list[Update]:
    return [Update(Whole({"w": (len(row),)}), {"w": torch.tensor(row, dtype=dtype)}, 3.0) for row in rows]


def partial(held: Sequence[Mapping[int, float]], size: int = 5) -> list[Update]:
    updates = []
    for values in held:
        at = torch.tensor(sorted(values), dtype=torch.int64)
        value = torch.tensor([float(values[j]) for j in sorted(values)], dtype=torch.float64)
        updates.append(Update(Coords({"w": (size,)}, {"w": at}), {"w": value}))
    return updates


def senders(num: int) -> list[ReplyInfo]:
    return sent_by(*range(num))


def sent_by(*clients: int) -> list[ReplyInfo]:
    return [ReplyInfo(i, client, 0, 1, 1) for i, client in enumerate(clients)]


def aggregate(part, updates, params=None, state=None):
    """What a rule makes of updates in its first round."""
    like = {"w": torch.zeros(updates[0].index.shapes["w"], dtype=updates[0].values()["w"].dtype)}
    params = params or like
    state = part.init(params, Census(0)) if state is None else state
    return part.reduce(updates, state, params, senders(len(updates)))[0]


def value(part, rows, dtype: torch.dtype = torch.float64) -> list[float]:
    return aggregate(part, whole(rows, dtype)).values()["w"].tolist()


def moved(update: Update) -> dict[int, float]:
    """Position -> value, of what moves."""
    if "w" not in update.index.shapes:
        return {}
    return dict(zip(update.index.coords("w").tolist(), update.values()["w"].reshape(-1).tolist(), strict=True))


def rows_of(num: int, size: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def submodels(num, size, held, seed):
    rng = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num):
        at = torch.randperm(size, generator=rng)[:held].sort().values
        found.append(Update(Coords({"w": (size,)}, {"w": at}), {"w": torch.randn(held, generator=rng).double()}))
    return found
