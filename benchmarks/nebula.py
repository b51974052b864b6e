"""Two clusters whose wide-area links change: what is sent follows the measured rate, beside each fixed choice.

    python benchmarks/nebula.py --folder PLAYS [--phase 40] [--seeds 3]

A GPT of 31 thousand parameters is trained on half of the plays, in two clusters, by local SGD with 5 steps of 0.2 s a
round. The links up have three phases of `--phase` seconds: good, bad, and in between; the second cluster has half
the rate. `ByLink` picks for each cluster the best of five ways whose bytes take at most a tenth of the training. Every
way, fixed, and the choice have as many seconds of the clock. A row: rounds in each phase, loss a character on held-out
text at the end of each (the last evaluation, one in ten rounds), and megabytes sent up; medians over the seeds, losses
with their range.

Source of the setting: Xiang et al., "Nebula-I", 2022, arXiv:2205.09470.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from machine import describe

import partwise as pw
from partwise.core.population import Profile
from partwise.core.transform import Identity
from partwise.experiment.runs import read_run
from partwise.populations.profiles import Profiles

STEPS, PACE, CLUSTERS = 5, 0.2, 2
NEAREST = {"scale_by": "max", "rounding": "nearest"}
WAYS = {
    "as it is": Identity(),
    "bfloat16": pw.Halved(),
    "8 bits": pw.Quantize(8, 512, **NEAREST),
    "4 bits, mixed": pw.Quantize(4, 128, smooth=5, **NEAREST),
    "top 1 %": pw.TopK(ratio=0.01),
}
RATES = (2e6, 4e4, 4e5)  # bytes a second up


@dataclass(frozen=True)
class Phases(Profiles):
    """Links up that change every so many seconds."""

    seconds: float

    def profile(self, client: int, now: float = 0.0) -> Profile:
        rate = RATES[min(len(RATES) - 1, int(now / self.seconds))]
        return Profile(PACE, rate / (1 + client), 2e6)


class Outcome(NamedTuple):
    """Of one run, by phase. up: bytes."""

    rounds: list[int]
    losses: list[float]
    up: float


def run(name: str, seed: int, args: argparse.Namespace, folder: Path) -> Outcome:
    """One way, or the choice where the name is none of them."""
    workload = pw.ShakespeareGPT(
        args.folder, half="pretrain", clusters=CLUSTERS, width=32, layers=2, profiles=Phases(args.phase)
    )
    end = args.phase * len(RATES)
    scheduler: object = pw.FedBuff(CLUSTERS, CLUSTERS, replace="commit", versions=0, seconds=end, steps=STEPS)
    way: object = WAYS.get(name)
    if way is None:
        way = pw.Menu(tuple(WAYS.values()))
        sizes = way.sizes(workload.build(seed).model.init(seed))
        scheduler = pw.ByLink(scheduler, sizes, steps=STEPS)
    local = pw.LocalTraining(pw.SGD(0.5), batch_size=16, steps=STEPS, max_norm=1.0)
    experiment = pw.Experiment(
        workload,
        pw.FedAvg(local, weights="uniform"),
        scheduler,
        client=() if isinstance(way, Identity) else (pw.ErrorFeedback(way),),
        evaluation=pw.Evaluation(every=10),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        seed=seed,
    )
    result = experiment.run(folder / f"{name.replace(' ', '-')}-{seed}")
    table, commits = result.table("loss", "pooled"), read_run(result.folder).commits
    rounds, losses = [], []
    for i in range(len(RATES)):
        begin, end = args.phase * i, args.phase * (i + 1)
        rounds.append(sum(begin < commit.time <= end for commit in commits))
        losses.append(max((line for line in table if line["time"] <= end), key=lambda line: line["version"])["value"])
    return Outcome(rounds, losses, table[-1]["uplink_bytes"])


def cells(runs: Sequence[Outcome]) -> list[str]:
    """The row of a way."""
    rounds = [f"{statistics.median(each):g}" for each in zip(*(run.rounds for run in runs), strict=True)]
    losses = [
        f"{statistics.median(each):.3f} ({min(each):.3f}-{max(each):.3f})"
        for each in zip(*(run.losses for run in runs), strict=True)
    ]
    return [*rounds, *losses, f"{statistics.median(run.up for run in runs) / 1e6:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--phase", type=float, default=40.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=[*WAYS, "chosen by link"], help="the rows")
    args = parser.parse_args()
    print(f"{describe(1)} to {args.seeds}; phases of {args.phase:g} s\n")
    print("| way | rounds: good | bad | fair | loss: good | bad | fair | up, MB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.ways:
            runs = [run(name, seed, args, Path(folder)) for seed in range(1, args.seeds + 1)]
            print(f"| {name} | " + " | ".join(cells(runs)) + " |", flush=True)


if __name__ == "__main__":
    main()
