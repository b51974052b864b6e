"""A second model beside the first: its loss, its optimiser, its gradient terms."""

from __future__ import annotations

import torch
from torch import nn

from partwise.algorithms.anchors import Recursive
from partwise.algorithms.twins import Apart, Paired, Twins, firsts, second, second_names, seconds
from partwise.core.codec import decode, encode
from partwise.core.model import CrossEntropy, Model
from partwise.local import SGD, AdamW, ClipGradient

ONE = {"a": torch.tensor([3.0]), "b": torch.tensor([1.0, 2.0])}


def test_names():
    both = {**ONE, **second({"a": torch.tensor([7.0])})}
    assert set(firsts(both)) == {"a", "b"}
    assert seconds(both)["a"] is both["second/a"]
    assert second_names(["a"]) == {"second/a"}


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.layer(x)))


def test_equal_twins_meet_the_same_dropout():
    model = Model(Dropping, CrossEntropy())
    params = {n: t.double() for n, t in model.init(2).items()}
    batch = {"x": torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
    batch["y"] = torch.tensor([0, 1] * 4)
    leaf = {n: t.clone().requires_grad_(n not in model.buffers()) for n, t in params.items()}
    twin = {n: t.clone().requires_grad_(n not in model.buffers()) for n, t in params.items()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        loss = Twins(model)({**leaf, **second(twin)}, batch, torch.Generator())
        torch.default_generator.manual_seed(5)
        alone = model.losses({n: t.clone() for n, t in params.items()}, batch).mean()
    loss.backward()
    assert loss.item() == 2 * alone.item()
    assert torch.equal(leaf["layer.weight"].grad, twin["layer.weight"].grad)
    assert torch.equal(leaf["norm.running_mean"], twin["norm.running_mean"])


class Shifted(nn.Linear):
    """Takes 1 off its input where that lies."""

    def forward(self, x):
        return super().forward(x.sub_(1.0))


def test_equal_twins_that_write_to_their_input_see_the_same_examples():
    model = Model(lambda: Shifted(3, 2), CrossEntropy())
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1] * 4)
    leaf = {n: t.clone().requires_grad_() for n, t in model.init(2).items()}
    twin = {n: t.clone().requires_grad_() for n, t in model.init(2).items()}
    loss = Twins(model)({**leaf, **second(twin)}, {"x": x.clone(), "y": y}, torch.Generator())
    loss.backward()
    assert loss.item() == 2 * nn.functional.cross_entropy((x - 1.0) @ leaf["weight"].T + leaf["bias"], y).item()
    assert torch.equal(leaf["weight"].grad, twin["weight"].grad)


def test_what_only_the_first_has_is_lent():
    """No gradient comes back from the second, and its statistics move once."""
    model = Model(Dropping, CrossEntropy())
    params = model.init(2)
    batch = {"x": torch.randn(8, 3, generator=torch.Generator().manual_seed(1)) + 2, "y": torch.tensor([0, 1] * 4)}
    own = {n: params[n].clone().requires_grad_() for n in ("layer.weight", "layer.bias")}
    leaf = {n: t.clone() for n, t in params.items()}
    leaf["norm.weight"].requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        Twins(model)({**leaf, **second(own)}, batch, torch.Generator()).backward()
        torch.default_generator.manual_seed(5)
        alone = {n: t.clone() for n, t in params.items()}
        model.losses({**alone, "norm.weight": (one := alone["norm.weight"].requires_grad_())}, batch).mean().backward()
    assert torch.equal(leaf["norm.weight"].grad, one.grad)
    assert own["layer.weight"].grad.abs().sum() > 0
    assert torch.equal(leaf["norm.running_mean"], alone["norm.running_mean"])


def test_each_has_its_own_optimiser():
    rule = Paired(SGD(0.5), AdamW(0.1, weight_decay=0.0))
    assert rule.lr == 0.5
    values = {**{n: t.clone() for n, t in ONE.items()}, **second({"a": torch.tensor([7.0])})}
    state = rule.init(values)
    for _ in range(2):
        state = rule.step_(values, {n: torch.ones_like(t) for n, t in values.items()}, decode(encode(state)))
    assert values["a"].tolist() == [2.0]
    assert values["b"].tolist() == [0.0, 1.0]
    torch.testing.assert_close(values["second/a"], torch.tensor([6.8]))


def test_each_is_clipped_by_itself():
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "second/a": torch.tensor([0.5])}
    found = Apart(ClipGradient(1.0))(grads, grads, 0)
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]), torch.tensor([0.6, 0.8]))
    assert found["second/a"].tolist() == [0.5]


def test_recursion():
    """h is 10, then 10 + 3 - 1; what has no second copy takes plain steps."""
    rule = Recursive(0.1, {"a": torch.tensor([10.0])})
    values = {"a": torch.tensor([3.0]), "home": torch.tensor([1.0]), "second/a": torch.tensor([3.0])}
    state = rule.init(values)
    one = torch.tensor([1.0])
    state = rule.step_(values, {"a": one.clone(), "home": one.clone(), "second/a": one.clone()}, state)
    assert (float(values["a"]), float(values["second/a"]), float(values["home"])) == (2.0, 3.0, 0.9 * one)
    rule.step_(values, {"a": 3 * one, "home": one.clone(), "second/a": one.clone()}, decode(encode(state)))
    torch.testing.assert_close(values["a"], torch.tensor([0.8]))
    assert float(values["second/a"]) == 2.0
    assert rule.guide["a"].tolist() == [10.0]
