"""Row submodels with compressed rows: AUC against bytes on the standard library's code, in the clear and under masks.

    python benchmarks/compress_rows.py [--rounds 30] [--seeds 3] [--root runs/rows] [--out docs/results]

`FedSubAvg("count")` as in `demo_seeds.py`: a client holds the rows of the names that its module uses and the dense
layers, 30 clients a round, 20 steps. Each method has the same cohorts, batches and initial parameters for a seed; what
is a contraction has error feedback, and what is `times 4` is unbiased and has none. Under masks only what is linear may
stand; for the others the script prints why the experiment is refused. There, a row that fewer than five of the cohort
hold is not sent, which costs AUC by itself: the masked row without a compressor says how much. The third table has a
download chain, too: what comes down in fewer bits, and with that what clients train from.

Bytes are those of encoded messages, keys, shares and layouts included. `down` is what a client is sent, its rows and,
under masks, the exchange. What a run found is kept in `--root`, so that a second call goes on where the first stopped.
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

mpl.use("svg")
FIRST_SEED, COHORT = 11, 30
NEAREST = {"scale_by": "max", "rounding": "nearest"}


def fed_back(part: Any) -> tuple[Any, ...]:
    return (pw.ErrorFeedback(part),)


IN_THE_CLEAR: dict[str, tuple[Any, ...]] = {
    "none": (),
    "8 bits": fed_back(pw.Quantize(8, 512, **NEAREST)),
    "4 bits, mixed (SDP4Bit)": fed_back(pw.Quantize(4, 128, smooth=5, **NEAREST)),
    "1 bit (scaled sign)": fed_back(pw.Sign()),
    "top 10 %": fed_back(pw.TopK(ratio=0.1)),
    "top 1 %": fed_back(pw.TopK(ratio=0.01)),
    "rank 2": fed_back(pw.LowRank(2)),
    "random values, 25 %": fed_back(pw.RandomK(0.25)),
    "random rows, 25 %": fed_back(pw.RandomK(0.25, by_row=True)),
    "random rows, 25 %, times 4": (pw.RandomK(0.25, by_row=True, unbiased=True),),
}


# Client chain and download chain.
BOTH_WAYS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "bfloat16 down": ((), (pw.Halved(),)),
    "8 bits down": ((), (pw.Quantize(8, 512, **NEAREST),)),
    "4 bits down": ((), (pw.Quantize(4, 128, **NEAREST),)),
    "4 bits down, at random": ((), (pw.Quantize(4, 128, scale_by="max"),)),
    "8 bits both ways": (IN_THE_CLEAR["8 bits"], (pw.Quantize(8, 512, **NEAREST),)),
    "4 bits, mixed, up, 8 bits down": (IN_THE_CLEAR["4 bits, mixed (SDP4Bit)"], (pw.Quantize(8, 512, **NEAREST),)),
}


def masked(limit: float, bits: int, layout: str) -> pw.Masked:
    return pw.Masked(limit, bits, max_weight=1, layout=layout)  # type: ignore[arg-type]


# Client chain and channel. What error feedback owes, and what is multiplied, is longer, and needs a higher limit.
UNDER_MASKS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "none, 16 bits": ((pw.Clip(2.0),), masked(2.0, 16, "union")),
    "none, 16 bits, each its own rows": ((pw.Clip(2.0),), masked(2.0, 16, "sparse")),
    "none, 8 bits, each its own rows": ((pw.Clip(2.0),), masked(2.0, 8, "sparse")),
    "random values, 25 %": ((*IN_THE_CLEAR["random values, 25 %"], pw.Clip(4.0)), masked(4.0, 16, "union")),
    "random rows, 25 %": ((*IN_THE_CLEAR["random rows, 25 %"], pw.Clip(4.0)), masked(4.0, 16, "union")),
    "random rows, 25 %, times 4, each its own": (
        (*IN_THE_CLEAR["random rows, 25 %, times 4"], pw.Clip(8.0)),
        masked(8.0, 16, "sparse"),
    ),
    "random rows, 25 %, each its own": ((*IN_THE_CLEAR["random rows, 25 %"], pw.Clip(4.0)), masked(4.0, 16, "sparse")),
}


def experiment(
    chain: tuple[Any, ...], channel: Any, seed: int, rounds: int, download: tuple[Any, ...] = ()
) -> pw.Experiment:
    return pw.Experiment(
        pw.StdlibCode(),
        pw.FedSubAvg("count", pw.LocalTraining(pw.SGD(lr=1.0), batch_size=32, steps=20)),
        pw.Synchronous(COHORT, rounds),
        client=chain,
        download=download,
        channel=channel,
        seed=seed,
        evaluation=pw.Evaluation(every=5),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        runtime=pw.Simulate(pw.Stacked()),
    )


def run(args: argparse.Namespace, name: str, kind: str, seed: int) -> dict[str, Any]:
    """Version, AUC and bytes at every evaluation; from the file of an earlier call, if there is one."""
    chain, channel = UNDER_MASKS[name] if kind == "masked" else (IN_THE_CLEAR.get(name, ()), pw.Plain())
    chain, download = BOTH_WAYS[name] if kind == "both" else (chain, ())
    words = "".join(c for c in name if c.isalnum())
    path = args.root / f"{kind}-{words}-{args.rounds}-{seed}.json"
    if not path.exists():
        began = time.process_time()
        result = experiment(chain, channel, seed, args.rounds, download).run(root=args.root)
        rows = result.table("auc", "pooled")
        curve = [[row["version"], row["value"], row["uplink_bytes"], row["downlink_bytes"]] for row in rows]
        path.write_text(json.dumps({"curve": curve, "seconds": time.process_time() - began}))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def table(found: dict[str, list[dict[str, Any]]], full: float, rounds: int) -> list[str]:
    """Mean and standard deviation over seeds; `full` is the uplink that `times less` refers to."""
    lines = ["| | AUC | up, bytes a client and round | times less | down | CPU, s |", "|---|---|---|---|---|---|"]
    for name, runs in found.items():
        last = [r["curve"][-1] for r in runs]
        up, down = (statistics.mean(row[at] for row in last) / rounds / COHORT for at in (2, 3))
        seconds = statistics.mean(r["seconds"] for r in runs)
        auc = spread([row[1] for row in last], ".4f")
        lines.append(f"| {name} | {auc} | {up:,.0f} | {full / up:.1f} | {down:,.0f} | {seconds:.0f} |")
    return lines


def refusals(rounds: int) -> list[str]:
    """What is said of each compressor that cannot stand under masks."""
    lines = []
    for name, chain in IN_THE_CLEAR.items():
        try:
            experiment((*chain, pw.Clip(2.0)), masked(2.0, 16, "union"), FIRST_SEED, rounds).build()
        except pw.CompositionError as error:
            lines.append(f"- {name}: {str(error).split(', got')[0]} …")
    return lines


def draw(clear: dict[str, list[dict[str, Any]]], hidden: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    for axis, title, found in zip(axes, ("in the clear", "under masks"), (clear, hidden), strict=True):
        for name, runs in found.items():
            points = list(zip(*(r["curve"][1:] for r in runs), strict=True))  # of one version, over seeds
            x = [statistics.mean(row[2] for row in p) / 1e6 for p in points]
            (line,) = axis.plot(x, [statistics.mean(row[1] for row in p) for p in points], label=name)
            lows, highs = ([choose(row[1] for row in p) for p in points] for choose in (min, max))
            axis.fill_between(x, lows, highs, alpha=0.15, color=line.get_color())
        axis.set(xlabel="megabytes up, all clients", xscale="log", title=title)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("AUC, all clients' test examples")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=Path("runs/rows"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.root.mkdir(parents=True, exist_ok=True)
    where = f"{describe(FIRST_SEED)} to {FIRST_SEED + args.seeds - 1}"
    print(where, flush=True)
    clear: dict[str, list[dict[str, Any]]] = {}
    hidden: dict[str, list[dict[str, Any]]] = {}
    both: dict[str, list[dict[str, Any]]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
        kinds = ("clear", IN_THE_CLEAR, clear), ("masked", UNDER_MASKS, hidden), ("both", BOTH_WAYS, both)
        for kind, names, found in kinds:
            for name in names:
                found.setdefault(name, []).append(run(args, name, kind, seed))
                print(f"seed {seed} {kind:7}{name:34}{found[name][-1]['curve'][-1]}", flush=True)
    full = statistics.mean(r["curve"][-1][2] for r in clear["none"]) / args.rounds / COHORT
    print("\n".join(["", "In the clear:", "", *table(clear, full, args.rounds), ""]))
    print("\n".join(["Both ways:", "", *table(both, full, args.rounds), ""]))
    print("\n".join(["Under masks:", "", *table(hidden, full, args.rounds), "", "Refused:", ""]))
    print("\n".join(refusals(args.rounds)))
    if args.out:
        draw(clear, hidden, args.out / "compression-rows.svg")


if __name__ == "__main__":
    main()
