"""One figure for all: quality against bytes sent up, and against time on thin links, of every compressor.

    python benchmarks/compress_figure.py mnist [--rounds 100] [--seeds 3] [--out docs/results]
    python benchmarks/compress_figure.py plays --folder PLAYS [--rounds 100] [--seeds 3] [--out docs/results]

`mnist`: 50 clients, Dirichlet 0.3, widths 1, 1/2 and 1/4 in equal shares (HeteroFL), 10 a round, 20 steps; a CNN.
`plays`: a GPT of 0.2 million parameters, tuned by FedAvg across plays that it was not pretrained on, if `--weights`
names what it is to begin with; 8 a round, 20 steps. Links of 10 Mb/s up and 50 Mb/s down, 20 ms a local step. Every
method has the same cohorts, seeds and settings but for its compressor; what needs error feedback has it.

Writes a table (mean over seeds, and the range) and a figure. A full run of 12 methods, 100 rounds and 3 seeds takes
about 12 x 3 x 100 rounds of 1 to 2 seconds: one to two hours on two cores for each task.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from machine import describe, mnist_folder

import partwise as pw
from partwise.runtimes.executors import Plain

mpl.use("svg")
NEAREST = {"scale_by": "max", "rounding": "nearest"}
LINKS = pw.Constant(seconds_per_step=0.02, uplink=10e6 / 8, downlink=50e6 / 8)
METHODS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "bfloat16": (pw.Halved(),),
    "8 bits": (pw.ErrorFeedback(pw.Quantize(8, 512, **NEAREST)),),
    "4 bits, mixed (SDP4Bit)": (pw.ErrorFeedback(pw.Quantize(4, 128, smooth=5, **NEAREST)),),
    "QSGD, 4 bits": (pw.Quantize(4, 512),),
    "1 bit (scaled sign)": (pw.ErrorFeedback(pw.Sign()),),
    "1 bit, turned (DRIVE)": (pw.Eden(1),),
    "top 1 %": (pw.ErrorFeedback(pw.TopK(ratio=0.01)),),
    "top 1 %, no feedback": (pw.TopK(ratio=0.01),),
    "random 1 %": (pw.ErrorFeedback(pw.RandomK(0.01)),),
    "rank 2": (pw.ErrorFeedback(pw.LowRank(2)),),
    "FedZip, 1 %": (pw.ErrorFeedback(pw.FedZip(0.01)),),
}


def experiment(args: argparse.Namespace, chain: tuple[Any, ...], seed: int) -> pw.Experiment:
    common = {
        "evaluation": pw.Evaluation(every=max(1, args.rounds // 10), per_client=args.task == "plays"),
        "checkpointing": pw.Checkpointing(every_seconds=1e9),
        "runtime": pw.Simulate(executor=Plain()),
        "client": chain,
        "seed": seed,
    }
    if args.task == "mnist":
        widths = pw.Widths((1.0, 0.5, 0.25), base=LINKS)
        split = pw.Dirichlet(args.clients or 50, alpha=0.3)
        workload: Any = pw.MNIST(folder=args.folder or mnist_folder(), partition=split, profiles=widths)
        local = pw.LocalTraining(pw.SGD(0.05), batch_size=20, steps=20, max_norm=5.0)
        return pw.Experiment(workload, pw.HeteroFL(local), pw.Synchronous(args.cohort or 10, args.rounds), **common)
    workload = pw.ShakespeareGPT(args.folder, half="tune", clients="play", weights=args.weights, profiles=LINKS)
    local = pw.LocalTraining(pw.SGD(0.3), batch_size=16, steps=20, max_norm=1.0)
    return pw.Experiment(workload, pw.FedAvg(local), pw.Synchronous(args.cohort or 8, args.rounds), **common)


def curve(args: argparse.Namespace, chain: tuple[Any, ...], seed: int) -> list[tuple[float, float, float]]:
    """Quality, megabytes up, seconds; at every evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        result = experiment(args, chain, seed).run(Path(folder) / "run")
        rows = result.table("accuracy", "central") if args.task == "mnist" else result.table("loss", "pooled")
        return [(row["value"], row["uplink_bytes"] / 1e6, row["time"]) for row in rows]


def draw(args: argparse.Namespace, found: dict[str, list[list[tuple[float, float, float]]]], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    for number, (name, runs) in enumerate(found.items()):
        points = list(zip(*runs, strict=True))  # of one evaluation, over seeds
        quality = [[p[0] for p in at] for at in points]
        for axis, column in zip(axes, (1, 2), strict=True):
            x = [statistics.mean(p[column] for p in at) for at in points]
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
            axis.plot(x, [statistics.mean(q) for q in quality], label=name, **style)
            axis.fill_between(x, [min(q) for q in quality], [max(q) for q in quality], alpha=0.15, color=style["color"])
    for axis, label in zip(axes, ("megabytes up, all clients", "seconds at 10 Mb/s up, 50 Mb/s down"), strict=True):
        axis.set(xlabel=label, xscale="log")
    axes[0].set_ylabel("accuracy" if args.task == "mnist" else "loss a character")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def table(found: dict[str, list[list[tuple[float, float, float]]]]) -> list[str]:
    lines = ["| compressor | at the end | range | up, MB | times less | seconds |", "|---|---|---|---|---|---|"]
    full = statistics.mean(run[-1][1] for run in found["none"])
    for name, runs in found.items():
        ends = [run[-1] for run in runs]
        q, up, seconds = (statistics.mean(e[i] for e in ends) for i in range(3))
        low, high = min(e[0] for e in ends), max(e[0] for e in ends)
        lines.append(f"| {name} | {q:.4f} | {low:.4f} to {high:.4f} | {up:.2f} | {full / up:.1f} | {seconds:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["mnist", "plays"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--cohort", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="methods whose names begin so; `none` is always there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chosen = {n: c for n, c in METHODS.items() if n == "none" or not args.only or n.startswith(tuple(args.only))}
    where = describe(seed=1)
    print(where, flush=True)
    found: dict[str, list[list[tuple[float, float, float]]]] = {}
    for name, chain in chosen.items():
        found[name] = [curve(args, chain, seed) for seed in range(1, args.seeds + 1)]
        print(f"{name:26} {found[name][0][-1]}", flush=True)
    lines = table(found)
    print("\n".join(lines))
    if args.out:
        picture = args.out / f"compression-{args.task}.svg"
        draw(args, found, picture)
        command = f"python benchmarks/compress_figure.py {args.task} --rounds {args.rounds} --seeds {args.seeds}"
        text = [f"# Compressors on {args.task}", "", f"`{command}` on {where}.", "", *lines, ""]
        text += [f"![quality against bytes and against time]({picture.name})", ""]
        (args.out / f"compression-{args.task}.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
