"""Losses around a model's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from partwise.core.model import BinaryCrossEntropy, CrossEntropy, Model
from partwise.core.plan import ModelLoss
from partwise.local import EdgePopup, Nested, Proximal, Rescaled, Shift
from partwise.local.losses import top_edges
from toy_sent import RNG


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


def test_what_distils_is_not_differentiated():
    """Of a prefix that is all of the model, softmax(z) is taught to z: softmax(z) - softmax(z) = 0 is added to d/dz."""
    model, rows = Model(Two, CrossEntropy()), batch()
    found = []
    for loss in (Nested(model, [{}], distill=True), ModelLoss(model)):
        params = {n: t.requires_grad_() for n, t in model.init(0).items()}
        found.append(torch.autograd.grad(loss(params, rows, RNG), list(params.values())))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-14)


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


def edges(scores, keep, **how):
    return top_edges(torch.tensor(scores), keep, **how).reshape(-1).nonzero().reshape(-1).tolist()


def test_the_edges_with_the_largest_scores():
    """submodels.md §H: sigma on the ranking 2, 3, 0, 5, 1, 4, by the score and by its size."""
    scores = [-0.2, 0.4, -0.9, -0.5, 0.8, 0.1]
    assert edges(scores, 0.5) == edges([scores[:3], scores[3:]], 0.5) == [1, 4, 5]
    assert edges(scores, 0.5, abs_scores=True) == [2, 3, 4]
    assert edges(scores, 1.0) == list(range(6))
    assert edges(scores, 0.7) == [0, 1, 4, 5]
    assert edges(scores, 0.01) == [4]
    assert edges([0.9, 0.1, 0.4, 0.2, 0.3, 0.8, 0.5, 0.6, 0.7, 0.0], 0.9) == [0, 1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("abs_scores", [False, True])
def test_equal_scores_are_in_the_order_of_their_numbers(abs_scores):
    draw = torch.Generator().manual_seed(4)
    for keep in (0.1, 0.34, 0.5, 0.9):
        for _ in range(20):
            scores = torch.randint(-3, 4, (17,), generator=draw).float()
            sizes = [abs(s) if abs_scores else s for s in scores.tolist()]
            lowest_first = sorted(range(17), key=lambda e, sizes=sizes: (sizes[e], e))
            wanted = sorted(lowest_first[17 - round(keep * 17) :])
            assert edges(scores.tolist(), keep, abs_scores=abs_scores) == wanted


def test_the_gradient_of_a_score_is_its_weight_s_times_the_fixed_one():
    """Loops over a network of one hidden layer; also where the edge is not there."""
    model = Model(Two, CrossEntropy())
    rows, fixed = batch(), model.init(0)
    weights = {n: fixed.pop(n) for n in ("first.weight", "second.weight")}
    draw = torch.Generator().manual_seed(2)
    scores = {n: torch.randn(t.shape, generator=draw, dtype=torch.float64) for n, t in weights.items()}
    x, y, b1, b2 = (t.tolist() for t in (rows["x"], rows["y"], fixed["first.bias"], fixed["second.bias"]))

    def masked(name):
        kept = sorted(scores[name].reshape(-1).tolist())[scores[name].numel() // 2 :]
        pairs = zip(weights[name].tolist(), scores[name].tolist(), strict=True)
        return [[w * (s in kept) for w, s in zip(*pair, strict=True)] for pair in pairs]

    one, two = masked("first.weight"), masked("second.weight")
    by_one, by_two, total = [[0.0] * 3 for _ in range(4)], [[0.0] * 4 for _ in range(2)], 0.0
    for xs, label in zip(x, y, strict=True):
        hidden = [math.tanh(sum(w * v for w, v in zip(one[j], xs, strict=True)) + b1[j]) for j in range(4)]
        logits = [sum(w * h for w, h in zip(two[c], hidden, strict=True)) + b2[c] for c in range(2)]
        norm = sum(map(math.exp, logits))
        total -= math.log(math.exp(logits[label]) / norm) / len(x)
        slope = [(math.exp(logits[c]) / norm - (c == label)) / len(x) for c in range(2)]
        for c in range(2):
            for j in range(4):
                by_two[c][j] += slope[c] * hidden[j]
        for j in range(4):
            back = sum(slope[c] * two[c][j] for c in range(2)) * (1 - hidden[j] ** 2)
            for i in range(3):
                by_one[j][i] += back * xs[i]
    for t in scores.values():
        t.requires_grad_()
    loss = EdgePopup(ModelLoss(model), weights, fixed)(scores, rows, RNG)
    assert float(loss.detach()) == pytest.approx(total, abs=1e-12)
    for got, name, wanted in zip(
        torch.autograd.grad(loss, list(scores.values())), scores, (by_one, by_two), strict=True
    ):
        assert (got - torch.tensor(wanted, dtype=torch.float64) * weights[name]).abs().max() < 1e-12


class Shifted(nn.Linear):
    """Takes 1 off its input where that lies."""

    def forward(self, x):
        return super().forward(x.sub_(1.0))


def test_nested_models_that_write_to_their_input_see_the_same_examples():
    model = Model(lambda: Shifted(3, 2), CrossEntropy())
    params = {n: t.requires_grad_() for n, t in model.init(0).items()}
    x, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0])
    loss = Nested(model, [{}], distill=True)(params, {"x": x.clone(), "y": y}, torch.Generator())
    loss.backward()
    logits = (x - 1.0) @ params["weight"].detach().T + params["bias"].detach()
    shares, logs = logits.softmax(1), logits.log_softmax(1)
    expected = float(-logs[torch.arange(4), y].mean() - (shares * logs).sum(1).mean())
    assert loss.item() == pytest.approx(expected, rel=1e-6)
