"""The clock alone: events a second, and memory, of schedulers over clients with paces, links and traces.

Nothing is trained: `partwise.runtimes.rehearse` plays a scheduler against a population of 10^3 to 10^6 clients, each
with a pace and links of its own and a trace of when it is there (an interval of half a day in every day, kept as an
interval of a trace). An event is what a scheduler is given: a reply, a loss, a deadline; the task that it answers and
the client that is asked next are part of its cost. Each case runs in a process of its own, on one core; several passes,
median and range.

    python benchmarks/clock.py [--clients 1000 10000 100000 1000000] [--events 300000] [--passes 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from machine import describe

from partwise.core.schedule import Scheduler
from partwise.populations import ArrayPopulation, Intervals, ProfileArrays
from partwise.runtimes.rehearse import Cost, rehearse
from partwise.schedulers import FedAsync, FedBuff, FedCompass, Synchronous

SEED, DAY = 1, 86_400.0
MANY = 10**9
SCHEDULERS = {
    "Synchronous, 100 a round": Synchronous(cohort=100, rounds=MANY),
    "Synchronous, 10,000 a round": Synchronous(cohort=10_000, rounds=MANY),
    "FedAsync, 1,000 at work": FedAsync(concurrency=1000, versions=MANY),
    "FedBuff, 10 of 1,000 at work": FedBuff(buffer=10, concurrency=1000, versions=MANY),
    "FedBuff, 100 of 10,000 at work": FedBuff(buffer=100, concurrency=10_000, versions=MANY),
    "FedCompass, everybody": FedCompass(versions=MANY),
}


def people(clients: int) -> ArrayPopulation:
    """Log-normal paces and links; everybody is there for half a day in every day, from an hour of its own on."""
    draw = np.random.default_rng(SEED)
    profiles = ProfileArrays(
        0.1 * np.exp(0.5 * draw.standard_normal(clients)),
        0.5e6 * np.exp(0.5 * draw.standard_normal(clients)),
        2.5e6 * np.exp(0.5 * draw.standard_normal(clients)),
    )
    start = draw.random(clients) * DAY
    end = start + DAY / 2
    late = end > DAY  # these are there at midnight: two intervals
    client = np.concatenate([np.arange(clients)[late], np.arange(clients)])
    start, end = np.concatenate([0 * start[late], start]), np.concatenate([end[late] - DAY, np.minimum(end, DAY)])
    trace = Intervals(client, start, end, period_seconds=DAY)
    columns = {"x": torch.zeros(clients, dtype=torch.uint8)}
    return ArrayPopulation(columns, torch.arange(clients + 1), profiles=profiles, availability=trace)


def play(name: str, clients: int, events: int) -> dict[str, float]:
    torch.set_num_threads(1)
    scheduler: Scheduler = SCHEDULERS[name]
    population, cost = people(clients), Cost(20, 50, 200, 300, 40_000, 40_000, 200)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    found = rehearse(scheduler, population, lambda _: cost, seed=SEED, max_events=events)
    spent = time.process_time() - began
    return {
        "rate": found.events / spent,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mib": before,
        "hours": found.seconds / 3600,
        "versions": len(found.commits),
        "lost": sum(found.lost.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(play(*json.loads(args.one))))
        return
    print(describe(SEED))
    print(f"{args.events:,} events, {args.passes} passes, one core; CPU time")
    print("| scheduler | clients | events/s (range) | peak MiB | hours on the clock | commits | lost |")
    print("|---" * 7 + "|")
    for name in SCHEDULERS:
        for clients in args.clients:
            at_work = 10_000 if "10,000" in name else 1000
            if clients < at_work or (name.endswith("everybody") and clients > 10_000):
                continue
            one = json.dumps([name, clients, args.events])
            command = [sys.executable, __file__, "--one", one]
            found = [
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for _ in range(args.passes)
            ]
            rates = [f["rate"] for f in found]
            r = found[0]
            peak = max(f["peak_mib"] for f in found)
            print(
                f"| {name} | {clients:,} | {statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | "
                f"{peak:,.0f} | {r['hours']:.1f} | {r['versions']:,} | {r['lost']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
