"""Losses around a model's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.core.model import BinaryCrossEntropy, CrossEntropy, Model
from partwise.core.plan import ModelLoss
from partwise.local import Nested, Proximal, Rescaled, Shift

RNG = torch.Generator()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x):
        return self.second(self.first(x).tanh())


def batch():
    x = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, -0.7]], dtype=torch.float64)
    return {"x": x, "y": torch.tensor([1, 0])}


def test_rescaled_outputs_and_inputs():
    """Weight and bias together scale what a map gives, the weight alone what it takes."""
    model, rows = Model(Two, CrossEntropy()), batch()
    params = model.init(0)
    loss = Rescaled(ModelLoss(model), {"first.weight": 4.0, "first.bias": 4.0, "second.weight": 0.5})
    hidden = ((rows["x"] @ params["first.weight"].T + params["first.bias"]) * 4).tanh() * 0.5
    logits = hidden @ params["second.weight"].T + params["second.bias"]
    wanted = nn.functional.cross_entropy(logits, rows["y"])
    assert float(loss(params, rows, RNG)) == pytest.approx(float(wanted), abs=1e-13)


def test_rescaled_gradient_is_that_of_the_values_themselves():
    model, rows = Model(Two, CrossEntropy()), batch()
    loss = Rescaled(ModelLoss(model), {"first.bias": 3.0})
    params = {n: t.requires_grad_() for n, t in model.init(0).items()}
    (grad,) = torch.autograd.grad(loss(params, rows, RNG), [params["first.bias"]])
    for unit in range(4):
        ends = []
        for sign in (1, -1):
            moved = {n: t.detach().clone() for n, t in params.items()}
            moved["first.bias"][unit] += sign * 1e-5
            ends.append(float(loss(moved, rows, RNG)))
        assert float(grad[unit]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


def test_nested_draws_every_width_alike_and_from_the_generator():
    model, rows = Model(Two, CrossEntropy()), batch()
    params = model.init(0)
    prefixes = [{"first.weight": (k, 3), "first.bias": (k,), "second.weight": (2, k)} for k in (1, 2, 4)]
    loss = Nested(model, prefixes)
    drawn = [float(loss(params, rows, torch.Generator().manual_seed(s))) for s in range(300)]
    assert drawn == [float(loss(params, rows, torch.Generator().manual_seed(s))) for s in range(300)]
    counts = [drawn.count(value) for value in set(drawn)]
    assert len(counts) == 3
    assert all(70 < n < 130 for n in counts)


def test_nested_needs_a_logit_per_class_to_distil():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 1).double()

        def forward(self, x):
            return self.out(x).squeeze(1)

    model = Model(One, BinaryCrossEntropy())
    with pytest.raises(ValueError, match=r"one logit per class, got outputs of shape \(2,\)\. Give the model"):
        Nested(model, [{}], distill=True)(model.init(0), batch(), RNG)


def test_terms_leave_alone_what_they_do_not_name():
    params = {"a": torch.tensor([3.0]), "b": torch.tensor([5.0])}
    grads = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}
    pulled = Proximal(0.5, {"a": torch.tensor([1.0])})(params, grads, 0)
    assert {n: float(g) for n, g in pulled.items()} == {"a": 2.0, "b": 2.0}
    shifted = Shift({"b": torch.tensor([-7.0])})(params, grads, 0)
    assert {n: float(g) for n, g in shifted.items()} == {"a": 1.0, "b": -5.0}
