"""What a compressor promises of its loss, and draws that all clients of a version have in common.

Notation: x is what goes in, of d coordinates in all; C(x) is what the other side decodes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import Chain, Choosing, Common, State, Transform
from partwise.core.update import Update

__all__ = ["Claims", "Compressor", "Correcting", "chosen", "common", "compressors"]


class Claims(NamedTuple):
    """What a compressor promises; None for what it does not.

    Args:
        omega: unbiased, E C(x) = x, with E ‖C(x) - x‖² <= omega ‖x‖².
        delta: a contraction, E ‖C(x) - x‖² <= (1 - delta) ‖x‖², with delta in (0, 1].
        is_linear: C(x) + C(y) = C(x + y) for the same draw, so that a channel may sum what was compressed.
        is_common: all clients of a version draw the same.
    """

    omega: float | None = None
    delta: float | None = None
    is_linear: bool = False
    is_common: bool = False


@runtime_checkable
class Compressor(Protocol):
    """A transform that makes messages shorter, and says at what loss."""

    def init(self, params: Params) -> State: ...

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]: ...

    def claims(self, size: int) -> Claims:
        """What it promises of an update of `size` coordinates."""
        ...


def common(transform: Transform, seed: int) -> Transform:
    """The transform with what all clients of a version draw alike made from `seed`.

    Example:
        >>> from partwise.transforms import RandomK
        >>> common(RandomK(0.1), 7)
        RandomK(ratio=0.1, unbiased=False, block=1, by_row=False, seed=7)
    """
    return transform.common(seed) if isinstance(transform, Common) else transform


def chosen(transform: Transform, number: int) -> Transform:
    """The transform that does what a task of this group asks for; most do the same for all."""
    return transform.chosen(number) if isinstance(transform, Choosing) else transform


@runtime_checkable
class Correcting(Protocol):
    """A transform that feeds back what the one inside it loses."""

    @property
    def inner(self) -> Transform: ...


def compressors(transform: Transform) -> tuple[Compressor, ...]:
    """The compressors of a chain, in order, also those within others.

    Example:
        >>> from partwise.transforms import Clip, ErrorFeedback, TopK
        >>> compressors(Chain((ErrorFeedback(TopK(k=5)), Clip(1.0))))
        (TopK(k=5, ratio=None, scope='global', sample=0, warmup=0),)
    """
    if isinstance(transform, Chain):
        return tuple(part for stage in transform.stages for part in compressors(stage))
    if isinstance(transform, Compressor):
        return (transform,)
    return compressors(transform.inner) if isinstance(transform, Correcting) else ()
