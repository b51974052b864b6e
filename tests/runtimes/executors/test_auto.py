"""The choice of an executor: who wins, what is recorded, and that a resumed run does not choose again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.codec import decode
from partwise.core.errors import CompositionError
from partwise.core.metrics import Accuracy
from partwise.core.plan import Executor, Job, Trained
from partwise.core.population import Examples, Population, Profile
from partwise.core.workload import Workload
from partwise.experiment.dump import dump
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import Checkpointing, Silent
from partwise.experiment.spec import loads
from partwise.experiment.store import RunStore
from partwise.runtimes import Processes, Simulate
from partwise.runtimes.executors import Auto, Plain, Pool, Stacked, auto
from partwise.schedulers import Synchronous
from partwise.workloads import StdlibCode
from toy_federation import CASES, CLASSES, WORDS, model, play, star
from toy_jobs import jobs, same
from toy_star import Log, Saving

pytestmark = pytest.mark.usefixtures("_no_process_left")


@dataclass
class Clock:
    """Seconds that pass when somebody says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(auto, "perf_counter", found)
    return found


@dataclass(frozen=True)
class Timed:
    """The plain executor, by a clock of its own."""

    per_batch: float
    per_step: float
    clock: Clock = field(repr=False)
    given: list[tuple[int, int]] = field(default_factory=list, repr=False)  # (jobs, steps of the first)

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        results = Plain().run(jobs)
        steps = [r.steps for r in results if isinstance(r, Trained)]
        self.clock.now += self.per_batch + self.per_step * sum(steps)
        self.given.append((len(jobs), steps[0] if steps else 0))
        return results


@dataclass(frozen=True)
class Broken:
    """An executor that fails, at once or in its results."""

    at_once: bool

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        if self.at_once:
            raise OSError("no fork here")
        return [ValueError("not in the mood")] * len(jobs)


def chosen(candidates: Sequence[Executor], given: Sequence[Job]) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    with Auto(candidates).open(notes) as executor:
        assert same(executor.run(given), Plain().run(given))
    return notes


def test_fastest_is_chosen_and_what_each_took_is_noted(clock):
    slow, quick, middle = Timed(0.0, 0.03, clock), Timed(0.01, 0.01, clock), Timed(0.0, 0.02, clock)
    notes = chosen([slow, quick, middle], jobs())
    assert notes["chosen"] == "Timed(per_batch=0.01, per_step=0.01)"
    assert (notes["jobs"], notes["steps"], notes["faults"], notes["threads"]) == (5, 3, {}, 1)
    took = {"Timed(per_batch=0.0, per_step=0.03)": 0.45, "Timed(per_batch=0.01, per_step=0.01)": 0.16}
    took["Timed(per_batch=0.0, per_step=0.02)"] = 0.30
    assert notes["seconds"] == {name: pytest.approx(seconds) for name, seconds in took.items()}
    assert quick.given[-1] == (5, 3)
    assert max(steps for _, steps in slow.given) == 3


def test_a_later_one_must_be_a_tenth_faster(clock):
    first, close, clear = Timed(0.0, 0.0100, clock), Timed(0.0, 0.0091, clock), Timed(0.0, 0.0089, clock)
    assert chosen([first, close], jobs())["chosen"] == repr(first)
    assert chosen([first, close, clear], jobs())["chosen"] == repr(clear)


def test_what_fails_is_not_chosen_and_says_why(clock):
    fine = Timed(0.0, 5.0, clock)
    notes = chosen([Broken(at_once=True), Broken(at_once=False), fine], jobs())
    assert notes["chosen"] == repr(fine)
    assert notes["faults"] == {
        "Broken(at_once=True)": "OSError: no fork here",
        "Broken(at_once=False)": "ValueError: not in the mood",
    }
    with pytest.raises(OSError, match="no fork here"):
        Auto([Broken(at_once=True)]).run(jobs())


def test_trial_fits_its_time(clock, monkeypatch):
    """400 jobs of 1000 steps of 10 ms would take more than an hour."""
    plain = Plain()

    @dataclass(frozen=True)
    class Charged:
        """As if every step that a job asks for were taken."""

        def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
            clock.now += sum(0.01 * job.plan.steps for job in jobs)
            return plain.run([replace_steps(job, 1) for job in jobs])

    monkeypatch.setattr(auto, "Plain", Charged)
    notes: dict[str, Any] = {}
    with Auto([Charged()], trial_seconds=2.0).open(notes) as executor:
        began = clock.now
        executor.run([replace_steps(job, 1000) for job in jobs() * 80])
        trial = clock.now - began - 400 * 1000 * 0.01
    assert 20 <= notes["jobs"] <= 32
    assert 0.5 < trial < 3.0


def replace_steps(job: Job, steps: int) -> Job:
    return job._replace(plan=replace(job.plan, steps=steps))


def test_nothing_is_chosen_while_there_is_nothing_to_choose_between(clock):
    notes: dict[str, Any] = {}
    bad = [job._replace(data=Examples({"x": torch.ones(1, 1, 8, 8), "y": torch.tensor([9])})) for job in jobs()]
    with Auto([Timed(0.0, 1.0, clock), Timed(0.0, 0.1, clock)]).open(notes) as executor:
        for given in ([], jobs()[:1], bad, [*bad, jobs()[2]]):
            assert same(executor.run(given), Plain().run(given))
            assert notes == {}
        executor.run([*bad, *jobs()])
    assert notes["chosen"] == "Timed(per_batch=0.0, per_step=0.1)"
    assert notes["jobs"] == 5


def test_losers_are_closed_after_the_trial(clock):
    seen: list[str] = []

    @dataclass(frozen=True)
    class Lasting:
        name: str
        seconds: float

        def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
            clock.now += self.seconds
            return Plain().run(jobs)

        @contextmanager
        def open(self, notes: dict[str, Any]) -> Iterator[Executor]:
            seen.append(f"open {self.name}")
            try:
                yield self
            finally:
                seen.append(f"close {self.name}")

    with Auto([Lasting("a", 2.0), Lasting("b", 1.0)]).open({}) as executor:
        executor.run(jobs())
        assert sorted(seen[:4]) == ["close a", "close b", "open a", "open b"]
        assert seen[4:] == ["open b"]
        executor.run(jobs())
    assert seen[4:] == ["open b", "close b"]


# In a run


EXACT = (Plain(), Pool(workers=2))


@pytest.mark.parametrize("case", ["scaffold", "error feedback"])
def test_run_equals_one_with_plain_but_for_its_record(case):
    expected, log = play(Simulate(), star(case, rounds=3))
    found, again = play(Simulate(Auto(EXACT, trial_seconds=0.02)), star(case, rounds=3))
    assert found == expected
    (choice,) = again.of("executor")
    assert choice["chosen"] in {repr(Plain()), "Pool(workers=2)"}
    assert set(choice["seconds"]) == {repr(Plain()), "Pool(workers=2)"}
    assert [r for r in again.records if r.kind != "executor"] == log.records
    assert case in CASES


@pytest.mark.parametrize("executor", [Plain(), Stacked()])
def test_resumed_run_goes_on_with_what_was_chosen(monkeypatch, executor):
    """Also where the trial, done again, would come out differently."""
    expected, _ = play(Simulate(executor), star("scaffold", rounds=4))
    monkeypatch.setattr(auto, "_fastest", lambda seconds: repr(executor))
    saving = Saving()
    runtime = Simulate(Auto([Plain(), Stacked()], trial_seconds=0.02))
    assert play(runtime, star("scaffold", rounds=4), saving)[0] == expected
    monkeypatch.setattr(auto, "_fastest", lambda seconds: pytest.fail("chosen again"))
    at = next(i for i, entries in enumerate(saving.saved) if "executor" in entries)
    for moment in (at, (at + len(saving.saved)) // 2):
        entries = {name: decode(data) for name, data in saving.saved[moment].items()}
        other = Log()
        assert play(runtime, star("scaffold", rounds=4), other, entries=entries)[0] == expected
        assert len(saving.of("executor")) == 1
        assert other.of("executor") == []  # it is in the record already
    entries = {name: decode(data) for name, data in saving.saved[-2].items()}
    assert play(Processes(), star("scaffold", rounds=4), entries=entries)[0]  # which takes no notice


class People(Population):
    """Clients with paces of their own, so that their jobs come together."""

    clients = range(5)

    def data(self, client: int) -> Examples:
        draw = torch.Generator().manual_seed(client)
        words = torch.randint(WORDS, (9 + 3 * client, 3), generator=draw)
        return Examples({"words": words, "y": words.sum(1) % CLASSES})

    def test_data(self, client: int) -> Examples:
        return self.data(client)

    def profile(self, client: int, now: float = 0.0) -> Profile:
        return Profile(0.1 * (1 + client))


class Crash(Silent):
    """Ends the program's run after a version, as a kill would."""

    def committed(self, version: int, *more: Any) -> None:
        if version == 2:
            raise KeyboardInterrupt


def test_record_of_a_run_has_the_choice_once_also_when_it_was_resumed(tmp_path: Path, monkeypatch):
    workload = Workload(model(), People(), (Accuracy(),))
    parts = CASES["fedprox"]
    described = Experiment(
        workload,
        scheduler=Synchronous(cohort=4, rounds=5),
        seed=2,
        checkpointing=Checkpointing(every_seconds=0),
        runtime=Simulate(Auto([Plain(), Stacked()], trial_seconds=0.02)),
        **parts,
    )
    monkeypatch.setattr(auto, "_fastest", lambda seconds: "Stacked(max_clients=256, max_bytes=0)")
    whole = described.run(tmp_path / "whole").streams["model"]
    with pytest.raises(KeyboardInterrupt):
        described.run(tmp_path / "broken", progress=Crash())
    monkeypatch.setattr(auto, "_fastest", lambda seconds: repr(Plain()))
    resumed = described.run(tmp_path / "broken", resume=True).streams["model"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with RunStore(tmp_path / "broken", "read") as store:
        (choice,) = store.events("executor")
    assert choice["body"]["chosen"] == "Stacked(max_clients=256, max_bytes=0)"
    assert all(seconds > 0 for seconds in choice["body"]["seconds"].values())


# Arguments


def test_is_written_and_read_as_a_specification():
    for executor in (Auto(), Auto([Plain(), Pool(3)], trial_seconds=0.5)):
        runtime = Simulate(executor)
        assert loads(dump(Experiment(StdlibCode(), FedAvg(), runtime=runtime))).runtime == runtime
    assert repr(Auto([Plain()])) == "Auto(candidates=(Plain(autograd=False),), trial_seconds=2.0)"


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"^Auto\(trial_seconds=0\): must be above 0, got 0\. 2 is usual\.$"):
        Auto(trial_seconds=0)
    with pytest.raises(CompositionError, match=r"^Processes\(executor=Auto\("):
        Processes(executor=Auto())
