"""communication.md §3."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from partwise.algorithms import AdaAlter
from partwise.algorithms.adaalter import FrozenAdaGrad
from partwise.core.aggregate import sum_updates
from partwise.core.index import Coords
from partwise.core.model import Model
from partwise.core.program import SERVER
from partwise.core.update import Update
from partwise.local import SGD, LocalTraining
from partwise.runtimes import Simulate
from toy_federation import star as star_with
from toy_slopes import linear, quadratic, states_after, steps, theta_after
from toy_star import Clients, Log, everybody, full_batch, number_model, parabolas, run, star_of

CONSTANT = linear([[(1.0,)], [(3.0,)]], (0.0,))


@pytest.mark.parametrize(
    ("count", "placeholder", "x", "b2"),
    [(1, True, -0.7071068, 6.0), (2, True, -1.2844571, 11.0), (2, False, -1.4142136, 11.0)],
    ids=["AdaAlter", "two steps", "released"],
)
def test_worked_examples(count, placeholder, x, b2):
    """Gradients 1 and 3, rate 0.5, eps 1, b_0 1: squares are averaged, not summed, and not averaged before."""
    streams = states_after(CONSTANT, AdaAlter(steps(0.5, count), placeholder=placeholder), 1)[SERVER].streams
    assert float(streams["model"]["theta"]) == pytest.approx(x, abs=1e-7)
    assert float(streams["squares"]["theta"]) == b2


@pytest.mark.parametrize(
    ("gradient", "placeholder", "x", "a2"),
    [
        (1.0, True, (-0.3535534, -0.6422285), (2.0, 3.0)),
        (3.0, True, (-1.0606602, -1.9266856), (10.0, 19.0)),
        (1.0, False, (-0.3535534, -0.7071068), (2.0, 3.0)),
        (3.0, False, (-1.0606602, -2.1213203), (10.0, 19.0)),
    ],
)
def test_what_each_client_does(gradient, placeholder, x, a2):
    """communication.md §3, between two exchanges: x and A² after one step and after two, with B² = 1 all along."""
    rule = FrozenAdaGrad(0.5, 1.0, placeholder, squares={"w": torch.ones(1, dtype=torch.float64)})
    params = {"w": torch.zeros(1, dtype=torch.float64), "squares of w": torch.ones(1, dtype=torch.float64)}
    state = rule.init(params)
    for at, square in zip(x, a2, strict=True):
        state = rule.step_(params, {n: torch.full_like(t, gradient) for n, t in params.items()}, state)
        assert float(params["w"]) == pytest.approx(at, abs=1e-7)
        assert float(params["squares of w"]) == square


def test_means_are_over_holders():
    """Of x and A² alike: A holds {0, 1}, B holds {0}; coordinate 2 is held by nobody and stays."""
    found, zero = {}, {"w": torch.zeros(3, dtype=torch.float64)}
    for stream, (one, other) in {"model": ((-2.0, 5.0), (-1.0,)), "squares": ((4.0, 25.0), (1.0,))}.items():
        a = Update(Coords({"w": (3,)}, {"w": torch.tensor([0, 1])}), {"w": torch.tensor(one).double()})
        b = Update(Coords({"w": (3,)}, {"w": torch.tensor([0])}), {"w": torch.tensor(other).double()})
        found[stream], _ = AdaAlter().aggregators()[stream].reduce(sum_updates([a, b], zero), (), zero)
    begin = {"w": torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)}
    streams = AdaAlter().commit(AdaAlter(begin=2.0).init(begin, None), found, ())
    assert streams["model"]["w"].tolist() == [8.5, 25.0, 30.0]
    assert streams["squares"]["w"].tolist() == [6.5, 29.0, 4.0]


def local_adaalter(centres, start, count, rounds):
    """Quadratics in plain loops."""
    x, b2 = start, 1.0
    for _ in range(rounds):
        ends, squares = [], []
        for c in centres:
            y, a2 = x, b2
            for t in range(1, count + 1):
                g = y - c
                y, a2 = y - 0.5 * g / math.sqrt(b2 + t * 0.25), a2 + g * g
            ends.append(y)
            squares.append(a2)
        x, b2 = sum(ends) / len(ends), sum(squares) / len(squares)
    return x, b2


@pytest.mark.parametrize("count", [1, 4])
def test_against_loops(count):
    """To 1e-12 in float64; with one step, synchronous AdaAlter."""
    centres = (0.0, 4.0, 5.5)
    streams = states_after(quadratic(centres, 1.0), AdaAlter(steps(0.5, count), eps=0.5), 9)[SERVER].streams
    x, b2 = local_adaalter(centres, 1.0, count, 9)
    assert float(streams["model"]["theta"]) == pytest.approx(x, abs=1e-12)
    assert float(streams["squares"]["theta"]) == pytest.approx(b2, rel=1e-12)


def test_one_step_is_adagrad_that_accumulates_afterwards():
    x, b2 = 1.0, 1.0
    for _ in range(5):
        gradients = [x - c for c in (0.0, 4.0)]
        x, b2 = x - 0.5 * (sum(gradients) / 2) / math.sqrt(b2 + 1), b2 + sum(g * g for g in gradients) / 2
    assert theta_after(quadratic((0.0, 4.0), 1.0), AdaAlter(steps(0.5)), 5) == pytest.approx([x], abs=1e-12)


def test_rows_that_nobody_touches_stay():
    local = LocalTraining(SGD(0.2), batch_size=4, steps=3)
    of = star_with("fedsubavg capped", algorithm=AdaAlter(local, submodel=True), rounds=2)
    states, reason = Simulate().run(of.programs(), of.population, Log())
    assert reason == "done"
    touched = torch.zeros(60, dtype=torch.bool)
    for client in of.population.clients:
        touched[of.population.data(client).columns()["words"].flatten()] = True
    streams, start = states[SERVER].streams, of.initial()["table.weight"]
    still = ~touched
    assert still.any()
    assert torch.equal(streams["model"]["table.weight"][still], start[still])
    assert bool((streams["squares"]["table.weight"][still] == 1).all())
    assert bool((streams["squares"]["table.weight"] > 1).any())


def test_adaalter_refuses():
    with pytest.raises(ValueError, match=r"AdaAlter\(eps=0\): must be above 0, got 0\. 1 is usual\."):
        AdaAlter(eps=0)
    with pytest.raises(ValueError, match=r"AdaAlter\(begin=inf\): must be a finite number above 0, got inf\. 1 is"):
        AdaAlter(begin=math.inf)  # every step would be 0


@pytest.mark.parametrize("bound", [2.0, 6.0, 0.0], ids=["2", "6", "none"])
def test_a_bound_of_gradient_and_decay_together_does_not_see_the_squares(bound):
    """3/2 (w - 4)² from w = 1 with decay 1/2, in plain floats."""
    local = LocalTraining(SGD(0.3, weight_decay=0.5), batch_size=0, steps=4, max_norm=bound, clip_decay=True)
    population = parabolas((3.0,), (4.0,))
    star = star_of(AdaAlter(local), number_model(1.0), population, everybody(population, 1))
    streams = run(star)[0][SERVER].streams
    w, added = 1.0, 0.0
    for t in range(1, 5):
        z = 3 * (w - 4) + 0.5 * w
        z *= min(1.0, bound / abs(z)) if bound else 1.0
        w -= 0.3 * z / math.sqrt(1 + t)
        added += z**2
    assert float(streams["model"]["w"]) == pytest.approx(w, abs=1e-9)
    assert float(streams["squares"]["w"]) == pytest.approx(1 + added, abs=1e-9)


class Slope(nn.Module):
    """w, whose gradient is the mean of the column."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return a * self.w


def _itself(outputs, batch):
    return outputs


@pytest.mark.parametrize(
    ("dtype", "slope", "begin"), [(torch.bfloat16, 2.0**-5, 1.0), (torch.float16, 2.0**-13, 2.0**-10)]
)
def test_small_squares_add_up_in_half_precision(dtype, slope, begin):
    """B² after 20 rounds of 4 steps with the gradient g is b_0² + 80 g²; in bfloat16 1 + 1/1024 is 1."""
    population = Clients([{"a": torch.full((1,), slope, dtype=dtype)} for _ in range(3)])
    model = Model(partial(Slope, dtype), _itself, inputs=("a",))
    star = star_of(AdaAlter(full_batch(4), begin=begin), model, population, everybody(population, 20))
    states, log = run(star)
    assert not log.of("lost")
    assert float(states[SERVER].streams["squares"]["w"]) == pytest.approx(begin**2 + 80 * slope**2, rel=1e-6)
    assert states[SERVER].streams["model"]["w"].dtype == dtype
