"""One figure for all: quality against bytes sent up, and against time on thin links, of every compressor.

    python benchmarks/compress_figure.py mnist [--folder FOLDER] [--seeds 3] [--out docs/results]
    python benchmarks/compress_figure.py silos [--folder FOLDER] [--seeds 3] [--out docs/results]
    python benchmarks/compress_figure.py silos --rounds 2000 --decay 0.999 [--folder FOLDER]
    python benchmarks/compress_figure.py plays [--folder FOLDER] [--seeds 3] [--out docs/results]

`mnist`: 50 clients, Dirichlet 0.3, widths 1, 1/2 and 1/4 in equal shares (HeteroFL), 10 a round, 20 steps, 60 rounds;
a CNN. `silos`: 10 clients, Dirichlet 0.3, who are all in each of 300 rounds of 10 steps; whole models, a perceptron of
199,210 parameters. `plays`: a GPT of 0.2 million parameters, pretrained for 1,000 steps on every second play and tuned
by FedAvg across the others, a client each; 8 a round, 10 steps of AdamW, 30 rounds. Links of 10 Mb/s up and 50 Mb/s
down, 20 ms a local step. Every method has the same cohorts, seeds and settings but for its compressor; what needs error
feedback has it. `--decay`: the learning rate is multiplied by this in every round, as it is where a model is trained to
the end; what a compressor still owes shrinks with it.

What was made is kept in FOLDER, a file for each task, and not made again, so that the same command goes on. A table
(mean over seeds, standard deviation, and whether the mean is within one standard deviation of that without a
compressor) and a figure are written to OUT. Needs MNIST, or the plays, in the folder `data` of
PARTWISE_SHARED.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
from machine import describe, mnist_folder, plays_folder

import partwise as pw
from partwise.runtimes.executors import Plain, Stacked
from partwise.workloads.plays import save_weights

mpl.use("svg")
NEAREST = {"scale_by": "max", "rounding": "nearest"}
LINKS = pw.Constant(seconds_per_step=0.02, uplink=10e6 / 8, downlink=50e6 / 8)
METHODS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "bfloat16": (pw.Halved(),),
    "8 bits": (pw.ErrorFeedback(pw.Quantize(8, 512, **NEAREST)),),
    "4 bits, mixed (SDP4Bit)": (pw.ErrorFeedback(pw.Quantize(4, 128, smooth=5, **NEAREST)),),
    "4 bits up, 8 bits down": (pw.ErrorFeedback(pw.Quantize(4, 128, smooth=5, **NEAREST)),),
    "QSGD, 4 bits": (pw.Quantize(4, 512),),
    "1 bit (scaled sign)": (pw.ErrorFeedback(pw.Sign()),),
    "1 bit, turned (DRIVE)": (pw.Eden(1),),
    "top 1 %": (pw.ErrorFeedback(pw.TopK(ratio=0.01)),),
    "top 1 %, no feedback": (pw.TopK(ratio=0.01),),
    "random 1 %": (pw.ErrorFeedback(pw.RandomK(0.01)),),
    "rank 2": (pw.ErrorFeedback(pw.LowRank(2)),),
    "FedZip, 1 %": (pw.ErrorFeedback(pw.FedZip(0.01)),),
}

DOWN = {"4 bits up, 8 bits down": (pw.Quantize(8, 512, **NEAREST),)}  # download chains; what is not here is as it is

Curve = list[tuple[float, float, float]]  # quality, megabytes up, seconds; at every evaluation


ROUNDS = {"mnist": 60, "silos": 300, "plays": 30}


class Length(NamedTuple):
    """Of a run. decay: of the learning rate, in every round."""

    rounds: int
    decay: float


def experiment(task: str, length: Length, name: str, seed: int, weights: Path | None) -> pw.Experiment:
    rounds, decay = length
    common = {
        "evaluation": pw.Evaluation(every=max(1, rounds // 6), per_client=task == "plays"),
        "checkpointing": pw.Checkpointing(every_seconds=1e9),
        "runtime": pw.Simulate(executor=Stacked() if task == "silos" else Plain()),
        "client": METHODS[name],
        "download": DOWN.get(name, ()),
        "seed": seed,
    }
    if task == "mnist":
        widths = pw.Widths((1.0, 0.5, 0.25), base=LINKS)
        workload: Any = pw.MNIST(folder=mnist_folder(), partition=pw.Dirichlet(50, alpha=0.3), profiles=widths)
        local = pw.LocalTraining(pw.SGD(0.05), batch_size=20, steps=20, max_norm=5.0, lr_decay=decay)
        return pw.Experiment(workload, pw.HeteroFL(local), pw.Synchronous(10, rounds), **common)
    if task == "silos":
        split = pw.Dirichlet(10, alpha=0.3)
        workload = pw.MNIST(mnist_folder(), partition=split, size="mlp", profiles=LINKS)
        local = pw.LocalTraining(pw.SGD(0.1), batch_size=32, steps=10, lr_decay=decay)
        return pw.Experiment(workload, pw.FedAvg(local), pw.Synchronous(10, rounds), **common)
    workload = pw.ShakespeareGPT(
        plays_folder(), half="tune", clients="play", test_share=0.03, weights=weights, profiles=LINKS
    )
    local = pw.LocalTraining(pw.AdamW(3e-4), batch_size=16, steps=10, max_norm=1.0, lr_decay=decay)
    return pw.Experiment(workload, pw.FedAvg(local), pw.Synchronous(8, rounds), **common)


def pretrained(folder: Path) -> Path:
    """The GPT's weights to begin with, made once: one client has every second play."""
    path = folder / "pretrained.safetensors"
    if not path.exists():
        workload = pw.ShakespeareGPT(plays_folder(), half="pretrain", clusters=1, test_share=0.03)
        local = pw.LocalTraining(pw.AdamW(1e-3), batch_size=16, steps=1000, max_norm=1.0)
        federation = pw.FedAvg(local), pw.Synchronous(1, rounds=1)
        result = pw.Experiment(workload, *federation, seed=1, runtime=pw.Simulate(executor=Plain())).run(
            folder / "pretraining"
        )
        print(f"pretrained: {result.table('loss', 'pooled')[-1]['value']:.4f} a character", flush=True)
        save_weights(result.params, path)
    return path


def curve(task: str, length: Length, name: str, seed: int, weights: Path | None) -> Curve:
    with tempfile.TemporaryDirectory() as folder:
        result = experiment(task, length, name, seed, weights).run(Path(folder) / "run")
        rows = result.table("accuracy", "central") if task != "plays" else result.table("loss", "pooled")
        return [(row["value"], row["uplink_bytes"] / 1e6, row["time"]) for row in rows]


def curves(args: argparse.Namespace, chosen: Iterable[str]) -> dict[str, list[Curve]]:
    """Seed by seed, so that what is there after a while is the whole table once."""
    args.folder.mkdir(parents=True, exist_ok=True)
    keep = args.folder / f"{args.task}.jsonl"
    lines = [json.loads(line) for line in keep.read_text().splitlines()] if keep.exists() else []
    length = Length(args.rounds, args.decay)
    mine = [row for row in lines if (row["rounds"], row.get("decay", 1.0)) == length]
    known = {(row["method"], row["seed"]): row["curve"] for row in mine}
    weights = pretrained(args.folder) if args.task == "plays" else None
    for seed, name in product(range(1, args.seeds + 1), chosen):
        if (name, seed) in known:
            continue
        began = time.process_time()
        known[name, seed] = curve(args.task, length, name, seed, weights)
        row = {"method": name, "seed": seed, **length._asdict(), "curve": known[name, seed]}
        with keep.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name:26} seed {seed} {known[name, seed][-1]} {time.process_time() - began:.0f} s", flush=True)
    return {name: [known[name, seed] for seed in range(1, args.seeds + 1)] for name in chosen}


def draw(args: argparse.Namespace, found: dict[str, list[Curve]], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    for number, (name, runs) in enumerate(found.items()):
        points = list(zip(*runs, strict=True))  # of one evaluation, over seeds
        quality = [[p[0] for p in at] for at in points]
        for axis, column in zip(axes, (1, 2), strict=True):
            first = column % 2  # before the first byte is nowhere on an axis of logarithms
            x = [statistics.mean(p[column] for p in at) for at in points[first:]]
            low, mean, high = ([f(q) for q in quality[first:]] for f in (min, statistics.mean, max))
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
            axis.plot(x, mean, label=name, **style)
            axis.fill_between(x, low, high, alpha=0.15, color=style["color"])
    for axis, label in zip(axes, ("megabytes up, all clients", "seconds at 10 Mb/s up, 50 Mb/s down"), strict=True):
        axis.set(xlabel=label)
    axes[0].set_xscale("log")
    if args.task != "plays":
        ends = [statistics.mean(run[-1][0] for run in runs) for runs in found.values()]
        axes[0].set_ylim(min(ends) - 0.02, max(ends) + 0.005)  # not all of the way up from a tenth
    axes[0].set_ylabel("accuracy" if args.task != "plays" else "loss a character")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def table(found: dict[str, list[Curve]]) -> list[str]:
    lines = [
        "| compressor | at the end | sd | the same | up, MB | times less | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    full = statistics.mean(run[-1][1] for run in found["none"])
    whole = [run[-1][0] for run in found["none"]]
    for name, runs in found.items():
        ends = [run[-1] for run in runs]
        q, up, seconds = (statistics.mean(e[i] for e in ends) for i in range(3))
        own, plain = (statistics.stdev(x) if len(x) > 1 else math.nan for x in ([e[0] for e in ends], whole))
        near = "yes" if abs(q - statistics.mean(whole)) <= plain else "no"
        lines.append(f"| {name} | {q:.4f} | {own:.4f} | {near} | {up:.2f} | {full / up:.1f} | {seconds:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(ROUNDS))
    parser.add_argument("--folder", type=Path, default=Path("compress"))
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--decay", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="methods whose names begin so; `none` is always there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.rounds = args.rounds or ROUNDS[args.task]
    chosen = [n for n in METHODS if n == "none" or not args.only or n.startswith(tuple(args.only))]
    if (mnist_folder() if args.task != "plays" else plays_folder()) is None:
        raise SystemExit(f"needs {args.task}: set PARTWISE_SHARED to the folder that holds data")
    where = describe(seed=1)
    print(where, flush=True)
    found = curves(args, chosen)
    lines = table(found)
    print("\n".join(lines))
    if args.out:
        kind = args.task if args.decay == 1 else f"{args.task}-decayed"
        picture = args.out / f"compression-{kind}.svg"
        draw(args, found, picture)
        command = f"python benchmarks/compress_figure.py {args.task} --rounds {args.rounds} --seeds {args.seeds}"
        command += "" if args.decay == 1 else f" --decay {args.decay}"
        text = [f"# Compressors on {kind}", "", f"`{command}` on {where}.", "", *lines, ""]
        text += [f"![quality against bytes and against time]({picture.name})", ""]
        (args.out / f"compression-{kind}.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
