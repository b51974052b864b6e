"""Where the time of a round goes: training, and everything that the framework does around it.

An MLP 784-200-10 on 100 clients of 60 images of random pixels, one local epoch in batches of 20, FedAvg; 10 or 50
clients a round; with `Plain` and with `Stacked`; through a whole `Experiment` with record, metrics and checkpoints as
by default, and through `Star` and `Simulate` alone. A relay stands for the clients. One thread.
There is no test set, and no checkpoint falls in the
rounds that are counted unless they take 20 seconds.

    python benchmarks/profile_round.py [--passes 5] [--rounds 20] [--cohorts 10 50] [--details]

Some functions are wrapped in timers. A timer's time is its own, without that of timers within it; what is in none is
`other`. The cases take turns; the first version of each run, and the time before it, is not counted. What the timers
cost is estimated from their calls and printed. `us a client` is microseconds divided by the clients of the round.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import wraps
from itertools import product
from typing import Any, NamedTuple

import torch
from executors import images, spread
from machine import describe

from partwise.algorithms import FedAvg
from partwise.channels import Plain as Open
from partwise.core.plan import Executor
from partwise.core.runtime import Observer
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import Silent
from partwise.local import SGD, LocalTraining
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Plain, Stacked
from partwise.schedulers import Synchronous

SEED = 1
Case = tuple[str, str, int]  # through what, executor, cohort
EXECUTORS: dict[str, Executor] = {"Plain": Plain(), "Stacked": Stacked()}

# Part -> where it is looked up when it is called: a module of partwise, then methods and functions.
PARTS = {
    "training": (
        "runtimes.executors.plain Plain.add",
        "runtimes.executors.stacked Stacked.add",
    ),
    "select, gather, plan": ("programs.relay RelayProgram._share",),
    "finish, checks": (
        "runtimes.executors.plain add_one_",
        "runtimes.executors.adding is_finite",
        "programs.server is_finite",
    ),
    "sum, commit": (
        "core.aggregate Accumulator.add_ Accumulator.add_stacked_ Accumulator.take",
        "core.mean Mean.reduce",
        "programs.sums Sums.add_up",
        "programs.server ServerProgram._commit ServerProgram._take_back",
        "algorithms.averaging FedAvg.commit",
    ),
    "programs, schedule": (
        "programs.server ServerProgram.step ServerProgram._dispatch ServerProgram._gathered",
        "programs.relay RelayProgram.step RelayProgram._gathered",
        "schedulers.synchronous Synchronous.step",
    ),
    "runtime": (
        "runtimes.simulate _World._step _World._apply _World._send",
        "core.spool Spool.keep Kept.take",
    ),
    "record, progress": (
        "experiment.recorder Recorder.record Recorder.settled Recorder._measure Recorder._replied",
        "experiment.store RunStore.append_events RunStore.append_replies RunStore.append_metrics RunStore.commit",
        "experiment.checkpoint Checkpoints.save",
    ),
}


class Timers:
    """Seconds of each function's own, and how often it was called."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._within = [0.0]  # seconds spent in timers that were called from each open one

    def install(self, part: str, module: str, dotted: str) -> None:
        owner: Any = importlib.import_module(f"partwise.{module}")
        *classes, name = dotted.split(".")
        for cls in classes:
            owner = getattr(owner, cls)
        key = f"{part}|{dotted}"
        self.seconds[key], self.calls[key] = 0.0, 0
        setattr(owner, name, self._timed(getattr(owner, name), key))

    def _timed(self, function: Callable[..., Any], key: str) -> Callable[..., Any]:
        seconds, calls, within, clock = self.seconds, self.calls, self._within, time.perf_counter

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            within.append(0.0)
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - began
                seconds[key] += took - within.pop()
                calls[key] += 1
                within[-1] += took

        return run

    def cost(self) -> float:
        """Seconds of one call of a timer around nothing."""
        empty = Timers()
        empty.seconds["|"], empty.calls["|"] = 0.0, 0
        run = empty._timed(lambda: None, "|")
        began = time.perf_counter()
        for _ in range(20_000):
            run()
        return (time.perf_counter() - began) / 20_000


class Lap(NamedTuple):
    now: float
    seconds: dict[str, float]
    calls: dict[str, int]


class Watch(Observer, Silent):
    """Notes the timers at every commit; an observer and a progress."""

    def __init__(self, timers: Timers) -> None:
        self.timers, self.laps = timers, list[Lap]()

    def lap(self) -> None:
        self.laps.append(Lap(time.perf_counter(), dict(self.timers.seconds), dict(self.timers.calls)))

    def record(self, record: Any, world: Any) -> str | None:
        if record.kind == "commit":
            self.lap()
        return None

    def settled(self, world: Any) -> None: ...

    def ended(self, world: Any, reason: str) -> None: ...

    def committed(self, version: int, loss: float, world: Any, scores: Any = ()) -> None:
        self.lap()


class Shares(NamedTuple):
    """Of one run, per round and client, in microseconds: the whole, each function's own, and calls of timers."""

    whole: float
    own: Mapping[str, float]
    calls: float


def play(work: Workload, timers: Timers, through: str, executor: str, cohort: int, rounds: int) -> Shares:
    runtime, watch, scheduler = Simulate(executor=EXECUTORS[executor]), Watch(timers), Synchronous(cohort, rounds)
    algorithm = FedAvg(LocalTraining(SGD(0.1), batch_size=20))
    if through == "Simulate":
        star = Star(algorithm, scheduler, work.model, work.population, Open(), seed=SEED)
        runtime.run(star.programs(relays=True), work.population, watch)  # which calls `record`
    else:
        with tempfile.TemporaryDirectory() as folder:
            Experiment(work, algorithm, scheduler, seed=SEED, runtime=runtime).run(folder, progress=watch)
    first, last = watch.laps[0], watch.laps[-1]
    per = 1e6 / (cohort * (len(watch.laps) - 1))
    own = {key: per * (s - first.seconds[key]) for key, s in last.seconds.items()}
    calls = sum(last.calls.values()) - sum(first.calls.values())
    return Shares(per * (last.now - first.now), own, 1e-6 * per * calls)


def by_part(shares: Shares) -> dict[str, float]:
    found = {part: sum(us for key, us in shares.own.items() if key.startswith(part + "|")) for part in PARTS}
    return {**found, "other": shares.whole - sum(found.values())}


def header(first: str, found: Mapping[Case, list[Shares]]) -> list[str]:
    head = [first, *(" ".join(map(str, case)) for case in found)]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]


def table(found: Mapping[Case, list[Shares]]) -> list[str]:
    lines = header("part: % of the time, us a client", found)
    for part in [*PARTS, "other"]:
        cells = []
        for runs in found.values():
            us = [by_part(run)[part] for run in runs]
            share = statistics.median(100 * u / run.whole for u, run in zip(us, runs, strict=True))
            cells.append(f"{share:.1f} %, {spread(us, '.0f')}")
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    wholes = [spread([run.whole for run in runs], ".0f") for runs in found.values()]
    return [*lines, "| all | " + " | ".join(wholes) + " |"]


def details(found: Mapping[Case, list[Shares]], keys: list[str]) -> list[str]:
    lines = header("us a client, median", found)
    for key in keys:
        cells = [f"{statistics.median(run.own[key] for run in runs):.1f}" for runs in found.values()]
        lines.append(f"| {key.replace('|', ': ')} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--details", action="store_true", help="every function too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe(SEED)}, threads: 1, medians and ranges of {args.passes} passes of {args.rounds} rounds\n")
    timers, work = Timers(), images()
    for part, places in PARTS.items():
        for module, *names in map(str.split, places):
            for name in names:
                timers.install(part, module, name)
    cases = list(product(("Simulate", "Experiment"), EXECUTORS, args.cohorts))
    found: dict[Case, list[Shares]] = {case: [] for case in cases}
    for case in cases:
        play(work, timers, *case, 2)
    for _ in range(args.passes):
        for case, runs in found.items():
            runs.append(play(work, timers, *case, args.rounds))
    print("\n".join(table(found)))
    if args.details:
        print("\n" + "\n".join(details(found, list(timers.seconds))))
    most = max(run.calls for runs in found.values() for run in runs)
    print(f"\nthe timers themselves: {most:.0f} calls a client at most, about {1e6 * timers.cost() * most:.0f} us")


if __name__ == "__main__":
    main()
