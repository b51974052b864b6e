"""Transforms: one update in, one out; client chain, server chain and server optimiser."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from partwise.core.given import check_given, check_two
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.update import Update

__all__ = [
    "Bounded",
    "Chain",
    "Choosing",
    "Common",
    "Identity",
    "State",
    "Stepping",
    "Transform",
    "applied",
    "begun",
    "bound_of",
    "chain",
]

State = Any
_GIVES = "an Update and its next state, two things"


@runtime_checkable
class Transform(Protocol):
    """One update in, one update out, with explicit state.

    The state passed to `apply` is consumed: its buffers may be overwritten, and only the returned state may
    be used afterwards. The update passed in is never changed.
    """

    def init(self, params: Params) -> State:
        """The first state. On a client `params` has shapes and types but no storage (device `meta`)."""
        ...

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]: ...


@runtime_checkable
class Bounded(Protocol):
    """A transform that says how large its updates can be."""

    @property
    def bound(self) -> float:
        """The largest absolute value of a coordinate of what comes out, as a channel of bounded words must know it."""
        ...


@runtime_checkable
class Common(Protocol):
    """A transform some of whose draws are the same for all clients of a version."""

    def common(self, seed: int) -> Transform:
        """The transform whose common draws are made from `seed`."""
        ...


@runtime_checkable
class Choosing(Protocol):
    """A transform that does one of several things, as the task at hand says by its `group`."""

    def chosen(self, number: int) -> Transform:
        """The transform that does that of this number; below 0 nothing is said, and it is as it would be without."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """A transform that takes an aggregate for a gradient's and makes another step of it: a server optimiser."""

    def begin(self, params: Params, still: Collection[str]) -> State:
        """The first state of one that passes on what is said of the names in `still`, such as running means."""
        ...


@dataclass(frozen=True)
class Identity:
    """Leaves the update as it is."""

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        return update, state


@dataclass(frozen=True)
class Chain:
    """Several transforms, in order.

    Args:
        stages: the transforms; the first sees the update first.
    """

    stages: tuple[Transform, ...] = ()

    def common(self, seed: int) -> Chain:
        return Chain(tuple(stage.common(seed) if isinstance(stage, Common) else stage for stage in self.stages))

    def chosen(self, number: int) -> Chain:
        return Chain(tuple(stage.chosen(number) if isinstance(stage, Choosing) else stage for stage in self.stages))

    def init(self, params: Params) -> State:
        return tuple(stage.init(params) for stage in self.stages)

    def begin(self, params: Params, still: Collection[str]) -> State:
        return tuple(begun(stage, params, still) for stage in self.stages)

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        after = []
        for stage, own in zip(self.stages, state, strict=True):
            update, own = applied(stage, update, own, rng)
            after.append(own)
        return update, tuple(after)


def chain(*stages: Transform) -> Chain:
    """Several transforms, in order; `chain()` changes nothing."""
    return Chain(tuple(stages))


def begun(transform: Transform, params: Params, still: Collection[str]) -> State:
    """The first state of a transform on a server, where `still` names what no gradient moves."""
    return transform.begin(params, still) if isinstance(transform, Stepping) else transform.init(params)


def applied(transform: Transform, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
    """What a transform makes of an update, and its next state.

    Raises:
        CompositionError: it gives something else.
    """
    found = transform.apply(update, state, rng)
    check_two(transform, "apply", found, _GIVES)
    check_given(transform, "apply", found[0], Update, _GIVES)
    return found


def bound_of(transform: Transform) -> float | None:
    """The largest absolute value of what comes out; None where nobody says. Of a chain, its last stage has the word."""
    if isinstance(transform, Chain):
        return bound_of(transform.stages[-1]) if transform.stages else None
    return transform.bound if isinstance(transform, Bounded) else None
