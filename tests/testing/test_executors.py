"""The contract of executors finds what each of these does wrong."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from partwise.core.plan import Executor, Job, Trained
from partwise.runtimes.executors import Plain, Stacked
from partwise.testing import check_executor, check_jobs
from partwise.testing.examples import example_jobs

Results = list[Any]


@dataclass(frozen=True)
class Wrong:
    """The plain executor, and something wrong with its results."""

    how: str

    def run(self, jobs: Sequence[Job]) -> Results:
        return FAULTS[self.how][0](jobs)


def edited(edit: Callable[[Job, Trained], Trained]) -> Callable[[Sequence[Job]], Results]:
    """Plain, with an edit of each result that is one."""

    def run(jobs: Sequence[Job]) -> Results:
        found = zip(jobs, Plain().run(jobs), strict=True)
        return [result if isinstance(result, Exception) else edit(job, result) for job, result in found]

    return run


def ends(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Sequence[Job]], Results]:
    return edited(lambda job, r: r._replace(change={name: change(name, value) for name, value in r.change.items()}))


def at_the_global_chance(name: str, value: torch.Tensor) -> torch.Tensor:
    return value + 1e-7 * torch.rand(value.shape, generator=torch.default_generator).to(value)


def writing_into_start(job: Job, result: Trained) -> Trained:
    job.start["out.bias"].add_(1e-3)
    return result


def thrifty(jobs: Sequence[Job]) -> Results:
    """Equal values are kept once, such as those that do not move."""
    kept: dict[Any, torch.Tensor] = {}

    def once(name: str, value: torch.Tensor) -> torch.Tensor:
        return kept.setdefault((name, value.dtype, value.numpy().tobytes()), value)

    return ends(once)(jobs)


def raising_what_a_job_raises(jobs: Sequence[Job]) -> Results:
    found = list(Plain().run(jobs))
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


def all_or_nothing(jobs: Sequence[Job]) -> Results:
    found = list(Plain().run(jobs))
    bad = next((result for result in found if isinstance(result, Exception)), None)
    return found if bad is None else [bad] * len(found)


def saying_it_otherwise(jobs: Sequence[Job]) -> Results:
    return [ValueError("no") if isinstance(r, Exception) else r for r in Plain().run(jobs)]


CLOSE = {torch.float32: 1e-2, torch.float64: 1e-2}

FAULTS: Mapping[str, tuple[Callable[[Sequence[Job]], Results], str, Any]] = {
    "rounding": (
        ends(lambda n, t: t * (1 + 1e-6)),
        r"job 0 of 42: 'table\.weight': must be that of Plain to the last bit, got a difference of \d\.?\d*e-08\. Run",
        None,
    ),
    "too coarse": (
        ends(lambda n, t: t * 1.01),
        r"'table\.weight': must be that of Plain within 0\.000\d+, got a difference of 0\.0",
        {torch.float32: 1e-4, torch.float64: 1e-9},
    ),
    "order": (lambda jobs: list(Plain().run(jobs))[::-1], r"job 0 of 42: must take .* steps and change", None),
    "one left out": (lambda jobs: list(Plain().run(jobs))[1:], "must give 42 results for as many jobs, got 41", None),
    "no result": (lambda jobs: [None] * len(jobs), "must take 6 steps and change .*, got NoneType", None),
    "steps": (edited(lambda j, r: r._replace(steps=1)), r"must take 6 steps and .*, got 1 steps and", None),
    "loss": (edited(lambda j, r: r._replace(loss=r.loss * 2)), r"must have the mean loss 0\.\d+, got 1\.", None),
    "type": (ends(lambda n, t: t.double()), r"must keep type, .* without a gradient, got \(torch\.float64, ", None),
    "gradient": (ends(lambda n, t: t.clone().requires_grad_()), r"without a gradient, got .*, True\)\. Return", None),
    "chance": (ends(at_the_global_chance), "must give the same bits for the same jobs, got two", CLOSE),
    "start": (edited(writing_into_start), "must leave the jobs it is given, with their data .*, as it is", CLOSE),
    "memory": (thrifty, "must give every value memory of its own, got one that changes with another", None),
    "raises": (raising_what_a_job_raises, "must give what a job raised in place of its result, got IndexError", None),
    "neighbours": (all_or_nothing, "job 1 of 45: must be trained, got IndexError: .* Leave it out of its", None),
    "otherwise": (saying_it_otherwise, "job 0 of 45: must give what the job raises, IndexError: .*, got Value", None),
    "empty": (lambda jobs: [jobs[0]] and list(Plain().run(jobs)), "must give nothing for no jobs, got IndexErr", None),
    "nothing": (lambda jobs: None, "must give one result for each of 0 jobs, got a NoneType. Return a list", None),
    "something": (lambda jobs: list(Plain().run(jobs)) or [None], "must give nothing for no jobs, got 1 results", None),
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_fault_is_named(how):
    with pytest.raises(AssertionError, match=rf"^Wrong\(how='{how}'\): .*{FAULTS[how][1]}"):
        check_executor(Wrong(how), near=FAULTS[how][2])


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_chance_is_found_whatever_seed_is_set_before(seed):
    torch.manual_seed(seed)
    test_a_fault_is_named("chance")


@dataclass(frozen=True)
class Lasting:
    """Plain while it is open, and otherwise something else; it may leave a process behind."""

    leaves: bool = False
    by_itself: float = 0.0
    left: list[Any] = field(default_factory=list, repr=False, compare=False)

    def run(self, jobs: Sequence[Job]) -> Results:
        return ends(lambda n, t: t + self.by_itself)(jobs)

    @contextmanager
    def open(self, notes: dict[str, Any]) -> Iterator[Executor]:
        yield Plain()
        if self.leaves:
            ours, theirs = multiprocessing.Pipe()
            self.left.append((ours, theirs, multiprocessing.get_context("fork").Process(target=theirs.recv)))
            self.left[0][2].start()


def test_one_that_is_opened_is_tried_by_itself_too():
    check_executor(Lasting())
    with pytest.raises(AssertionError, match=r"^Lasting\(.*by_itself=1\.0\): job 0 of 3: .* to the last bit"):
        check_executor(Lasting(by_itself=1.0))


def test_a_process_that_is_left_behind_is_found():
    part = Lasting(leaves=True)
    try:
        with pytest.raises(AssertionError, match=r"must leave no process behind, got 1 that live\. End them"):
            check_executor(part)
    finally:
        part.left[0][0].send("go")
        part.left[0][2].join()


def test_an_executor_is_a_part():
    class Loose:
        def run(self, jobs: Sequence[Job]) -> Results:
            return list(Plain().run(jobs))

    with pytest.raises(AssertionError, match="a part is a frozen dataclass"):
        check_executor(Loose())
    check_jobs(Loose(), example_jobs())  # where nothing but the result is asked for


def test_jobs_of_ones_own_are_compared():
    jobs = example_jobs()
    with pytest.raises(AssertionError, match=r"^Stacked\(.*\): job 0 of 21: .* to the last bit, got a difference of"):
        check_jobs(Stacked(), jobs)
    check_jobs(Stacked(), jobs, near={torch.float32: 1e-4})
    check_jobs(Plain(), [jobs[0]._replace(start={n: t * float("nan") for n, t in jobs[0].start.items()})])


def test_threads_are_as_before():
    before = torch.get_num_threads()
    check_jobs(Plain(), [])
    assert torch.get_num_threads() == before


def test_example_jobs_differ_in_everything():
    jobs = example_jobs(torch.float64)
    trained = Plain().run(jobs)
    assert not any(isinstance(result, Exception) for result in trained)
    assert {t.dtype for job in jobs for t in job.start.values()} == {torch.float64}
    assert {len(job.start["table.weight"]) for job in jobs if "table.weight" in job.start} == {4, 2, 1}
    assert {len(job.data) for job in jobs} == {7, 1, 4, 8, 12, 16}
    assert len({result.steps for result in trained}) >= 6
    moved = [{n for n, t in r.change.items() if t.any()} for r in trained]
    assert {"out.weight", "out.bias"} in moved
    assert all(moved)
    assert "norm.running_mean" in moved[6]
