"""The contract of executors: whatever the jobs, the results are those of `Plain`."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from partwise.core.aggregate import Accumulator
from partwise.core.index import Rows, Whole
from partwise.core.kinds import article
from partwise.core.model import Params, Values
from partwise.core.plan import Executor, Job, Resident, Trained, opened
from partwise.core.population import Examples
from partwise.core.summing import Outcome, Share, SumJob
from partwise.runtimes.executors.adding import add_up, added
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.threads import torch_threads
from partwise.testing.examples import example_jobs
from partwise.testing.rules import check_part, check_same, expect, other_chance, snapshot, trying, unchanged

__all__ = ["check_executor", "check_jobs"]

Near = Mapping[torch.dtype, float]
Results = Sequence[Trained | Exception]


def check_executor(part: Executor, *, near: Near | None = None) -> None:
    """Check that an executor keeps the rules of its family.

    It is tried on clients that differ in rows, examples, steps and everything a plan can say, in float32 and float64,
    some of which cannot be trained.

    Args:
        part: the executor; one that is `core.plan.Resident` is tried by itself, and then opened.
        near: dtype -> the largest difference from the result of `Plain`, as a share of the largest entry of a
            parameter; default: none, to the last bit.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.runtimes.executors import Stacked
        >>> check_executor(Stacked(), near={torch.float32: 1e-4, torch.float64: 1e-9})
    """
    check_part(part)
    jobs = [job for dtype in (torch.float32, torch.float64) for job in example_jobs(dtype)]
    processes = set(multiprocessing.active_children())
    with torch_threads(1):  # with more of them sums may come out otherwise in the last bit
        if isinstance(part, Resident):
            _as_plain(part, part, jobs[:3], near, Plain(autograd=True).run(jobs[:3]))
        with opened(part, {}) as executor:
            _check_opened(part, executor, jobs, near)
    rule = "must leave no process behind"
    left = set(multiprocessing.active_children()) - processes
    expect(not left, part, rule, got=f"{len(left)} that live", remedy="End them, and wait for them")


def check_jobs(part: Executor, jobs: Sequence[Job], *, near: Near | None = None) -> None:
    """Check that an executor trains these jobs as the plain one does, and leaves them as they are.

    Args:
        part: the executor; one that is open stays so.
        jobs: what it is tried on, such as those of an algorithm or a model of your own.
        near: as in `check_executor`.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.runtimes.executors import Pool
        >>> from partwise.testing.examples import example_jobs
        >>> check_jobs(Pool(workers=1), example_jobs()[:2])
    """
    with torch_threads(1), opened(part, {}) as executor:
        _as_plain(part, executor, jobs, near, Plain(autograd=True).run(jobs))
        _check_sums(part, executor, jobs, near)


def _check_opened(part: Executor, executor: Executor, jobs: Sequence[Job], near: Near | None) -> None:
    rule = "must give nothing for no jobs"
    none = _run(part, executor, [], rule)
    expect(not none, part, rule, got=f"{len(none)} results", remedy="Return an empty list")
    expected = Plain(autograd=True).run(jobs)
    found = _as_plain(part, executor, jobs, near, expected)
    _repeats(part, executor, jobs, found)
    _as_plain(part, executor, jobs[::-1], near, expected[::-1])
    for number in range(3):
        _as_plain(part, executor, [jobs[number]], near, [expected[number]])
    bad = _broken(jobs[0])
    errors = Plain(autograd=True).run(bad)
    mixed = [bad[0], *jobs[:4], bad[1], *jobs[4:], bad[2]]
    _as_plain(part, executor, mixed, near, [errors[0], *expected[:4], errors[1], *expected[4:], errors[2]])
    _own_memory(part, executor, jobs)
    _check_sums(part, executor, [bad[0], *jobs, bad[1]], near)


def _run(part: Executor, executor: Executor, jobs: Sequence[Job], rule: str) -> Results:
    with trying(part, rule):
        found: Any = executor.run(jobs)
        results = list(found) if isinstance(found, Iterable) else None
    if results is None:
        rule, got = f"must give one result for each of {len(jobs)} jobs", article(type(found).__name__)
        expect(False, part, rule, got=got, remedy="Return a list of them")
    return results or []


# As Plain does it


def _as_plain(part: Executor, executor: Executor, jobs: Sequence[Job], near: Near | None, expected: Results) -> Results:
    """The results, which are as expected, of jobs that are as they were."""
    given = [_tensors(job) for job in jobs]
    before = snapshot(part, given, "the jobs")
    found = _run(part, executor, jobs, "must give what a job raised in place of its result")
    unchanged(part, before, given, "the jobs it is given, with their data and start values,")
    remedy = "Keep the order of the jobs, and leave none out"
    expect(
        len(found) == len(jobs), part, f"must give {len(jobs)} results for as many jobs", got=len(found), remedy=remedy
    )
    for number, (job, one, other) in enumerate(zip(jobs, expected, found, strict=True)):
        where = f"job {number} of {len(jobs)}"
        if isinstance(one, Exception):
            _same_exception(part, one, other, where)
        else:
            _same_result(part, one, other, where, _bounds(job, one, near))
    return found


def _check_sums(part: Executor, executor: Executor, jobs: Sequence[Job], near: Near | None) -> None:
    """The sums of what the jobs change, of each model by itself, and what is told of each job."""
    for some in _alike(jobs):
        job = _sum_job(some)
        with trying(part, "must add up what jobs change"):
            expected, found = add_up(Plain(autograd=True), job), added(executor, job)
        rule = "must tell of each job whose change is added up what Plain does"
        told = [[_told(outcome) for outcome in summed.outcomes] for summed in (expected, found)]
        expect(told[0] == told[1], part, rule, got=told[1], remedy="Keep their order")
        share = max((near[t.dtype] for t in job.params.values() if t.dtype in near), default=0.0) if near else 0.0
        one, other = (Accumulator(job.params, summed.sums).take() for summed in (expected, found))
        for name, value in one.value.items():
            most = share * max(1.0, _largest(value), one.total * _largest(job.params[name]))
            _same_values(part, f"the sum of {len(some)} jobs: {name!r}", value, other.value[name], most)
            _same_values(part, f"the weights of {len(some)} jobs: {name!r}", one.weight[name], other.weight[name], 0.0)


def _told(outcome: Outcome | Exception) -> tuple[int, int] | str:
    return str(outcome) if isinstance(outcome, Exception) else (outcome.steps, outcome.examples)


def _alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs over the same parameters, of which some may have other rows."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        key = tuple((name, t.dtype, t.shape[1:] if t.dim() > 1 else t.shape) for name, t in job.start.items())
        if all(t.is_floating_point() for t in job.start.values()):
            groups.setdefault(key, []).append(job)
    return list(groups.values())


def _sum_job(jobs: Sequence[Job]) -> SumJob:
    """Their sum; who has fewer rows than others of a parameter holds the first ones, or the last."""
    names = jobs[0].start
    longest = {name: max((job.start[name] for job in jobs), key=lambda t: t.numel()) for name in names}
    shapes = {name: tuple(t.shape) for name, t in longest.items()}
    varied = {name for name in names if any(job.start[name].shape != shapes[name] for job in jobs)}
    whole, shares = Whole(shapes), list[Share]()
    for number, job in enumerate(jobs):
        rows = {name: torch.arange(len(job.start[name])) for name in varied}
        if number % 2:
            rows = {name: at + shapes[name][0] - len(at) for name, at in rows.items()}
        index = Rows(shapes, {name: rows.get(name) for name in names}) if varied else whole
        shares.append(Share(job, index, 1.0 + number % 3))
    return SumJob(lambda: iter(shares), longest)


def _tensors(job: Job) -> list[Params]:
    """What a job holds, also in its gradient terms."""
    terms: list[Any] = [term for term in job.plan.gradient if is_dataclass(term)]
    held = [getattr(term, f.name) for term in terms for f in fields(term)]
    return [dict(job.start), dict(job.data.columns()), *(dict(value) for value in held if isinstance(value, Mapping))]


def _bounds(job: Job, expected: Trained, near: Near | None) -> tuple[float, Mapping[str, float]]:
    """The share that a result may differ by, that of its coarsest type, and what it comes to for each parameter."""
    share = max((near[t.dtype] for t in job.start.values() if t.dtype in near), default=0.0) if near else 0.0
    sizes = {name: [_largest(job.start[name]), _largest(t)] for name, t in expected.change.items()}
    return share, {name: share * max(largest) for name, largest in sizes.items()}


def _largest(t: Tensor) -> float:
    finite = t.detach()[t.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def _same_exception(part: Executor, one: Exception, other: Any, where: str) -> None:
    expect(
        type(other) is type(one) and str(other) == str(one),
        part,
        f"{where}: must give what the job raises, {type(one).__name__}: {one}",
        got=f"{type(other).__name__}: {other}" if isinstance(other, Exception) else "a result",
        remedy="Run it as Plain() does where anything raises",
    )


def _same_result(
    part: Executor, one: Trained, other: Any, where: str, bounds: tuple[float, Mapping[str, float]]
) -> None:
    share, most = bounds
    if isinstance(other, Exception):
        raise AssertionError(
            f"{part!r}: {where}: must be trained, got {type(other).__name__}: {other}. Leave it out of its neighbours' "
            "failures."
        ) from other
    rule = f"{where}: must take {one.steps} steps and change {list(one.change)}"
    is_alike = isinstance(other, Trained) and other.steps == one.steps and list(other.change) == list(one.change)
    got = f"{other.steps} steps and {list(other.change)}" if isinstance(other, Trained) else type(other).__name__
    expect(is_alike, part, rule, got=got, remedy="Ask plan.num_steps, and keep the names in order")
    for name, value in one.change.items():
        _same_values(part, f"{where}: {name!r}", value, other.change[name], most[name])
    is_near = math.isclose(other.loss, one.loss, rel_tol=share) or (math.isnan(other.loss) and math.isnan(one.loss))
    expect(
        is_near, part, f"{where}: must have the mean loss {one.loss}", got=other.loss, remedy="Take it over the steps"
    )


def _same_values(part: Executor, where: str, one: Tensor, other: Tensor, bound: float) -> None:
    kinds = [(t.dtype, tuple(t.shape), t.device, t.requires_grad) for t in (one, other)]
    rule = f"{where}: must keep type, shape and device, {kinds[0][:3]}, without a gradient"
    expect(kinds[0] == kinds[1], part, rule, got=kinds[1], remedy="Return what was trained, detached")
    gap = (other.double() - one.double()).abs()
    how = f"within {bound:.3g}" if bound else "to the last bit"
    expect(
        torch.allclose(other, one, rtol=0, atol=bound, equal_nan=True),
        part,
        f"{where}: must be that of Plain {how}",
        got=f"a difference of {float(gap.max()) if gap.numel() else 0:.3g}",
        remedy="Run what cannot be run in this way by Plain()",
    )


# What is left


def _repeats(part: Executor, executor: Executor, jobs: Sequence[Job], found: Results) -> None:
    """The same bits again, whatever chance does elsewhere, which is left alone."""
    rule = "must give the same bits for the same jobs"
    with other_chance(5):
        before = torch.get_rng_state()
        again = _run(part, executor, jobs, rule)
        is_left = torch.equal(before, torch.get_rng_state())
    check_same(part, list(found), list(again), rule, "Keep nothing between calls, and draw from the jobs' seeds alone")
    rule = "must leave the global generator as it is"
    expect(is_left, part, rule, got="another state", remedy="Use torch.random.fork_rng")


def _broken(job: Job) -> list[Job]:
    """The job with an id that is not there, with such a label, and without one of its names."""
    columns = job.data.columns()
    return [
        job._replace(data=Examples({**columns, "ids": columns["ids"] + 99})),
        job._replace(data=Examples({**columns, "y": columns["y"] + 99})),
        job._replace(start=dict(list(job.start.items())[1:])),
    ]


def _own_memory(part: Executor, executor: Executor, jobs: Sequence[Job]) -> None:
    given = [_tensors(job) for job in jobs]
    before = snapshot(part, given, "the jobs")
    found = _run(part, executor, jobs, "must run the same jobs again")
    values: list[Values] = [result.change for result in found if isinstance(result, Trained)]
    numbered = [(value, float(i)) for i, value in enumerate(t for change in values for t in change.values())]
    for value, number in numbered:
        value.fill_(number)
    unchanged(part, before, given, "the jobs, when results are written to,")
    are_apart = all(bool((value == number).all()) for value, number in numbered)
    rule = "must give every value memory of its own"
    expect(are_apart, part, rule, got="one that changes with another", remedy="Clone what is returned")
