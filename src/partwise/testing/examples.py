"""What parts are tried on: a small model, updates over every kind of index, clients with their data, their jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partwise.core.aggregate import Coverage
from partwise.core.algorithm import Site
from partwise.core.index import Coords, Grid, Index, Joint, Rows, Whole, shapes_of
from partwise.core.model import CrossEntropy, Model, Params, Values, like
from partwise.core.plan import Job, LocalPlan, ModelLoss
from partwise.core.population import Census, Counts, Examples, Profile
from partwise.core.rng import generator
from partwise.core.update import Update
from partwise.local import SGD, AdamW, ClipGradient, Decay, Proximal, Rescaled, Shift, Times

__all__ = [
    "example_census",
    "example_indices",
    "example_jobs",
    "example_model",
    "example_params",
    "example_probe",
    "example_sites",
    "example_update",
    "example_updates",
]


def example_params(dtype: torch.dtype = torch.float32) -> Values:
    """A table, a layer with its bias, and a scalar."""
    rng = generator(11, "example params")
    shapes = {"E": (7, 3), "W": (4, 5), "b": (4,), "scale": ()}
    return {name: torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


@dataclass(frozen=True)
class _Quadratic:
    """½ ‖x‖², whatever the draw."""

    def loss(self, params: Params, number: int) -> float:
        return 0.5 * sum(float(t.double().square().sum()) for t in params.values())

    def gradient(self, params: Params, number: int) -> Values:
        return {name: t.clone() for name, t in params.items()}

    def scores(self, params: Params, number: int, shift: Tensor | None = None) -> Tensor:
        """Of the layer, on the same five examples whatever the draw."""
        x = (torch.arange(25.0).reshape(5, 5) * 0.7).sin().to(params["W"])
        return (x if shift is None else x + shift.to(x)) @ params["W"].t() + params["b"]

    def blank(self) -> Tensor:
        return torch.zeros(5)

    def buffers(self) -> frozenset[str]:
        return frozenset()


def example_probe() -> _Quadratic:
    """A server's loss that can be done by hand: ½ ‖x‖², with gradient x; and the scores of its layer."""
    return _Quadratic()


def _at(*positions: int) -> Tensor:
    return torch.tensor(positions, dtype=torch.int64)


def example_indices(params: Params) -> dict[str, Index]:
    """One index of every kind over `example_params`; some hold very little."""

    def shapes(*names: str) -> dict[str, tuple[int, ...]]:
        return shapes_of(params, names)

    grid = Grid(shapes("E", "W", "b"), {"E": (None, _at(0, 2)), "W": (_at(1, 3), _at(0, 2, 4)), "b": (_at(1, 3),)})
    thin = Grid(shapes("W", "b"), {"W": (_at(0, 1), None), "b": (_at(0, 1),)})
    return {
        "Whole": Whole(shapes_of(params)),
        "Rows": Rows(shapes("E", "W", "b"), {"E": _at(1, 4, 6), "W": None, "b": _at(0, 2)}),
        "Grid": grid,
        "Coords": Coords(shapes("E", "W", "scale"), {"E": _at(0, 4, 5, 20), "W": _at(3, 7, 11), "scale": _at(0)}),
        "Joint": Joint((Rows(shapes("E"), {"E": _at(0, 1)}), thin, Whole(shapes("scale")))),
        "Rows without rows": Rows(shapes("E"), {"E": _at()}),
        "Coords of one": Coords(shapes("b"), {"b": _at(2)}),
        "nothing": Coords({}, {}),
    }


def example_update(index: Index, params: Params, seed: int, weight: float = 1.0) -> Update:
    """Values over several orders of magnitude, some of them zero."""
    rng = generator(seed, "example update")
    value = {}
    for name in index.shapes:
        shape = index.held_shape(name)
        size = torch.randn(shape, generator=rng, dtype=torch.float64) * 2.0 ** torch.randint(
            -6, 3, shape, generator=rng
        )
        value[name] = torch.where(torch.rand(shape, generator=rng) < 0.1, 0.0, size).to(params[name])
    return Update(index, value, weight)


def example_updates(params: Params, num: int) -> list[Update]:
    """The updates of `num` clients with different submodels and lopsided weights."""
    kinds = ("Whole", "Rows", "Grid", "Whole", "Coords", "Joint")
    indices = example_indices(params)
    return [
        example_update(indices[kinds[i % len(kinds)]], params, seed=i, weight=1.0 + (i * i) % 7) for i in range(num)
    ]


def example_census(updates: Sequence[Update], params: Params) -> Census:
    """The census of a population that consists of the senders of these updates."""
    heat, weight, total = Coverage(params), Coverage(params), 0.0
    for update in updates:
        assert not isinstance(update.weight, dict)
        heat.add_(update.index, 1.0)
        weight.add_(update.index, update.weight)
        total += float(update.weight)  # type: ignore[arg-type]
    for cover in (heat, weight):
        for name in params:
            cover.allocate_(name, 0)
    return Census(len(updates), lambda: Counts(heat.weights, weight.weights, total))


class _Net(nn.Module):
    """A table, and two layers that can be thinned."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3)
        self.hidden = nn.Linear(3, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.out(torch.relu(self.hidden(self.table(ids).mean(1))))
        return result


def example_model() -> Model:
    """A small classifier of id lists: its table can be held by rows, its hidden layer by grids."""
    widths = {"hidden.weight": ("hidden", None), "hidden.bias": ("hidden",), "out.weight": (None, "hidden")}
    return Model(_Net, CrossEntropy(), inputs=("ids",), tables={"table.weight": ("ids",)}, widths=widths)


def example_sites(model: Model, seed: int = 3) -> list[Site]:
    """Three clients that differ in their rows, their number of examples and their width."""
    params = like(model.init(seed))
    sites = []
    for client, (rows, examples, width) in enumerate(
        ((_at(0, 1, 2, 5), 7, 1.0), (_at(2, 3), 1, 0.5), (_at(5, 8), 4, 0.25))
    ):
        rng = generator(seed, "example data", client)
        ids = rows[torch.randint(len(rows), (examples, 3), generator=rng)]
        data = Examples({"ids": ids, "y": torch.randint(2, (examples,), generator=rng)})
        sites.append(Site(client, model, params, data, Profile(width=width), seed))
    return sites


class _Odd(nn.Module):
    """Dropout, running statistics, a scalar, and a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.spare = nn.Linear(2, 2)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.drop(self.norm(self.inner(x)) * self.gain))
        return result


def _is_output(name: str) -> bool:
    return name.startswith("out")


def example_jobs(dtype: torch.dtype = torch.float32) -> list[Job]:
    """Jobs of clients that differ in rows, examples and steps, with plans that differ in everything else."""
    odd, found = Model(_Odd, CrossEntropy()), []
    model = example_model()
    for site in example_sites(model):
        index = Rows(shapes_of(site.like), {n: site.table_rows(n) if n in model.tables else None for n in site.like})
        start = _as(dtype, index.gather(model.init(site.seed)))
        data = site.localized(index)
        plans = _plans(model, start, site.client)
        found += [Job(plan, start, data, 100 * site.client + number) for number, plan in enumerate(plans)]
        found.append(_odd_job(odd, dtype, site.client))
    return found


def _plans(model: Model, start: Values, client: int) -> list[LocalPlan]:
    loss = ModelLoss(model)
    rng = generator(client, "example terms")
    by = {n: 0.1 * torch.randn(t.shape, generator=rng, dtype=torch.float64).to(t) for n, t in start.items()}
    anchor = {n: start[n] + by[n] for n in list(start)[:3]}
    times = Times(torch.tensor(0.8 + 0.1 * client, dtype=torch.float64))
    return [
        LocalPlan(loss, SGD(0.3), batch_size=3, epochs=2),
        LocalPlan(loss, SGD(0.2, momentum=0.9, weight_decay=0.1), batch_size=2, steps=4 + client),
        LocalPlan(loss, AdamW(0.02), batch_size=0, steps=3),
        LocalPlan(
            loss, SGD(0.3), 100, gradient=(Proximal(0.7, anchor), times, Shift(by), Decay(0.2), ClipGradient(0.3))
        ),
        LocalPlan(loss, SGD(0.3, weight_decay=0.2), batch_size=1, trainable=_is_output),
        LocalPlan(Rescaled(loss, {"hidden.weight": 2.0, "hidden.bias": 2.0}), SGD(0.3), batch_size=3),
    ]


def _odd_job(model: Model, dtype: torch.dtype, client: int) -> Job:
    rng = generator(client, "example odd")
    x = torch.randn((8 + 4 * client, 5), generator=rng, dtype=torch.float64).to(dtype)
    data = Examples({"x": x, "y": torch.randint(3, (len(x),), generator=rng)})
    plan = LocalPlan(ModelLoss(model), SGD(0.1, momentum=0.5), batch_size=4, buffers=model.buffers())
    return Job(plan, _as(dtype, model.init(1)), data, client)


def _as(dtype: torch.dtype, values: Values) -> Values:
    return {name: t.to(dtype) for name, t in values.items()}
