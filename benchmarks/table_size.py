"""Seconds and memory of a FedSubAvg round against the size of the table, the touched rows being the same.

Every client's examples touch 50 rows of an embedding table; 50 clients a round. The table has 10^4 to 10^7 rows of
width 8, and the clients' rows are spread over all of it. The sizes take turns, a round each; the first round, which
counts the population and warms up, is not counted. A round must cost the same whatever the table's size, within 20 %,
and take no memory of the table's size.

    python benchmarks/table_size.py [--rows 10000 100000 1000000 10000000] [--rounds 61] [--figure table_size.svg]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from threading import Semaphore, Thread
from typing import Any

import torch
from machine import describe
from torch import Tensor, nn

from partwise.algorithms import FedSubAvg
from partwise.channels import Plain
from partwise.core.model import BinaryCrossEntropy, Model
from partwise.core.runtime import Observer, World
from partwise.local import SGD, LocalTraining
from partwise.populations import ArrayPopulation
from partwise.programs.star import Star
from partwise.runtimes import Simulate, executors
from partwise.schedulers import Synchronous

SEED, WIDTH, TOUCHED, COHORT, CLIENTS, EXAMPLES = 1, 8, 50, 50, 500, 25
WITHIN = 1.2  # the largest median over the smallest


class Bag(nn.Module):
    """The score of an example is a linear function of the mean of its rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, WIDTH)
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.score(self.table(ids).mean(1)).squeeze(1)


class Net:
    """Makes the module; a class, so that it has a name."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self) -> nn.Module:
        return Bag(self.rows)


def population(rows: int) -> ArrayPopulation:
    """Half of each client's rows are its own, half are hot: chosen from the first hundred."""
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.empty(CLIENTS, EXAMPLES, 4, dtype=torch.int64)
    for c in range(CLIENTS):
        hot = torch.randperm(100, generator=draw)[: TOUCHED // 2]
        cold = 100 + torch.randperm((rows - 100) // CLIENTS, generator=draw)[: TOUCHED - len(hot)] * CLIENTS + c
        mine = torch.cat([hot, cold[cold < rows]])
        ids[c] = mine[torch.arange(EXAMPLES * 4).reshape(EXAMPLES, 4) % len(mine)]
    y = torch.randint(2, (CLIENTS * EXAMPLES,), generator=draw)
    return ArrayPopulation({"ids": ids.reshape(-1, 4), "y": y}, torch.arange(CLIENTS + 1) * EXAMPLES)


class Clock(Observer):
    """Notes the CPU time of each round, and hands over to the next size when one is committed.

    CPU time, because other processes on the machine take less of it than of the clock's.
    """

    def __init__(self, mine: Semaphore, following: Semaphore) -> None:
        self.spans: list[float] = []
        self.first_peak = 0.0
        self._mine, self._following = mine, following
        self._began = time.thread_time()

    def record(self, record: object, world: World) -> str | None:
        if getattr(record, "kind", "") == "commit":
            self.spans.append(time.thread_time() - self._began)
            self.first_peak = self.first_peak or peak_mib()
            self._following.release()
            self._mine.acquire()
            self._began = time.thread_time()
        return None

    def settled(self, world: World) -> None: ...

    def ended(self, world: World, reason: str) -> None: ...


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def play(sizes: list[int], executor: str, rounds: int, estimator: str) -> list[Clock]:
    """Run a federation per size, one round of each in turn, so that a slow moment befalls all alike."""
    torch.set_num_threads(1)
    turns = [Semaphore(0) for _ in sizes]
    clocks = [Clock(mine, turns[(i + 1) % len(sizes)]) for i, mine in enumerate(turns)]

    def run(i: int) -> None:
        turns[i].acquire()
        people = population(sizes[i])
        model = Model(Net(sizes[i]), BinaryCrossEntropy(), inputs=("ids",), tables={"table.weight": ("ids",)})
        algorithm = FedSubAvg(estimator, LocalTraining(SGD(0.1), batch_size=5))
        star = Star(algorithm, Synchronous(COHORT, rounds), model, people, Plain(), seed=SEED)
        Simulate(executor=getattr(executors, executor)()).run(star.programs(relays=True), people, clocks[i])
        turns[(i + 1) % len(sizes)].release()

    threads = [Thread(target=run, args=(i,)) for i in range(len(sizes))]
    for thread in threads:
        thread.start()
    turns[0].release()
    for thread in threads:
        thread.join()
    return clocks


def measure(sizes: list[int], executor: str, rounds: int, estimator: str) -> dict[str, Any]:
    """The same in a process of its own: seconds of each round but the first, and what the later ones add in MiB."""
    one = json.dumps([sizes, executor, rounds, estimator])
    ran = subprocess.run([sys.executable, __file__, "--one", one], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def draw(found: dict[str, dict[int, list[float]]], path: str) -> None:
    """Median and quartiles of a round by the size of the table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for executor, sizes in found.items():
        rows, middle = list(sizes), [1000 * statistics.median(s) for s in sizes.values()]
        low, high = ([1000 * q for q in column] for column in zip(*map(quartiles, sizes.values()), strict=True))
        ax.plot(rows, middle, marker="o", label=executor)
        ax.fill_between(rows, low, high, alpha=0.2)
    ax.set(xscale="log", xlabel="rows of the table", ylabel="milliseconds of CPU a round", ylim=(0, None))
    ax.set_title(f"A FedSubAvg round: {COHORT} clients with {TOUCHED} rows each", fontsize=10)
    ax.legend()
    figure.savefig(path, dpi=150)


def quartiles(spans: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(spans, n=4)
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--executors", nargs="+", default=["Plain", "Stacked"])
    parser.add_argument("--estimator", default="capped")
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--figure", help="where to draw the medians, such as table_size.svg")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        clocks = play(*json.loads(args.one))
        grows = peak_mib() - clocks[0].first_peak
        print(json.dumps({"spans": [clock.spans[1:] for clock in clocks], "grows": grows}))
        return
    print(describe(SEED))
    print(f"FedSubAvg({args.estimator!r}), {COHORT} clients a round of {CLIENTS}, {TOUCHED} rows each, width {WIDTH}\n")
    print("| executor | rows | table, MiB | CPU ms a round: median (quartiles; range) | later rounds add, MiB |")
    print("|---|---:|---:|---:|---:|")
    spans: dict[str, dict[int, list[float]]] = {}
    for executor in args.executors:
        found = measure(args.rows, executor, args.rounds, args.estimator)["spans"]
        spans[executor] = dict(zip(args.rows, found, strict=True))
        for rows, s in spans[executor].items():
            grows = measure([rows], executor, 6, args.estimator)["grows"]
            low, high = quartiles(s)
            of = f"{1e3 * low:.1f} to {1e3 * high:.1f}; {1e3 * min(s):.1f} to {1e3 * max(s):.1f}"
            table = rows * WIDTH * 4 / 2**20
            print(f"| {executor} | {rows:,} | {table:.1f} | {1e3 * statistics.median(s):.1f} ({of}) | {grows:.1f} |")
    print()
    ratios = {e: [statistics.median(s) for s in sizes.values()] for e, sizes in spans.items()}
    for executor, medians in ratios.items():
        print(f"{executor}: the slowest size takes {max(medians) / min(medians):.2f} times the fastest")
    if args.figure:
        draw(spans, args.figure)
    steep = [e for e, medians in ratios.items() if max(medians) > WITHIN * min(medians)]
    if steep:
        raise SystemExit(f"not flat within {WITHIN}: {', '.join(steep)}")


if __name__ == "__main__":
    main()
