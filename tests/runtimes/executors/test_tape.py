"""Models that are run without autograd: every rule against autograd, and what is left to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwise.core.model import BinaryCrossEntropy, CrossEntropy, Model
from partwise.local import SGD, Rescaled
from partwise.runtimes.executors import Stacked
from partwise.runtimes.executors.folded import UnstackableError
from partwise.runtimes.executors.tape import Taped, recorded
from toy_stack import FOLDED, NEAR, Case, agree, ids, images


class Around(nn.Module):
    """What is to be tried, between two linear maps, of vectors or, in front of the second, of rows of them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 6), nn.Linear(6, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.outer(self.function(self.inner(x.flatten(1))))
        return result


def case(function: Callable[[Tensor], Tensor]) -> Case:
    return Case(Model(lambda: Around(function), CrossEntropy()), images)


KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu, method": lambda x: x.relu(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softmax": lambda x: x.softmax(-1),
    "softmax, function": lambda x: F.softmax(x, dim=1),
    "product": lambda x: x * x,
    "product of several uses": lambda x: x * x.tanh() * x,
    "number": lambda x: x.mul(0.3) * 2.0,
    "number first": lambda x: 3 * x,
    "sum": lambda x: x + x.tanh(),
    "difference": lambda x: x.tanh() - x,
    "beside": lambda x: torch.cat([x.unsqueeze(1), x.tanh().unsqueeze(1)], 1).sum(1),
    "mean": lambda x: torch.cat([x.unsqueeze(1), x.tanh().unsqueeze(1)], -2).mean(1),
    "kept": lambda x: x * x.unsqueeze(2).mean(2, keepdim=True).squeeze(2),
    "broadcast product": lambda x: (x.unsqueeze(2) * x.tanh().unsqueeze(1)).sum(2),
    "broadcast sum": lambda x: (x.unsqueeze(2) + x.tanh().unsqueeze(1)).mean((2,)),
    "broadcast difference": lambda x: (x.unsqueeze(2) - x.tanh().unsqueeze(1)).tanh().sum(-1),
    "expanded": lambda x: (x.tanh().unsqueeze(1).expand_as(x.unsqueeze(1) * x.unsqueeze(2)) * x.unsqueeze(2)).sum(1),
    "flattened": lambda x: x.unsqueeze(1).flatten(1),
    "unused": lambda x: (x.tanh(), x)[1],
}
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "over the examples": (lambda x: x - x.mean(0, keepdim=True), "over the examples"),
    "over everything": (lambda x: x * x.sum(), "sum"),
    "how many there are": (lambda x: x.view(len(x), -1), "__len__"),
    "shape": (lambda x: x.reshape(x.shape[0], 6), "__get__"),
    "overwritten": (lambda x: F.relu(x, inplace=True), "overwrites"),
    "chance": (lambda x: F.dropout(x, 0.5), "dropout"),
    "branch": (lambda x: x if bool((x > -1e9).all()) else x * 2, "gt"),
    "numbers taken out": (lambda x: x * x[0, 0].item(), "__getitem__"),
    "something else": (lambda x: x * torch.ones(6, dtype=x.dtype), "arithmetic"),
    "as many axes": (lambda x: x + torch.ones(1, 6, dtype=x.dtype), "something else"),
    "another type": (lambda x: x.float().to(x.dtype), "conversion"),
    "cumulated": (lambda x: x.cumsum(0), "cumsum"),
}


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("name", KNOWN)
def test_gradients_are_those_of_autograd(name, dtype):
    jobs = case(KNOWN[name]).jobs(dtype=dtype, epochs=2)
    (line,) = Stacked().explain(jobs)
    assert "without autograd" in line
    agree(jobs, Stacked())


@pytest.mark.parametrize("is_plain", [True, False])
def test_parameters_that_the_loss_multiplies(is_plain):
    factors = {"inner.weight": 2.0, "inner.bias": 0.5, "outer.bias": 3.0}
    rule = SGD(0.1) if is_plain else SGD(0.1, momentum=0.9)
    jobs = case(torch.tanh).jobs(epochs=2)
    jobs = [j._replace(plan=replace(j.plan, loss=Rescaled(j.plan.loss, factors), optimizer=rule)) for j in jobs]
    (line,) = Stacked().explain(jobs)
    assert "without autograd" in line
    agree(jobs, Stacked())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_left_to_others(name):
    function, why = REFUSED[name]
    jobs = case(function).jobs(epochs=2)
    plan, (x, names) = jobs[0].plan, (jobs[0].data.columns(), list(jobs[0].start))
    with pytest.raises(UnstackableError, match=why):
        recorded(plan.loss.model, jobs[0].start, x, names)  # type: ignore[attr-defined]
    assert "without autograd" not in Stacked().explain(jobs)[0]


class Labelled(nn.Module):
    """One logit for each example, of a table's rows."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3, **settings)
        self.out = nn.Linear(3, 1)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.out(self.table(ids).sum(1)).squeeze(1)
        return result


def numbered(n: int, client: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"x": ids(9, n, 2, seed=client), "y": ids(2, n, seed=client + 40)}


def test_logits_of_a_table():
    jobs = Case(Model(Labelled, BinaryCrossEntropy()), numbered).jobs(epochs=2)
    assert "without autograd" in Stacked().explain(jobs)[0]
    agree(jobs, Stacked())


def test_special_embeddings_are_left_to_others():
    model = Model(lambda: Labelled(padding_idx=0), BinaryCrossEntropy())
    jobs = Case(model, numbered).jobs()
    assert "without autograd" not in Stacked().explain(jobs)[0]
    agree(jobs, Stacked())
    agree(Case(model, numbered).jobs((12,) * 4), Stacked())  # whose batches are alike, and so are trained together


class Averaged:
    """A loss that is reduced before anybody asked."""

    def __call__(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch["y"]).expand(len(outputs))


class Ignoring:
    """A loss that some examples have no part in."""

    def __call__(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch["y"], ignore_index=2, reduction="none")


class Smoothed:
    def __call__(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch["y"], reduction="none", label_smoothing=0.1)


def test_ignored_targets():
    jobs = Case(Model(lambda: Around(torch.tanh), Ignoring()), images).jobs(epochs=2)
    assert "without autograd" in Stacked().explain(jobs)[0]
    agree(jobs, Stacked())


@pytest.mark.parametrize("loss", [Averaged(), Smoothed()])
def test_other_losses_are_left_to_others(loss):
    jobs = Case(Model(lambda: Around(torch.tanh), loss), images).jobs(epochs=2)
    assert "without autograd" not in Stacked().explain(jobs)[0]
    agree(jobs, Stacked())


def test_what_does_not_move_gets_no_gradient():
    found = case(torch.tanh).jobs(trainable=lambda name: name.startswith("outer"))
    agree(found, Stacked())
    assert not any(result.change["inner.weight"].any() for result in Stacked().run(found))  # type: ignore[union-attr]


def test_a_rule_that_is_wrong_is_found_out(monkeypatch):
    """The trial compares what the rules come to with autograd."""
    original = Taped.__call__

    def wrong(self: Taped, *args: Any) -> Any:
        means, grads = original(self, *args)
        assert grads is not None
        return means, {n: g * 1.01 for n, g in grads.items()}

    jobs = FOLDED["mlp"].jobs()
    monkeypatch.setattr(Taped, "__call__", wrong)
    assert "without autograd" not in Stacked().explain(jobs)[0]
    agree(jobs, Stacked())


def test_no_vmap_is_needed(monkeypatch):
    """Its first call takes half a second, for what it imports."""
    monkeypatch.setattr(torch.func, "vmap", None)
    assert "without autograd" in Stacked().explain(FOLDED["din"].jobs())[0]


def test_a_tape_serves_batches_of_any_size():
    model = FOLDED["mlp"].model
    jobs = FOLDED["mlp"].jobs((7, 7))
    names = list(jobs[0].start)
    tape = recorded(model, jobs[0].start, {n: c[:3] for n, c in jobs[0].data.columns().items()}, names)
    values = {n: torch.stack([job.start[n] for job in jobs]) for n in names}
    batch = {n: torch.cat([job.data.columns()[n][:5] for job in jobs]) for n in jobs[0].data.columns()}
    shares = torch.full((2, 5), 0.2, dtype=torch.float64)
    means, grads = Taped(tape, {}, names, {})(values, batch, shares, 0.0)
    assert grads is not None
    for c, job in enumerate(jobs):
        params = {n: t.clone().requires_grad_() for n, t in job.start.items()}
        loss = model.losses(params, {n: t[5 * c : 5 * c + 5] for n, t in batch.items()}).mean()
        loss.backward()
        torch.testing.assert_close(means[c], loss.detach(), rtol=1e-12, atol=0)
        for n, p in params.items():
            torch.testing.assert_close(grads[n][c], p.grad, rtol=1e-9, atol=1e-12)
