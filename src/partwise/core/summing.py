"""Training of which only the sum is wanted: what a relay has done, in place of one update after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from partwise.core.aggregate import Running
from partwise.core.index import Index
from partwise.core.model import Params
from partwise.core.plan import Job

__all__ = ["Adder", "Outcome", "Share", "SumJob", "Summed"]


@dataclass(eq=False, slots=True)  # not frozen: one is made for every client of a round
class Share:
    """A job whose change is to be added, where `index` says, by its weight."""

    job: Job
    index: Index
    weight: float


class Outcome(NamedTuple):
    """What is told of a job whose change was added. steps, loss: as in `Trained`. examples: it was trained on."""

    steps: int
    loss: float
    examples: int


@dataclass(frozen=True, eq=False)
class SumJob:
    """Jobs of which only the weighted sum of their changes is wanted.

    Args:
        shares: makes them, one after another, in order of client; an exception stands for one that cannot be made.
        params: name -> tensor; shapes, types and devices of the sum.
    """

    shares: Callable[[], Iterator[Share | Exception]]
    params: Params = field(repr=False)


class Summed(NamedTuple):
    """The result of a `SumJob`.

    Args:
        sums: of the changes that are finite and come with a finite loss.
        outcomes: one per share, in order; what was not added gives its exception, a `DivergedError` where it is not
            finite.
    """

    sums: Running
    outcomes: Sequence[Outcome | Exception]


@runtime_checkable
class Adder(Protocol):
    """An executor that adds changes up without handing them out."""

    def add(self, job: SumJob) -> Summed:
        """The sum; that of the results of `run`, added in order, but for rounding."""
        ...
