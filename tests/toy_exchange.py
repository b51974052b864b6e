"""A channel's exchange without server and clients: both generators, messages through the codec, losses at will."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from partwise.core.aggregate import Sum
from partwise.core.channel import Opened, Seat, fingerprint
from partwise.core.codec import decode, encode
from partwise.core.errors import ProtocolError
from partwise.core.index import Rows, Whole, shapes_of
from partwise.core.model import like
from partwise.core.update import Update

PARAMS = {"E": torch.zeros(9, 2), "w": torch.zeros(3, 2), "b": torch.zeros(())}


@dataclass
class Play:
    """What an exchange came to."""

    opened: Any = None
    failure: str = ""
    refusals: dict[int, str] = field(default_factory=dict)
    asked: list[dict[int, Any]] = field(default_factory=list)  # by step
    answers: list[dict[int, Any]] = field(default_factory=list)
    memories: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def sum(self) -> Sum:
        assert isinstance(self.opened, Opened), self.failure
        assert isinstance(self.opened.got, Sum)
        return self.opened.got


Tamper = Callable[[int, int, Any], Any]


def same(step: int, client: int, message: Any) -> Any:
    return message


def play(
    channel: Any,
    updates: Mapping[int, Update],
    *,
    params: Any = PARAMS,
    lost: Mapping[int, int] | None = None,
    ask: Tamper = same,
    answer: Tamper = same,
    seats: Mapping[int, Seat] | None = None,
    session: int = 7,
) -> Play:
    """Drive both sides.

    Args:
        lost: client -> the first step that it does not answer; steps count from 0.
        ask: what becomes of the server's message (step, client, message) on its way.
        answer: the same of a client's answer; None loses it.
    """
    lost, seats = lost or {}, seats or {}
    it = Play()
    sides = {}
    for client, update in updates.items():
        seat = seats.get(client) or seat_of(client, session, params)
        sides[client] = channel.client(update, like(params), seat)
        it.memories[client] = seat.memory
        next(sides[client])
    server = channel.server(sorted(updates), params, session)
    step, answers = 0, None
    while True:
        try:
            messages = next(server) if answers is None else server.send(answers)
        except StopIteration as end:
            it.opened = end.value
            return it
        except ProtocolError as error:
            it.failure = str(error)
            return it
        it.asked.append(dict(messages))
        answers = {}
        for client in sorted(messages):
            message = ask(step, client, decode(encode(messages[client])))
            if lost.get(client, 99) <= step or message is None:
                continue
            try:
                said = sides[client].send(message)
            except ProtocolError as error:
                it.refusals[client] = str(error)
                lost = {**lost, client: step}
                continue
            said = answer(step, client, decode(encode(said)))
            if said is not None:
                answers[client] = said
        it.answers.append(answers)
        step += 1


def seat_of(client: int, session: int = 7, params: Any = PARAMS, **more: Any) -> Seat:
    """A client's seat, where it was given all parameters."""
    told = {"given": {n: fingerprint(t) for n, t in params.items()}, "examples": 10 + client, "loss": 0.5 * client}
    told |= {"rng": torch.Generator().manual_seed(client), "reply": 100 + client}
    return Seat(client, session, **{**told, **more})


def whole(seed: int, weight: float = 1.0, params: Any = PARAMS) -> Update:
    """An update of everything, with values in [-0.5, 0.5]."""
    draw = torch.Generator().manual_seed(seed)
    return Update(
        Whole(shapes_of(params)), {n: torch.rand(t.shape, generator=draw) - 0.5 for n, t in params.items()}, weight
    )


def rows(seed: int, at: Collection[int], weight: Any = 1.0, params: Any = PARAMS) -> Update:
    """An update of some rows of E, and all of the rest."""
    index = Rows(shapes_of(params), {"E": torch.tensor(sorted(at)), "w": None, "b": None})
    full = whole(seed, params=params).values()
    return Update(index, {n: full[n][index.rows[n]] if index.rows[n] is not None else full[n] for n in params}, weight)


def plain(updates: Mapping[int, Update], clients: Collection[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sums of weighted values and of weights, coordinate by coordinate in float64, in plain loops."""
    value = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in PARAMS.items()}
    weight = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in PARAMS.items()}
    for client in clients:
        update = updates[client]
        for name, held in update.values().items():
            of = update.weight[name] if isinstance(update.weight, Mapping) else torch.tensor(float(update.weight))
            of = of.reshape(of.shape + (1,) * (held.dim() - of.dim())).expand(held.shape).double().reshape(-1)
            for position, v, w in zip(
                update.index.coords(name).tolist(), held.reshape(-1).tolist(), of.tolist(), strict=True
            ):
                value[name].view(-1)[position] += v * w
                weight[name].view(-1)[position] += w
    return value, weight


def dense(found: Sum) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sum's values and weights at every coordinate."""
    value = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in PARAMS.items()}
    weight = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in PARAMS.items()}
    found.index.scatter_add_(value, {n: v.double() for n, v in found.value.items()})
    spread = {n: w.expand(found.value[n].shape) for n, w in found.weight.items()}
    found.index.scatter_add_(weight, spread)
    return value, weight
