"""What a task costs beside its training: in the simulator, in worker processes, in Ray's actors.

A client trains nothing to speak of (a linear model of 7 numbers, one step on one example), so that what is measured is
the way of its messages. Rounds of 40 clients; the first is left out. Runtimes take turns, and the best of each counts.

    python benchmarks/task_overhead.py [--ray]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from machine import describe
from torch import nn

from partwise import FedAvg, LocalTraining, Processes, Ray, Simulate, Synchronous
from partwise.channels import Plain
from partwise.core.model import CrossEntropy, Model
from partwise.core.program import Record
from partwise.core.runtime import Observer
from partwise.local import SGD
from partwise.populations import from_arrays
from partwise.programs.star import Star

CLIENTS, ROUNDS, SEED = 40, 12, 1


def net() -> nn.Module:
    return nn.Linear(6, 1)


class Clock(Observer):
    """When each round was committed."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def record(self, record: Record, world: Any) -> str | None:
        if record.kind == "commit":
            self.at.append(time.perf_counter())
        return None

    def settled(self, world: Any) -> None: ...

    def ended(self, world: Any, reason: str) -> None: ...


def star() -> Star:
    draw = torch.Generator().manual_seed(SEED)
    x = torch.randn(CLIENTS, 6, generator=draw)
    population = from_arrays({"x": x, "y": torch.zeros(CLIENTS, dtype=torch.int64)}, client=torch.arange(CLIENTS))
    local = LocalTraining(SGD(0.1), batch_size=1, steps=1)
    model = Model(net, CrossEntropy(), inputs=("x",))
    return Star(FedAvg(local), Synchronous(cohort=CLIENTS, rounds=ROUNDS), model, population, Plain(), seed=SEED)


def milliseconds(runtime: Any) -> float:
    """Of the fastest round, per task."""
    of, clock = star(), Clock()
    runtime.run(of.programs(), of.population, clock)
    return 1e3 * min(b - a for a, b in zip(clock.at, clock.at[1:], strict=False)) / CLIENTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true", help="with Ray's actors; needs partwise[ray]")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    runtimes: dict[str, Any] = {"Simulate(relays=False)": Simulate(relays=False), "Processes(workers=2)": Processes(2)}
    if given.ray:
        runtimes["Ray(workers=2)"] = Ray(2)
    found: dict[str, list[float]] = {name: [] for name in runtimes}
    for _ in range(given.times):
        for name, runtime in runtimes.items():
            found[name].append(milliseconds(runtime))
    print(describe(SEED))
    print(f"{CLIENTS} clients, {ROUNDS} rounds; milliseconds per task, best round of each run")
    for name, each in found.items():
        print(f"{name:24} {min(each):7.3f}   all runs: {', '.join(f'{value:.3f}' for value in each)}")


if __name__ == "__main__":
    main()
