"""The executor that is fastest for a run's own jobs, found by a short trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter
from typing import Any

import torch

from partwise.core.plan import Executor, Job, Resident, Trained, opened
from partwise.core.summing import Share, SumJob, Summed
from partwise.runtimes.executors.adding import added
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.executors.pool import Pool
from partwise.runtimes.executors.stacked import Stacked

__all__ = ["Auto"]

_TRIED = 32  # jobs in the trial
_STARTED_WITH = 8  # jobs that executors are warmed up with: enough to start the processes of a small machine
_REPEATS = 3
_WORTH = 0.9  # a later candidate takes this share of the time of an earlier one at most


@dataclass(frozen=True)
class Auto:
    """Tries executors on the first jobs of a run, then stays with the fastest.

    The trial takes some of the jobs of the first batch that has two or more, with their own data and start values and
    as many local steps as there is time for, and forgets the results; until then the jobs are run by `Plain`. A
    candidate must beat those before it by a tenth. What was chosen, and what each one took, is recorded with the run
    as `executor`. It is saved with the run too, and a resumed run goes on with the same one.

    Candidates are tried as they would run, `Plain` with as many torch threads as this process has and each worker of
    `Pool` with one: what is sought is the shortest time on this machine, and one thread would not be that of `Plain`.
    So, even between these two, the choice may change the last bits; it changes nothing but the time where this process
    has one thread (`torch.set_num_threads(1)`), with `candidates=[Plain(), Pool()]`. The result of `Stacked` differs
    in the last bits from both. Two runs of one description can thus differ by rounding if the trial comes out another
    way; for that reason this is not the default executor. To repeat such a run bit by bit, give the executor, and the
    number of threads, that it recorded.

    Args:
        candidates: executors; the first ones win ties. Default: `Plain()`, `Pool()` and `Stacked()`.
        trial_seconds: what the trial may take, about, > 0.

    Example:
        >>> Auto(candidates=[Plain()]).run([])
        []
    """

    candidates: Sequence[Executor] = ()
    trial_seconds: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if not self.trial_seconds > 0:
            raise ValueError(
                f"Auto(trial_seconds={self.trial_seconds}): must be above 0, got {self.trial_seconds}. 2 is usual."
            )

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        with self.open({}) as executor:
            return executor.run(jobs)

    @contextmanager
    def open(self, notes: dict[str, Any]) -> Iterator[Executor]:
        candidates = self.candidates or (Plain(), Pool(), Stacked())
        with ExitStack() as stack:
            yield _Choice({repr(c): c for c in candidates}, self.trial_seconds, notes, stack)


class _Choice:
    """The executor of one run. stack: is closed with the run."""

    def __init__(
        self, candidates: dict[str, Executor], trial_seconds: float, notes: dict[str, Any], stack: ExitStack
    ) -> None:
        self._candidates, self._trial_seconds = candidates, trial_seconds
        self._notes, self._stack = notes, stack
        self._chosen: Executor | None = None

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        self._choose(jobs)
        return (self._chosen or Plain()).run(jobs)

    def _choose(self, jobs: Sequence[Job]) -> None:
        """Find the fastest, if it is not known and these jobs can tell."""
        if self._chosen is None:
            if self._notes.get("chosen") not in self._candidates:
                tried = self._try(jobs)
                if not tried:
                    return
                self._notes.update(tried)
            self._chosen = self._stack.enter_context(opened(self._candidates[self._notes["chosen"]], {}))

    def add(self, job: SumJob) -> Summed:
        """The sum by the fastest, once it is known; a round that is to tell it has its first jobs made twice."""
        if self._chosen is None:
            self._choose([share.job for share in islice(job.shares(), _TRIED) if isinstance(share, Share)])
        return added(self._chosen or Plain(), job)

    def _try(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The fastest candidate and what each one took; nothing if these jobs cannot tell."""
        if len(jobs) < 2:
            return {}
        with ExitStack() as stack:
            faults: dict[str, str] = {}
            ready: dict[str, Executor] = {}
            # Processes come first: where there is a GPU, a fork can compute no gradient once its parent has.
            for name in sorted(self._candidates, key=lambda name: not isinstance(self._candidates[name], Resident)):
                try:
                    ready[name] = stack.enter_context(opened(self._candidates[name], {}))
                    ready[name].run(_shortened(jobs[:_STARTED_WITH], 1))
                except Exception as error:  # noqa: BLE001 - whatever it is, others may do
                    faults[name] = f"{type(error).__name__}: {error}"
            sample, steps = self._sample(jobs)
            if len(sample) < 2:
                return {}
            seconds: dict[str, float] = {}
            for name in [n for n in self._candidates if n not in faults]:
                try:
                    seconds[name] = self._time(ready[name], _shortened(sample, steps))
                except Exception as error:  # noqa: BLE001
                    faults[name] = f"{type(error).__name__}: {error}"
        return {
            "chosen": _fastest(seconds) if seconds else next(iter(self._candidates)),  # whose error is then raised
            "seconds": seconds,
            "faults": faults,
            "jobs": len(sample),
            "steps": steps,
            "threads": torch.get_num_threads(),
        }

    def _sample(self, jobs: Sequence[Job]) -> tuple[Sequence[Job], int]:
        """Jobs from all over the batch that can be trained, and how many steps of each there is time for."""
        some = jobs[:: -(-len(jobs) // _TRIED)]
        began = perf_counter()
        good = []
        for job in some:
            (result,) = Plain().run(_shortened([job], 1))
            good += [] if isinstance(result, Exception) else [job]
            spent = perf_counter() - began
            if spent > self._trial_seconds / 4 and len(good) > 1:
                break
        share = self._trial_seconds / (2 * len(self._candidates))  # the other half is for beginnings and repeats
        most = max((job.plan.num_steps(len(job.data)) for job in good), default=1)
        return good, max(1, min(most, int(share / max(spent, 1e-9))))

    def _time(self, executor: Executor, jobs: Sequence[Job]) -> float:
        """Seconds for the jobs, the best of a few times.

        Raises:
            Exception: a job, which the plain executor can train, fails.
        """
        best, left = float("inf"), self._trial_seconds / len(self._candidates)
        for _ in range(_REPEATS):
            began = perf_counter()
            results = executor.run(jobs)
            took = perf_counter() - began
            for result in results:
                if isinstance(result, Exception):
                    raise result
            best, left = min(best, took), left - took
            if left < took:
                break
        return best


def _shortened(jobs: Sequence[Job], steps: int) -> list[Job]:
    """The same jobs with so many steps at most."""
    most = [min(steps, job.plan.num_steps(len(job.data))) for job in jobs]
    return [job._replace(plan=replace(job.plan, steps=n)) for job, n in zip(jobs, most, strict=True)]


def _fastest(seconds: dict[str, float]) -> str:
    names = list(seconds)
    best = names[0]
    for name in names[1:]:
        if seconds[name] < _WORTH * seconds[best]:
            best = name
    return best
