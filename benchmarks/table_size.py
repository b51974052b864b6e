"""Seconds and memory of a FedSubAvg round against the size of the table, the touched rows being the same.

Every client's examples touch 50 rows of an embedding table; 50 clients a round. The table has 10^4 to 10^7 rows of
width 8, and the clients' rows are spread over all of it. Each case runs in a process of its own; the first round, which
counts the population and warms up, is not counted. A round must cost the same whatever the table's size.

    python benchmarks/table_size.py [--rows 10000 100000 1000000 10000000] [--rounds 31] [--figure table_size.svg]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from machine import describe
from torch import Tensor, nn

from partwise.algorithms import FedSubAvg
from partwise.channels import Plain
from partwise.core.model import BinaryCrossEntropy, Model
from partwise.core.runtime import World
from partwise.local import SGD, LocalTraining
from partwise.populations import ArrayPopulation
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.runtimes import executors
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


class Clock:
    """Notes when each round was committed, and the peak memory after the first."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.first_peak = 0.0

    def record(self, record: object, world: World) -> str | None:
        if getattr(record, "kind", "") == "commit":
            self.times.append(time.perf_counter())
            self.first_peak = self.first_peak or peak_mib()
        return None

    def settled(self, world: World) -> None: ...

    def ended(self, world: World, reason: str) -> None: ...


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def play(rows: int, executor: str, rounds: int, estimator: str) -> dict[str, object]:
    torch.set_num_threads(1)
    people = population(rows)
    model = Model(Net(rows), BinaryCrossEntropy(), inputs=("ids",), tables={"table.weight": ("ids",)})
    algorithm = FedSubAvg(estimator, LocalTraining(SGD(0.1), batch_size=5))
    star = Star(algorithm, Synchronous(COHORT, rounds), model, people, Plain(), seed=SEED)
    clock, began = Clock(), time.perf_counter()
    Simulate(executor=getattr(executors, executor)()).run(star.programs(), people, clock)
    times = clock.times
    spans = [b - a for a, b in zip(times, times[1:], strict=False)]
    return {"spans": spans, "start": times[0] - began, "grows": peak_mib() - clock.first_peak, "peak": peak_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--executors", nargs="+", default=["Plain", "Stacked"])
    parser.add_argument("--estimator", default="capped")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        rows, executor = json.loads(args.one)
        print(json.dumps(play(rows, executor, args.rounds, args.estimator)))
        return
    print(describe(SEED))
    print(f"FedSubAvg({args.estimator!r}), {COHORT} clients a round of {CLIENTS}, {TOUCHED} rows each, width {WIDTH}")
    for executor in args.executors:
        for rows in args.rows:
            one = json.dumps([rows, executor])
            command = [sys.executable, __file__, "--one", one, "--rounds", str(args.rounds)]
            command += ["--estimator", args.estimator]
            r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            s = r["spans"]
            print(f"{executor} {rows:9d} {statistics.median(s)*1e3:7.1f} ms ({min(s)*1e3:.1f}-{max(s)*1e3:.1f}) start {r['start']:.2f} grows {r['grows']:.1f} MiB peak {r['peak']:.0f}", flush=True)


if __name__ == "__main__":
    main()
