"""The contract of indices: linear maps with a transpose."""

from __future__ import annotations

from math import prod

import torch

from partwise.core.aggregate import Coverage
from partwise.core.codec import decode, encode
from partwise.core.index import Index
from partwise.core.model import Params, Values
from partwise.core.rng import generator
from partwise.testing.rules import expect, snapshot, trying, unchanged

__all__ = ["check_index"]


def check_index(index: Index, params: Params | None = None) -> None:
    """Check that an index is a linear map whose methods agree with one another.

    Args:
        index: the index.
        params: what it may be over; by default what it holds, and one parameter that it does not hold.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.core.index import Rows
        >>> check_index(Rows({"E": (4, 2)}, {"E": torch.tensor([1, 3])}))
    """
    full = _full(index, params)
    before = snapshot(index, full, "the parameters")
    with trying(index, "must gather what it says it holds"):
        held = index.gather(full)
    _shapes(index, full, held)
    _copies(index, full, before)
    _coords(index, full, held)
    _transpose(index, full)
    _put(index, full)
    _cover(index, full)
    again = decode(bytearray(snapshot(index, index, "an index")))
    expect(
        encode(again.gather(full)) == encode(held),
        index,
        "must survive encoding",
        got="another map",
        remedy="Register it",
    )
    unchanged(index, before, full, "the parameters it gathers from")


def _full(index: Index, params: Params | None) -> Values:
    rng = generator(5, "check index")
    like = {**{n: torch.empty(tuple(s)) for n, s in index.shapes.items()}, "_elsewhere": torch.empty(3, 2)}
    shapes = {name: t.shape for name, t in (like if params is None else params).items()}
    return {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}


def _held(index: Index, seed: int) -> Values:
    rng = generator(seed, "check held")
    return {n: torch.randn(index.held_shape(n), generator=rng, dtype=torch.float64) for n in index.shapes}


def _zeros(full: Params) -> Values:
    return {name: torch.zeros_like(t) for name, t in full.items()}


def _shapes(index: Index, full: Params, held: Params) -> None:
    expect(
        held.keys() == index.shapes.keys(),
        index,
        "must gather exactly the names in `shapes`",
        got=sorted(held),
        remedy="Leave out what is not held",
    )
    for name in index.shapes:
        expect(
            tuple(held[name].shape) == tuple(index.held_shape(name)),
            index,
            f"must gather {name!r} in its held shape {tuple(index.held_shape(name))}",
            got=tuple(held[name].shape),
            remedy="Make `held_shape` and `gather` agree",
        )


def _copies(index: Index, full: Params, before: bytes) -> None:
    for name, value in index.gather(full).items():
        if index.grain(name):
            value.fill_(7.0)
    unchanged(index, before, full, "the parameters when gathered values are written to")


def _coords(index: Index, full: Params, held: Params) -> None:
    for name, shape in index.shapes.items():
        at = index.coords(name)
        right = at.dtype == torch.int64 and at.dim() == 1 and len(at) == len(at.unique())
        right = right and (not len(at) or 0 <= int(at.min()) <= int(at.max()) < prod(shape))
        expect(
            right and torch.equal(full[name].reshape(-1)[at], held[name].reshape(-1)),
            index,
            f"coords({name!r}) must be the flat positions, int64 and unique, of what `gather` gives in that order",
            got=at[:8].tolist(),
            remedy="Make `coords` and `gather` agree",
        )
        expect(
            bool((at[1:] > at[:-1]).all()),
            index,
            f"coords({name!r}) must ascend, for two indices are compared by them",
            got=at[:8].tolist(),
            remedy="Gather values in the order in which they lie in the parameter",
        )


def _transpose(index: Index, full: Params) -> None:
    values, target = _held(index, 1), _zeros(full)
    before = snapshot(index, values, "values")
    index.scatter_add_(target, values)
    unchanged(index, before, values, "the values it scatters")
    gathered = index.gather(full)
    left = sum(float((gathered[n] * values[n]).sum()) for n in values)
    right = sum(float((full[n] * target[n]).sum()) for n in target)
    expect(
        abs(left - right) <= 1e-9 * (1 + abs(left)),
        index,
        "scatter_add_ must be the transpose of gather: ⟨P x, v⟩ = ⟨x, Pᵀ v⟩",
        got=f"{left:.9g} and {right:.9g}",
        remedy="Scatter each value to where it was gathered",
    )
    index.scatter_add_(target, values, -3.0)
    twice = _zeros(full)
    index.scatter_add_(twice, values, -2.0)
    expect(
        all(torch.allclose(target[n], twice[n]) for n in target),
        index,
        "scatter_add_ must add scale times the values to the target",
        got="something else",
        remedy="Add, and use `scale`",
    )


def _put(index: Index, full: Params) -> None:
    target, values = {name: t.clone() for name, t in full.items()}, _held(index, 2)
    index.put_(target, values)
    back = index.gather(target)
    expect(
        all(torch.equal(back[n], values[n]) for n in values),
        index,
        "gather must give back what put_ wrote, to the last bit",
        got="other values",
        remedy="Overwrite instead of adding",
    )
    index.put_(target, index.gather(full))
    expect(
        all(torch.equal(target[n], full[n]) for n in full),
        index,
        "put_ must write only what is held",
        got="a change elsewhere",
        remedy="Write each value to where it was gathered",
    )


def _cover(index: Index, full: Params) -> None:
    ones = _zeros(full)
    index.scatter_add_(
        ones, {name: torch.full(index.held_shape(name), 2.5, dtype=torch.float64) for name in index.shapes}
    )
    fine = _zeros(full)
    with trying(index, "cover_ must take targets of the parameters' shapes"):
        index.cover_(fine, 2.5)
    coarse = Coverage(full)
    with trying(index, "cover_ must take targets that are 1 on every axis from `grain` on"):
        coarse.add_(index, 2.5)
    for name, expected in ones.items():
        wide = coarse.weights[name].expand(expected.shape) if name in coarse.weights else torch.zeros_like(expected)
        expect(
            torch.equal(fine[name], expected) and torch.equal(wide, expected),
            index,
            f"cover_ must add its weight to {name!r} exactly where scatter_add_ adds",
            got="another place or weight",
            remedy="Make `cover_`, `grain` and `scatter_add_` agree",
        )
    _cover_by_row(index, full)


def _cover_by_row(index: Index, full: Params) -> None:
    """Weights that differ along the first held axis."""
    weight, values = {}, {}
    for name in index.shapes:
        shape = index.held_shape(name)
        weight[name] = torch.arange(1.0, 1.0 + (shape[0] if shape else 1), dtype=torch.float64)
        weight[name] = weight[name] if shape else weight[name].reshape(())
        values[name] = weight[name].reshape(weight[name].shape + (1,) * (len(shape) - weight[name].dim())).expand(shape)
    expected, got = _zeros(full), _zeros(full)
    index.scatter_add_(expected, values)
    with trying(index, "cover_ must take weights per row"):
        index.cover_(got, weight)
    expect(
        all(torch.equal(got[n], expected[n]) for n in full),
        index,
        "cover_ must broadcast weights per row from the left over the held values",
        got="other weights",
        remedy="Reshape the weights to the held rows",
    )
