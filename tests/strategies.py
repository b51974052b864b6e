"""Generators for property tests. A drawn index comes with the flat positions it holds, computed in plain loops."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import NamedTuple

import hypothesis.strategies as st
import torch

from partwise.core.index import Coords, Grid, Index, Joint, Rows, Whole
from partwise.core.update import Update

SHAPES = {"E": (5, 2), "W": (3, 4), "c": (2, 3, 2), "b": (4,), "s": ()}


class Drawn(NamedTuple):
    """An index, and name -> flat positions in the order of gathering."""

    index: Index
    positions: dict[str, list[int]]


def params(fill=None):
    """Distinct numbers everywhere, or one of them."""
    found, start = {}, 1.0
    for name, shape in SHAPES.items():
        size = prod(shape)
        flat = torch.arange(start, start + size, dtype=torch.float64) if fill is None else torch.full((size,), fill)
        found[name] = flat.to(torch.float64).reshape(shape)
        start += size
    return found


def _subset(size, least=0):
    return st.sets(st.integers(0, size - 1), min_size=min(least, size)).map(sorted)


def _tensor(positions):
    return None if positions is None else torch.tensor(positions, dtype=torch.int64)


def _whole(names):
    return st.just(Drawn(Whole({n: SHAPES[n] for n in names}), {n: list(range(prod(SHAPES[n]))) for n in names}))


@st.composite
def _rows(draw, names):
    names = [n for n in names if SHAPES[n]]
    rows = {n: draw(st.none() | _subset(SHAPES[n][0])) for n in names}
    positions = {}
    for name in names:
        width = prod(SHAPES[name][1:])
        held = range(SHAPES[name][0]) if rows[name] is None else rows[name]
        positions[name] = [r * width + i for r in held for i in range(width)]
    return Drawn(Rows({n: SHAPES[n] for n in names}, {n: _tensor(r) for n, r in rows.items()}), positions)


@st.composite
def _grid(draw, names):
    axes = {n: tuple(draw(st.none() | _subset(size)) for size in SHAPES[n]) for n in names}
    positions = {}
    for name in names:
        held = [range(size) if at is None else at for size, at in zip(SHAPES[name], axes[name], strict=True)]
        positions[name] = []
        for place in product(*held):
            flat = 0
            for size, at in zip(SHAPES[name], place, strict=True):
                flat = flat * size + at
            positions[name].append(flat)
    grid = Grid({n: SHAPES[n] for n in names}, {n: tuple(map(_tensor, a)) for n, a in axes.items()})
    return Drawn(grid, positions)


@st.composite
def _coords(draw, names):
    positions = {n: draw(_subset(prod(SHAPES[n]))) for n in names}
    return Drawn(Coords({n: SHAPES[n] for n in names}, {n: _tensor(p) for n, p in positions.items()}), positions)


def _one_of(names):
    return st.one_of(_whole(names), _rows(names), _grid(names), _coords(names))


@st.composite
def indices(draw):
    """Any index over some of `SHAPES`: of one kind, or of several side by side."""
    names = draw(st.lists(st.sampled_from(sorted(SHAPES)), unique=True))
    if draw(st.booleans()):
        return draw(_one_of(names))
    cut = draw(st.integers(0, len(names)))
    members = [draw(_one_of(names[:cut])), draw(_one_of(names[cut:]))]
    return Drawn(Joint(tuple(m.index for m in members)), {n: p for m in members for n, p in m.positions.items()})


@st.composite
def updates(draw, least_weight=0):
    """An update over any index, with small whole values, and the same as (positions, values, weight) in plain lists."""
    drawn = draw(indices())
    value, plain = {}, {}
    for name, positions in drawn.positions.items():
        numbers = draw(st.lists(st.integers(-8, 8), min_size=len(positions), max_size=len(positions)))
        shape = drawn.index.held_shape(name)
        value[name] = torch.tensor(numbers, dtype=torch.float64).reshape(shape)
        plain[name] = dict(zip(positions, map(float, numbers), strict=True))
    weight = float(draw(st.integers(least_weight, 5)))
    return Update(drawn.index, value, weight), plain, weight
