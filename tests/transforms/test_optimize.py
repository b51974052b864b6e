import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from partwise.algorithms import FedAvg
from partwise.core.codec import encode
from partwise.core.index import Coords, Rows, Whole
from partwise.core.model import MeanSquaredError, Model
from partwise.core.transform import begun, chain
from partwise.core.update import Update
from partwise.testing.examples import example_indices, example_params, example_update
from partwise.transforms import Adagrad, Adam, HyperRate, ServerSGD, Yogi
from toy_sent import RNG
from toy_star import Clients, everybody, full_batch, run, server, star_of

ALL = [ServerSGD(0.5, 0.9), Adagrad(), Adam(), Adam(bias_correction=True), Yogi()]


def feed(part, aggregates, params):
    """The server's loop: w after each aggregate, and the last state."""
    w = {name: t.clone() for name, t in params.items()}
    state, path = part.init(params), []
    for aggregate in aggregates:
        step, state = part.apply(aggregate, state, RNG)
        step.index.scatter_add_(w, step.values())
        path.append({name: t.clone() for name, t in w.items()})
    return path, state


def whole(*values, dtype=torch.float64):
    return Update(Whole({"w": (len(values),)}), {"w": torch.tensor(values, dtype=dtype)})


ZERO = {"w": torch.zeros(2, dtype=torch.float64)}

# optimisation.md §4.6: D = (0.1, -0.2) twice, lr 0.01, beta1 0.9, beta2 0.99, tau 1e-3, v0 = tau², w0 = 0
TABLE = {
    Adagrad: ((0.010001, 0.040001), (0.00099005, -0.00099501), (0.020001, 0.080001), (0.00232409, -0.00233377)),
    Adam: ((0.00010099, 0.00040099), (0.00905028, -0.00951261), (0.00019998, 0.00079698), (0.02159863, -0.02251258)),
    Yogi: ((0.000101, 0.000401), (0.00904988, -0.00951249), (0.000201, 0.000801), (0.02156845, -0.02248092)),
}


@pytest.mark.parametrize("part", TABLE)
@pytest.mark.parametrize("lazy", [True, False])
def test_table(part, lazy):
    v1, w1, v2, w2 = TABLE[part]
    for rounds, v, w, m in ((1, v1, w1, (0.01, -0.02)), (2, v2, w2, (0.019, -0.038))):
        path, state = feed(part(lr=0.01, lazy=lazy), [whole(0.1, -0.2)] * rounds, ZERO)
        assert state["m"]["w"].tolist() == pytest.approx(m, abs=1e-12)
        assert state["v"]["w"].tolist() == pytest.approx(v, abs=5e-9)
        assert path[-1]["w"].tolist() == pytest.approx(w, abs=5e-9)


def test_first_step_with_bias_correction():
    path, _ = feed(Adam(lr=0.01, bias_correction=True), [whole(0.1, -0.2)], ZERO)
    assert path[0]["w"].tolist() == pytest.approx([0.00990099, -0.00995025], abs=5e-9)


def test_momentum():
    """m: 2, 1.8 - 1 = 0.8, 0.72 + 0.5 = 1.22; w adds 0.1 of each."""
    path, _ = feed(ServerSGD(lr=0.1, momentum=0.9), [whole(2.0), whole(-1.0), whole(0.5)], {"w": torch.zeros(1)})
    assert [float(p["w"]) for p in path] == pytest.approx([0.2, 0.28, 0.402])


def test_reduces_to_averaging():
    """beta1 = 0 and v held at (1 - tau)²: the step is lr D."""
    part = Adam(lr=0.3, beta1=0.0, beta2=0.999999, tau=1e-3)
    state = part.init(ZERO)
    state["v"]["w"].fill_((1 - 1e-3) ** 2)
    step, _ = part.apply(whole(0.1, -0.2), state, RNG)
    assert step.values()["w"].tolist() == pytest.approx([0.03, -0.06], rel=1e-5)


def test_zero_aggregate():
    """A touched coordinate with D = 0: Yogi leaves v, Adam shrinks it, both move on by momentum."""
    aggregates = [whole(0.1, -0.2), whole(0.0, -0.2)]
    (first, second), state = feed(Yogi(), aggregates, ZERO)
    assert float(state["v"]["w"][0]) == pytest.approx(0.000101, abs=1e-15)
    (_, _), state = feed(Adam(), aggregates, ZERO)
    assert float(state["v"]["w"][0]) == pytest.approx(0.99 * 0.00010099, abs=1e-15)
    assert second["w"][0] > first["w"][0]


# ---- submodels ------------------------------------------------------------------------------------------------------


def oracle(kind, aggregates, size, lazy):
    """Plain loops in float64. aggregates: dicts of position -> D."""
    m, v, w, t = [0.0] * size, [1e-6] * size, [0.0] * size, [0] * size
    if kind == "corrected":
        v = [0.0] * size
    for aggregate in aggregates:
        for j in range(size):
            if j not in aggregate and lazy:
                continue
            d = aggregate.get(j, 0.0)
            t[j] += 1
            if kind == "momentum":
                m[j] = 0.9 * m[j] + d
                w[j] += 0.5 * m[j]
                continue
            m[j] = 0.9 * m[j] + 0.1 * d
            if kind == "adagrad":
                v[j] += d * d
            elif kind == "yogi":
                gap = v[j] - d * d
                v[j] -= 0.01 * d * d * ((gap > 0) - (gap < 0))
            else:
                v[j] = 0.99 * v[j] + 0.01 * d * d
            top, below = m[j], v[j]
            if kind == "corrected":
                top, below = top / (1 - 0.9 ** t[j]), below / (1 - 0.99 ** t[j])
            w[j] += 0.01 * top / (math.sqrt(below) + 1e-3)
    return m, w


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("kind", ["momentum", "adagrad", "adam", "corrected", "yogi"])
def test_against_plain_loops(kind, lazy):
    part = {
        "momentum": ServerSGD(0.5, 0.9, lazy),
        "adagrad": Adagrad(lazy=lazy),
        "adam": Adam(lazy=lazy),
        "corrected": Adam(bias_correction=True, lazy=lazy),
        "yogi": Yogi(lazy=lazy),
    }[kind]
    given = [{0: 0.1, 3: -0.7}, {1: 0.02, 3: 0.0}, {0: -0.3, 1: 5.0}, {0: 0.4}]
    aggregates = []
    for d in given:
        index = Coords({"w": (5,)}, {"w": torch.tensor(list(d))})
        aggregates.append(Update(index, {"w": torch.tensor(list(d.values()), dtype=torch.float64)}))
    path, state = feed(part, aggregates, {"w": torch.zeros(5, dtype=torch.float64)})
    m, w = oracle(kind, given, 5, lazy)
    assert state["m"]["w"].tolist() == pytest.approx(m, rel=1e-12, abs=1e-15)
    assert path[-1]["w"].tolist() == pytest.approx(w, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("part", ALL, ids=repr)
@pytest.mark.parametrize("kind", ["Rows", "Grid", "Coords", "Joint"])
def test_what_is_not_touched_keeps_its_bits(part, kind):
    params = example_params()
    index = example_indices(params)[kind]
    _, state = feed(part, [example_update(example_indices(params)["Whole"], params, seed=1)], params)
    before = {slot: {n: t.clone() for n, t in full.items()} for slot, full in state.items()}
    aggregate = example_update(index, params, seed=2)
    step, state = part.apply(aggregate, state, RNG)
    assert encode(step.index) == encode(index)
    for slot in set(state) - {"like"}:
        for name, full in state[slot].items():
            held = torch.zeros(full.numel(), dtype=torch.bool)
            if name in index.shapes:
                held[index.coords(name)] = True
            same = full.reshape(-1) == before[slot][name].reshape(-1)
            assert bool(same[~held].all()), (slot, name)
            assert slot != "m" or not bool(same[held].all()) or not bool(held.any())


@pytest.mark.parametrize("part", [type(p)(lazy=False) for p in ALL], ids=repr)
def test_not_lazy_means_a_zero_aggregate_elsewhere(part):
    params = {"E": torch.zeros(4, 2)}
    some = Update(Rows({"E": (4, 2)}, {"E": torch.tensor([1, 3])}), {"E": torch.tensor([[1.0, 2.0], [3.0, -4.0]])})
    padded = torch.zeros(4, 2)
    padded[[1, 3]] = some.values()["E"]
    whole_ones = Update(Whole({"E": (4, 2)}), {"E": torch.ones(4, 2)})
    one, _ = feed(part, [whole_ones, some], params)
    other, _ = feed(part, [whole_ones, Update(Whole({"E": (4, 2)}), {"E": padded})], params)
    assert torch.equal(one[-1]["E"], other[-1]["E"])
    assert float(one[-1]["E"][0, 0]) > float(one[0]["E"][0, 0])  # stale momentum moves on


def test_not_lazy_counts_for_the_most_that_a_row_counts_for():
    """A step of all rows has one weight."""
    rows = Rows({"E": (4, 2), "F": (3, 2)}, {"E": torch.tensor([1, 3]), "F": torch.tensor([0])})
    value = {"E": torch.ones(2, 2), "F": torch.ones(1, 2)}
    weight = {"E": torch.tensor([2.0, 7.0]), "F": torch.tensor([5.0])}
    part = ServerSGD(lazy=False)
    step, _ = part.apply(Update(rows, value, weight), part.init({"E": torch.zeros(4, 2), "F": torch.zeros(3, 2)}), RNG)
    assert step.weight == 7.0


def test_half_precision_parameters_have_single_precision_state():
    """tau² = 1e-6 and a long average would be lost in bfloat16."""
    params = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    path, state = feed(Adam(), [whole(0.1, -0.2, dtype=torch.bfloat16)] * 2, params)
    assert (state["v"]["w"].dtype, path[-1]["w"].dtype) == (torch.float32, torch.bfloat16)
    assert state["m"]["w"].tolist() == pytest.approx([0.019, -0.038], rel=0.01)


@pytest.mark.parametrize("part", [ServerSGD, Adagrad, Adam, Yogi])
def test_wrong_settings_are_refused(part):
    name, first = part.__name__, "momentum" if part is ServerSGD else "beta1"
    with pytest.raises(ValueError, match=rf"{name}\(lr=0\): must be above 0, got 0\."):
        part(lr=0)
    with pytest.raises(ValueError, match=rf"{name}\(lr=inf\): must be a finite number above 0, got inf\."):
        part(lr=float("inf"))
    with pytest.raises(ValueError, match=rf"{name}\({first}=1\.0\): must lie in \[0, 1\), got 1\.0\."):
        part(**{first: 1.0})
    if part is not ServerSGD:
        with pytest.raises(ValueError, match=rf"{name}\(tau=-1\): must be above 0, got -1\."):
            part(tau=-1)
        with pytest.raises(ValueError, match=rf"{name}\(tau=inf\): must be a finite number above 0, got inf\."):
            part(tau=float("inf"))  # every step would be 0
    if part in (Adam, Yogi):
        with pytest.raises(ValueError, match=rf"{name}\(beta2=2\): must lie in \[0, 1\), got 2\."):
            part(beta2=2)


class Smoothed(nn.Module):
    """A weight, and half the last mean of the inputs and half this one, as a norm keeps them."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("mean", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.mean()
        return self.w * x


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("part", [ServerSGD(lr=1.0, momentum=0.9), Adam(lr=0.5), Adagrad(lr=0.5), Yogi(lr=0.5)])
def test_running_means_are_averaged_and_not_stepped(part, lazy):
    """Means of the inputs are 0.1 and 0.3: 1 becomes 0.5 + 0.5 * 0.2, and so on; a step with momentum goes below 0."""
    inputs = [torch.tensor([m, m], dtype=torch.float64) for m in (0.1, 0.3)]
    population = Clients([{"x": x, "y": 2 * x} for x in inputs])
    chains = {"model": chain(replace(part, lazy=lazy))}
    star = star_of(FedAvg(full_batch(1)), Model(Smoothed, MeanSquaredError()), population, everybody(population, 4))
    plain = run(star, lambda world: float(server(world).streams["model"]["mean"]))[1].seen
    star = replace(star, server_chain=chains)
    assert run(star, lambda world: float(server(world).streams["model"]["mean"]))[1].seen == plain
    assert plain == pytest.approx([0.6, 0.4, 0.3, 0.25])


def test_running_means_have_no_part_in_hyper_rate():
    """The mean of the inputs is 0 in every round: 1 is halved each time, and beyond 0 only by a rate above 1."""
    population = Clients([{"x": torch.tensor([-1.0, 1.0]).double(), "y": torch.tensor([-9.0, 9.0]).double()}])
    star = star_of(FedAvg(full_batch(1)), Model(Smoothed, MeanSquaredError()), population, everybody(population, 3))
    star = replace(star, server_chain={"model": chain(HyperRate(gamma=3.0, normalize=True))})
    found = run(star, lambda world: {n: float(t) for n, t in server(world).streams["model"].items()})[1].seen
    assert [at["mean"] for at in found] == [0.5, 0.25, 0.125]
    part = HyperRate(gamma=3.0)
    state, index = part.begin({}, {"m"}), Whole({"w": (1,), "m": (1,)})
    for wanted in (1.0, 1.5, 2.0):  # 1 and 0.5 times 0.5 * 1.0 more; 1000 has no say
        value = {"w": torch.tensor([1.0]), "m": torch.tensor([1000.0])}
        step, state = replace(part, rate=0.5).apply(Update(index, value), state, RNG)
        assert {n: float(v) for n, v in step.values().items()} == {"w": wanted, "m": 1000.0}


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("part", ALL)
def test_what_is_still_is_passed_on_beside_what_is_held_in_part(part, lazy):
    part = replace(part, lazy=lazy)
    params = {"E": torch.zeros(4, 2), "m": torch.zeros(3)}
    index = Rows({"E": (4, 2), "m": (3,)}, {"E": torch.tensor([0, 2]), "m": torch.tensor([1, 2])})
    state, alone = begun(chain(part), params, {"m"}), part.init({"E": params["E"]})
    for _ in range(3):
        value = {"E": torch.randn(2, 2, generator=RNG), "m": torch.randn(2, generator=RNG)}
        step, state = chain(part).apply(Update(index, value), state, RNG)
        rows = Rows({"E": (4, 2)}, {"E": index.rows["E"]})
        expected, alone = part.apply(Update(rows, {"E": value["E"]}), alone, RNG)
        found, wanted = ({"E": torch.zeros(4, 2), "m": torch.zeros(3)} for _ in "ab")
        step.index.scatter_add_(found, step.values())
        expected.index.scatter_add_({"E": wanted["E"]}, expected.values())
        index.scatter_add_({**found, "E": torch.zeros(4, 2)}, value, -1.0)
        assert torch.equal(found["E"], wanted["E"])
        assert not found["m"].any()
