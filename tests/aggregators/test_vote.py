import pytest
import torch

from partwise.aggregators import MajorityVote
from partwise.algorithms import FedAvg
from partwise.core.index import Coords, Whole
from partwise.core.transform import chain
from partwise.core.update import Update
from partwise.transforms import ServerSGD, Sign
from toy_sent import dense, sent_by
from toy_slopes import quadratic, steps, theta_after

PARAMS = {"w": torch.zeros(4, dtype=torch.float64)}


def vote(*ballots, weights=(1.0, 1.0, 1.0)):
    updates = []
    for ballot, weight in zip(ballots, weights, strict=False):
        at = [i for i, x in enumerate(ballot) if x is not None]
        value = torch.tensor([ballot[i] for i in at], dtype=torch.float64)
        updates.append(Update(Coords({"w": (4,)}, {"w": torch.tensor(at, dtype=torch.int64)}), {"w": value}, weight))
    return dense(MajorityVote().reduce(updates, (), PARAMS)[0], {"w": (4,)})["w"]


def test_holders_vote():
    """communication.md §15.3: holders {0, 1}, {0, 2}, {0, 1, 2} with signs (+, -), (-, +), (+, +, -)."""
    ballots = (3.0, -0.1, None, None), (-20.0, None, 0.3, None), (0.01, 5.0, -7.0, None)
    assert vote(*ballots) == [1.0, 0.0, 0.0, 0.0]
    assert vote(*reversed(ballots), weights=(9.0, 0.5, 200.0)) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e9])
def test_one_client_cannot_shout(factor):
    ballots = [(1.0, -2.0, 0.5, 0.0), (-3.0, -0.1, 0.2, 0.0), (2.0, 4.0, -0.1, 0.0)]
    loud = [ballots[0], tuple(factor * x for x in ballots[1]), ballots[2]]
    assert vote(*loud) == vote(*ballots) == [1.0, -1.0, 1.0, 0.0]


def test_packed_signs_are_read():
    values = [torch.tensor(v) for v in ([1.0, -2.0, 0.5], [-3.0, -0.1, 0.2], [2.0, 4.0, -0.1])]
    sent = [sent_by(Sign(), Update(Whole({"w": (3,)}), {"w": v})) for v in values]
    got, _ = MajorityVote().reduce(sent, (), {"w": torch.zeros(3)})
    assert got.values()["w"].tolist() == [1.0, -1.0, 1.0]


def test_one_client_alone_is_sign_descent():
    """communication.md §15.3: w <- w - 0.25 sign(w - c), in plain numbers; scaled or not, the vote is of signs."""
    x, expected = 1.0, []
    for _ in range(7):
        x -= 0.25 * (1.0 if x > -0.3 else -1.0)
        expected.append(x)
    for part in (Sign(), Sign(scaled=False)):
        settings = {
            "client_chain": {"model": chain(part)},
            "aggregators": {"model": MajorityVote()},
            "server_chain": {"model": chain(ServerSGD(lr=0.25, momentum=0.0))},
        }
        of = quadratic((-0.3,), 1.0)
        found = [theta_after(of, FedAvg(steps(0.1), "uniform"), n, **settings)[0] for n in range(1, 8)]
        assert found == pytest.approx(expected)
