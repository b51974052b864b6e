"""What a round takes when transfers run beside training, and when they do not: CO2 on the clock.

    python benchmarks/overlap.py [--out docs/results]

Four clusters with equal links take 20 local steps a round. The time of a transfer (the reply, then the next round's
part, with the small messages around them) is a tenth, all and three times that of the steps. `Synchronous` with
`CO2(delay=1)` waits; `Overlapped` with `CO2(delay=0)` does not, and makes the same models (of batches of all examples:
others are drawn by version). The time of a round is that between two commits in the middle of the run. Nothing is
measured on this machine: the clock is virtual. With `--out`, the timelines for equal times are drawn there.

Source of what is reproduced: Sun et al., "CO2", ICLR 2024, arXiv:2401.16265: max(tau t_c, comm) seconds a round.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import partwise as pw
from partwise.experiment.runs import read_run
from partwise.experiment.timeline import timeline_of
from partwise.experiment.timeline_svg import timeline_svg
from partwise.experiment.timeline_text import timeline_text

CLUSTERS, ROUNDS, STEPS, PACE, RATE = 4, 8, 20, 0.05, 0.05
LOCAL = pw.FedAvg(pw.LocalTraining(pw.SGD(RATE), batch_size=0, steps=STEPS), weights="uniform")
WAYS = {
    "waits": (pw.Synchronous(CLUSTERS, rounds=ROUNDS + 1), 1),
    "overlaps": (pw.Overlapped(ROUNDS), 0),
}


def played(way: str, bytes_per_second: float, folder: Path):
    """The run, read again, and its last model."""
    links = pw.Constant(PACE, uplink=bytes_per_second, downlink=bytes_per_second)
    scheduler, delay = WAYS[way]
    experiment = pw.Experiment(
        pw.LeafSynthetic(num_clients=CLUSTERS, profiles=links),
        pw.CO2(LOCAL, RATE, delay=delay),
        scheduler,
        name=way,
        seed=3,
        evaluation=pw.Evaluation(every=1000),
    )
    found = experiment.run(folder / f"{way}-{bytes_per_second:g}").folder
    return read_run(found), load_file(found / "model.safetensors")


def seconds_per_round(run) -> float:
    return (run.commits[5].time - run.commits[2].time) / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Where training takes next to no time beside it, a round is a transfer: its bytes follow.
        transfer = seconds_per_round(played("overlaps", 10.0, folder)[0]) * 10.0
        print(f"{transfer:,.0f} bytes a round and cluster; {STEPS} steps of {PACE:g} s\n")
        print("| transfer / training | waits, s a round | overlaps, s a round | max(training, transfer) | same model |")
        print("|---|---|---|---|---|")
        texts = []
        for ratio in (0.1, 1.0, 3.0):
            rate = transfer / (ratio * STEPS * PACE)
            (waits, one), (overlaps, other) = (played(way, rate, folder) for way in WAYS)
            is_same = all(torch.allclose(one[name], other[name], rtol=1e-6, atol=1e-7) for name in one)
            least = max(1.0, ratio) * STEPS * PACE
            print(
                f"| {ratio:g} | {seconds_per_round(waits):.4f} | {seconds_per_round(overlaps):.4f} | {least:.4f} | "
                f"{'yes' if is_same else 'no'} |"
            )
            texts += [f"{ratio:g}:\n{timeline_text(timeline_of(r, rows=2, end=9.0), 100)}" for r in (waits, overlaps)]
            if args.out is not None and ratio == 1:
                for run in (waits, overlaps):
                    path = args.out / f"timeline-{run.label}.svg"
                    path.write_text(timeline_svg(timeline_of(run, end=10.0)), encoding="utf-8")
        print("\n" + "\n\n".join(texts))


if __name__ == "__main__":
    main()
