"""Peak memory of one round against the size of its cohort: it must not grow when the aggregator needs only sums.

Every client holds the whole model, of a million parameters (`large`) or of hundreds (`small`, where what is kept per
client shows); two local steps. In the first world clients take no time, so that one finishes before the next begins; in
the second they have paces and links of their own, so that all of them hold the model at once. Every cohort runs in a
process of its own; what is shown is how much its peak resident memory grows during the round.

    python benchmarks/round_memory.py [--cohorts 10 100 1000] [--model large|small] [--executor Plain]
        [--memory-mib 128] [--runtime simulate|processes]
    python benchmarks/round_memory.py --model small --cohorts 10 100 1000 10000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial

import torch
from machine import describe
from torch import nn

from partwise.algorithms import FedAvg
from partwise.channels import Plain
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples, Population, Profile
from partwise.core.runtime import Observer, Runtime, World
from partwise.local import SGD, LocalTraining
from partwise.programs.star import Star
from partwise.runtimes import Processes, Simulate, executors
from partwise.schedulers import Synchronous

SEED, CLASSES = 1, 10
SIZES = {"large": (784, 1250), "small": (16, 32)}  # inputs, hidden units: 0.99 million parameters, and 874


def parameters(size: str) -> int:
    inputs, hidden = SIZES[size]
    return (inputs + 1) * hidden + (hidden + 1) * CLASSES


class People(Population):
    """Clients of 16 examples each."""

    def __init__(self, count: int, inputs: int, *, varied: bool) -> None:
        self.count, self.varied = count, varied
        draw = torch.Generator().manual_seed(SEED)
        self.columns = {
            "x": torch.randn(count * 16, inputs, generator=draw),
            "y": torch.randint(CLASSES, (count * 16,), generator=draw),
        }

    @property
    def clients(self) -> range:
        return range(self.count)

    def data(self, client: int) -> Examples:
        return Examples(self.columns).slice(16 * client, 16 * client + 16)

    @property
    def is_instant(self) -> bool:
        return not self.varied

    def profile(self, client: int, now: float = 0.0) -> Profile:
        return Profile(1.0 + client % 7, 1e5 + 1e3 * (client % 11), 1e6, 4e9, 1.0) if self.varied else Profile()


class Quiet(Observer):
    """Sees nothing."""

    def record(self, record: object, world: World) -> str | None:
        return None

    def settled(self, world: World) -> None: ...

    def ended(self, world: World, reason: str) -> None: ...


def net(size: str) -> nn.Module:
    inputs, hidden = SIZES[size]
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def play(cohort: int, runtime: Runtime, size: str, *, varied: bool) -> dict[str, float]:
    """One round, after a first one with two clients that warms everything up."""
    torch.set_num_threads(1)
    people, model = People(cohort, SIZES[size][0], varied=varied), Model(partial(net, size), CrossEntropy())
    local = LocalTraining(SGD(0.1), batch_size=8, steps=2)

    def once(many: int) -> float:
        scheduler = Synchronous(cohort=many, rounds=1)
        star = Star(FedAvg(local), scheduler, model, people, Plain(), seed=SEED)
        began = time.perf_counter()
        runtime.run(star.programs(relays=runtime.relays), people, Quiet())
        return time.perf_counter() - began

    once(2)
    before = peak_mib()
    seconds = once(cohort)
    return {"growth_mib": peak_mib() - before, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--memory-mib", type=int, default=128)
    parser.add_argument("--runtime", choices=["simulate", "processes"], default="simulate")
    parser.add_argument("--model", choices=list(SIZES), default="large")
    parser.add_argument("--executor", default="Plain", help="a class of partwise.runtimes.executors")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    kind = Simulate if args.runtime == "simulate" else Processes
    if args.one:
        cohort, varied = json.loads(args.one)
        runtime = kind(memory_bytes=args.memory_mib << 20, executor=getattr(executors, args.executor)())
        print(json.dumps(play(cohort, runtime, args.model, varied=varied)))
        return
    print(describe(SEED))
    count = parameters(args.model)
    print(f"{args.runtime}, {args.executor}, bound {args.memory_mib} MiB, model {count:,} x 4 bytes")
    print("world         cohort   peak grows by   all updates   seconds")
    for varied in (False, True):
        for cohort in args.cohorts:
            command = [sys.executable, __file__, "--one", json.dumps([cohort, varied])]
            command += ["--memory-mib", str(args.memory_mib), "--runtime", args.runtime]
            command += ["--model", args.model, "--executor", args.executor]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            whole = cohort * count * 4 / 2**20
            world = "own pace" if varied else "no time"
            print(f"{world:12s} {cohort:7d} {found['growth_mib']:11.0f} MiB {whole:9.0f} MiB {found['seconds']:9.2f}")


if __name__ == "__main__":
    main()
