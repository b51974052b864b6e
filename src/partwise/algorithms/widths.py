"""From layer widths to what a thinner model holds: the arithmetic that all slimmed algorithms share.

`Model.widths` names the layer width that each axis of a parameter runs over. A width has so many units; a thinner
model keeps some of them, and with a unit all that belongs to it: its row of the layer's weight and bias, its entry in
a normalisation, its column in the next layer. `"conv2*49"` says that each unit stands for 49 consecutive entries, as
after flattening a 7 x 7 map.

Not supported: modules that know their own width and check it (LayerNorm, recurrent layers, multi-head attention,
grouped convolutions), and GroupNorm where the groups do not divide the kept channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from partwise.core.algorithm import Algorithm, Site
from partwise.core.errors import CompositionError
from partwise.core.index import Grid, Index, Whole, shapes_of
from partwise.core.model import Model, Params
from partwise.local.losses import leading

__all__ = [
    "held_bytes",
    "held_chance",
    "input_factors",
    "kept_units",
    "num_units",
    "output_factors",
    "prefix",
    "prefix_shapes",
    "thin",
    "thinned",
    "unit_counts",
]

_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # weight (out, in, ...)
_TABLES = (nn.Embedding, nn.EmbeddingBag)  # weight (rows, out)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # weight (in, out, ...)


def num_units(ratio: float, total: int) -> int:
    """ceil(ratio * total), at least 1; a product that is whole but for rounding counts as whole.

    Example:
        >>> [num_units(r, 10) for r in (1.0, 0.5, 0.25, 0.125, 0.0625)]
        [10, 5, 3, 2, 1]
        >>> num_units(0.07, 100)
        7
    """
    return max(1, math.ceil(ratio * total - 1e-9))


def _parse(entry: str) -> tuple[str, int]:
    name, star, times = entry.partition("*")
    if star and not (times.isdecimal() and int(times) > 0):
        raise CompositionError(
            f"Model(widths): an entry is a width's name, or 'name*times' with a whole number, got {entry!r}. "
            "Write 'conv2*49' where each unit of 'conv2' stands for 49 entries."
        )
    return name, int(times) if star else 1


def unit_counts(model: Model, like: Params) -> dict[str, int]:
    """Width -> its number of units, over the parameters in `like`.

    Raises:
        CompositionError: the model states no widths, or widths that contradict one another or the parameters.
    """
    if not model.widths:
        raise CompositionError(
            "Model(widths={}): a thinner model needs to know the width of each axis, got none. "
            "Name the width of each axis, as in widths={'fc1.weight': ('fc1', None), 'fc1.bias': ('fc1',)}."
        )
    counts: dict[str, int] = {}
    for name, entries in model.widths.items():
        if name not in like:
            continue
        shape = tuple(like[name].shape)
        if len(entries) != len(shape):
            raise CompositionError(
                f"Model(widths[{name!r}]): needs one entry per axis of {shape}, got {len(entries)}. "
                "Use None for an axis that is never thinned."
            )
        for entry, size in zip(entries, shape, strict=True):
            if entry is None:
                continue
            width, times = _parse(entry)
            units, rest = divmod(size, times)
            if rest or counts.setdefault(width, units) != units:
                raise CompositionError(
                    f"Model(widths[{name!r}]): {entry!r} must have {counts.get(width, units) * times} entries, as "
                    f"elsewhere, got an axis of {size}. Check the names of the widths."
                )
    return counts


def kept_units(model: Model, like: Params, ratio: float) -> dict[str, int]:
    """Width -> how many units a model of this width ratio keeps."""
    return {width: num_units(ratio, units) for width, units in unit_counts(model, like).items()}


def thin(model: Model, like: Params, units: Mapping[str, Tensor]) -> Index:
    """What a model that keeps some units holds.

    Args:
        model: its `widths` are used.
        like: the parameters; those without widths are held whole.
        units: width -> (kept,) int64, ascending. A width left out, or with all its units, is whole.
    """
    counts = unit_counts(model, like)
    kept = {width: at for width, at in units.items() if len(at) < counts[width]}
    axes: dict[str, tuple[Tensor | None, ...]] = {}
    for name, t in like.items():
        entries = model.widths.get(name, (None,) * t.dim())
        axes[name] = tuple(_positions(entry, kept) for entry in entries)
    if all(at is None for per_axis in axes.values() for at in per_axis):
        return Whole(shapes_of(like))
    return Grid(shapes_of(like), axes)


def _positions(entry: str | None, kept: Mapping[str, Tensor]) -> Tensor | None:
    width, times = _parse(entry) if entry is not None else ("", 1)
    if width not in kept:
        return None
    return (kept[width].unsqueeze(1) * times + torch.arange(times)).reshape(-1)


def prefix(site: Site, ratio: float) -> Index:
    """The first units of every width; a whole model needs no widths."""
    if ratio == 1:
        return site.whole()
    kept = kept_units(site.model, site.like, ratio)
    return thin(site.model, site.like, {width: torch.arange(units) for width, units in kept.items()})


def prefix_shapes(model: Model, like: Params, ratio: float) -> dict[str, tuple[int, ...]]:
    """Name -> leading entries per axis that a model of this width ratio has, for parameters with widths."""
    kept = kept_units(model, like, ratio)
    found: dict[str, tuple[int, ...]] = {}
    for name, entries in model.widths.items():
        if name in like:
            parsed = [_parse(entry) if entry is not None else None for entry in entries]
            sizes = zip(parsed, like[name].shape, strict=True)
            found[name] = tuple(size if width is None else kept[width[0]] * width[1] for width, size in sizes)
    return found


def thinned(model: Model, params: Params, ratio: float, algorithm: Algorithm | None = None) -> Params:
    """The first units of every layer: what a client of this width ratio has of a model.

    Args:
        model: its `widths` are used.
        params: of the whole model, such as a run's `params`; name -> tensor.
        ratio: of widths, in (0, 1]: of n units, the first ceil(ratio * n).
        algorithm: that the model was trained with. What its clients multiply parameters by, as `HeteroFL` does with its
            scaler, is in the result then.

    Returns:
        Name -> a copy of what the thinner model has of it. It is used as the whole is, by `model.outputs`, and is the
        state of a module built with the smaller layers.

    Raises:
        CompositionError: the model states no widths.
        ValueError: a ratio outside (0, 1].

    Example:
        >>> from partwise import CrossEntropy
        >>> model = Model(lambda: nn.Linear(2, 8), CrossEntropy(), widths={"weight": ("fc", None), "bias": ("fc",)})
        >>> {name: tuple(t.shape) for name, t in thinned(model, model.init(0), 0.25).items()}
        {'weight': (2, 2), 'bias': (2,)}
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"thinned(ratio={ratio}): must lie in (0, 1], got {ratio}. 0.5 is half of every layer.")
    if ratio == 1:  # a whole model needs no widths
        return {name: t.clone() for name, t in params.items()}
    factors = {} if algorithm is None else algorithm.thin_factors(model, ratio)
    return {n: t * factors.get(n, 1) for n, t in leading(params, prefix_shapes(model, params, ratio)).items()}


def held_chance(model: Model, like: Params, name: str, axes: tuple[Tensor | None, ...], ratio: float) -> Tensor:
    """The chance of one parameter's held entries when k of the n units of each width are drawn, to be broadcast.

    An entry that takes m units of a width has k (k - 1) ... (k - m + 1) / (n (n - 1) ...): where two axes run over one
    width, those on the diagonal have k / n.

    Args:
        model: its `widths` are used.
        like: the parameters.
        name: of the parameter.
        axes: the positions held of each axis, None for all, as in a `Grid`.
        ratio: of widths.
    """
    counts, kept = unit_counts(model, like), kept_units(model, like, ratio)
    chance, seen = torch.ones((), dtype=torch.float64), dict[str, list[Tensor]]()
    for axis, (entry, at) in enumerate(zip(model.widths.get(name, ()), axes, strict=False)):
        if entry is None or at is None:
            continue
        width, times = _parse(entry)
        units = (at // times).reshape((-1,) + (1,) * (len(axes) - 1 - axis))
        others = seen.setdefault(width, [])
        taken = torch.zeros((), dtype=torch.float64)  # units of this width that the axes before take, each once
        for number, other in enumerate(others):
            taken = taken + _is_new(other, others[:number])
        more = (kept[width] - taken) / (counts[width] - taken)
        chance = chance * torch.where(_is_new(units, others), more, 1.0)
        others.append(units)
    return chance


def _is_new(units: Tensor, others: Sequence[Tensor]) -> Tensor:
    found = torch.ones((), dtype=torch.bool)
    for other in others:
        found = found & (units != other)
    return found


def held_bytes(model: Model, like: Params, ratio: float) -> int:
    """Bytes of the parameters that a model of this width ratio holds."""
    thin_shapes = prefix_shapes(model, like, ratio) if ratio < 1 else {}  # a whole model needs no widths
    return sum(prod(thin_shapes.get(name, tuple(t.shape))) * t.element_size() for name, t in like.items())


def output_factors(model: Model, seed: int, factor: float) -> dict[str, float]:
    """Parameter -> factor, for weight and bias of every linear map or table whose output is a named width."""
    return dict.fromkeys(_scaled(model, seed, output=True), factor)


def input_factors(model: Model, seed: int, factor: float) -> dict[str, float]:
    """Parameter -> factor, for the weight of every linear map whose input is a named width."""
    return dict.fromkeys(_scaled(model, seed, output=False), factor)


def _scaled(model: Model, seed: int, *, output: bool) -> list[str]:
    """The parameters that make outputs, or take inputs, of a named width.

    Raises:
        CompositionError: one that another layer uses otherwise; or a layer whose weight is made of other parameters.
    """
    module, names, uses = model.build(seed), dict[int, str](), dict[str, set[bool]]()
    for name, t in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(t), name)  # as the model calls it
    for layer in module.modules():
        _check_weight(model, layer, [names[id(t)] for t in layer.parameters()], output=output)
        for key, t in layer.named_parameters(recurse=False):
            name, axis = names[id(t)], _axis(layer, key, output=output)
            entries = model.widths.get(name, ())
            uses.setdefault(name, set()).add(axis is not None and bool(entries) and entries[axis] is not None)
    for name, found in uses.items():
        if len(found) > 1:
            raise CompositionError(
                f"Model(widths[{name!r}]): a thinner model scales what some layers make of it and not what others do, "
                "got one parameter for all of them. Give each layer its own, or use HeteroFL(scaler=False)."
            )
    return [name for name, found in uses.items() if True in found]


def _check_weight(model: Model, layer: nn.Module, made_of: Sequence[str], *, output: bool) -> None:
    """Refuse a thinned layer whose weight is no parameter: a factor would reach its bias alone."""
    axis = _axis(layer, "weight", output=output)
    if axis is None or any(key == "weight" for key, _ in layer.named_parameters(recurse=False)):
        return
    for name in made_of:
        if any(model.widths.get(name, ())[axis : axis + 1]):
            raise CompositionError(
                f"Model(widths[{name!r}]): a thinner model scales the weight of a layer, got a {type(layer).__name__} "
                "that makes it of other parameters, as with weight_norm. Leave the layer whole, or use "
                "HeteroFL(scaler=False)."
            )


def _axis(layer: nn.Module, key: str, *, output: bool) -> int | None:
    """The axis of a linear map's or table's parameter that runs over its outputs, or over its inputs."""
    if isinstance(layer, _TABLES):
        return 1 if output and key == "weight" else None
    if not isinstance(layer, _MAPS + _TRANSPOSED) or key not in ("weight", "bias"):
        return None
    if key == "bias":
        return 0 if output else None
    return int(output == isinstance(layer, _TRANSPOSED))
