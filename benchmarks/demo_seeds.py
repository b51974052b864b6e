"""The demo over several seeds: FedSubAvg's estimators against FedAvg on the standard library's code.

    python benchmarks/demo_seeds.py [--seeds 5] [--rounds 150] [--jobs 2] [--out docs/results/demo.md]

The seeds begin at 11: the model's initial scale was chosen by looking at seeds 0 and 1. A seed decides the initial
parameters, the cohorts, the batches, the negatives and the clients' paces.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe

import partwise as pw
from partwise.experiment.store import RunStore

FIRST_SEED = 11
AT = (25, 50, 100, 150)
METHODS = ("FedAvg", "count", "capped")


def algorithm(name: str) -> Any:
    local = pw.LocalTraining(pw.SGD(lr=1.0), batch_size=32, steps=20)
    return pw.FedAvg(local, weights="uniform") if name == "FedAvg" else pw.FedSubAvg(name, local)


def run(task: tuple[str, int, int, str]) -> dict[str, Any]:
    """One run: its curve of pooled AUC, spread over clients and bytes."""
    name, seed, rounds, root = task
    experiment = pw.Experiment(
        pw.StdlibCode(profiles=pw.LogNormal()),
        algorithm(name),
        pw.Synchronous(cohort=30, rounds=rounds),
        name=f"{name.lower()}-{seed}",
        seed=seed,
        evaluation=pw.Evaluation(every=5),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        runtime=pw.Simulate(pw.Stacked()),
    )
    result = experiment.run(root=root)
    whole = json.loads((result.folder / "population.json").read_text())["model"]["bytes"]
    with RunStore(result.folder, "read") as store:
        largest = max(row["uplink_bytes"] for row in store.replies()) / whole
        curve = store.metrics("auc", "pooled")
        low = store.metrics("auc", "p10")[-1]["value"]
    return {
        "method": name,
        "seed": seed,
        "curve": {row["version"]: row["value"] for row in curve},
        "uplink": curve[-1]["uplink_bytes"],
        "clock": curve[-1]["time"],
        "largest": largest,
        "p10": low,
    }


def spread(values: Sequence[float], form: str) -> str:
    known = [v for v in values if not math.isnan(v)]
    if len(known) < len(values):
        return f"not reached in {len(values) - len(known)} of {len(values)}"
    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{format(statistics.mean(known), form)} ± {format(deviation, form)}"


def lines(found: list[dict[str, Any]], rounds: int) -> list[str]:
    """A Markdown table: mean and standard deviation over seeds."""
    final = {r["seed"]: r["curve"][rounds] for r in found if r["method"] == "FedAvg"}
    at = [v for v in AT if v <= rounds]
    head = [
        "method",
        *(f"AUC at {v}" for v in at),
        "p10 of clients",
        f"rounds to FedAvg's AUC at {rounds}",
        "uplink, MB",
        "largest uplink of a client, % of the model",
    ]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in METHODS:
        runs = [r for r in found if r["method"] == name]
        reached = [next((v for v, a in r["curve"].items() if a >= final[r["seed"]]), math.nan) for r in runs]
        cells = [
            name,
            *(spread([r["curve"][v] for r in runs], ".4f") for v in at),
            spread([r["p10"] for r in runs], ".3f"),
            spread([float(v) for v in reached], ".0f"),
            spread([r["uplink"] / 1e6 for r in runs], ".1f"),
            f"{100 * max(r['largest'] for r in runs):.2f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--root", default="runs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    where = f"{describe(FIRST_SEED)} to {seeds[-1]}"
    print(where)
    tasks = [(name, seed, arguments.rounds, arguments.root) for seed in seeds for name in METHODS]
    found = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(run, tasks):
            found.append(result)
            print(
                f"{result['method']:7} seed {result['seed']}: AUC {result['curve'][arguments.rounds]:.4f}", flush=True
            )
    table = lines(found, arguments.rounds)
    print("\n".join(table))
    if arguments.out:
        text = (
            "# The demo over five seeds",
            "",
            f"`python benchmarks/demo_seeds.py --seeds {arguments.seeds} --rounds {arguments.rounds}` on {where}.",
            "Mean ± standard deviation over the seeds; AUC over all clients' test examples together, every 5 rounds.",
            "",
            *table,
            "",
            "The embedding's initial scale was chosen by looking at seeds 0 and 1; these seeds are others.",
            "The largest uplink is that of any one task of any client, everything it sends counted.",
            "",
        )
        arguments.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
