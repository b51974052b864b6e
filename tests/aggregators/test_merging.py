"""Defence-aware merging: robustness.md §17."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from partwise.aggregators import DefenceAwareMerging
from partwise.aggregators.merging import _Search, entropy, normal_mask
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples
from partwise.core.probe import ModelProbe
from partwise.core.update import Update, map_values, to_dense, typed
from partwise.testing.examples import example_params, example_probe, example_updates
from toy_federation import star
from toy_updates import moved, partial, whole


@dataclass(frozen=True)
class Line:
    """Scores (x w, 0) of four numbers x; the shift is a number."""

    def scores(self, params, number, shift=None):
        x = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-1.5, 0.2], [0.1, 0.9]], dtype=torch.float64)
        score = (x if shift is None else x + shift) @ params["w"]
        return torch.stack([score, torch.zeros_like(score)], 1)

    def blank(self):
        return torch.zeros(2, dtype=torch.float64)

    def buffers(self):
        return frozenset()


PARAMS = {"w": torch.tensor([0.4, -0.3], dtype=torch.float64)}
ROWS = [[1.0, 0.5], [-0.2, 0.8], [0.3, -1.1]]


def mean_entropy(w, shift=(0.0, 0.0)):
    """With plain floats."""
    total = 0.0
    for x in ([0.5, -1.0], [2.0, 0.3], [-1.5, 0.2], [0.1, 0.9]):
        p = 1 / (1 + math.exp(-sum((a + s) * b for a, s, b in zip(x, shift, w, strict=True))))
        total -= p * math.log(p) + (1 - p) * math.log(1 - p)
    return total / 4


def test_entropy_and_masks():
    scores = Line().scores({"w": torch.tensor([0.7, -0.2], dtype=torch.float64)}, 0)
    assert float(entropy(scores)) == pytest.approx(mean_entropy([0.7, -0.2]))
    mask = torch.tensor([[0.1, 0.9], [0.4, 0.2]])
    assert float(normal_mask(mask).mean()) == pytest.approx(1.0)
    assert torch.equal(normal_mask(torch.full((3,), 0.5)), torch.ones(3))
    with pytest.raises(ValueError, match=r"a mask must let something through, got a mean of 0\. Raise it\."):
        normal_mask(torch.zeros(3))


@dataclass(frozen=True)
class HalfInputs:
    """The example's probe, with inputs of half precision."""

    def __getattr__(self, name):
        return getattr(example_probe(), name)

    def blank(self):
        return torch.zeros(5, dtype=torch.float16)


@pytest.mark.parametrize("probe", [example_probe(), HalfInputs()])
def test_of_half_precision_it_finds_what_it_finds_of_single(probe):
    """Adam's epsilon of 1e-8 is 0 there, and so is what it keeps of a small gradient squared: a step was 0 / 0."""
    half = example_params(torch.float16)
    single = {name: t.float() for name, t in half.items()}
    updates = [map_values(u, lambda v: v * 0.01) for u in example_updates(single, 4)]
    part = DefenceAwareMerging(steps=5, probe=probe)
    one, other = (
        to_dense(part.reduce([typed(u, params) for u in updates], 0, params)[0], single) for params in (half, single)
    )
    for name in single:
        assert torch.allclose(one[name], other[name], rtol=0.02, atol=0.02 * float(other[name].abs().max()))


def test_open_mask_and_even_weights_give_the_mean():
    """M = 1 and λ_i = 1/n: the plain mean of the models."""
    search = _Search(DefenceAwareMerging(), whole(ROWS), PARAMS, Line(), 0)
    assert search.masks(None)["w"].tolist() == [1.0, 1.0]
    assert search.sums(search.weights)["w"].tolist() == pytest.approx([1.1 / 3, 0.2 / 3])
    got, _ = DefenceAwareMerging(steps=0).reduce(whole(ROWS), 0, PARAMS)
    assert got.values()["w"].tolist() == pytest.approx([1.1 / 3, 0.2 / 3])


def test_gradient_of_the_weights_against_differences():
    search = _Search(DefenceAwareMerging(), whole(ROWS), PARAMS, Line(), 0)
    mask, at = {"w": torch.tensor([0.6, 1.4], dtype=torch.float64)}, [0.2, 0.5, 0.1]
    got = search.gradient(torch.tensor(at, dtype=torch.float64), mask).tolist()

    def loss(weights):
        return mean_entropy(
            [
                PARAMS["w"][j].item() + mask["w"][j].item() * sum(w * r[j] for w, r in zip(weights, ROWS, strict=True))
                for j in range(2)
            ]
        )

    for i in range(3):
        up, down = ([w + (h if k == i else 0.0) for k, w in enumerate(at)] for h in (1e-6, -1e-6))
        assert got[i] == pytest.approx((loss(up) - loss(down)) / 2e-6, abs=1e-8)


def test_gradient_over_submodels():
    """A coordinate's sum is scaled by n over its holders: absence is no vote."""
    updates = partial([{0: 2.0, 1: 1.0}, {0: 4.0}, {1: -3.0}], size=2)
    search = _Search(DefenceAwareMerging(), updates, PARAMS, Line(), 0)
    assert search.sums(search.weights)["w"].tolist() == pytest.approx([3.0, -1.0])

    def loss(weights):
        a, b, c = weights
        return mean_entropy([0.4 + 1.5 * (2 * a + 4 * b), -0.3 + 1.5 * (a - 3 * c)])

    at = [0.3, 0.2, 0.4]
    got = search.gradient(torch.tensor(at, dtype=torch.float64), {}).tolist()
    for i in range(3):
        up, down = ([w + (h if k == i else 0.0) for k, w in enumerate(at)] for h in (1e-6, -1e-6))
        assert got[i] == pytest.approx((loss(up) - loss(down)) / 2e-6, abs=1e-8)
    got, _ = DefenceAwareMerging(steps=0).reduce(updates, 0, PARAMS)
    assert moved(got) == {0: 3.0, 1: -1.0}


def test_predictions_become_surer_and_the_same_every_time():
    part = DefenceAwareMerging(steps=30, probe=Line())
    got, state = part.reduce(whole(ROWS), 0, PARAMS)
    again, _ = part.reduce(whole(ROWS), 0, PARAMS)
    other, _ = part.reduce(whole(ROWS), state, PARAMS)
    assert state == 1
    assert torch.equal(got.values()["w"], again.values()["w"])
    assert not torch.equal(got.values()["w"], other.values()["w"])
    after = [PARAMS["w"][j].item() + got.values()["w"][j].item() for j in range(2)]
    mean = [0.4 + 1.1 / 3, -0.3 + 0.2 / 3]
    assert mean_entropy(after) < mean_entropy(mean) - 0.05


def test_nothing_that_nobody_holds_moves():
    got, _ = DefenceAwareMerging(steps=3, probe=Line()).reduce(partial([{1: 2.0}, {1: 4.0}], size=2), 0, PARAMS)
    assert set(moved(got)) == {1}


# ---- a backdoor -----------------------------------------------------------------------------------------------------


def images(num, seed, *, mark=False):
    """Four classes by the brightest of four pixels; a mark in the corner sends everything to class 0."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (num,), generator=rng)
    x = 0.4 * torch.randn(num, 9, generator=rng)
    x[torch.arange(num), y] += 1.5
    if mark:
        x[:, 8] = 3.0
    return x, y


def trained(model, params, x, y):
    moving = {n: t.clone().requires_grad_() for n, t in params.items()}
    mover = torch.optim.Adam(list(moving.values()), lr=0.02)
    for _ in range(150):
        mover.zero_grad()
        model.losses(moving, {"x": x, "y": y}).mean().backward()
        mover.step()
    return {n: (t - params[n]).detach() for n, t in moving.items()}


def accuracy(model, params, x, y):
    return float((model.outputs(params, {"x": x}).argmax(1) == y).float().mean())


def test_backdoor_of_one_client_in_five_is_damped():
    """Over three seeds: of what a mean lets through, at most half, for at most two points of accuracy."""
    model = Model(lambda: nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 4)), CrossEntropy())
    (x, y), (marked, true), (own, _) = images(800, 7), images(800, 8, mark=True), images(128, 9)
    probe, marked = ModelProbe(model, Examples({"x": own, "y": torch.zeros(128)})), marked[true != 0]
    fooled, right = {0: 0.0, 100: 0.0}, {0: 0.0, 100: 0.0}
    for seed in range(3):
        params = model.init(seed)
        begun = trained(model, params, *images(60, 100 + seed))
        params = {n: params[n] + begun[n] for n in params}
        updates = []
        for client in range(5):
            data = images(80, 10 * seed + client)
            if client == 0:
                poison, labels = images(80, 10 * seed + 99, mark=True)
                data = torch.cat([data[0], poison]), torch.cat([data[1], torch.zeros_like(labels)])
            change = trained(model, params, *data)
            change = {n: 3 * t for n, t in change.items()} if client == 0 else change
            updates.append(Update(Whole({n: tuple(t.shape) for n, t in params.items()}), change))
        for steps in fooled:
            got, _ = DefenceAwareMerging(steps, probe=probe).reduce(updates, 0, params)
            after = {n: params[n] + got.values()[n] for n in params}
            fooled[steps] += accuracy(model, after, marked, torch.zeros(len(marked))) / 3
            right[steps] += accuracy(model, after, x, y) / 3
    assert fooled[0] > 0.4
    assert fooled[100] < fooled[0] / 2
    assert right[100] > right[0] - 0.02 > 0.9


def test_model_probe_tells_predictions():
    model = Model(lambda: nn.Sequential(nn.Linear(9, 4), nn.BatchNorm1d(4)), CrossEntropy())
    x, y = images(40, 3)
    probe, params = ModelProbe(model, Examples({"x": x, "y": y}), 16), model.init(1)
    assert probe.blank().shape == (9,)
    assert probe.buffers() == {"1.running_mean", "1.running_var"}
    assert probe.scores(params, 5).shape == (16, 4)
    assert torch.equal(probe.scores(params, 5), probe.scores(params, 5, probe.blank()))
    assert not torch.equal(probe.scores(params, 5), probe.scores(params, 5, probe.blank() + 0.1))
    made = DefenceAwareMerging(examples=16).probed(lambda examples: replace(probe, examples=examples))
    assert made.probe.examples == 16
    ids = ModelProbe(Model(lambda: nn.Embedding(5, 2), CrossEntropy()), Examples({"x": y, "y": y}))
    with pytest.raises(CompositionError, match=r"inputs are shifted where they are floating numbers, got torch\.int64"):
        ids.scores({"weight": torch.zeros(5, 2)}, 0)


def test_inputs_that_cannot_be_shifted_are_refused_when_the_star_is_made():
    rule = {"aggregators": {"model": DefenceAwareMerging(steps=1, examples=4)}}
    trusted = Examples({"words": torch.zeros(6, 3, dtype=torch.int64), "y": torch.zeros(6, dtype=torch.int64)})
    with pytest.raises(CompositionError, match=r"inputs are shifted where they are floating numbers, got torch\.int64"):
        star("fedavg", trusted=trusted, **rule)
    star("fedavg", trusted=trusted, aggregators={"model": DefenceAwareMerging(steps=0)})  # a mean: nothing is tried


def test_refusals():
    with pytest.raises(ValueError, match=r"DefenceAwareMerging\(rate=0\): must be finite and above 0, got 0\."):
        DefenceAwareMerging(rate=0)
    with pytest.raises(ValueError, match=r"DefenceAwareMerging\(steps=-1\): must be finite and at least 0, got -1\."):
        DefenceAwareMerging(steps=-1)
    with pytest.raises(CompositionError, match=r"tries models on examples that the server holds, got none\."):
        DefenceAwareMerging().reduce(whole(ROWS), 0, PARAMS)
    with pytest.raises(CompositionError, match="needs predictions on the server's examples, got object, which tells"):
        DefenceAwareMerging().probed(lambda examples: object())
