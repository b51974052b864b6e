"""Small updates of one parameter, and what updates come to in plain lists."""

from __future__ import annotations

import torch

from partwise.core.index import Coords, Whole
from partwise.core.update import Update

RNG = torch.Generator()  # seeded anew before every test: see conftest.py


def whole(*values):
    return Update(Whole({"w": (len(values),)}), {"w": torch.tensor(values, dtype=torch.float64)})


def at_coords(size, positions, values):
    index = Coords({"w": (size,)}, {"w": torch.tensor(positions)})
    return Update(index, {"w": torch.tensor(values, dtype=torch.float64)})


def dense(update, shapes):
    """Name -> flat list, by the positions the index states; no scatter is involved."""
    full = {name: [0.0] * max(1, torch.Size(shape).numel()) for name, shape in shapes.items()}
    for name, value in update.values().items():
        for position, x in zip(update.index.coords(name).tolist(), value.reshape(-1).tolist(), strict=True):
            full[name][position] += x
    return full


def sent_by(part, update, state=()):
    """What a transform sends of one update."""
    return part.apply(update, state, RNG)[0]
