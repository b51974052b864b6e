"""The contract of aggregators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from partwise.core.aggregate import Aggregator, Telling, sum_updates
from partwise.core.errors import PartwiseError
from partwise.core.index import Rows, shapes_of
from partwise.core.limits import FixedDivisor
from partwise.core.model import Params
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, scale, to_dense
from partwise.testing.examples import example_census, example_params, example_update, example_updates
from partwise.testing.rules import check_fits, check_part, check_same, expect, saved, snapshot, trying, unchanged

__all__ = ["check_aggregator"]

_OF_THE_RECORD = ("stream", "version")  # what stands beside the facts


def check_aggregator(part: Aggregator, *, num_updates: int = 13) -> None:
    """Check that an aggregator keeps the rules of its family.

    Args:
        part: the aggregator.
        num_updates: size of the cohorts it is tried on.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.aggregators import Median
        >>> check_aggregator(Median())
    """
    check_part(part)
    expect(
        part.needs in {"sum", "each"}, part, "needs 'sum' or 'each'", got=repr(part.needs), remedy="Say which it reads"
    )
    for dtype in (torch.float32, torch.float64):
        _fits(part, example_params(dtype), num_updates)
    params = example_params()
    updates = example_updates(params, num_updates)
    before = repr(part), sorted(vars(part))
    with trying(part, "must take updates in any order"):
        _in_any_order(part, params, updates)
    with trying(part, "must take weights of any size"):
        _weights_scaled(part, params, updates)
    with trying(part, "must take updates that are zero"):
        _zeros(part, params, updates)
    with trying(part, "must take updates of which nobody holds some parameters"):
        _unheld(part, params, num_updates)
    _few(part, params)
    _saved(part, params, num_updates)
    _told(part, params, updates)
    expect(
        (repr(part), sorted(vars(part))) == before,
        part,
        "must keep its state outside itself",
        got="a part that changed",
        remedy="Return the state from `reduce`",
    )


def _reduce(part: Aggregator, updates: Sequence[Update], params: Params, state: Any) -> tuple[Update, Any]:
    got = sum_updates(updates, params) if part.needs == "sum" else list(updates)
    replies = [ReplyInfo(i, i, 0, 1, 1) for i in range(len(updates))]
    return part.reduce(got, state, params, replies)


def _once(part: Aggregator, updates: Sequence[Update], params: Params) -> Update:
    return _reduce(part, updates, params, part.init(params, example_census(updates, params)))[0]


def _fits(part: Aggregator, params: Params, num_updates: int) -> None:
    updates = example_updates(params, num_updates)
    before = snapshot(part, (updates, params), "the updates")
    with trying(part, "must take updates over different submodels"):
        one, two = _once(part, updates, params), _once(part, updates, params)
    unchanged(part, before, (updates, params), "the updates and parameters it is given")
    check_fits(part, one, params)
    check_same(part, one, two, "must depend on its arguments alone", "Keep nothing between calls and draw nothing")


def _close(part: object, one: Update, other: Update, params: Params, rule: str, remedy: str) -> None:
    """The same values up to rounding."""
    a, b = to_dense(one, params), to_dense(other, params)
    for name in params:
        same = torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-6)
        gap = float((a[name] - b[name]).abs().max())
        expect(same, part, rule, got=f"a difference of {gap:.3g} in {name!r}", remedy=remedy)


def _in_any_order(part: Aggregator, params: Params, updates: Sequence[Update]) -> None:
    one = _once(part, updates, params)
    for shuffled in (updates[::-1], [*updates[5:], *updates[:5]]):
        other = _once(part, shuffled, params)
        _close(part, one, other, params, "must not depend on the order of the clients", "Break ties by value")


def _weights_scaled(part: Aggregator, params: Params, updates: Sequence[Update]) -> None:
    scaled = [replace(u, weight=7.0 * float(u.weight)) for u in updates]  # type: ignore[arg-type]
    one, other = _once(part, updates, params), _once(part, scaled, params)
    if isinstance(part, FixedDivisor):  # its unit is fixed with the divisor
        one, rule, remedy = scale(one, 7.0), "must add what its weights say", "Divide by `divisor * max_weight` alone"
    else:
        rule, remedy = "must not depend on the unit of the weights", "Divide by their sum"
    _close(part, one, other, params, rule, remedy)


def _zeros(part: Aggregator, params: Params, updates: Sequence[Update]) -> None:
    zeros = [replace(u, value={n: v * 0 for n, v in u.values().items()}) for u in updates]
    result = _once(part, zeros, params)
    size = max((float(v.abs().max()) for v in result.values().values() if v.numel()), default=0.0)
    expect(
        size == 0,
        part,
        "must give zero where every client sends zero",
        got=f"{size:.3g}",
        remedy="Add nothing of its own",
    )


def _unheld(part: Aggregator, params: Params, num_updates: int) -> None:
    """Where nobody holds anything the model keeps its bits."""
    rows = torch.tensor([0, 2, 5])
    index = Rows(shapes_of(params, ["E"]), {"E": rows})
    updates = [example_update(index, params, seed=40 + i) for i in range(num_updates)]
    result = _once(part, updates, params)
    check_fits(part, result, params)
    after = {name: value.clone() for name, value in params.items()}
    result.index.scatter_add_(after, result.values())
    after["E"][rows] = params["E"][rows]
    check_same(
        part,
        after,
        dict(params),
        "must leave alone what nobody holds, to the last bit",
        "Leave it out of the result's index",
    )


def _told(part: Aggregator, params: Params, updates: Sequence[Update]) -> None:
    """What it tells beside the aggregate can be recorded."""
    if not isinstance(part, Telling):
        return
    _, state = _reduce(part, updates, params, part.init(params, example_census(updates, params)))
    with trying(part, "must tell facts by name"):
        facts = dict(part.told(state))
        said = json.dumps(facts)
    is_plain = facts.keys().isdisjoint(_OF_THE_RECORD) and json.loads(said).keys() == facts.keys()
    rule = f"must tell facts by name, which is none of {_OF_THE_RECORD}"
    expect(is_plain, part, rule, got=sorted(map(str, facts)), remedy="Give them other names")


def _few(part: Aggregator, params: Params) -> None:
    census = example_census(example_updates(params, 5), params)
    for num in (0, 1):
        updates = example_updates(params, num)
        try:
            result, _ = _reduce(part, updates, params, part.init(params, census))
        except (ValueError, PartwiseError) as error:
            expect(
                type(part).__name__ in str(error),
                part,
                f"must take {num} updates, or refuse them in a sentence that names the part",
                got=f"{type(error).__name__}: {error}",
                remedy="Say how many are needed",
            )
            continue
        except Exception as error:
            raise AssertionError(
                f"{part!r}: must take {num} updates, or refuse them with a ValueError, "
                f"got {type(error).__name__}: {error}. Say how many are needed."
            ) from error
        check_fits(part, result, params)


def _saved(part: Aggregator, params: Params, num_updates: int) -> None:
    updates = example_updates(params, num_updates)
    state = part.init(params, example_census(updates, params))
    _, state = _reduce(part, updates, params, state)
    copy = saved(part, state)
    later = [*updates[3:], *updates[:3]]
    with trying(part, "must go on from a saved state"):
        other = _reduce(part, later, params, copy)
    one = _reduce(part, later, params, state)
    check_same(part, one, other, "must go on from a saved state", "Keep all of the state in what is returned")
