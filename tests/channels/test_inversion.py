"""Inverting gradients: what one client's update tells in the clear, and what is left of that in a masked sum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.channels import Masked
from partwise.core.index import Whole
from partwise.core.update import Update
from toy_exchange import play, seat_of

X = torch.tensor([0.2, -0.5, 0.7], dtype=torch.float64)
LR = 0.1


def gradient(x, label):
    """Of one example of the specification's layer: (weight, bias)."""
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 0.2, 0.3], [-0.3, 0.1, 0.4]]))
        layer.bias.copy_(torch.tensor([0.05, -0.1]))
    loss = nn.functional.cross_entropy(layer(x)[None], torch.tensor([label]))
    return torch.autograd.grad(loss, (layer.weight, layer.bias))


def inverted(weight, bias):
    """x, by the row whose bias moved most: x = (dL/dW)_row / (dL/db)_row."""
    row = int(bias.abs().argmax())
    return weight[row] / bias[row]


def update(x, label):
    weight, bias = gradient(x, label)
    return Update(Whole({"weight": (2, 3), "bias": (2,)}), {"weight": -LR * weight, "bias": -LR * bias})


def test_one_update_in_the_clear():
    weight, bias = gradient(X, 1)
    assert bias.tolist() == pytest.approx([0.527472, -0.527472], abs=5e-7)
    assert weight[0].tolist() == pytest.approx([0.105494, -0.263736, 0.369231], abs=5e-7)
    assert int(bias.argmin()) == 1  # the label
    value = update(X, 1).value
    assert inverted(value["weight"], value["bias"]) == pytest.approx(X)


def test_a_masked_sum():
    draw = torch.Generator().manual_seed(3)
    others = [torch.rand(3, generator=draw, dtype=torch.float64) - 0.5 for _ in range(5)]
    updates = {c: update(x, c % 2) for c, x in enumerate([*others, X])}
    params = {"weight": torch.zeros(2, 3, dtype=torch.float64), "bias": torch.zeros(2, dtype=torch.float64)}
    it = play(Masked(limit=0.5, bits=24), updates, params=params, seats={c: seat_of(c, params=params) for c in updates})
    found = inverted(it.sum.value["weight"], it.sum.value["bias"])
    assert min(float((found - x).abs().max()) for x in [*others, X]) > 0.1
    sent = it.answers[2][5]  # what the last one sent says nothing at all
    assert len({bytes(sent[i : i + 4]) for i in range(23, len(sent) - 4, 4)}) > 20


def test_rows_tell_without_values():
    """The gradient of a table is not zero in the rows that were used, and in no others."""
    table = nn.Embedding(9, 2)
    nn.functional.mse_loss(table(torch.tensor([2, 7, 2])).sum(), torch.tensor(1.0)).backward()
    assert table.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [2, 7]
