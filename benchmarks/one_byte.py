"""A small GPT tuned by one byte a sample and version, beside full gradients: loss against bytes.

    python benchmarks/one_byte.py --folder PLAYS [--size tiny|small] [--versions 100] [--seeds 2]
        [--root runs/one-byte] [--out docs/results]

A GPT of 8,640 parameters (`tiny`: width 16, two layers, 32 characters of context) or of 210,304 (`small`, that of
`ShakespeareGPT`) is pretrained on every second play by FedAvg with AdamW, 3 rounds of 4 groups of plays and 20 steps,
and then tuned on the other plays, in 4 groups that all take part in every version:

- `one byte`: `OneByte`, 8 directions a group and version, slopes on 64 examples, a byte for each; no gradient;
- `float slopes`: the same with 4 bytes for a slope, which says what the byte loses;
- `FedSGD`: one step of plain SGD on 64 examples a group and version, the change in float32;
- `FedAvg`: 20 such steps.

Rates were chosen on seed 0, which is not among those reported: the best of 0.003, 0.006, 0.012 and 0.03 for slopes
(0.03 rises) and of 0.03, 0.1 and 0.3 for FedSGD, in 60 versions; for `small` the best of 0.002, 0.006 and 0.02 in 4
versions, and of 0.1, 0.3 and 1 in 20. The loss is that of the tuned half's test parts, all
groups together, a character. Bytes are those of encoded messages, all groups together; `numbers` are those that the
method needs, without headers: N n_s slopes a version, or N d values.

What a run found is kept in `--root`, so that a second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from machine import describe, spread

import partwise as pw
from partwise.runtimes.executors import Plain
from partwise.workloads.plays import save_weights

mpl.use("svg")
GROUPS, SAMPLES, BATCH, STEPS = 4, 8, 64, 20
SHAPES: dict[str, dict[str, Any]] = {"tiny": {"width": 16, "heads": 4, "layers": 2, "context": 32}, "small": {}}
PARAMETERS = {"tiny": 8640, "small": 210304}


def algorithm(name: str, lr: float, seed: int) -> Any:
    if name in SLOPES:
        return pw.OneByte(GROUPS, samples=SAMPLES, lr=lr, batch_size=BATCH, is_coded=name == "one byte", seed=seed)
    steps = STEPS if name == "FedAvg" else 1
    return pw.FedAvg(pw.LocalTraining(pw.SGD(lr), batch_size=BATCH, steps=steps), weights="uniform")


# Method -> learning rate, versions for each version of `--versions`, versions between evaluations, bytes of numbers a
# version; those of values times the parameters.
METHODS: dict[str, tuple[float, float, int, int]] = {
    "one byte": (0.012, 1.0, 20, GROUPS * SAMPLES),
    "float slopes": (0.012, 1.0, 20, 4 * GROUPS * SAMPLES),
    "FedSGD": (0.1, 1.0, 20, 4 * GROUPS),
    "FedAvg": (0.1, 0.05, 1, 4 * GROUPS),
}
SLOPES = ("one byte", "float slopes")
SMALL_SLOPES_RATE = 0.006


def experiment(workload: Any, part: Any, versions: int, every: int, seed: int) -> pw.Experiment:
    return pw.Experiment(
        workload,
        part,
        pw.Synchronous(GROUPS, versions),
        seed=seed,
        evaluation=pw.Evaluation(every=every),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        runtime=pw.Simulate(executor=Plain()),
    )


def named(size: str, name: str) -> str:
    """A file's name, which says the size where it is not the first there was."""
    return name if size == "tiny" else f"{size}-{name}"


def pretrained(folder: Path, root: Path, size: str, rounds: int, seed: int) -> Path:
    """The file of the weights to begin with."""
    path = root / named(size, f"pretrained-{rounds}-{seed}.safetensors")
    if not path.exists():
        workload = pw.ShakespeareGPT(folder, half="pretrain", clusters=GROUPS, **SHAPES[size])
        local = pw.LocalTraining(pw.AdamW(lr=3e-3), batch_size=32, steps=STEPS, max_norm=1.0)
        result = experiment(workload, pw.FedAvg(local), rounds, rounds, seed).run(root=root)
        save_weights(result.params, path)
    return path


def tuned(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Losses by version, with the bytes that they took; from the file of an earlier call, if there is one."""
    lr, share, every, _ = METHODS[name]
    lr = args.lr or (SMALL_SLOPES_RATE if args.size == "small" and name in SLOPES else lr)
    versions = max(1, round(share * args.versions))
    file = f"{name.replace(' ', '-')}-{args.pretraining}-{lr:g}-{versions}-{seed}.json"
    path = args.root / named(args.size, file)
    if not path.exists():
        weights = pretrained(args.folder, args.root, args.size, args.pretraining, seed)
        workload = pw.ShakespeareGPT(args.folder, half="tune", clusters=GROUPS, weights=weights, **SHAPES[args.size])
        began = time.process_time()
        result = experiment(workload, algorithm(name, lr, seed), versions, every, seed).run(root=args.root)
        rows = result.table("loss", "pooled")
        curve = [[row["version"], row["value"], row["uplink_bytes"], row["downlink_bytes"]] for row in rows]
        path.write_text(json.dumps({"curve": curve, "seconds": time.process_time() - began}))
    return dict(json.loads(path.read_text()))


def table(found: dict[str, list[dict[str, Any]]], parameters: int) -> list[str]:
    """Means over seeds, with standard deviations; bytes are the same for every seed."""
    head = ("method", "versions", "loss before", "loss after", "fallen by", "numbers", "up", "down", "CPU, s")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, runs in found.items():
        first, last = ([run["curve"][at] for run in runs] for at in (0, -1))
        fallen = [a[1] - b[1] for a, b in zip(first, last, strict=True)]
        version, _, up, down = last[0]
        losses = spread([a[1] for a in first], ".4f"), spread([b[1] for b in last], ".4f"), spread(fallen, ".4f")
        seconds = statistics.mean(run["seconds"] for run in runs)
        numbers = METHODS[name][3] * version * (1 if name in SLOPES else parameters)
        lines.append(
            f"| {name} | {version} | {losses[0]} | {losses[1]} | {losses[2]} | {numbers:,} | {up:,} | {down:,} "
            f"| {seconds:.0f} |"
        )
    return lines


def reached(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What FedSGD and FedAvg had sent when they were as low as one byte ends."""
    lines = []
    goals = [run["curve"][-1][1] for run in found["one byte"]]
    for name in ("FedSGD", "FedAvg"):
        at = [next((row for row in run["curve"] if row[1] <= goal), None) for run, goal in zip(found[name], goals)]  # noqa: B905 - fewer seeds of one
        known = [row for row in at if row is not None]
        said = "never" if not known else f"in {len(known)} of {len(goals)} seeds"
        if known:
            versions, sent = sorted(r[0] for r in known), sorted(r[2] for r in known)
            said += f", at version {versions[0]} to {versions[-1]}, after {sent[0]:,} to {sent[-1]:,} bytes up"
        lines.append(f"- {name} was as low as one byte ends {said}.")
    return lines


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for number, (name, runs) in enumerate(found.items()):
        points = list(zip(*(run["curve"] for run in runs), strict=True))  # of one version, over seeds
        for axis, x in zip(axes, ([p[0][2] for p in points], [p[0][0] for p in points]), strict=True):
            lows, highs = ([choose(row[1] for row in p) for p in points] for choose in (min, max))
            axis.plot(x, [statistics.mean(row[1] for row in p) for p in points], "o-", ms=3, label=name)
            axis.fill_between(x, lows, highs, alpha=0.15, color=f"C{number}")
    axes[0].set(xlabel="bytes up, all clients, headers included", ylabel="test loss a character", xscale="log")
    axes[1].set(xlabel="versions", xscale="symlog")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the plays")
    parser.add_argument("--size", choices=list(SHAPES), default="tiny")
    parser.add_argument("--versions", type=int, default=100)
    parser.add_argument("--pretraining", type=int, default=3, help="rounds")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.0, help="instead of that of the method")
    parser.add_argument("--only", nargs="*", help="methods")
    parser.add_argument("--root", type=Path, default=Path("runs/one-byte"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.root.mkdir(parents=True, exist_ok=True)
    where = f"{describe(args.first_seed)} to {args.first_seed + args.seeds - 1}"
    print(where, flush=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.only or METHODS:
            found.setdefault(name, []).append(tuned(args, name, seed))
            print(f"seed {seed} {name:13} {found[name][-1]['curve'][-1]}", flush=True)
    lines = table(found, PARAMETERS[args.size])
    if {"one byte", "FedSGD", "FedAvg"} <= found.keys():
        lines += ["", *reached(found)]
    print("\n".join(lines))
    if args.out:
        picture = args.out / named(args.size, "one-byte.svg")
        draw(found, picture)
        command = f"python benchmarks/one_byte.py --size {args.size} --versions {args.versions} --seeds {args.seeds}"
        text = [f"`{command}` on {where}; its docstring is the protocol.", "", *lines, ""]
        text += [f"![test loss against bytes sent and against versions]({picture.name})", ""]
        (args.out / named(args.size, "one-byte.md")).write_text(
            "\n".join(["# One byte per sample and step", "", *text])
        )


if __name__ == "__main__":
    main()
