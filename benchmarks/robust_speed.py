"""How fast robust rules are, beside byzfl where it has the same rule.

    python benchmarks/robust_speed.py [--updates 50] [--size 1000000] [--passes 5] [--threads 2] [--submodels]
        [--only Krum] [--only GeometricMedian]

`--submodels`: clients hold half of the coordinates each, by chance; byzfl knows none and is left out.

Each update is one tensor of its own; byzfl gets them stacked, which is not counted. The variants take turns, one turn
of each before the first is not counted; given is the minimum of the passes, since other work only ever adds to it, and
the median in brackets. `copies`: that minimum over the one of copying all updates, in the same turns. `cpu`: the least
processor time of all threads, which other work changes less than it does the clock. Extra memory: the highest resident
size during one more call over that before it, on Linux. `gap`: the largest difference from byzfl's result over its
largest entry. It has Krum with m - f - 1 neighbours where the paper has m - f - 2, so that it may pick another; its
geometric median makes as many steps as it is told to, and here as many as bring it near.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from torch import Tensor

from partwise.aggregators import (
    Bulyan,
    CentredClip,
    FlagAggregator,
    FoolsGold,
    GeometricMedian,
    Krum,
    MeanAroundMedian,
    Median,
    Phocas,
    TrimmedMean,
)
from partwise.core.aggregate import Aggregator
from partwise.core.index import Coords, Whole
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, to_dense

SEED = 1
Run = Callable[[], Tensor]


def updates_of(num: int, size: int, is_partial: bool) -> list[Update]:
    rng = torch.Generator().manual_seed(SEED)
    shared, found = torch.randn(size, generator=rng), []
    for _ in range(num):
        row = 0.3 * shared + torch.randn(size, generator=rng)
        if not is_partial:
            found.append(Update(Whole({"w": (size,)}), {"w": row}))
            continue
        at = torch.rand(size, generator=rng).lt(0.5).nonzero().reshape(-1)
        found.append(Update(Coords({"w": (size,)}, {"w": at}), {"w": row[at]}))
    return found


def ours(part: Aggregator, updates: list[Update]) -> Run:
    params = {"w": torch.zeros(updates[0].index.shapes["w"])}
    state, replies = part.init(params, Census(len(updates))), [ReplyInfo(i, i, 0, 1, 1) for i in range(len(updates))]
    return lambda: to_dense(part.reduce(updates, state, params, replies)[0], params)["w"]


def theirs(updates: list[Update], f: int) -> dict[str, Run]:
    try:
        import byzfl
    except ImportError:
        return {}
    stacked = torch.stack([u.values()["w"] for u in updates])
    made = {
        "Median": byzfl.Median(),
        "TrimmedMean": byzfl.TrMean(f),
        "MeanAroundMedian": byzfl.Meamed(f),
        "Krum": byzfl.Krum(f),
        "Multi-Krum": byzfl.MultiKrum(f),
        "GeometricMedian": byzfl.GeometricMedian(nu=1e-6, T=8),
    }
    return {name: (lambda part=part: part(stacked)) for name, part in made.items()}


def memory_of(run: Run) -> float:
    """MB on top of what was there; nan where the system does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")

    def read(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    reset.write_text("5")  # the high-water mark begins anew
    before = read("VmRSS")
    run()
    return (read("VmHWM") - before) / 1e3


def timed(runs: dict[str, Run], passes: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of each pass, and the least of the processor's."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    least = dict.fromkeys(runs, float("inf"))
    for number in range(passes + 1):
        for name, run in runs.items():
            began, used = time.perf_counter(), time.process_time()
            run()
            if number:
                took[name].append(1e3 * (time.perf_counter() - began))
                least[name] = min(least[name], 1e3 * (time.process_time() - used))
    return took, least


def copying(updates: list[Update]) -> Run:
    values = [u.values()["w"] for u in updates]
    room = [torch.empty_like(v) for v in values]

    def run() -> Tensor:
        for to, value in zip(room, values, strict=True):
            to.copy_(value)
        return room[0]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--submodels", action="store_true")
    parser.add_argument("--only", action="append", help="a rule; may be given more than once")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    f = args.updates // 5
    print(describe(SEED), f"{args.threads} threads", sep=", ")
    print(f"m = {args.updates}, d = {args.size:,}, f = {f}{', each holds half' if args.submodels else ''}\n")
    updates = updates_of(args.updates, args.size, args.submodels)
    parts: dict[str, Aggregator] = {
        "Median": Median(),
        "TrimmedMean": TrimmedMean(trim_count=f),
        "MeanAroundMedian": MeanAroundMedian(f),
        "Phocas": Phocas(f),
        "Krum": Krum(f),
        "Multi-Krum": Krum(f, num_selected=args.updates - f),
        "Bulyan": Bulyan(f),
        "GeometricMedian": GeometricMedian(),
        "CentredClip": CentredClip(radius=args.size**0.5),
        "FlagAggregator": FlagAggregator(),
        "FoolsGold": FoolsGold(),
    }
    parts = {name: part for name, part in parts.items() if args.only is None or name in args.only}
    mine = {name: ours(part, updates) for name, part in parts.items()}
    other = {} if args.submodels else {n: r for n, r in theirs(updates, f).items() if n in mine}
    runs = {"copy": copying(updates), **{f"ours {n}": r for n, r in mine.items()}}
    took, least = timed({**runs, **{f"byzfl {n}": r for n, r in other.items()}}, args.passes)
    copied = min(took["copy"])
    print(f"copying all updates: {copied:.0f} ms ({statistics.median(took['copy']):.0f})\n")
    print("| rule | ms | copies | cpu, ms | byzfl, ms | ratio | extra MB | gap |")
    print("|---|---|---|---|---|---|---|---|")
    for name, run in mine.items():
        own, their = took[f"ours {name}"], took.get(f"byzfl {name}", [])
        cells = [name, f"{min(own):.0f} ({statistics.median(own):.0f})", f"{min(own) / copied:.1f}"]
        cells.append(f"{least[f'ours {name}']:.0f}")
        if their:
            expected = other[name]()
            gap = float((run() - expected).abs().max() / expected.abs().max())
            cells += [f"{min(their):.0f} ({statistics.median(their):.0f})", f"{min(their) / min(own):.1f}"]
        cells += ["", ""] if not their else []
        print("| " + " | ".join([*cells, f"{memory_of(run):.0f}", f"{gap:.0e}" if their else ""]) + " |", flush=True)


if __name__ == "__main__":
    main()
