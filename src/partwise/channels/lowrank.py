"""PowerSGD as its clients have it in common: both factors are sums, so that a channel of sums carries them.

Notation, after the source: client i has the matrix G_i to send and E_i left over, B_i = G_i + E_i, (n, m); Q is (m, r),
P is (n, r). A parameter is seen as a matrix, its first axis against all others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from partwise.channels.plain import Plain
from partwise.core.aggregate import Sum, sum_updates
from partwise.core.channel import Binding, Channel, ClientSession, Guarded, Opened, Seat, ServerSession, fingerprint
from partwise.core.codec import register
from partwise.core.counter import key_of, normal, uniform
from partwise.core.disclosure import disclosed
from partwise.core.errors import ProtocolError
from partwise.core.index import Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.population import Client
from partwise.core.rng import derive
from partwise.core.update import Update, wide, wide_type

__all__ = ["LowRankStage", "LowRankSum"]

_PATIENCE, _UNIT = 60.0, 1.01
_BASE, _SPAN, _FACTOR, _END = "base", "span", "factor", "end"


@register
class LowRankStage(NamedTuple):
    """A message of the server.

    Args:
        stage: which sum it is about: `span` or `factor`; `base` before them, `end` after.
        of: what clients need for it, with its first message: which base, P, or Q; None with the others.
        inner: the message of the channel that sums.
    """

    stage: str
    of: Any = None
    inner: Any = None


@dataclass(frozen=True)
class LowRankSum:
    """P = basis of sum B_i Q, then sum B_iᵀ P: the sum of all B_i, projected on r directions that all have in common.

    Two sums of thin matrices by `inner`, one after the other, instead of one of matrices; what has one axis, or would
    become longer, is summed as it is with the second. The mean Q comes back to the clients, which keep B_i - P Qᵀ to
    send later, and begin the next exchange from Q. A base that not all of a cohort have, such as where clients take
    turns, is drawn anew. All clients must hold all of the model.

    An update is not longer than the limit of `inner` with what is left over in it; the rest is left over again. A
    client that is lost after it sent its factor, and before it hears of Q, forgets what was left over.

    Args:
        inner: sums both factors: `Masked`, `Coded`, or `Plain`.
        rank: r, >= 1.

    Raises:
        ValueError: a client that holds the model in part, or weighs its parts differently.

    Source: Vogels et al., "PowerSGD: practical low-rank gradient compression for distributed optimization", NeurIPS
        2019, arXiv:1905.13727, algorithms 1 and 2.
    Differs: weighted means; Q is made orthonormal as well, which changes no span and bounds what is summed.

    Example:
        >>> LowRankSum(rank=2).reveals
        'sum'
    """

    inner: Channel = field(default_factory=Plain)
    rank: int = 2
    reveals: ClassVar[Literal["sum", "each"]] = "sum"
    exchanges: ClassVar[bool] = True
    # No bound on a client's update bounds how far it moves the span, and so no noise on the aggregate hides it.
    step: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        if self.rank < 1 or isinstance(self.inner, LowRankSum):
            raise ValueError(
                f"LowRankSum(rank={self.rank}, inner={self.inner!r}): needs a rank of at least 1 and a channel that "
                "sums as it is told, got others. Use Masked(...) and 2."
            )

    @property
    def limit(self) -> float | None:
        return self.inner.limit

    @property
    def patience_seconds(self) -> float:
        return self.inner.patience_seconds or _PATIENCE  # `Plain` by itself waits for no message

    @property
    def min_contributors(self) -> int:
        return self.inner.min_contributors if isinstance(self.inner, Guarded) else 1

    @property
    def binds_model(self) -> bool:
        return isinstance(self.inner, Binding) and self.inner.binds_model

    def discloses(self) -> Sequence[str]:
        between = (
            "That is so of each of two sums in an exchange. Where one client alone is lost between the two, their "
            f"difference tells {self.rank} x {self.rank} numbers of it for each matrix."
        )
        return (*disclosed(self.inner), between)

    def server(self, cohort: Sequence[Client], params: Params, session: int) -> ServerSession:
        said = yield dict.fromkeys(cohort, LowRankStage(_BASE))
        known = {client: number for client, number in said.items() if type(number) is int}
        base = known[min(known)] if len(set(known.values())) == 1 else 0
        thin, here = _thin(params, self.rank), sorted(known)
        spans: Values = {}
        if thin:
            parts = {name: _bound(name, (n, self.rank), params[name], session, base) for name, (n, _) in thin.items()}
            found = yield from _passed(_SPAN, base, self.inner.server(here, parts, session), parts)
            spans = {name: _basis(value.to(params[name])) for name, value in _sum(found).value.items()}
            here = sorted(found.clients)
        parts = {name: _bound(name, _second(t, name, thin, self.rank), t, session, spans) for name, t in params.items()}
        found = yield from _passed(_FACTOR, spans, self.inner.server(here, parts, session), parts)
        got = _sum(found)
        means = {name: got.value[name] / _weight(got, name) for name in spans if name in got.value}
        yield dict.fromkeys(sorted(found.clients), LowRankStage(_END, means))
        value, weight = {}, {}
        for name, of in got.value.items():
            value[name] = (spans[name] @ of.to(spans[name]).T if name in spans else of).reshape(params[name].shape)
            weight[name] = torch.full((1,) * params[name].dim(), _weight(got, name), dtype=torch.float64)
        total = Sum(Whole(shapes_of(params, value)), value, weight, got.total, got.count)
        return Opened(total, found.clients, found.told, found.refused)

    def client(self, update: Update, params: Params, seat: Seat) -> ClientSession:
        it = _Client(self, update, params, seat)
        message = yield
        it.check(message, _BASE)
        message = yield seat.memory.get("number", 0)
        for stage in (_SPAN, _FACTOR) if it.thin else (_FACTOR,):
            it.check(message, stage)
            inner, parts = it.part(stage, message.of)
            side = self.inner.client(inner, parts, it.seat(stage))
            next(side)
            while type(message) is LowRankStage and message.stage == stage:
                try:
                    answer = side.send(message.inner)
                except StopIteration:
                    raise it.refusal(f"{stage} is over", "another message of it") from None
                message = yield answer
        it.check(message, _END)
        it.end(message.of)
        yield True


class _Client:
    """A client's side, forgotten at the end; what it keeps is in the seat's memory.

    That is the `number` of the exchange that its `base` Q is of, what is `owed`, and the memories of both inner ones.
    """

    def __init__(self, part: LowRankSum, update: Update, params: Params, seat: Seat) -> None:
        shapes = update.index.shapes
        if shapes.keys() != params.keys() or any(map(update.index.grain, shapes)) or isinstance(update.weight, Mapping):
            raise ValueError(
                "LowRankSum(): its clients hold all of the model, and weigh it as a whole, got a part of it or several "
                "weights. Use Masked, with RandomK(by_row=True) to send less of rows."
            )
        self.thin, self._rank, self._weight, self._seat = _thin(params, part.rank), part.rank, update.weight, seat
        owed, values = seat.memory.get("owed", {}), update.values()
        self._all = {n: v.cpu() + owed[n].to(v.dtype) if n in owed else v.cpu() for n, v in values.items()}
        length = math.sqrt(
            sum(float(torch.linalg.vector_norm(v, dtype=torch.float64)) ** 2 for v in self._all.values())
        )
        factor = min(1.0, part.limit / length) if part.limit is not None and length else 1.0
        self._sent = {n: v * factor for n, v in self._all.items()}
        self._given, self._spans = dict[str, bytes](), dict[str, Tensor]()

    def refusal(self, rule: str, got: object) -> ProtocolError:
        return ProtocolError(f"client {self._seat.client} refuses: {rule}, got {got}. Follow the protocol.")

    def check(self, message: Any, stage: str) -> None:
        if type(message) is not LowRankStage or message.stage != stage:
            raise self.refusal(f"{stage!r} comes next", getattr(message, "stage", type(message).__name__))

    def seat(self, stage: str) -> Seat:
        """The seat of one of the two sums."""
        it, memory = self._seat, self._seat.memory.setdefault(stage, {})
        return Seat(it.client, it.session, it.reply, it.stream, self._given, it.examples, it.loss, it.rng, memory)

    def _matrix(self, name: str) -> Tensor:
        value = self._sent[name]
        return wide(value.reshape(len(value), -1))

    def part(self, stage: str, of: Any) -> tuple[Update, Params]:
        """What is summed at a stage, and the shapes of all of it."""
        memory = self._seat.memory
        if stage == _SPAN:
            if type(of) is not int or of not in (0, memory.get("number", 0)):
                raise self.refusal("the base is a new one, or the one it has", of)
            value = {}
            for name, (_, m) in self.thin.items():
                base = memory["base"][name] if of else _drawn(name, m, self._rank, self._seat.session)
                value[name] = self._matrix(name) @ _basis(base.to(self._matrix(name)))
            self._bind(of)
        else:
            self._spans = self._read(of, {n: (rows, self._rank) for n, (rows, _) in self.thin.items()})
            longest = max((float(p.double().norm(dim=0).max()) for p in self._spans.values()), default=0.0)
            if longest > _UNIT:  # what comes of it would not fit the words of a sum
                raise self.refusal("the columns of a basis have length 1", f"{longest:g}")
            spans = self._spans.items()
            value = {**self._sent, **{n: self._matrix(n).T @ p.to(self._matrix(n)) for n, p in spans}}
            value = {n: v for n, v in value.items() if n in self._spans or n not in self.thin}
            self._bind(self._spans)
            memory.update(number=0, owed={})  # until it hears what became of it
        shapes = {n: tuple(v.shape) for n, v in value.items()}
        parts = {n: torch.empty(shape, device="meta") for n, shape in shapes.items()}
        return Update(Whole(shapes), value, self._weight), parts

    def _bind(self, to: Any) -> None:
        self._given = {n: _digest(of, self._seat.session, to) for n, of in self._seat.given.items()}
        thin, rank = self.thin, self._rank
        is_span = type(to) is int
        for name in list(self._given):
            like = self._sent[name]
            shape = (thin[name][0], rank) if is_span and name in thin else _second(like, name, thin, rank)
            self._given[name] = fingerprint(_mixed(name, shape, self._given[name], like.dtype))

    def end(self, of: Any) -> None:
        """Keep what is left over, and the base to begin from."""
        means = self._read(of, {n: (self.thin[n][1], self._rank) for n in self._spans})
        owed = {}
        for name, value in self._all.items():
            if name in means:
                done = self._spans[name].to(self._matrix(name)) @ means[name].to(self._matrix(name)).T
                owed[name] = value - done.reshape(value.shape).to(value.dtype)
            else:
                owed[name] = value if name in self.thin else value - self._sent[name]
        number = self._seat.session if means.keys() == self.thin.keys() else 0
        self._seat.memory.update(number=number, base=means, owed={n: v for n, v in owed.items() if bool(v.any())})

    def _read(self, of: Any, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
        """Tensors by name, as many as are known to the server, of these shapes."""
        is_good = isinstance(of, dict) and all(
            n in shapes and isinstance(t, Tensor) and tuple(t.shape) == shapes[n] and bool(t.isfinite().all())
            for n, t in of.items()
        )
        if not is_good:
            raise self.refusal("factors are finite and as wide as the parameters", "others")
        return dict(of)


def _passed(
    stage: str, of: Any, side: ServerSession, parts: Params
) -> Generator[dict[Client, Any], Mapping[Client, Any], Opened]:
    """One sum of the inner channel."""
    messages, clients = next(side), list[Client]()
    while True:
        answers = yield {client: LowRankStage(stage, of, message) for client, message in messages.items()}
        of, clients = None, sorted(answers)
        try:
            messages = side.send(answers)
        except StopIteration as end:
            found = end.value
            break
    if not isinstance(found, Opened):
        found = Opened(found if isinstance(found, Sum) else sum_updates(found, parts), clients)
    if not _sum(found).total:
        raise ProtocolError(f"{stage}: somebody of a weight above 0 must answer, got nobody. Nothing was opened.")
    return found


def _sum(found: Opened) -> Sum:
    assert isinstance(found.got, Sum)
    return found.got


def _weight(got: Sum, name: str) -> float:
    return float(got.weight[name].reshape(-1)[0])


def _thin(params: Params, rank: int) -> dict[str, tuple[int, int]]:
    """Name -> rows and columns, of parameters that become shorter."""
    found = {n: (t.shape[0], prod(t.shape[1:])) for n, t in params.items() if t.dim() > 1 and t.numel()}
    return {name: (n, m) for name, (n, m) in found.items() if rank * (n + m) < n * m}


def _second(like: Tensor, name: str, thin: Mapping[str, tuple[int, int]], rank: int) -> tuple[int, ...]:
    """The shape of what is summed second."""
    return (thin[name][1], rank) if name in thin else tuple(like.shape)


def _basis(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span: (n, r)."""
    basis: Tensor = torch.linalg.qr(wide(matrix)).Q
    return basis.contiguous()


def _drawn(name: str, columns: int, rank: int, session: int) -> Tensor:
    """A base that nobody has chosen: (m, r)."""
    return normal(key_of(derive(session, "low rank"), name), torch.arange(columns * rank)).reshape(columns, rank)


# What binds a sum to the values that all were given: the inner channel compares fingerprints of what it is told are the
# parameters, which are made of those of the true ones, and of what the server has told about the stage.


def _digest(of: bytes, session: int, to: Any) -> bytes:
    told = str(to).encode() if not isinstance(to, Mapping) else b"".join(fingerprint(to[name]) for name in sorted(to))
    return hashlib.sha256(of + str(session).encode() + told).digest()


def _mixed(name: str, shape: tuple[int, ...], digest: bytes, dtype: torch.dtype) -> Tensor:
    drawn = uniform(key_of(int.from_bytes(digest[:7], "little"), name), torch.arange(prod(shape)))
    found: Tensor = drawn.to(wide_type(dtype)).reshape(shape)
    return found


def _bound(name: str, shape: tuple[int, ...], value: Tensor, session: int, to: Any) -> Tensor:
    return _mixed(name, shape, _digest(fingerprint(value), session, to), value.dtype)
