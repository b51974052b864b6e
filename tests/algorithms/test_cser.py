"""communication.md §4."""

import pytest
import torch

from partwise.algorithms import CSER, FedAvg
from partwise.core.errors import CompositionError
from partwise.core.program import SERVER
from partwise.core.transform import Identity
from partwise.transforms import ErrorFeedback, LowRank, RandomK, Sign, TopK
from toy_slopes import linear, quadratic, states_after, steps, theta_after


def drawn(clients, rows, dim, seed=5):
    x = torch.randn(clients, rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [[tuple(row) for row in client] for client in x.tolist()]


def test_worked_example():
    """Gradients (4, 1) and (0, -3), top-1, rate 0.1: x_i after one step, and after a full reset."""
    of = linear([[(4.0, 1.0)], [(0.0, -3.0)]], (0.0, 0.0))
    states = states_after(of, CSER(TopK(k=1), every=9, local=steps(0.1)), 1)
    w = states[SERVER].streams["model"]["theta"]
    drift = [states[i].own.value["theta"] for i in (0, 1)]
    assert [(w + e).tolist() for e in drift] == [pytest.approx([-0.2, 0.05]), pytest.approx([-0.2, 0.15])]
    assert [e.tolist() for e in drift] == [pytest.approx([0.0, -0.1]), pytest.approx([0.0, 0.0])]
    states = states_after(of, CSER(TopK(k=1), every=1, local=steps(0.1)), 1)
    assert states[SERVER].streams["model"]["theta"].tolist() == pytest.approx([-0.2, 0.1])
    assert not any(states[i].own.value["theta"].any() for i in (0, 1))


@pytest.mark.parametrize(
    "part",
    [
        CSER(TopK(k=2), TopK(k=3), every=4, local=steps(0.1)),
        CSER(RandomK(0.3, block=2), RandomK(0.5, block=2), every=3, local=steps(0.1)),
        CSER(None, Sign(), every=2, local=steps(0.1)),
    ],
    ids=["top-k", "blocks", "sign of the reset alone"],
)
def test_the_mean_model_is_that_without_loss(part):
    """To 1e-12 in float64, over 17 rounds of gradients that do not depend on the model."""
    of = linear(drawn(4, 5, 9), (0.0,) * 9)
    states = states_after(of, part, 17)
    drift = torch.stack([states[i].own.value["theta"] for i in range(4)])
    mean = states[SERVER].streams["model"]["theta"] + drift.mean(0)
    plain = theta_after(of, FedAvg(steps(0.1), "uniform"), 17)
    assert drift.abs().max() > 1e-3
    assert mean.tolist() == pytest.approx(plain, abs=1e-12)


def test_without_loss_it_is_sgd():
    of = quadratic((0.0, 4.0, 7.0), 1.0)
    part = CSER(Identity(), Identity(), every=3, local=steps(0.25))
    assert theta_after(of, part, 7) == pytest.approx(theta_after(of, FedAvg(steps(0.25), "uniform"), 7), abs=1e-12)


def test_without_gradients_it_is_local_sgd():
    of = quadratic((0.0, 4.0, 7.0), 1.0)
    part = CSER(None, Identity(), every=4, local=steps(0.25))
    expected = theta_after(of, FedAvg(steps(0.25, 4), "uniform"), 2)
    assert theta_after(of, part, 8) == pytest.approx(expected, abs=1e-12)
    assert theta_after(of, part, 11) == pytest.approx(expected, abs=1e-12)  # between two resets the server stands


def test_gradients_are_taken_at_the_client_s_own_model():
    """x_i moves by all of its own step at once: quadratics in plain loops, top-1 of two coordinates."""
    x = [[1.0, -2.0], [1.0, -2.0]]
    e, w, c = [[0.0, 0.0], [0.0, 0.0]], [1.0, -2.0], [(0.5, 3.0), (-4.0, 1.0)]
    for _ in range(6):
        sent = []
        for i in range(2):
            d = [-0.2 * g for g in c[i]]
            at = 0 if abs(d[0]) >= abs(d[1]) else 1
            sent.append([d[j] if j == at else 0.0 for j in range(2)])
            e[i] = [e[i][j] + d[j] - sent[i][j] for j in range(2)]
        w = [w[j] + (sent[0][j] + sent[1][j]) / 2 for j in range(2)]
        x = [[w[j] + e[i][j] for j in range(2)] for i in range(2)]
    states = states_after(linear([[g] for g in c], (1.0, -2.0)), CSER(TopK(k=1), every=99, local=steps(0.2)), 6)
    server = states[SERVER].streams["model"]["theta"]
    assert [(server + states[i].own.value["theta"]).tolist() for i in range(2)] == [
        pytest.approx(x[0]),
        pytest.approx(x[1]),
    ]


def test_cser_refuses():
    with pytest.raises(ValueError, match=r"CSER\(every=0\): must be at least 1, got 0\. 8 is usual\."):
        CSER(every=0)
    for part in (ErrorFeedback(TopK(k=1)), LowRank(1)):
        with pytest.raises(CompositionError, match=r"CSER\(\): needs compressors that keep nothing, got"):
            CSER(part)
