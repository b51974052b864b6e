"""Robust rules under attack on MNIST: 20 clients, every rule against every attack, by one command.

    python benchmarks/robust.py [--seeds 5] [--grid full|small|smoke] [--settings NAME ...] [--folder FOLDER]
        [--workers 2]

What was made is kept in FOLDER/trials.jsonl and not made again, so that the same command goes on. At the end tables and
heat maps of each setting are written to FOLDER, and what all of it took.

The protocol, fixed before the first run:

- 20 clients share MNIST's 60,000 training images IID, or by Dirichlet(0.5). A perceptron of two hidden layers of 64
  units, 55,050 parameters; 10 local steps of SGD, learning rate 0.1, batches of 32; all clients in each of 40 rounds.
  The score is the accuracy on the test images after the last round; for the backdoor also the share of marked images
  that are taken for its class.
- q of the clients are hostile, from the first round on, the same ones for all rules and attacks of a seed. A rule is
  told f = q; without hostile clients f is a fifth, so that its cost is seen. Zeno and Zeno++ have 100 test images of
  their own, which are not tested on. The radius of CentredClip is the best of 0.03, 0.1, 0.3 and 1 on some cells of
  seed 1, IID. What a rule cannot be built for, Bulyan with f = 8 of 20 say, is `refused`.
- Settings: the whole model, IID and Dirichlet; IID with a random half, or quarter, of the units of each hidden layer
  per client and round; and `one step`, as in "Fall of empires": 25 clients of whom 11 are hostile, one step on a batch
  of 50 in each of 400 rounds. Shares of hostile clients: 0.2 and 0.4, and 0.6 for Zeno and Zeno++; `full` has 0.1, 0.3
  and 0.45 as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import describe, mnist_folder

import partwise as pw
from partwise.core.aggregate import Aggregator
from partwise.core.attack import Attack
from partwise.experiment.trials import Trial, heat_map, make_trials, markdown
from partwise.populations import IID, Dirichlet, from_partition
from partwise.runtimes.executors import Stacked
from partwise.workloads.models import ImageMLP


class Setting(NamedTuple):
    keep: float = 1.0
    clients: int = 20
    rounds: int = 40
    steps: int = 10
    batch: int = 32


SETTINGS = {
    "IID": Setting(),
    "Dirichlet 0.5": Setting(),
    "IID, half": Setting(0.5),
    "IID, quarter": Setting(0.25),
    "one step": Setting(1.0, 25, 400, 1, 50),
}
ABOUT = f"robust 2: {SETTINGS}"

RULES: dict[str, Callable[[int], Aggregator]] = {
    "Mean": lambda _: pw.Mean("holders"),
    "Median": lambda _: pw.Median(),
    "TrimmedMean": lambda f: pw.TrimmedMean(trim_count=f),
    "MeanAroundMedian": pw.MeanAroundMedian,
    "Phocas": pw.Phocas,
    "GeometricMedian": lambda _: pw.GeometricMedian(),
    "Krum": pw.Krum,
    "Multi-Krum": lambda f: pw.Krum(f, num_selected=10),
    "Bulyan": pw.Bulyan,
    "CentredClip": lambda _: pw.CentredClip(radius=0.1),
    "NNM + TrimmedMean": lambda f: pw.NearestNeighbours(f, pw.TrimmedMean(trim_count=f)),
    "Bucketing + Median": lambda _: pw.Bucketing(pw.Median(), size=2),
    "SLSGD": lambda f: pw.SLSGD(f, alpha=0.8),
    "Flag": lambda _: pw.FlagAggregator(),
    "FoolsGold": lambda _: pw.FoolsGold(names=("head.weight",)),
    "FedLD": lambda _: pw.PrincipalGradients(),
    "Zeno": pw.Zeno,
    "Zeno++": lambda _: pw.ZenoPlusPlus(rate=0.5),
}
JUDGED = ("Zeno", "Zeno++")
FALLEN = ("Mean", "Median", "TrimmedMean", "Krum"), ("IPM 0.1", "IPM 0.5", "ALIE")
ATTACKS: dict[str, Attack] = {
    "gaussian": pw.GaussianReplace(200.0),
    "sign flip": pw.SignFlip(1.0),
    "sign flip x10": pw.SignFlip(10.0),
    "label flip": pw.LabelFlip(10),
    "noise": pw.AdditiveNoise(0.01),
    "IPM 0.1": pw.InnerProduct(0.1),
    "IPM 0.5": pw.InnerProduct(0.5),
    "IPM 10": pw.InnerProduct(10.0),
    "ALIE": pw.ALittleIsEnough(is_omniscient=True),
    "coverage": pw.CoverageAttack(size=0.2),
    "backdoor": pw.Backdoor(into=1, scale=2.0),
}


@lru_cache(maxsize=1)
def images(folder: Path) -> dict[str, torch.Tensor]:
    data = np.load(folder / "mnist.npz")
    found = {}
    for part in ("train", "test"):
        found[f"x_{part}"] = torch.from_numpy(data[f"x_{part}"]).float().div(255).unsqueeze(1)
        found[f"y_{part}"] = torch.from_numpy(data[f"y_{part}"]).long()
    return found


@lru_cache(maxsize=2)
def workload(folder: Path, kind: str, seed: int) -> pw.Workload:
    data, clients = images(folder), SETTINGS[kind].clients
    population = from_partition(
        {"x": data["x_train"], "y": data["y_train"]},
        Dirichlet(clients, alpha=0.5) if kind.startswith("Dirichlet") else IID(clients),
        seed=seed,
        central_test=pw.Examples({"x": data["x_test"], "y": data["y_test"]}),
    )
    model = pw.Model(partial(ImageMLP, 784, 64, 10), pw.CrossEntropy(), widths=ImageMLP.widths())
    return pw.Workload(model, population, (pw.Accuracy(),))


def experiment(folder: Path, trial: Trial) -> pw.Experiment:
    kind = SETTINGS[trial.setting]
    local = pw.LocalTraining(pw.SGD(0.1), batch_size=kind.batch, steps=kind.steps)
    q = round(trial.share * kind.clients)
    whole = pw.FedAvg(local, weights="uniform")
    return pw.Experiment(
        workload(folder, trial.setting, trial.seed),
        whole if kind.keep == 1 else pw.FederatedDropout(kind.keep, local, weights="uniform"),
        pw.Synchronous(cohort=kind.clients, rounds=kind.rounds),
        seed=trial.seed,
        aggregator=RULES[trial.rule](q or kind.clients // 5),
        hostile=pw.Hostile(ATTACKS[trial.attack], trial.share) if q else None,
        trusted=pw.Trusted(100) if trial.rule in JUDGED else None,
        runtime=pw.Simulate(Stacked()),
    )


def grid(size: str, seeds: int, settings: Sequence[str]) -> Iterator[Trial]:
    """Seed by seed, so that what is there after an hour is the whole table once."""
    shares = {"full": (0.1, 0.2, 0.3, 0.4, 0.45), "small": (0.2, 0.4), "smoke": (0.4,)}[size]
    attacks = list(ATTACKS) if size != "smoke" else ["sign flip x10", "IPM 0.1"]
    rules = list(RULES) if size != "smoke" else ["Mean", "Median", "Krum", "Zeno"]
    for seed, setting in product(range(1, seeds + 1), settings):
        for rule in rules if setting != "one step" else FALLEN[0]:
            yield Trial(setting, rule, "none", 0.0, seed)
            of_rule = (*shares, 0.6) if rule in JUDGED else shares
            few = of_rule if setting in ("IID", "Dirichlet 0.5") else of_rule[:1]
            some = product(attacks, few) if setting != "one step" else product(FALLEN[1], (0.44,))
            yield from (Trial(setting, rule, attack, share, seed) for attack, share in some)


def made(
    folder: Path, out: Path, part: tuple[int, int], size: str, seeds: int, settings: Sequence[str]
) -> list[dict[str, Any]]:
    """The trials of one worker: those of one seed and partition follow one another."""
    mine = [t for at, t in enumerate(grid(size, seeds, settings)) if at % part[1] == part[0]]
    torch.set_num_threads(1)
    say = partial(print, flush=True)
    return make_trials(mine, partial(experiment, folder), out / "trials.jsonl", about=ABOUT, said=say)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy, a table for each share of hostile clients, and how often the backdoor works."""
    text = ""
    for share in sorted({row["share"] for row in rows} - {0.0}):
        judged = {row["rule"] for row in rows if row["share"] == share}
        some = [row for row in rows if row["share"] in (0.0, share) and row["rule"] in judged]
        text += f"Accuracy, %, {share:.0%} hostile:\n\n{markdown(some)}\n\n"
    marked = [row for row in rows if row["success"] is not None]
    return text + (f"Marked images in the backdoor's class, %:\n\n{markdown(marked, 'success')}\n" if marked else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--grid", choices=("full", "small", "smoke"), default="small")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS))
    parser.add_argument("--folder", type=Path, default=Path("robust"))
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    data = mnist_folder()
    if data is None:
        raise SystemExit("needs MNIST: set PARTWISE_SHARED to the folder that holds data/mnist.npz")
    began = time.monotonic()
    settings = args.settings or (list(SETTINGS) if args.grid != "smoke" else ["IID", "IID, half"])
    asked = args.grid, args.seeds, settings
    work = [(data, args.folder, (at, args.workers), *asked) for at in range(args.workers)]
    if args.workers == 1:
        parts = [made(*work[0])]
    else:
        with ProcessPoolExecutor(args.workers) as pool:
            parts = list(pool.map(made, *zip(*work, strict=True)))
    rows = [row for part in parts for row in part]
    order = {trial: at for at, trial in enumerate(grid(*asked))}
    rows.sort(key=lambda row: order[Trial(*(row[name] for name in Trial._fields))])
    print(f"\n{describe(seed=1)}; {args.seeds} seeds, {args.workers} workers\n")
    for setting in dict.fromkeys(row["setting"] for row in rows):
        some = [row for row in rows if row["setting"] == setting]
        text = f"## {setting}\n\n{tables(some)}"
        print(text)
        name = setting.replace(",", "").replace(" ", "-")
        (args.folder / f"{name}.md").write_text(text)
        heat_map(some, f"MNIST, {setting}").savefig(args.folder / f"{name}.svg")
    took = [row["seconds"] for row in rows if row["score"] is not None]
    print(f"{len(rows)} trials, {statistics.median(took):.1f} s each (median), {sum(took) / 3600:.2f} h of one core")
    print(f"this time: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
