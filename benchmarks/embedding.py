"""Rounds over a table of which every client holds 50 rows: Partwise against three hand-written loops.

A table of 100,000 rows; 50 of 500 clients a round, each with 20 examples that touch 50 rows, half of them among the
100 hot ones. Every client takes 5 steps of plain SGD on its whole data, the server the mean per row over its holders.

- `attention`: AttentionRecommender, rows of width 32, 16 hidden units, a history of 8 items and a candidate;
- `logistic`: SparseLinear, 5 active features per example.

The variants take turns, some rounds each, all from the same start with the same cohorts:

- `full copy`: every client copies and trains the whole table; `torch.optim.SGD`, dense gradients, dense mean;
- `rows`: every client trains only its rows, with ids that were renumbered once and kept;
- `stacked by hand`: the rows of all clients are one table, all clients take a step in one forward pass written for this
  model; for `logistic` with the gradient in closed form. It knows neither jobs, messages, checks nor other models;
- Partwise through `Star` and `Simulate`, FedSubAvg('count'), with `Plain` and with `Stacked`, which counts bytes and
  checks replies; data localized before the clock runs, as for the loops;
- `Stacked alone`: its executor on prepared jobs of one round, without selection, messages and server.

    python benchmarks/embedding.py [--passes 5] [--rounds 3] [--fast-rounds 12] [--only logistic] [--clock cpu]

`gap`: the largest difference of any parameter from `full copy`, over the largest change from the start, after the same
number of rounds. Rounds of the first turn, and the first of every turn, are not counted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from executors import round_of, spread
from machine import describe
from rounds_by_hand import (
    CLIENTS,
    CLOCKS,
    COHORT,
    LR,
    SEED,
    STEPS,
    TABLE,
    Rounds,
    full_copy,
    rows_only,
    stacked,
    workload,
)

from partwise.algorithms import FedSubAvg
from partwise.channels import Plain as Open
from partwise.core.model import Values
from partwise.core.program import SERVER
from partwise.core.runtime import Observer
from partwise.core.workload import Workload
from partwise.local import SGD, LocalTraining
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Plain, Stacked
from partwise.schedulers import Synchronous


class Clock(Observer):
    """Notes when each round was committed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.times = clock, [clock()]

    def record(self, record: Any, world: Any) -> str | None:
        if record.kind == "commit":
            self.times.append(self.clock())
        return None

    def settled(self, world: object) -> None: ...

    def ended(self, world: object, reason: str) -> None: ...


def algorithm(name: str) -> FedSubAvg:
    return FedSubAvg("count", LocalTraining(SGD(LR[name]), batch_size=0, steps=STEPS))


def partwise(work: Workload, name: str, clock: Callable[[], float], executor: Plain | Stacked) -> Rounds:
    runtime, stars = Simulate(executor=executor), dict[int, Star]()

    def run(rounds: int) -> tuple[list[float], Values]:
        if rounds not in stars:
            star = Star(algorithm(name), Synchronous(COHORT, rounds), work.model, work.population, Open(), seed=SEED)
            for client in range(CLIENTS):
                site = star.site(client)
                site.localized(site.touched())
            stars[rounds] = star
        noted = Clock(clock)
        states, _ = runtime.run(stars[rounds].programs(relays=True), work.population, noted)
        return noted.times, states[SERVER].streams["model"]

    return run


def alone(work: Workload, name: str, clock: Callable[[], float]) -> Rounds:
    executor, jobs = Stacked(), round_of(work, algorithm(name), COHORT)

    def run(rounds: int) -> tuple[list[float], Values]:
        times = [clock()]
        for _ in range(rounds):
            executor.run(jobs)
            times.append(clock())
        return times, {}

    return run


def variants(work: Workload, name: str, clock: Callable[[], float]) -> dict[str, Rounds]:
    return {
        "full copy": full_copy(work, name, clock),
        "rows": rows_only(work, name, clock),
        "stacked by hand": stacked(work, name, clock),
        "Partwise, Plain": partwise(work, name, clock, Plain()),
        "Partwise, Stacked": partwise(work, name, clock, Stacked()),
        "Stacked alone": alone(work, name, clock),
    }


def gaps(work: Workload, runs: dict[str, Rounds], rounds: int) -> tuple[dict[str, float], float]:
    """Variant -> the largest difference from the first one, over the largest change; and that change."""
    ends = {name: run(rounds)[1] for name, run in runs.items()}
    start, end = work.model.init(SEED), next(iter(ends.values()))
    moved = max(float((end[n] - t).abs().max()) for n, t in start.items())
    found = {v: max(float((t - end[n]).abs().max()) for n, t in e.items()) / moved for v, e in ends.items() if e}
    return found, moved


def measure(name: str, passes: int, rounds: dict[bool, int], clock: Callable[[], float]) -> list[str]:
    work = workload(name)
    runs = variants(work, name, clock)
    gap, moved = gaps(work, runs, rounds[True])
    found: dict[str, list[float]] = {v: [] for v in runs}  # milliseconds of a round, one per pass
    for _ in range(passes):
        for variant, run in runs.items():
            times, _ = run(rounds[variant == "full copy"])
            found[variant].append(1e3 * statistics.median(b - a for a, b in pairwise(times[1:])))
    print(f"{name}: largest change of a parameter in {rounds[True]} rounds: {moved:.2g}", flush=True)
    lines = []
    for variant, took in found.items():
        cells = [name, variant, spread(took, ".2f")]
        for base in (found["full copy"], found["rows"], found["stacked by hand"]):
            cells += [spread([a / b for a, b in zip(took, base, strict=True)], ".3f")]
        lines.append("| " + " | ".join([*cells, f"{gap[variant]:.0e}" if variant in gap else "-"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of `full copy` in a turn, the first not counted")
    parser.add_argument("--fast-rounds", type=int, default=12, help="of the others")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=list(TABLE), nargs="+", default=list(TABLE))
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    args = parser.parse_args()
    if args.rounds < 2 or args.fast_rounds < 2:
        parser.error("the first round of a turn is not counted: two are needed")
    torch.set_num_threads(args.threads)
    print(f"{describe(SEED)}, threads: {args.threads}, clock: {args.clock}")
    head = ("task", "variant", "ms a round", "/ full copy", "/ rows", "/ stacked by hand", "gap")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in args.only:
        lines += measure(name, args.passes, {True: args.rounds, False: args.fast_rounds}, CLOCKS[args.clock])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
