"""Sums of what jobs change, by any executor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from partwise.core.aggregate import Accumulator
from partwise.core.errors import DivergedError
from partwise.core.plan import Executor, Trained, ran
from partwise.core.summing import Adder, Outcome, Share, SumJob, Summed
from partwise.core.update import Update, is_finite

__all__ = ["A_FEW", "MANY", "TOGETHER_BYTES", "add_one_", "add_up", "added", "by_portions", "of_start", "portions"]

# How many clients train together: no settings, so that they are the same in every run, for how simultaneous events are
# ordered depends on them.
TOGETHER_BYTES = 32 << 20  # of start values at most, if there are more than a few
A_FEW = 4
MANY = 1024  # at most; tensors of many small results take more memory than what is in them

SizeOf = Callable[[Share, Sequence[Share | Exception]], int]  # bytes of a share, beside those of its portion


def of_result(share: Share, portion: Sequence[Share | Exception]) -> int:
    """Bytes of what a job gives."""
    return sum([t.nbytes for t in share.job.start.values()])  # no generator: asked for every client


def of_start(share: Share, portion: Sequence[Share | Exception]) -> int:
    """Bytes of what a job begins with, where the job before it does not have them too."""
    last = portion[-1] if portion else None
    known = last.job.start if isinstance(last, Share) else {}
    return sum(t.nbytes for name, t in share.job.start.items() if known.get(name) is not t)


def portions(shares: Iterable[Share | Exception], size_of: SizeOf = of_result) -> Iterator[Sequence[Share | Exception]]:
    """As many shares at a time as may be in memory. size_of: bytes of one more."""
    portion: list[Share | Exception] = []
    size = 0
    for share in shares:
        bytes_ = 0 if isinstance(share, Exception) else size_of(share, portion)
        if len(portion) >= MANY or (len(portion) >= A_FEW and size + bytes_ > TOGETHER_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(share)
        size += bytes_
    if portion:
        yield portion


def added(executor: Executor, job: SumJob) -> Summed:
    """The sum of a job, by an executor that may know nothing of sums."""
    return executor.add(job) if isinstance(executor, Adder) else add_up(executor, job)


def add_up(executor: Executor, job: SumJob) -> Summed:
    """The sum of what an executor's `run` gives, in order; a few results at a time are in memory."""

    def add(shares: Sequence[Share], total: Accumulator) -> Iterable[Outcome | Exception]:
        return map(partial(add_one_, total), shares, ran(executor, [share.job for share in shares]))

    return by_portions(job, add)


def by_portions(
    job: SumJob,
    add: Callable[[Sequence[Share], Accumulator], Iterable[Outcome | Exception]],
    size_of: SizeOf = of_result,
) -> Summed:
    """The sum of a job, of which as much is made at a time as may be in memory.

    Args:
        job: the job.
        add: adds what some shares change to a total, and tells what became of each.
        size_of: as in `portions`.
    """
    total, outcomes = Accumulator(job.params), list[Outcome | Exception]()
    for portion in portions(job.shares(), size_of):
        told = iter(add([share for share in portion if isinstance(share, Share)], total))
        outcomes += [share if isinstance(share, Exception) else next(told) for share in portion]
    return Summed(total.state, outcomes)


def add_one_(total: Accumulator, share: Share, trained: Trained | Exception) -> Outcome | Exception:
    """Add the change of one job, if it can be added."""
    if isinstance(trained, Exception):
        return trained
    values = total.placed({name: trained.change[name] for name in share.index.shapes})
    update = Update(share.index, values, share.weight)
    what = "stream 'model'" if not is_finite(update) else "" if math.isfinite(trained.loss) else "the training loss"
    if what:
        remedy = "Lower the client's learning rate or look at its data."
        return DivergedError(f"{what} must be finite, got NaN or infinity. {remedy}")
    total.add_(update)
    return Outcome(trained.steps, trained.loss, len(share.job.data))
