"""A process per core, each with one thread, and one client after another in each."""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from partwise.core.aggregate import Accumulator
from partwise.core.errors import ProtocolError
from partwise.core.index import Whole
from partwise.core.plan import Executor, Job, Trained
from partwise.core.scratch import Scratch
from partwise.core.summing import Outcome, Share, SumJob, Summed
from partwise.runtimes.executors.adding import A_FEW, TOGETHER_BYTES, add_one_, by_portions, of_start
from partwise.runtimes.executors.hands import Hand
from partwise.runtimes.executors.slots import Inherited, UnsendableError
from partwise.runtimes.threads import torch_threads

__all__ = ["Pool"]


@dataclass(frozen=True)
class Pool:
    """Worker processes that train one client each, with one thread: for models of some size, on a CPU.

    The result is that of `Plain` with one thread, to the last bit. A runtime starts the workers with the first jobs
    of a run and ends them with the run; they die with this process. What a job consists of reaches a worker through
    shared memory, but for the model, and for the memory that examples are slices of: these were there when the worker
    was forked, and must not change during the run. A job that cannot be pickled and read back (a lambda in a plan,
    say) costs a new fork of all workers per batch of jobs. A worker that dies takes the job it was at with it, and is
    started again.

    Args:
        workers: how many; 0 for one per core.

    Example:
        >>> Pool(workers=2).run([])
        []
    """

    workers: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(
                f"Pool(workers={self.workers}): must be at least 0, got {self.workers}. 0 is one per core."
            )

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        with self.open({}) as pool:
            return pool.run(jobs)

    @contextmanager
    def open(self, notes: dict[str, Any]) -> Iterator[Executor]:
        pool = _Pool(self.workers or _num_cores())
        try:
            yield pool
        finally:
            pool.close()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Results:
    """The results of jobs, copied out of where workers put them."""

    def __init__(self, scratch: Scratch) -> None:
        self.found: dict[int, Trained | Exception] = {}
        self._scratch = scratch

    def has_room(self, number: int) -> bool:
        """Whether this job may be begun."""
        return True

    def put(self, number: int, found: Trained | Exception) -> None:
        """Take a result; its tensors will be gone after the call."""
        if isinstance(found, Trained):
            found = found._replace(change=self._scratch.clone(found.change))
        self.found[number] = found


class _Added(_Results):
    """The sum of results, in the order of jobs; those that come early wait for their turn, and a few more only.

    Args:
        scratch: where they wait.
        total: what is added to.
        shares: of the jobs.
    """

    def __init__(self, scratch: Scratch, total: Accumulator, shares: Sequence[Share]) -> None:
        super().__init__(scratch)
        self.outcomes: list[Outcome | Exception] = []
        self._total, self._shares = total, shares
        bytes_ = max((sum(t.nbytes for t in share.job.start.values()) for share in shares), default=0)
        self._most = max(A_FEW, TOGETHER_BYTES // max(1, bytes_))

    def has_room(self, number: int) -> bool:
        return number < len(self.outcomes) + self._most

    def put(self, number: int, found: Trained | Exception) -> None:
        # Sums of whole parameters copy what they are given; those of rows keep it.
        if number == len(self.outcomes) and isinstance(self._shares[number].index, Whole):
            self._add(found)
        else:
            super().put(number, found)
        while (ready := self.found.pop(len(self.outcomes), None)) is not None:
            self._add(ready)

    def _add(self, found: Trained | Exception) -> None:
        self.outcomes.append(add_one_(self._total, self._shares[len(self.outcomes)], found))


class _Batch(NamedTuple):
    """Jobs, the numbers of those not given to anybody, what came of the others, and those that no worker could read."""

    jobs: Sequence[Job]
    todo: deque[int]
    results: _Results
    unreadable: set[int]


class _Pool:
    def __init__(self, workers: int) -> None:
        self._inherited, self._scratch = Inherited(), Scratch()
        self._hands = [Hand(f"Pool(workers={workers}): worker {n}", self._inherited) for n in range(workers)]

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        results = _Results(self._scratch)
        self._work(jobs, results)
        return [results.found[n] for n in range(len(jobs))]

    def add(self, job: SumJob) -> Summed:
        """The sum of what jobs change: added up in their order, while workers are at the next ones."""
        return by_portions(job, self._add, of_start)

    def _add(self, shares: Sequence[Share], total: Accumulator) -> Sequence[Outcome | Exception]:
        added = _Added(self._scratch, total, shares)
        self._work([share.job for share in shares], added)
        return added.outcomes

    def _work(self, jobs: Sequence[Job], results: _Results) -> None:
        for job in jobs:
            _refuse_devices(job)
        self._inherited.share(jobs)
        batch = _Batch(jobs, deque(_ordered(jobs, results)), results, set())
        try:
            # The cores are the workers': a second thread would go on spinning on one of them after each operation.
            with torch_threads(1):
                self._take_in(batch, wait=False)  # who died since the last batch
                while batch.todo or self._is_busy():
                    self._hand_out(batch)
                    self._take_in(batch)
        except BaseException:
            self._stop()  # what they are at is of no use to anybody
            raise
        finally:
            self._inherited.forget(jobs)

    def close(self) -> None:
        """End the processes and give their memory up."""
        for hand in self._hands:
            hand.close()
        self._inherited.close()

    def _stop(self) -> None:
        for hand in self._hands:
            hand.stop()

    def _is_busy(self) -> bool:
        return any(hand.under_way for hand in self._hands)

    def _hand_out(self, batch: _Batch) -> None:
        """Give everybody a job, and then a second one; the last jobs go to whoever is free first."""
        if batch.unreadable:
            self._begin_anew(batch)
        if batch.todo and all(hand.is_dead for hand in self._hands):
            self._learn(batch)
        for waiting in (1, 2):
            for hand in self._hands:
                if len(batch.todo) <= (waiting - 1) * len(self._hands) or not batch.results.has_room(batch.todo[0]):
                    return
                if hand.is_dead:
                    hand.start(self._hands)
                if hand.has_room(waiting):
                    self._give(hand, batch)

    def _learn(self, batch: _Batch) -> None:
        """Note what the workers will have inherited."""
        if not self._inherited.learn(batch.jobs[batch.todo[0]]):
            for number in batch.todo:
                self._inherited.add(batch.jobs[number])

    def _give(self, hand: Hand, batch: _Batch) -> None:
        number = batch.todo[0]
        try:
            hand.give(number, batch.jobs[number])
        except UnsendableError:
            self._begin_anew(batch)
        else:
            batch.todo.popleft()

    def _begin_anew(self, batch: _Batch) -> None:
        """Have all workers forked again, now that there is something they must inherit, and the other jobs with it."""
        while self._is_busy():
            self._take_in(batch)
        self._stop()
        batch.unreadable.clear()
        self._inherited.learn(batch.jobs[batch.todo[0]])
        for number in batch.todo:
            self._inherited.add(batch.jobs[number])

    def _take_in(self, batch: _Batch, *, wait: bool = True) -> None:
        """Wait until a worker has something to say, or has died."""
        poller, alive = select.poll(), {hand.fileno(): hand for hand in self._hands if not hand.is_dead}
        for fd in alive:
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(None if wait else 0) if alive else ():
            hand = alive[fd]
            hand.take(partial(_put, batch))
            if hand.is_dead:
                lost, again = hand.drop()
                batch.todo.extendleft(reversed(again))
                for number in lost:
                    rule = f"{hand.name} must live until its job is done, but {hand.fate}. Is there enough memory?"
                    batch.results.put(number, ProtocolError(rule))


def _put(batch: _Batch, number: int, found: Any) -> None:
    if isinstance(found, UnsendableError):
        batch.unreadable.add(number)
        batch.todo.appendleft(number)
    else:
        batch.results.put(number, found)


def _ordered(jobs: Sequence[Job], results: _Results) -> list[int]:
    """The longest first, so that all workers are through at about the same time; by windows, where some must wait."""
    size = next((max(1, n // 2) for n in range(len(jobs)) if not results.has_room(n)), len(jobs))
    found = list[int]()
    for begin in range(0, len(jobs), max(1, size)):
        window = range(begin, min(begin + size, len(jobs)))
        found += sorted(window, key=lambda n: -_examples_seen(jobs[n]))
    return found


def _examples_seen(job: Job) -> int:
    examples = len(job.data)
    return job.plan.num_steps(examples) * (min(job.plan.batch_size, examples) or examples)


def _refuse_devices(job: Job) -> None:
    for name, value in job.start.items():
        if not value.is_cpu:
            raise ValueError(
                f"Pool(): needs parameters on the CPU, got {name!r} on {value.device}. Use Plain() or Stacked() there."
            )
