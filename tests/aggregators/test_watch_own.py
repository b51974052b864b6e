"""What an observer of one's own says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from partwise.aggregators import Watch
from partwise.core.detect import Verdict
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

PARAMS = {"w": torch.zeros(2)}
SENT = [Update(Whole({"w": (2,)}), {"w": torch.tensor([x, 1.0])}, 1.0) for x in (1.0, 2.0, 6.0)]
REPLIES = [ReplyInfo(n, client, 0, 1, 1) for n, client in enumerate((3, 5, 8))]


@dataclass(frozen=True)
class Says:
    gives: Any = None

    def init(self, params, census):
        return ()

    def judge(self, updates, replies, state, params):
        return self.gives


def judged(gives, *, exclude=False):
    part = Watch(Says(gives), exclude=exclude)
    total, state = part.reduce(SENT, part.init(PARAMS, Census(9)), PARAMS, REPLIES)
    return total.values()["w"].tolist(), part.told(state)


@pytest.mark.parametrize(
    ("gives", "got"),
    [(None, "None"), ([], "a list"), ((None, ()), "None"), (([8], ()), "an int"), (([{"client": 8}], ()), "a dict")],
)
def test_what_is_no_verdict_is_named(gives, got):
    says = rf"Says\(.*\): judge must give a list of Verdicts and its next state, two things, got {got}\."
    with pytest.raises(CompositionError, match=says):
        judged(gives)


@pytest.mark.parametrize(
    ("client", "flag"), [(np.int64(8), np.bool_(True)), (torch.tensor(8), torch.tensor(True)), (8, True)]
)
def test_numbers_of_another_library_can_be_recorded(client, flag):
    total, told = judged(([Verdict(client, "noise", "far", flag, flag)], ()), exclude=True)
    assert total == [1.5, 1.0]  # the mean without client 8
    suspect = {"client": 8, "kind": "noise", "reason": "far", "confirmed": True}
    assert msgpack.unpackb(msgpack.packb(told)) == {"suspects": [suspect], "excluded": [8]}
