"""Updates along directions behind rules that look at each update's coordinates."""

from __future__ import annotations

import pytest
import torch

from partwise.aggregators import CentredClip, FoolsGold, GeometricMedian, Krum, MajorityVote, Median, TrimmedMean
from partwise.core.index import Whole
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.seeded import Seeded
from partwise.core.update import Update, to_dense
from partwise.programs.sums import fitting

SHAPE = {"w": (3, 4)}
PARAMS = {"w": torch.zeros(3, 4)}
REPLIES = [ReplyInfo(i, i, 0, 1, 1) for i in range(7)]
PARTS = [
    Median(),
    TrimmedMean(),
    Krum(1, num_selected=3, min_overlap=1),
    GeometricMedian(),
    MajorityVote(),
    FoolsGold(),
    CentredClip(1.0),
]


@pytest.mark.parametrize("count", [2, 12, 20])
@pytest.mark.parametrize("part", PARTS, ids=lambda p: type(p).__name__)
def test_a_rule_sees_what_directions_come_to(part, count):
    """As if the client had sent it coordinate by coordinate, however many products there are."""
    rng = torch.Generator().manual_seed(3)
    honest = [Update(Whole(SHAPE), {"w": torch.randn(3, 4, generator=rng)}) for _ in range(6)]
    along = Update(Seeded(Whole(SHAPE), 7, {"w": count}), {"w": torch.full((count,), 0.1)})
    dense = torch.zeros(3, 4)
    along.index.scatter_add_({"w": dense}, along.values())
    found = []
    for last in (along, Update(Whole(SHAPE), {"w": dense})):
        got = fitting([*honest, last], part, PARAMS)
        total, _ = part.reduce(got, part.init(PARAMS, Census(7)), PARAMS, REPLIES)
        found.append(to_dense(total, PARAMS)["w"])
    assert torch.equal(*found)
