"""The contract of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from partwise.core.aggregate import Sum, sum_updates
from partwise.core.channel import Channel, ClientSession, Opened, Seat, fingerprint
from partwise.core.codec import decode, encode
from partwise.core.errors import ProtocolError
from partwise.core.index import Index, Rows, Whole, shapes_of
from partwise.core.model import Params, Values, like
from partwise.core.population import Client
from partwise.core.update import Update, to_dense
from partwise.testing.examples import example_params
from partwise.testing.rules import check_part, expect, snapshot, trying, unchanged

__all__ = ["check_channel"]

_STEPS = 16  # more messages than any exchange has


def check_channel(part: Channel, *, cohort: int = 7, step: float = 0.0, max_weight: int = 3) -> None:
    """Check that what a channel opens is the sum, or each, of the updates of those who are in it, whoever is lost.

    Where nobody is lost it must open something; else it may also raise ProtocolError.

    Args:
        part: the channel.
        cohort: how many clients take part, of whom one is lost at a time.
        step: by how much a value may be off, for each unit of weight.
        max_weight: clients' weights are 1 to this, in turn; 1 for a channel that takes no others.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.channels import Plain
        >>> check_channel(Plain())
    """
    check_part(part)
    expect(part.reveals in {"sum", "each"}, part, "reveals 'sum' or 'each'", got=repr(part.reveals), remedy="Say which")
    expect(part.limit is None or part.limit > 0, part, "limit is above 0, or None", got=part.limit, remedy="Raise it")
    params = example_params()
    for index in _indices(params):
        updates = {3 * c + 1: _update(index, c, part.limit, 1.0 + c % max_weight) for c in range(cohort)}
        for lost in (None, *range(_STEPS)):
            steps = _try(part, params, updates, lost, step)
            if lost is not None and lost >= steps:
                break


def _indices(params: Params) -> list[Index]:
    shapes = shapes_of(params)
    rows = {name: torch.tensor([0, shape[0] - 1]) if shape and shape[0] > 1 else None for name, shape in shapes.items()}
    return [Whole(shapes), Rows(shapes, rows)]


def _update(index: Index, number: int, limit: float | None, weight: float) -> Update:
    draw = torch.Generator().manual_seed(number)
    bound = 1.0 if limit is None else limit
    value = {n: (2 * torch.rand(index.held_shape(n), generator=draw) - 1) * bound for n in index.shapes}
    return Update(index, value, weight)


def _try(part: Channel, params: Params, updates: Mapping[Client, Update], lost: int | None, step: float) -> int:
    """One exchange in which the second client is lost from a message on; how many messages there were."""
    before = {c: snapshot(part, u, "an update") for c, u in updates.items()}
    silent = sorted(updates)[1]
    with trying(part, "must open what is left, or raise ProtocolError"):
        opened, steps = _exchange(part, params, updates, silent, lost)
    for client, update in updates.items():
        unchanged(part, before[client], update, "an update")
    if isinstance(opened, ProtocolError):
        rule, remedy = "must open what everybody has sent", "Raise it only where too few are left"
        expect(lost is not None, part, rule, got=f"ProtocolError: {opened}", remedy=remedy)
        return steps
    clients = (
        sorted(opened.clients)
        if isinstance(opened, Opened)
        else _heard(updates, silent, lost is not None and lost < steps)
    )
    expect(
        len(clients) >= len(updates) - 1,
        part,
        "sums all who were not lost",
        got=len(clients),
        remedy="Leave out nobody",
    )
    got = _got(part, opened, params)
    plain = sum_updates([updates[c] for c in clients], params)
    expect(got.count == plain.count, part, "counts the updates in the sum", got=got.count, remedy="Count those opened")
    found, right = (to_dense(Update(s.index, s.value), params) for s in (got, plain))
    away = max(float((found[n] - right[n]).abs().max()) for n in params)
    expect(
        away <= plain.total * step + 1e-5,
        part,
        f"the sum of {len(clients)} clients is the plain one to within {step:g} each",
        got=f"{away:g} off",
        remedy="Open exactly what was sealed, each update times its weight",
    )
    _weighs(part, got, plain, params)
    return steps


def _got(part: Channel, opened: Any, params: Params) -> Sum:
    """The sum of what was opened, which is what the channel says that it reveals."""
    got = opened.got if isinstance(opened, Opened) else opened
    remedy = "Return it from `server`, or Opened(it, clients)"
    if isinstance(got, Sum):
        rule = "must open updates, since it reveals each"
        expect(part.reveals == "sum", part, rule, got="a Sum", remedy=remedy)
        return got
    rule = "must open a Sum, since it reveals no more" if part.reveals == "sum" else "must open updates"
    is_right = part.reveals == "each" and isinstance(got, Sequence) and all(isinstance(u, Update) for u in got)
    expect(is_right, part, rule, got=f"a {type(got).__name__}", remedy=remedy)
    return sum_updates(got, params)


def _weighs(part: Channel, got: Sum, plain: Sum, params: Params) -> None:
    """Weights are summed as values are: by them a mean is made."""
    rule, remedy = "must add up the weights of those who are in the sum", "Seal the weight with the value"
    off = abs(got.total - plain.total)
    expect(off <= 1e-5 * plain.total, part, rule, got=f"{got.total:g} for {plain.total:g}", remedy=remedy)
    found, right = (_dense_weight(summed, params) for summed in (got, plain))
    wrong = [name for name in params if not torch.allclose(found[name], right[name], rtol=1e-5, atol=1e-9)]
    expect(not wrong, part, rule, got=f"others for {wrong}", remedy=remedy)


def _dense_weight(got: Sum, params: Params) -> Values:
    """The weight of every coordinate; 0 where nobody held it."""
    wide = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in params.items()}
    each = {name: w.double().expand(got.index.held_shape(name)) for name, w in got.weight.items()}
    return to_dense(Update(got.index, each), wide)


def _heard(updates: Mapping[Client, Update], silent: Client, is_lost: bool) -> list[Client]:
    return [c for c in sorted(updates) if not is_lost or c != silent]


def _exchange(
    part: Channel, params: Params, updates: Mapping[Client, Update], silent: Client, lost: int | None
) -> tuple[Any, int]:
    given = {name: fingerprint(t) for name, t in params.items()}
    sides = {}
    for client, update in updates.items():
        rng = torch.Generator().manual_seed(client)
        sides[client] = part.client(update, like(params), Seat(client, 5, client, given=given, rng=rng))
        next(sides[client])
    server, step = part.server(sorted(updates), params, 5), 0
    try:
        messages = next(server)
        while True:
            answers = {}
            for client in sorted(messages):
                if lost is None or client != silent or step < lost:
                    answers[client] = _answer(sides[client], messages[client])
            step += 1
            messages = server.send(answers)
    except StopIteration as end:
        return end.value, step
    except ProtocolError as error:
        return error, step


def _answer(side: ClientSession, message: Any) -> Any:
    try:
        return decode(encode(side.send(decode(encode(message)))))
    except StopIteration:
        raise RuntimeError("a client's side that ended when it was to answer") from None
