"""How far one client can move the aggregate, and whether the noise that is added is noise for that.

Notation: a client sends value v with weight w; ‖v‖ <= C, 0 <= w <= W. An aggregator that divides the sum by E W,
whoever takes part, moves by at most C / E when one client's update is put in or left out. That is the sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from partwise.core.aggregate import Aggregator
from partwise.core.errors import CompositionError
from partwise.core.transform import Chain, Transform

__all__ = ["FixedDivisor", "Limit", "Limiting", "Noise", "Side", "check_noise", "stages"]

_SLACK = 1 + 1e-6  # of a sensitivity that was computed by somebody else, and printed


class Limit(NamedTuple):
    """What is known of any client's update: its Euclidean norm and its weight are at most these; inf for unknown."""

    norm: float = math.inf
    weight: float = math.inf


@runtime_checkable
class Limiting(Protocol):
    """A transform that knows what it does to the size of an update; any other is taken to undo every bound."""

    def limited(self, before: Limit) -> Limit:
        """The limit of what comes out, where `before` is that of what goes in."""
        ...


@runtime_checkable
class Noise(Protocol):
    """A transform that adds noise of standard deviation noise_multiplier * sensitivity, for a privacy guarantee."""

    @property
    def noise_multiplier(self) -> float: ...

    @property
    def sensitivity(self) -> float:
        """How far one client may move what comes in, in the Euclidean norm over all coordinates."""
        ...


@runtime_checkable
class FixedDivisor(Protocol):
    """An aggregator that divides the sum by `divisor` times `max_weight`, whoever takes part."""

    @property
    def divisor(self) -> float: ...

    @property
    def max_weight(self) -> float: ...


def stages(transform: Transform) -> tuple[Transform, ...]:
    """The transforms of a chain, in order, also of chains within it."""
    if isinstance(transform, Chain):
        return tuple(inner for stage in transform.stages for inner in stages(stage))
    return (transform,)


class Side(NamedTuple):
    """The parts of one stream.

    Args:
        client: its client chain.
        aggregator: its aggregator.
        server: its server chain.
        before: what the algorithm promises of the updates.
        rounding: by how much the channel may lengthen them, for each unit of weight.
    """

    client: Transform
    aggregator: Aggregator
    server: Transform
    before: Limit
    rounding: float = 0.0

    @property
    def has_noise(self) -> bool:
        """Whether noise is added to it anywhere."""
        return any(isinstance(stage, Noise) for chain in (self.client, self.server) for stage in stages(chain))


def check_noise(streams: Mapping[str, Side]) -> None:
    """Refuse noise that would not hide one client.

    Args:
        streams: all streams that clients send.

    Raises:
        CompositionError: noise that is not preceded by a clip; noise for less than one client can move the aggregate;
            an aggregate that a client moves by its weight, or by being there; noise on some streams and not on others.
    """
    bare = sorted(stream for stream, side in streams.items() if not side.has_noise)
    for stream, side in streams.items():
        if side.has_noise and bare:
            noise = next(s for c in (side.client, side.server) for s in stages(c) if isinstance(s, Noise))
            raise CompositionError(
                f"{noise!r}: hides a client in stream {stream!r}, got none in {bare}, which tell of the same data. Add "
                "noise to each stream; together they are worth z = (sum of z_i^-2)^(-1/2)."
            )
        _check_stream(stream, side)


def _check_stream(stream: str, side: Side) -> None:
    client, aggregator, server, before, rounding = side
    for stage in stages(client):
        if isinstance(stage, Noise):
            _check_norm(stage, stream, before.norm, before.norm)
        before = stage.limited(before) if isinstance(stage, Limiting) else Limit()
    found = stages(server)
    for at, stage in enumerate(found):
        if isinstance(stage, Noise):
            if at:
                raise CompositionError(
                    f"{stage!r}: must come first in the server chain of stream {stream!r}, got {found[at - 1]!r} in "
                    "front of it, which changes how far a client can move the aggregate. Put the noise first."
                )
            _check_aggregate(stage, stream, aggregator, before._replace(norm=before.norm + rounding))


def _check_aggregate(noise: Noise, stream: str, aggregator: Aggregator, limit: Limit) -> None:
    if not isinstance(aggregator, FixedDivisor):
        raise CompositionError(
            f"{noise!r}: needs an aggregate of stream {stream!r} whose divisor does not depend on who takes part, got "
            f"{aggregator!r}. Use FixedMean(cohort=...)."
        )
    if limit.weight > aggregator.max_weight:
        raise CompositionError(
            f"{aggregator!r}: needs weights of at most {aggregator.max_weight:g} in stream {stream!r}, got "
            f"{'any' if limit.weight == math.inf else format(limit.weight, 'g')}: a client could move the aggregate by "
            f"its weight. Put CapWeight({aggregator.max_weight:g}) into the client chain."
        )
    _check_norm(noise, stream, limit.norm, limit.norm / aggregator.divisor)


def _check_norm(noise: Noise, stream: str, norm: float, moves: float) -> None:
    if norm == math.inf:
        raise CompositionError(
            f"{noise!r}: needs a clip in front of it in stream {stream!r}, got updates of any size, which no noise "
            "hides. Put Clip(max_norm) last into the client chain, or before a part that makes updates no longer."
        )
    if moves > noise.sensitivity * _SLACK:
        raise CompositionError(
            f"{noise!r}: must be made for as far as one client can move stream {stream!r}, got sensitivity "
            f"{noise.sensitivity:g} where it is {moves:g}. Set sensitivity={moves:g}."
        )
