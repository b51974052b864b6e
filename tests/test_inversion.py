"""Whoever sees a single update sees the example it was trained on; in a sum over many it is not found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from partwise.algorithms import FedAvg, FedSubAvg
from partwise.channels import Plain
from partwise.core.model import CrossEntropy, Model
from partwise.core.transform import chain
from partwise.core.update import map_values
from partwise.local import SGD, LocalTraining
from partwise.programs.star import Star
from partwise.transforms import CapWeight, Clip, GaussianNoise
from toy_federation import model as table_model
from toy_federation import population as table_population
from toy_inversion import Curious, closed_form, deep_leakage, label_of_last_layer, nearest, psnr
from toy_star import Clients, everybody, run

D, CLASSES, LR = 24, 5, 0.25
FOUND = 40.0  # dB: every number to about a hundredth
LOST = 15.0  # dB: no more alike than two different examples are, see below
ONE_STEP = LocalTraining(SGD(LR), batch_size=0, steps=1)


class Linear(nn.Module):
    """One layer with bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, CLASSES).double()

    def forward(self, x):
        return self.layer(x)


class Deep(nn.Module):
    """Two layers without bias, so that no quotient gives the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(D, 40, bias=False).double()
        self.last = nn.Linear(40, CLASSES, bias=False).double()

    def forward(self, x):
        return self.last(torch.sigmoid(2 * self.first(x)))


def people(n: int) -> Clients:
    """Client i has one example with values in [0, 1], of class i modulo the classes."""
    draw = torch.Generator().manual_seed(9)
    x = torch.rand(n, D, generator=draw, dtype=torch.float64)
    return Clients([{"x": x[i : i + 1], "y": torch.tensor([i % CLASSES])} for i in range(n)])


def examples(population: Clients) -> torch.Tensor:
    return torch.cat([c["x"] for c in population.columns])


def watched(module, population, needs, **more):
    """What the server is given in one round, and the model that everybody began from."""
    spy = Curious(needs)
    model = Model(module, CrossEntropy(), inputs=("x",))
    star = Star(
        algorithm=FedAvg(ONE_STEP, weights="uniform"),
        scheduler=everybody(population, 1),
        model=model,
        population=population,
        channel=Plain(),
        aggregators={"model": spy},
        seed=4,
        **more,
    )
    run(star)
    (got,) = spy.seen
    return got, star.initial()


def gradient_of(value):
    """An update of one step is minus the learning rate times the gradient."""
    return {name: v / -LR for name, v in value.items()}


# ---- closed form ----


def test_the_numbers_of_the_specification():
    x, label = torch.tensor([[0.2, -0.5, 0.7]], dtype=torch.float64), torch.tensor([1])
    weight = torch.tensor([[0.1, 0.2, 0.3], [-0.3, 0.1, 0.4]], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.05, -0.1], dtype=torch.float64, requires_grad=True)
    dw, db = torch.autograd.grad(F.cross_entropy(F.linear(x, weight, bias), label), (weight, bias))
    assert db.tolist() == pytest.approx([0.527472, -0.527472], abs=1e-6)
    assert dw[0].tolist() == pytest.approx([0.105494, -0.263736, 0.369231], abs=1e-6)
    found, row = closed_form(dw, db)
    assert torch.allclose(found, x[0], atol=1e-12)
    assert int(row) == 1
    assert psnr(torch.full((4,), 0.1), torch.zeros(4)) == pytest.approx(20.0, abs=1e-4)


def test_one_update_in_the_clear_is_the_example_and_its_label():
    population = people(8)
    updates, _ = watched(Linear, population, "each")
    for client, update in enumerate(updates):
        gradient = gradient_of(update.values())
        found, label = closed_form(gradient["layer.weight"], gradient["layer.bias"])
        assert torch.allclose(found, examples(population)[client], atol=1e-9)
        assert int(label) == client % CLASSES


def test_clipping_alone_hides_nothing_of_it():
    """The released update is attacked: a quotient does not see by how much it was shortened."""
    population = people(8)
    updates, _ = watched(Linear, population, "each", client_chain={"model": chain(Clip(1e-3))})
    gradient = gradient_of(updates[5].values())
    found, _ = closed_form(gradient["layer.weight"], gradient["layer.bias"])
    assert psnr(found, examples(population)[5]) > FOUND


def test_a_sum_over_many_has_no_single_example_in_it():
    population = people(40)
    got, _ = watched(Linear, population, "sum")
    assert got.count == 40
    gradient = gradient_of(got.value)
    for row in range(CLASSES):  # whatever row is taken
        found = gradient["layer.weight"][row] / gradient["layer.bias"][row]
        assert nearest(found, examples(population)) < LOST


def test_two_examples_are_as_unlike_as_what_is_called_lost():
    x = examples(people(40))
    alike = [nearest(x[i], torch.cat([x[:i], x[i + 1 :]])) for i in range(40)]
    assert max(alike) < LOST


def test_noise_of_a_client_s_own_hides_it_too():
    population = people(8)
    noise = chain(Clip(0.05), CapWeight(), GaussianNoise(1.0, sensitivity=0.05))
    updates, _ = watched(Linear, population, "each", client_chain={"model": noise})
    for client, update in enumerate(updates):
        gradient = gradient_of(update.values())
        found, _ = closed_form(gradient["layer.weight"], gradient["layer.bias"])
        assert psnr(found, examples(population)[client]) < LOST


# ---- optimised ----


def attacked(value, start):
    """The example that deep leakage finds in a gradient of the deep model, and the label that its last layer shows."""
    module, target = Deep(), gradient_of(value)
    label = label_of_last_layer(target["last.weight"])

    def gradients(x):
        params = {name: t.clone().requires_grad_() for name, t in start.items()}
        loss = F.cross_entropy(functional_call(module, params, (x[None],)), torch.tensor([label]))
        return dict(zip(params, torch.autograd.grad(loss, params.values(), create_graph=True), strict=True))

    return deep_leakage(gradients, target, (D,)), label


def test_deep_leakage_finds_the_example_of_an_update_in_the_clear():
    population = people(6)
    updates, start = watched(Deep, population, "each")
    for client in (0, 3):
        found, label = attacked(updates[client].values(), start)
        assert label == client % CLASSES
        assert psnr(found, examples(population)[client]) > FOUND


def test_deep_leakage_finds_none_of_many_in_their_sum():
    population = people(30)
    got, start = watched(Deep, population, "sum")
    mean = {name: v / got.count for name, v in got.value.items()}
    for value in (got.value, mean):
        found, _ = attacked(value, start)
        assert nearest(found, examples(population)) < LOST


# ---- submodels ----


def test_the_rows_of_an_update_say_what_a_client_has_even_without_values():
    """Tokens, items: who they are is in the index, before a single value is looked at."""
    population = table_population(5)
    spy = Curious("each")
    star = Star(
        algorithm=FedSubAvg("count", LocalTraining(SGD(0.1), steps=1)),
        scheduler=everybody(population, 1),
        model=table_model(),
        population=population,
        channel=Plain(),
        aggregators={"model": spy},
        client_chain={"model": chain(Silent())},
    )
    run(star)
    for client, update in enumerate(spy.seen[0]):
        words = torch.unique(population.columns[client]["words"])
        assert torch.equal(update.index.rows["table.weight"], words)
        assert all(bool((v == 0).all()) for v in update.values().values())


class Silent:
    """Sends zeros."""

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return map_values(update, torch.zeros_like), state
