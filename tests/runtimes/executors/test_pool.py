"""The pool against the plain executor, bit by bit; and workers that die, raise, or outlive nobody."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from partwise.core.aggregate import Accumulator
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.index import Whole
from partwise.core.model import CrossEntropy, Model
from partwise.core.plan import Job, Trained
from partwise.core.population import Examples
from partwise.core.scratch import Scratch
from partwise.core.summing import Share, SumJob, Summed
from partwise.local import LocalTraining
from partwise.runtimes import Processes, Simulate
from partwise.runtimes.executors import Plain, Pool
from partwise.runtimes.executors import pool as pool_module
from partwise.runtimes.executors.adding import added
from toy_federation import CASES, play, star
from toy_jobs import jobs, model, same
from toy_star import Log, workers_end_with

PARENT = os.getpid()


pytestmark = pytest.mark.usefixtures("_no_process_left")


def test_batches_of_a_run_go_to_the_same_workers():
    given = jobs()
    before = {name: t.clone() for name, t in given[0].start.items()}
    expected = Plain().run(given)
    with Pool(workers=2).open({}) as pool:
        for size in (1, 5, 2):
            found = pool.run(given[:size])
            assert same(found, expected[:size])
            for trained in found:  # the results are the caller's own
                assert isinstance(trained, Trained)
                trained.change["out.bias"].fill_(9.0)
            workers = {child.pid for child in multiprocessing.active_children()}
            assert len(workers) == min(2, size) if size == 1 else len(workers) == 2
        assert pool.run([]) == []
        assert {child.pid for child in multiprocessing.active_children()} == workers
    assert all(torch.equal(t, before[name]) for name, t in given[0].start.items())


@pytest.mark.parametrize("case", CASES)
def test_run_is_bit_equal_to_one_with_plain(case):
    expected, log = play(Simulate(), star(case, rounds=3))
    found, again = play(Simulate(Pool(workers=2)), star(case, rounds=3))
    assert found == expected
    assert log.records == again.records


def test_generator_of_this_process_is_left_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    Pool(workers=1).run(jobs()[:2])
    assert torch.equal(torch.get_rng_state(), state)


# What cannot be sent is inherited


def test_lambdas_and_models_that_come_later():
    first, other = model(), Model(lambda: model().build().train(), CrossEntropy())
    odd = jobs(other, trainable=lambda name: name.startswith("out"))
    plain, mixed = jobs(first), [jobs(first)[0], odd[1], jobs(other)[2], odd[3], jobs(first)[4]]
    with Pool(workers=2).open({}) as pool:
        assert same(pool.run(plain), Plain().run(plain))
        workers = {child.pid for child in multiprocessing.active_children()}
        assert same(pool.run(mixed), Plain().run(mixed))
        anew = {child.pid for child in multiprocessing.active_children()}
        assert not workers & anew
        later = jobs(other)  # the new workers know both models
        assert same(pool.run([*plain, *later]), Plain().run([*plain, *later]))
        assert {child.pid for child in multiprocessing.active_children()} == anew
    assert same(Pool(workers=2).run(odd), Plain().run(odd))


@dataclass(frozen=True)
class Unreadable:
    """A gradient term that is pickled and cannot be unpickled."""

    by: float

    def __call__(self, params: Mapping[str, Tensor], grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {name: g * self.by for name, g in grads.items()}

    def __reduce__(self) -> Any:
        return int, ("seven",)


def test_what_cannot_be_unpickled_is_inherited_and_no_other_job_is_lost():
    of = model()
    plain, odd = jobs(of), jobs(of, gradient=(Unreadable(0.3),))
    mixed = [odd[0], plain[1], odd[2], plain[3], plain[4], *odd, *plain]
    with Pool(workers=2).open({}) as pool:
        for _ in range(2):
            assert same(pool.run(mixed), Plain().run(mixed))
        workers = {child.pid for child in multiprocessing.active_children()}
        assert same(pool.run(plain), Plain().run(plain))
        assert {child.pid for child in multiprocessing.active_children()} == workers
        found = pool.run([odd[0], *jobs(of, gradient=(InWorker(die),))[1:2], *plain, odd[3]])
        assert isinstance(found[1], ProtocolError)
        assert same([found[0], *found[2:]], Plain().run([odd[0], *plain, odd[3]]))


# What goes wrong


@dataclass(frozen=True)
class InWorker:
    """A gradient term that does something, but not in the process of the tests."""

    what: Any

    def __call__(self, params: Mapping[str, Tensor], grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        if os.getpid() != PARENT:
            self.what()
        return grads


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class OddError(RuntimeError):
    """One that is pickled and cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def raise_odd() -> None:
    raise OddError("a", "b")


def raise_assertion() -> None:
    raise AssertionError("the moon is not full")


def with_term(job: Job, what: Any) -> Job:
    return job._replace(plan=replace(job.plan, gradient=(InWorker(what),)))


def test_killed_worker_loses_the_job_it_was_at_and_nothing_else():
    given = jobs()
    expected = Plain().run(given)
    with Pool(workers=2).open({}) as pool:
        pool.run(given)
        found = list(pool.run([*given[:2], with_term(given[2], die), *given[3:]]))
        lost = found.pop(2)
        assert same(found, [*expected[:2], *expected[3:]])
        assert isinstance(lost, ProtocolError)
        assert str(lost) in {
            f"Pool(workers=2): worker {n} must live until its job is done, but was killed by SIGKILL. "
            "Is there enough memory?"
            for n in (0, 1)
        }
        assert same(pool.run(given), expected)
        (victim, *_) = multiprocessing.active_children()
        victim.kill()
        victim.join()
        assert same(pool.run(given), expected)  # who had nothing to do loses nothing


def sum_of(given: list[Job]) -> SumJob:
    params = given[0].start
    whole = Whole({name: tuple(t.shape) for name, t in params.items()})
    shares = [Share(job, whole, 1.0 + n) for n, job in enumerate(given)]
    return SumJob(lambda: iter(shares), params)


def totals(summed: Summed, params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return Accumulator(params, summed.sums).take().value


def test_killed_worker_is_missing_in_the_sum():
    given = jobs()
    expected = added(Plain(), sum_of([*given[:2], with_term(given[2], die), *given[3:]]))  # which dies in workers only
    with Pool(workers=2).open({}) as pool:
        summed = added(pool, sum_of([*given[:2], with_term(given[2], die), *given[3:]]))
        assert isinstance(summed.outcomes[2], ProtocolError)
        assert [*summed.outcomes[:2], *summed.outcomes[3:]] == [*expected.outcomes[:2], *expected.outcomes[3:]]
        whole = added(pool, sum_of(given))
    assert same_values(totals(whole, given[0].start), totals(added(Plain(), sum_of(given)), given[0].start))
    assert summed.sums.count == len(given) - 1


def same_values(ones: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(t, others[name]) for name, t in ones.items())


def test_sum_keeps_few_results_whatever_the_order_they_come_in(monkeypatch):
    """The first job takes longest: those behind it wait for their turn, and others are not begun."""
    monkeypatch.setattr(pool_module, "A_FEW", 3)
    monkeypatch.setattr(pool_module, "TOGETHER_BYTES", 1)
    few = jobs()
    given = [few[2]._replace(plan=replace(few[2].plan, steps=200)), *(few * 5)]
    expected = added(Plain(), sum_of(given))
    most, put = [], pool_module._Added.put

    def watched(self, number, found):
        put(self, number, found)
        most.append(len(self.found))

    monkeypatch.setattr(pool_module._Added, "put", watched)
    with Pool(workers=2).open({}) as pool:
        summed = added(pool, sum_of(given))
    assert summed.outcomes == expected.outcomes
    assert same_values(totals(summed, given[0].start), totals(expected, given[0].start))
    assert len(most) == len(given)
    assert max(most) <= 3


def test_results_are_added_in_the_order_of_their_jobs(monkeypatch):
    monkeypatch.setattr(pool_module, "A_FEW", 3)
    monkeypatch.setattr(pool_module, "TOGETHER_BYTES", 1)
    given = jobs()
    job, results = sum_of(given), Plain().run(given)
    expected = added(Plain(), job)
    total = Accumulator(given[0].start)
    added_up = pool_module._Added(Scratch(), total, list(job.shares()))
    for number, waiting in ((1, 1), (2, 2), (0, 0), (4, 1), (3, 0)):
        assert added_up.has_room(number)
        trained = results[number]
        assert isinstance(trained, Trained)
        lent = {name: t.clone() for name, t in trained.change.items()}
        added_up.put(number, trained._replace(change=lent))
        for t in lent.values():
            t.fill_(torch.nan)  # the worker writes its next result there
        assert len(added_up.found) == waiting
        assert not added_up.has_room(len(added_up.outcomes) + 3)
    assert added_up.outcomes == expected.outcomes
    assert same_values(total.take().value, totals(expected, given[0].start))


def test_killed_worker_is_a_lost_client_and_the_run_goes_on():
    from partwise.core.algorithm import Algorithm
    from toy_federation import LOCAL

    @dataclass(frozen=True)
    class Odd(Algorithm):
        """Federated averaging in which one client's training ends its process, once."""

        local: LocalTraining = LOCAL

        def plan(self, held, index, task, own, site):
            terms = (InWorker(die),) if site.client == 2 and task.version == 1 else ()
            return self.local.plan(site, task, gradient=terms)

    from partwise.schedulers import Synchronous

    of, log = star("fedavg", algorithm=Odd(), scheduler=Synchronous(cohort=7, rounds=3)), Log()
    _, reason = Simulate(Pool(workers=2)).run(of.programs(), of.population, log)
    assert reason == "done"
    (lost,) = log.of("lost")
    assert (lost["client"], lost["version"], lost["stage"]) == (2, 1, "train")
    assert lost["reason"].startswith("ProtocolError: Pool(workers=2): worker ")
    assert [c["replies"] for c in log.of("commit")] == [7, 6, 7]


def test_errors_are_those_of_plain():
    given = jobs()
    broken = given[1]._replace(data=Examples({"x": torch.ones(2, 1, 8, 8), "y": torch.tensor([0, 7])}))
    mixed = [given[0], broken, given[2]]
    assert isinstance(Plain().run(mixed)[1], IndexError)
    assert same(Pool(workers=2).run(mixed), Plain().run(mixed))
    (error,) = Pool(workers=1).run([with_term(given[0], raise_odd)])
    assert isinstance(error, RuntimeError)
    assert str(error) == "OddError: ab"


def test_error_that_plain_would_raise_is_raised():
    with Pool(workers=2).open({}) as pool:
        with pytest.raises(AssertionError, match="the moon is not full") as raised:
            pool.run([with_term(job, raise_assertion) for job in jobs()])
        assert "in raise_assertion" in str(raised.value.__cause__)
        assert multiprocessing.active_children() == []
        assert same(pool.run(jobs()), Plain().run(jobs()))


def test_worker_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr(gc, "freeze", lambda: os._exit(3))  # which only a worker calls
    with pytest.raises(ProtocolError, match=r"worker 0: must start, got one that ended with exit code 3\. Use Plain"):
        Pool(workers=1).run(jobs()[:1])


def test_parameters_on_a_device_are_refused():
    job = jobs()[0]._replace(start={"w": torch.empty(2, device="meta")})
    with pytest.raises(ValueError, match=r"^Pool\(\): needs parameters on the CPU, got 'w' on meta\. Use Plain\(\)"):
        Pool().run([job])


def test_workers_leave_ctrl_c_to_the_parent():
    with Pool(workers=2).open({}) as pool:
        pool.run(jobs())
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
        assert same(pool.run(jobs()), Plain().run(jobs()))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of this very moment


def test_nothing_is_left_behind():
    Pool(workers=1).run(jobs()[:1])
    before = open_files()
    Pool(workers=3).run(jobs())
    assert open_files() == before
    with pytest.raises(AssertionError):
        Pool(workers=2).run([with_term(job, raise_assertion) for job in jobs()])

    def interrupted() -> None:
        with Pool(workers=2).open({}) as pool:
            pool.run(jobs())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert open_files() == before
    assert multiprocessing.active_children() == []


def test_workers_die_with_their_parent():
    code = (
        "from partwise.runtimes.executors import Pool; from toy_jobs import jobs\n"
        "with Pool(workers=2).open({}) as pool:\n"
        "    pool.run(jobs())\n"
        "    print('ready', flush=True)\n"
        "    pool.run([job._replace(plan=job.plan.__class__(job.plan.loss, job.plan.optimizer, steps=10**9))"
        " for job in jobs()])\n"
    )
    assert workers_end_with(code)


# Arguments


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"^Pool\(workers=-1\): must be at least 0, got -1\. 0 is one per core\.$"):
        Pool(workers=-1)
    with pytest.raises(CompositionError, match=r"^Processes\(executor=Pool\(workers=2\)\): its workers are processes"):
        Processes(executor=Pool(2))


def test_no_number_is_one_worker_per_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5})
    with Pool().open({}) as pool:
        assert len(pool._hands) == 3
