"""FedAvg and FedProx through the real server and simulator, against plain loops and printed numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.algorithms import FedAvg, FedProx
from partwise.core.model import CrossEntropy, Model
from partwise.local import SGD, LocalTraining
from toy_star import Clients, Cohorts, everybody, full_batch, number_model, parabolas, run, server, star_of, trajectory


def oracle_round(w, a, b, p, lr, steps, mu=0.0):
    """One round in plain floats."""
    new = w
    for a_i, b_i, p_i in zip(a, b, p, strict=True):
        v = w
        for _ in range(steps):
            v -= lr * (a_i * (v - b_i) + mu * (v - w))
        new += p_i * (v - w)
    return new


@pytest.mark.parametrize(
    ("weights", "sizes", "steps", "expected"),
    [
        ("uniform", (1, 3), 1, 0.6),
        ("samples", (1, 3), 1, 0.9),
        ("uniform", (1, 3), 5, 1.66386),
        ("samples", (1, 3), 5, 2.49579),
        ("unbiased", (1, 3), 5, 2.49579),  # everybody takes part: the same as by samples
    ],
)
def test_fedavg_running_example_first_round(weights, sizes, steps, expected):
    algorithm = FedAvg(full_batch(steps), weights)
    assert trajectory(algorithm, 1, parabolas(sizes=sizes))[0] == pytest.approx(expected, abs=1e-12)


def stays_at(algorithm, at):
    """A round that begins at a printed fixed point ends there; the map is affine, so there is no other."""
    after = trajectory(algorithm, 1, parabolas(), number_model(at))[0]
    assert after == pytest.approx(at, abs=1e-9)
    assert abs(trajectory(algorithm, 1, parabolas(), number_model(at + 0.1))[0] - at) < 0.099


@pytest.mark.parametrize(("steps", "fixed_point"), [(5, 2.680532285), (1, 3.0)])
def test_fedavg_running_example_fixed_point(steps, fixed_point):
    """The issue of client drift: with five local steps the limit is not the minimiser 3."""
    stays_at(FedAvg(full_batch(steps), "uniform"), fixed_point)
    q = [(1 - 0.1 * a) ** steps for a in (1, 3)]
    assert fixed_point == pytest.approx((1 - q[1]) * 4 / sum(1 - x for x in q), abs=5e-10)


def test_fedavg_tends_to_its_fixed_point():
    path = trajectory(FedAvg(full_batch(5), "uniform"), 40, parabolas())
    assert path[-1] == pytest.approx(2.680532285, abs=5e-10)


@pytest.mark.parametrize(
    ("mu", "first", "fixed_point"),
    [(0.0, 1.66386, 2.680532285), (1.0, 1.38336, 2.691780822), (10.0, 0.46266, 2.871524330)],
)
def test_fedprox_running_example(mu, first, fixed_point):
    algorithm = FedProx(mu, full_batch(5), "uniform")
    assert trajectory(algorithm, 1, parabolas())[0] == pytest.approx(first, abs=5e-6)
    stays_at(algorithm, fixed_point)


@pytest.mark.parametrize("mu", [0.0, 1.0, 7.0])
def test_every_round_equals_the_plain_loop(mu):
    a, b, sizes = (0.7, 2.1, 1.3), (-1.0, 3.0, 0.4), (2, 5, 1)
    algorithm = FedProx(mu, full_batch(4, lr=0.11), "samples")
    w, wanted = 0.3, []
    for _ in range(5):
        w = oracle_round(w, a, b, [n / 8 for n in sizes], 0.11, 4, mu)
        wanted.append(w)
    assert trajectory(algorithm, 5, parabolas(a, b, sizes), number_model(0.3)) == pytest.approx(wanted, abs=1e-13)


def test_first_step_feels_no_pull():
    near = trajectory(FedProx(0.0, full_batch(1), "uniform"), 1, parabolas())
    assert trajectory(FedProx(9.0, full_batch(1), "uniform"), 1, parabolas()) == near


def test_strong_pull_tends_to_a_gradient_step():
    """mu -> infinity with the local problem solved: each moves by -gradient / mu."""
    mu = 1e5
    path = trajectory(FedProx(mu, LocalTraining(SGD(0.5 / mu), batch_size=0, steps=60), "uniform"), 1, parabolas())
    assert path[0] * mu == pytest.approx((0 + 12) / 2, rel=1e-4)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.first(x).relu())


def classes(sizes=(7, 12, 4), seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Clients([{"x": torch.randn(n, 4, generator=rng), "y": torch.randint(3, (n,), generator=rng)} for n in sizes])


def final(algorithm, model, population, rounds=3, seed=5):
    states, _ = run(star_of(algorithm, model, population, everybody(population, rounds), seed=seed))
    return states[-1].streams["model"]


def test_fedprox_without_pull_is_fedavg_bit_for_bit():
    model, local = Model(TwoLayers, CrossEntropy()), LocalTraining(SGD(0.2, momentum=0.5), batch_size=3, epochs=2)
    one = final(FedAvg(local), model, classes())
    other = final(FedProx(0.0, local), model, classes())
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_one_full_batch_step_is_one_gradient_step():
    """K = N, weights by samples, one step: gradient descent on the pooled data."""
    population = classes()
    model = Model(TwoLayers().double(), CrossEntropy())
    data = [{"x": c["x"].double(), "y": c["y"]} for c in population.columns]
    start = model.init(5)
    got = final(FedAvg(full_batch(1, lr=0.3)), model, Clients(data), rounds=1)
    leaves = {n: t.clone().requires_grad_() for n, t in start.items()}
    x, y = torch.cat([c["x"] for c in data]), torch.cat([c["y"] for c in data])
    hidden = (x @ leaves["first.weight"].T + leaves["first.bias"]).clamp(min=0)
    logits = hidden @ leaves["second.weight"].T + leaves["second.bias"]
    loss = -(logits - logits.logsumexp(1, keepdim=True))[range(len(y)), y].sum() / len(y)
    for name, grad in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(got[name], start[name] - 0.3 * grad, rtol=0, atol=1e-14)


def test_identical_clients_equal_one_machine():
    rows = classes((6,)).columns[0]
    one = final(FedAvg(full_batch(3)), Model(TwoLayers, CrossEntropy()), Clients([rows]))
    four = final(FedAvg(full_batch(3)), Model(TwoLayers, CrossEntropy()), Clients([rows] * 4))
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=0, atol=1e-6)


def test_unbiased_weights_divide_by_the_expected_cohort():
    """K = 1 of 2 with sizes 1 and 3: (N/K) n_i / n."""
    population = parabolas(sizes=(1, 3))
    star = star_of(FedAvg(full_batch(1), "unbiased"), number_model(), population, Cohorts(((1,),)))
    states, _ = run(star)
    assert float(states[-1].streams["model"]["w"]) == pytest.approx(1.2 * 2 * 3 / 4, abs=1e-13)


def test_messages():
    with pytest.raises(ValueError, match=r"FedAvg\(weights='size'\): must be one of uniform, samples, unbiased"):
        FedAvg(weights="size")
    with pytest.raises(ValueError, match=r"FedProx\(mu=-1\): must be at least 0, got -1\. 0 is FedAvg"):
        FedProx(mu=-1)
    with pytest.raises(ValueError, match=r"FedProx\(mu=nan\): must be a finite number, at least 0, got nan\. 0 is"):
        FedProx(mu=float("nan"))
    with pytest.raises(ValueError, match=r"FedProx\(weights='x'\)"):
        FedProx(weights="x")


def test_server_state_is_not_the_model_itself():
    model, population = number_model(), parabolas()
    _, log = run(star_of(FedAvg(full_batch(1)), model, population, everybody(population, 1)), server)
    assert float(model.module.w.detach()) == 0.0
    assert log.of("commit")[0]["clients"] == [0, 1]
