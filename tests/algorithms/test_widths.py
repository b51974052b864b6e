"""The arithmetic of layer widths."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

from partwise.algorithms import FederatedDropout
from partwise.algorithms.widths import (
    held_chance,
    input_factors,
    kept_units,
    num_units,
    output_factors,
    prefix_shapes,
    thin,
    thinned,
    unit_counts,
)
from partwise.core.algorithm import Task
from partwise.core.errors import CompositionError
from partwise.core.index import Grid, Whole
from partwise.core.model import CrossEntropy, Model
from toy_star import Clients, everybody, full_batch, run, star_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.conv = nn.Embedding(7, 6), nn.Conv2d(2, 4, 3)
        self.up, self.norm = nn.ConvTranspose1d(4, 10, 3), nn.BatchNorm1d(10)
        self.out = nn.Linear(30, 5)


WIDTHS = {
    "table.weight": (None, "e"),
    "conv.weight": ("c", None, None, None),
    "conv.bias": ("c",),
    "up.weight": ("c", "u", None),
    "up.bias": ("u",),
    "norm.weight": ("u",),
    "out.weight": (None, "u*3"),
}


def model(**changed):
    return Model(Net, CrossEntropy(), widths={**WIDTHS, **changed})


def test_ceiling():
    ratios = (1.0, 0.5, 0.25, 0.125, 0.0625)
    assert [num_units(r, 64) for r in ratios] == [64, 32, 16, 8, 4]
    assert [num_units(r, 10) for r in ratios] == [10, 5, 3, 2, 1]
    assert [num_units(k / 100, 100) for k in range(1, 101)] == list(range(1, 101))  # rounding never adds a unit
    assert num_units(0.001, 3) == 1


def test_counts_and_shapes():
    params = model().init(0)
    assert unit_counts(model(), params) == {"e": 6, "c": 4, "u": 10}
    assert kept_units(model(), params, 0.25) == {"e": 2, "c": 1, "u": 3}
    shapes = prefix_shapes(model(), params, 0.25)
    assert shapes["out.weight"] == (5, 9)
    assert shapes["up.weight"] == (1, 3, 3)
    assert "out.bias" not in shapes
    units = torch.tensor([2]), torch.tensor([0, 4, 5]), None
    assert float(held_chance(model(), params, "up.weight", units, 0.25)) == pytest.approx(3 / 40)
    assert float(held_chance(model(), params, "out.bias", (None,), 0.25)) == 1


@pytest.mark.parametrize("axes", [("h", "h"), ("h", "h*2"), ("h", None, "h"), ("h", "h", "h")], ids=str)
def test_chance_of_what_is_held_where_axes_share_a_width(axes):
    """A layer within a residual stream: an entry on the diagonal takes one unit, any other two, or three."""
    shape = tuple(2 if axis is None else 4 * int(axis.partition("*")[2] or 1) for axis in axes)

    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(shape))

    stream = Model(Stream, CrossEntropy(), widths={"weight": axes})
    params, seen = stream.init(0), torch.zeros(shape, dtype=torch.float64)
    masks = [thin(stream, params, {"h": torch.tensor(units)}) for units in combinations(range(4), 3)]
    for index in masks:
        index.cover_({"weight": seen}, 1.0)
    for index in masks:
        expected = index.gather({"weight": seen / len(masks)})["weight"]
        chance = held_chance(stream, params, "weight", index.axes["weight"], 0.75)
        torch.testing.assert_close(chance.expand(expected.shape), expected)


def test_thin_holds_blocks_of_flattened_units():
    params = model().init(0)
    index = thin(model(), params, {"u": torch.tensor([1, 7]), "e": torch.arange(6)})
    assert isinstance(index, Grid)
    assert index.axes["out.weight"][1].tolist() == [3, 4, 5, 21, 22, 23]
    assert index.axes["table.weight"] == (None, None)
    assert index.axes["out.bias"] == (None,)
    assert isinstance(thin(model(), params, {"e": torch.arange(6)}), Whole)


def test_gather_and_scatter_unchanged_is_the_identity():
    params = model().init(0)
    after = {n: t.clone() for n, t in params.items()}
    units = {width: torch.arange(k) for width, k in kept_units(model(), params, 0.5).items()}
    index = thin(model(), params, units)
    held = index.gather(params)
    index.scatter_add_(after, {n: t - index.gather(params)[n] for n, t in held.items()})
    index.put_(after, held)
    assert all(torch.equal(after[n], params[n]) for n in params)


def test_factors_find_linear_maps_by_type():
    named = model()
    assert output_factors(named, 0, 4.0) == dict.fromkeys(
        ["table.weight", "conv.weight", "conv.bias", "up.weight", "up.bias"], 4.0
    )
    assert input_factors(named, 0, 2.0) == dict.fromkeys(["up.weight", "out.weight"], 2.0)


def test_a_bag_is_a_table_whose_rows_are_added():
    bag = Model(lambda: nn.EmbeddingBag(7, 6), CrossEntropy(), widths={"weight": (None, "e")})
    assert output_factors(bag, 0, 4.0) == {"weight": 4.0}
    assert input_factors(bag, 0, 4.0) == {}


@pytest.mark.parametrize("first", ["table", "out"])
@pytest.mark.parametrize("factors", [output_factors, input_factors])
def test_one_parameter_cannot_be_scaled_for_one_of_two_layers(first, factors):
    """A layer that gives one logit per row of the table: only what the table makes, or what it takes, is scaled."""

    def tied():
        layers = {"table": nn.Embedding(7, 6), "out": nn.Linear(6, 7)}
        layers["out"].weight = layers["table"].weight
        return nn.ModuleDict({name: layers[name] for name in sorted(layers, key=lambda name: name != first)})

    named = Model(tied, CrossEntropy(), widths={f"{first}.weight": (None, "e"), "out.bias": (None,)})
    with pytest.raises(
        CompositionError, match=rf"Model\(widths\['{first}.weight'\]\): a thinner model scales what some"
    ):
        factors(named, 0, 2.0)


def test_one_parameter_is_scaled_for_layers_that_are_alike():
    def twice():
        one, other = nn.Embedding(7, 6), nn.Embedding(7, 6)
        other.weight = one.weight
        return nn.ModuleList([one, other])

    named = Model(twice, CrossEntropy(), widths={"0.weight": (None, "e")})
    assert output_factors(named, 0, 2.0) == {"0.weight": 2.0}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_weight_that_is_made_of_others_cannot_be_scaled(normed):
    """Its bias would be, and nothing else."""

    def module():
        return nn.Sequential(normed(nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2))

    names = [name for name, t in module().named_parameters() if name.startswith("0.") and t.dim() == 2]
    widths = {**dict.fromkeys(names, ("h", None)), "0.bias": ("h",)}
    named = Model(module, CrossEntropy(), widths={**widths, "2.weight": (None, "h")})
    with pytest.raises(CompositionError, match=r"got a \w*Linear that makes it of other parameters"):
        output_factors(named, 0, 2.0)
    assert input_factors(named, 0, 2.0) == {"2.weight": 2.0}
    assert output_factors(Model(module, CrossEntropy()), 0, 2.0) == {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"conv.weight": ("c", None)},
            r"Model\(widths\['conv.weight'\]\): needs one entry per axis of \(4, 2, 3, 3\), got 2",
        ),
        ({"out.weight": (None, "u*4")}, r"'u\*4' must have 40 entries, as elsewhere, got an axis of 30"),
        ({"out.weight": (None, "u")}, r"'u' must have 10 entries, as elsewhere, got an axis of 30"),
        ({"out.weight": (None, "u*x")}, r"an entry is a width's name, or 'name\*times' .* got 'u\*x'"),
        ({"out.weight": (None, "v*7")}, r"'v\*7' must have 28 entries, as elsewhere, got an axis of 30"),
    ],
)
def test_messages(changed, message):
    with pytest.raises(CompositionError, match=message):
        unit_counts(model(**changed), model().init(0))


def test_a_thinned_model_is_the_state_of_a_smaller_module():
    def module(conv, fc):
        layers = nn.Conv2d(1, conv, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(1), nn.Linear(4 * conv, fc), nn.ReLU()
        return nn.Sequential(*layers, nn.Linear(fc, 3))

    widths = {"0.weight": ("c", None, None, None), "0.bias": ("c",), "4.weight": ("f", "c*4"), "4.bias": ("f",)}
    model = Model(lambda: module(5, 6), CrossEntropy(), widths={**widths, "6.weight": (None, "f")})
    params = model.init(2)
    before = {name: t.clone() for name, t in params.items()}
    thin_params = thinned(model, params, 0.5)
    small = module(3, 3)  # ceil(0.5 * 5), ceil(0.5 * 6)
    small.load_state_dict(thin_params)
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    hidden = torch.conv2d(x, params["0.weight"][:3], params["0.bias"][:3]).relu()
    flat = torch.max_pool2d(hidden, 2).flatten(1)
    hidden = (flat @ params["4.weight"][:3, :12].t() + params["4.bias"][:3]).relu()
    by_hand = hidden @ params["6.weight"][:, :3].t() + params["6.bias"]
    assert torch.allclose(small(x), by_hand, atol=1e-6)
    assert torch.allclose(model.outputs(thin_params, {"x": x}), by_hand, atol=1e-6)
    thin_params["0.bias"].zero_()  # a copy
    assert all(torch.equal(params[name], t) for name, t in before.items())
    assert thinned(Model(lambda: module(5, 6), CrossEntropy()), params, 1.0).keys() == params.keys()
    with pytest.raises(ValueError, match=r"thinned\(ratio=0\): must lie in \(0, 1\], got 0"):
        thinned(model, params, 0)


@pytest.mark.parametrize("shared", [True, False])
def test_dropout_heat_form_leaves_running_variances_positive(shared):
    """A client that ends with variance v on half of the units and counts half moves them from 1 to 1 + (v - 1) / 2."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(4, momentum=1.0), nn.Linear(4, 2)
            self.double()

        def forward(self, x):
            return self.out(self.norm(x[:, : self.norm.weight.shape[0]]))

    widths = {f"norm.{n}": ("h",) for n in ("weight", "bias", "running_mean", "running_var")}
    model = Model(Normed, CrossEntropy(), widths={**widths, "out.weight": (None, "h")})
    rows = torch.tensor([[0.1], [-0.1]], dtype=torch.float64).expand(2, 4)  # of every column, the variance is 0.02
    population = Clients([{"x": rows, "y": torch.tensor([0, 1])}] * 2)
    algorithm = FederatedDropout(0.5, full_batch(1), shared, "heat")
    held = torch.zeros(4, dtype=torch.float64)
    star = star_of(algorithm, model, population, everybody(population, 1), seed=4)
    for client in (0, 1):
        site = star.site(client)
        held[algorithm.select(Task(client, 0, 0, 0), None, site).axes["norm.weight"][0]] += 1 / 2
    states, _ = run(star)
    params = states[-1].streams["model"]
    torch.testing.assert_close(params["norm.running_var"], 1 + held * (0.02 - 1), rtol=0, atol=1e-12)
