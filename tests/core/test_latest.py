"""The mean of the latest updates, against a plain loop."""

from __future__ import annotations

import pytest
import torch

from partwise.core.aggregate import Sum
from partwise.core.codec import decode, encode
from partwise.core.index import Rows, Whole
from partwise.core.latest import Latest
from partwise.core.population import Census, Counts
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, to_dense

PARAMS = {"E": torch.zeros(4, 2, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)}
HEAT = {"E": torch.tensor([[3.0], [1.0], [2.0], [0.0]]), "b": torch.tensor([5.0])}
CENSUS = Census(5, lambda: Counts(HEAT, {}, 0.0))


def sent(rows, seed):
    index = Rows({"E": (4, 2), "b": (3,)}, {"E": torch.tensor(rows), "b": None})
    rng = torch.Generator().manual_seed(seed)
    shapes = {"E": (len(rows), 2), "b": (3,)}
    return Update(index, {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in shapes.items()}, seed + 1.0)


ROUNDS = (
    {0: sent([0, 1], 1), 2: sent([2], 2)},
    {4: sent([0, 2], 3)},
    {2: sent([0], 4), 0: sent([0, 1], 5)},  # client 2 no longer holds row 2
)


@pytest.mark.parametrize("by_heat", [False, True])
def test_equals_a_plain_loop(by_heat):
    part, latest, number = Latest(by_heat), {}, 0
    state = part.init(PARAMS, CENSUS)
    for updates in ROUNDS:
        infos = [ReplyInfo(number + i, client, 0, 1, 1) for i, client in enumerate(updates)]
        number += len(updates)
        mean, state = part.reduce(list(updates.values()), state, PARAMS, infos)
        state = decode(encode(state))
        latest.update(updates)
        expected = {name: torch.zeros_like(t) for name, t in PARAMS.items()}
        for update in latest.values():
            for at, row in zip(update.index.rows["E"].tolist(), update.values()["E"], strict=True):
                expected["E"][at] += row
            expected["b"] += update.values()["b"]
        for name, total in expected.items():
            by = HEAT[name].clamp(min=1) if by_heat else 5.0
            torch.testing.assert_close(to_dense(mean, PARAMS)[name], total / by, rtol=0, atol=1e-14)
    assert mean.index.rows["E"].tolist() == [0, 1, 2]  # row 2 is client 4's still; row 3 was never held


def test_what_nobody_holds_any_more_is_left_alone():
    part = Latest()
    state = part.init(PARAMS, CENSUS)
    _, state = part.reduce([sent([2], 1)], state, PARAMS, [ReplyInfo(0, 0, 0, 1, 1)])
    mean, _ = part.reduce([sent([0], 2)], state, PARAMS, [ReplyInfo(1, 0, 0, 1, 1)])
    assert mean.index.rows["E"].tolist() == [0]


def test_the_later_of_two_tasks_counts_whatever_their_order():
    one, two = sent([0], 1), sent([0], 2)
    infos = [ReplyInfo(8, 3, 0, 1, 1), ReplyInfo(4, 3, 0, 1, 1)]
    mean, _ = Latest().reduce([one, two], Latest().init(PARAMS, CENSUS), PARAMS, infos)
    torch.testing.assert_close(to_dense(mean, PARAMS)["b"], one.values()["b"] / 5)


def test_what_was_sent_may_change_afterwards():
    """A result of training lies in memory that is used again."""
    update = Update(Whole({"b": (3,)}), {"b": torch.ones(3, dtype=torch.float64)})
    state = Latest().init(PARAMS, CENSUS)
    _, state = Latest().reduce([update], state, PARAMS, [ReplyInfo(0, 1, 0, 1, 1)])
    update.value["b"].fill_(77.0)
    mean, _ = Latest().reduce([], state, PARAMS, [])
    assert mean.values()["b"].tolist() == [pytest.approx(0.2)] * 3


def test_single_precision_does_not_drift():
    params, part = {"b": torch.zeros(3)}, Latest()
    state, rng = part.init(params, Census(2)), torch.Generator().manual_seed(1)
    for number in range(400):
        update = Update(Whole({"b": (3,)}), {"b": 1000 * torch.randn(3, generator=rng)})
        mean, state = part.reduce([update], state, params, [ReplyInfo(number, number % 2, 0, 1, 1)])
    total = sum(u.values()["b"].double() for u in state.kept.values())
    torch.testing.assert_close(mean.values()["b"], (total / 2).float(), rtol=1e-6, atol=0)
    assert mean.values()["b"].dtype == torch.float32


def test_it_must_know_who_sent_what():
    state = Latest().init(PARAMS, CENSUS)
    with pytest.raises(ValueError, match=r"Latest\(by_heat=False\): needs to know .* got 1 updates and 0 senders"):
        Latest().reduce([sent([0], 1)], state, PARAMS)
    with pytest.raises(AssertionError):
        Latest().reduce(Sum(Whole({}), {}, {}, 0.0, 0), state, PARAMS)


def test_a_sum_that_half_precision_does_not_have():
    """40 clients of 2000 come to 80,000, beyond float16; their mean is 2000."""
    params, part = {"w": torch.zeros(1, dtype=torch.float16)}, Latest()
    sent = Update(Whole({"w": (1,)}), {"w": torch.tensor([2000.0], dtype=torch.float16)})
    replies = [ReplyInfo(client, client, 0, 1, 1) for client in range(40)]
    mean, _ = part.reduce([sent] * 40, part.init(params, Census(40)), params, replies)
    assert mean.values()["w"].tolist() == [2000.0]


def test_rows_of_single_precision_and_a_holder_that_was_not_counted():
    """Row 0 has 3 holders; of row 3 the census counts none, so that its one is divided by 1, not by 0."""
    params, part = {"E": torch.zeros(4, 2)}, Latest(by_heat=True)
    index = Rows({"E": (4, 2)}, {"E": torch.tensor([0, 3])})
    update = Update(index, {"E": torch.tensor([[6.0, 3.0], [5.0, -1.0]])})
    mean, _ = part.reduce([update], part.init(params, CENSUS), params, [ReplyInfo(0, 2, 0, 1, 1)])
    assert mean.index.rows["E"].tolist() == [0, 3]
    assert mean.values()["E"].tolist() == [[2.0, 1.0], [5.0, -1.0]]
