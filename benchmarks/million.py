"""A population of a million clients: peak memory besides the data, CPU seconds to the first version and of a round.

Every client has two to four examples; the model is a small perceptron. Each case runs in a process of its own:
programs on the simulator alone (`simulate`), and a whole experiment with its record, summary of the clients and
checkpoints (`experiment`). What is shown as memory is the process's peak without the bytes of the columns and offsets,
so with the interpreter and torch, and how much of it the run added.

    python benchmarks/million.py [--clients 1000000] [--cohorts 100 10000] [--rounds 4] [--max-mib 1024]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import describe
from torch import nn

from partwise.algorithms import FedAvg
from partwise.channels import Plain
from partwise.core.metrics import Accuracy
from partwise.core.model import CrossEntropy, Model
from partwise.core.runtime import Observer, World
from partwise.core.workload import Workload
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import Silent
from partwise.local import SGD, LocalTraining
from partwise.populations import ArrayPopulation, Constant, LogNormal
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Stacked
from partwise.schedulers import Synchronous

SEED, INPUTS, HIDDEN, CLASSES = 1, 16, 32, 4
PROFILES = {"constant": Constant(), "drawn": LogNormal(seconds_per_step=0.05)}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def population(clients: int, profiles: str) -> ArrayPopulation:
    """Made in place, so that making it has no peak of its own."""
    draw = torch.Generator().manual_seed(SEED)
    offsets = torch.zeros(clients + 1, dtype=torch.int64)
    torch.randint(2, 5, (clients,), generator=draw, out=offsets[1:])
    torch.cumsum(offsets, 0, out=offsets)
    n = int(offsets[-1])
    x = torch.empty(n, INPUTS).normal_(generator=draw)
    y = torch.empty(n, dtype=torch.int64).random_(CLASSES, generator=draw)
    return ArrayPopulation({"x": x, "y": y}, offsets, profiles=PROFILES[profiles])


class Clock(Observer, Silent):
    """Notes when each round was committed; an observer and a progress."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def record(self, record: object, world: World) -> str | None:
        if getattr(record, "kind", "") == "commit":
            self.times.append(time.process_time())
        return None

    def settled(self, world: World) -> None: ...

    def ended(self, world: World, reason: str) -> None: ...

    def committed(self, version: int, loss: float, world: World, scores: object = ()) -> None:
        self.times.append(time.process_time())


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def play(case: dict[str, object]) -> dict[str, float]:
    torch.set_num_threads(1)
    clients, cohort, rounds = int(case["clients"]), int(case["cohort"]), int(case["rounds"])
    people, model = population(clients, str(case["profiles"])), Model(net, CrossEntropy())
    data = sum(t.nbytes for t in [*people.columns.values(), people.offsets]) / 2**20
    algorithm = FedAvg(LocalTraining(SGD(0.1), batch_size=2, steps=2))
    scheduler, runtime, clock = Synchronous(cohort=cohort, rounds=rounds), Simulate(executor=Stacked()), Clock()
    before, began = peak_mib(), time.process_time()
    if case["through"] == "simulate":
        star = Star(algorithm, scheduler, model, people, Plain(), seed=SEED)
        runtime.run(star.programs(relays=runtime.relays), people, clock)
    else:
        workload = Workload(model, people, (Accuracy(),))
        with tempfile.TemporaryDirectory() as folder:
            experiment = Experiment(
                workload, algorithm, scheduler, seed=SEED, runtime=runtime, evaluation=Evaluation(per_client=False)
            )
            experiment.run(Path(folder) / "run", progress=clock)
    ended = time.process_time()
    spans = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)] or [float("nan")]
    typical = statistics.median(spans)
    return {
        "besides_mib": peak_mib() - data,
        "added_mib": peak_mib() - before,
        "data_mib": data,
        "first": clock.times[0] - began,
        "round": typical,
        "low": min(spans),
        "high": max(spans),
        "end": ended - clock.times[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--through", nargs="+", choices=["simulate", "experiment"], default=["simulate", "experiment"])
    parser.add_argument("--profiles", nargs="+", choices=list(PROFILES), default=list(PROFILES))
    parser.add_argument("--max-mib", type=float, default=1024.0, help="fail above this peak besides the data")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(play(json.loads(args.one))))
        return
    print(describe(SEED))
    print(f"{args.clients:,} clients, {args.rounds} rounds, Stacked, one thread; MiB besides the columns, CPU seconds")
    print("through     profiles  cohort  peak MiB  added MiB  first s  round s (range)       end s")
    worst = 0.0
    for through in args.through:
        for profiles in args.profiles:
            for cohort in args.cohorts:
                case = {"clients": args.clients, "cohort": cohort, "rounds": args.rounds}
                one = json.dumps({**case, "through": through, "profiles": profiles})
                command = [sys.executable, __file__, "--one", one]
                r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                worst = max(worst, r["besides_mib"])
                print(
                    f"{through:11} {profiles:9} {cohort:6} {r['besides_mib']:9.0f} {r['added_mib']:10.0f} "
                    f"{r['first']:8.2f} {r['round']:8.3f} ({r['low']:.3f}-{r['high']:.3f}) {r['end']:8.2f}",
                    flush=True,
                )
    print(f"largest peak besides the data: {worst:.0f} MiB, allowed {args.max_mib:.0f}")
    if worst > args.max_mib:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
