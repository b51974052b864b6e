"""The contract of transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from partwise.core.codec import encode
from partwise.core.model import Params, like
from partwise.core.rng import generator
from partwise.core.transform import Transform
from partwise.core.update import Update
from partwise.testing.examples import example_indices, example_params, example_update
from partwise.testing.rules import (
    check_fits,
    check_part,
    check_same,
    expect,
    other_chance,
    saved,
    snapshot,
    trying,
    unchanged,
)
from partwise.transforms import Quantize

__all__ = ["check_transform"]

_STEPS = 3


def check_transform(part: Transform, *, on_client: bool | None = None) -> None:
    """Check that a transform keeps the rules of its family.

    Args:
        part: the transform.
        on_client: whether it must also work on a client, where `init` sees parameters without storage; None tries
            it, and takes a part whose `init` needs storage for one that is meant for the server.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.transforms import Clip
        >>> check_transform(Clip(1.0), on_client=True)
    """
    check_part(part)
    before = repr(part), sorted(vars(part))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        _fits_everywhere(part, example_params(dtype))
    params = example_params()
    updates = _sequence(params)
    with trying(part, "must take updates over one submodel after another"):
        _deterministic(part, params, updates)
    _saved(part, params, updates)
    _separate(part, params, updates)
    _packed(part, params)
    _on_client(part, params, updates, on_client)
    expect(
        (repr(part), sorted(vars(part))) == before,
        part,
        "must keep its state outside itself",
        got="a part that changed",
        remedy="Return the state from `apply`",
    )


def _sequence(params: Params) -> list[Update]:
    """One client's updates: its submodel changes from one to the next."""
    indices = example_indices(params)
    kinds = ("Whole", "Rows", "Coords", "Whole")
    return [example_update(indices[kind], params, seed=20 + i, weight=3.0) for i, kind in enumerate(kinds)]


def _run(part: Transform, updates: Sequence[Update], state: Any, first: int = 0) -> tuple[list[Update], Any]:
    sent = []
    for step, update in enumerate(updates, first):
        result, state = part.apply(update, state, generator(7, "check", step))
        sent.append(result)
    return sent, state


def _fits_everywhere(part: Transform, params: Params) -> None:
    for kind, index in example_indices(params).items():
        for is_zero in (False, True):
            update = example_update(index, params, seed=5, weight=3.0)
            if is_zero:
                update = replace(update, value={name: value * 0 for name, value in update.values().items()})
            before = snapshot(part, update, "an update")
            what = f"{'zeros' if is_zero else 'values'} over {kind}"
            with trying(part, f"must take {what}"):
                (sent,), _ = _run(part, [update], part.init(params))
            unchanged(part, before, update, f"the update it is given ({what})")
            check_fits(part, sent, params)
    _weights_per_row(part, params)


def _weights_per_row(part: Transform, params: Params) -> None:
    index = example_indices(params)["Rows"]
    update = example_update(index, params, seed=6)
    weight = {name: torch.arange(1.0, 1.0 + index.held_shape(name)[0]) for name in index.shapes}
    with trying(part, "must take weights per row"):
        (sent,), _ = _run(part, [replace(update, weight=weight)], part.init(params))
    check_fits(part, sent, params)


def _deterministic(part: Transform, params: Params, updates: Sequence[Update]) -> None:
    with other_chance(1):
        one = _run(part, updates, part.init(params))
    with other_chance(2):
        other = _run(part, updates, part.init(params))
    check_same(
        part,
        one,
        other,
        "must depend on update, state and rng alone",
        "Draw from the `rng` that is passed in, and keep nothing between calls",
    )


def _saved(part: Transform, params: Params, updates: Sequence[Update]) -> None:
    """Also: sent updates survive the codec."""
    sent, state = _run(part, updates[:2], part.init(params))
    copy = saved(part, state)
    back = saved(part, sent)
    for one, other in zip(sent, back, strict=True):
        check_same(part, one.values(), other.values(), "must send what survives encoding", "Register a lossless form")
    with trying(part, "must go on from a saved state"):
        other_results = _run(part, updates[2:], copy, first=2)
    results = _run(part, updates[2:], state, first=2)
    check_same(
        part, results, other_results, "must go on from a saved state", "Keep all of the state in what is returned"
    )


def _separate(part: Transform, params: Params, updates: Sequence[Update]) -> None:
    """Two clients take turns; each sees what it would see alone."""
    alone, _ = _run(part, updates[:_STEPS], part.init(params))
    mine, other = part.init(params), part.init(params)
    sent = []
    for step, update in enumerate(updates[:_STEPS]):
        result, mine = part.apply(update, mine, generator(7, "check", step))
        noise = example_update(update.index, params, seed=90 + step)
        _, other = part.apply(noise, other, generator(8, "check", step))
        sent.append(result)
    check_same(part, alone, sent, "must keep two clients' states apart", "Make new buffers in `init`")


def _packed(part: Transform, params: Params) -> None:
    update = example_update(example_indices(params)["Whole"], params, seed=4)
    packed, _ = Quantize().apply(update, (), generator(1, "check"))
    with trying(part, "must take packed values"):
        (sent,), _ = _run(part, [packed], part.init(params))
        (plain,), _ = _run(part, [packed.unpacked()], part.init(params))
    check_same(
        part, sent.values(), plain.values(), "must take packed values", "Read `update.values()`, not `update.value`"
    )


def _on_client(part: Transform, params: Params, updates: Sequence[Update], on_client: bool | None) -> None:
    """Without storage in `init`, the result is the same."""
    if on_client is None:
        try:
            encode(part.init(like(params)))
        except (NotImplementedError, RuntimeError, TypeError):
            return
    with trying(part, "must build its state from parameters without storage"):
        state = part.init(like(params))
        encode(state)
        sent, _ = _run(part, updates, state)
    expected, _ = _run(part, updates, part.init(params))
    rule = "must do the same whether the parameters in `init` have storage or not"
    check_same(part, sent, expected, rule, "Use their names, shapes and types alone")
