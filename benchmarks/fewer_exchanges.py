"""Methods that exchange less often, or less in both directions, on one figure: what each paper claims, judged.

    python benchmarks/fewer_exchanges.py silos [--folder FOLDER] [--seeds 3] [--out docs/results]
    python benchmarks/fewer_exchanges.py plays [--folder FOLDER] [--seeds 3] [--out docs/results]

`silos`: 10 clients with MNIST, Dirichlet 0.3, a perceptron of 199,210 parameters, batches of 32, plain SGD. `plays`: a
GPT of 31 thousand parameters from scratch on every second play, in 4 clusters of plays, batches of 16, gradients no
longer than 1; clients use AdamW, but for the methods that say SGD or have a step of their own. All clients are in every
round. Every method makes the same number of local steps, 800 or 320, so that what differs is how often and what they
send. Links of 10 Mb/s up and 50 Mb/s down, 20 ms a local step.

Each method's rate is the best of those it has in this file, on seed 0, which is not among those reported; where that is
the largest or the smallest, twice or half of it is tried, too, and so on. A rate that diverges is worst. What was made
is kept in FOLDER and not made again, so that the same command goes on.
A table (mean over seeds 1 and on, standard deviation, the rate, megabytes, seconds on the clock) and a figure are
written to OUT. Needs MNIST, or the plays, in the folder `data` of PARTWISE_SHARED.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
from machine import describe, mnist_folder, plays_folder

import partwise as pw
from partwise.runtimes.executors import Plain, Stacked

mpl.use("svg")
LINKS = pw.Constant(seconds_per_step=0.02, uplink=10e6 / 8, downlink=50e6 / 8)

Curve = list[tuple[float, float, float, float]]  # quality, megabytes up and down, seconds; at every evaluation
Local = Callable[..., pw.LocalTraining]  # (optimiser, steps) -> local training with the task's batches


class Method(NamedTuple):
    """make: (rate, local) -> parts of an experiment, the algorithm among them. steps: between two exchanges."""

    steps: int
    rates: tuple[float, ...]
    make: Callable[[float, Local], dict[str, Any]]


class Work(NamedTuple):
    """One of the two tasks. best: min or max, of what is measured. steps: of every client, in all."""

    clients: int
    steps: int
    metric: tuple[str, str]
    best: Callable[..., float]
    executor: Any
    local: Local
    methods: dict[str, Method]


def averaged(local: pw.LocalTraining) -> pw.FedAvg:
    return pw.FedAvg(local, weights="uniform")


def plain(steps: int, optimizer: Any, *server: Any) -> Callable[[float, Local], dict[str, Any]]:
    """FedAvg; server: transforms of the aggregate."""
    return lambda lr, local: {"algorithm": averaged(local(optimizer(lr), steps)), "server": server}


def by_server(step: Callable[[float], Any]) -> Callable[[float, Local], dict[str, Any]]:
    """Every step, and the server's optimiser has the rate: clients send what are gradients but for their sign."""
    return lambda lr, local: {"algorithm": averaged(local(pw.SGD(1.0), 1)), "server": (step(lr),)}


def signed(steps: int, optimizer: Any, gamma: float) -> Callable[[float, Local], dict[str, Any]]:
    """The rate is what a coordinate moves in a round; clients train with gamma."""

    def make(lr: float, local: Local) -> dict[str, Any]:
        inner = averaged(local(optimizer(gamma), steps))
        return {"algorithm": pw.SignMomentum(inner, gamma=gamma, lr=lr / gamma)}

    return make


def late(steps: int, optimizer: Any, **kwargs: Any) -> Callable[[float, Local], dict[str, Any]]:
    """Overlapped; gamma is 1 here, so that clips and momenta are those of plain differences, as in the release."""

    def make(lr: float, local: Local) -> dict[str, Any]:
        inner = averaged(local(optimizer(lr), steps))
        return {"algorithm": pw.CO2(inner, gamma=1.0, delay=0, **kwargs), "overlapped": True}

    return make


def fed_back(ratio: float) -> Callable[[float, Local], dict[str, Any]]:
    chain = (pw.ErrorFeedback(pw.RandomK(ratio, block=512)),)
    return lambda lr, local: {"algorithm": averaged(local(pw.SGD(lr), 1)), "client": chain}


def reset(gradient: float, model: float, every: int) -> Callable[[float, Local], dict[str, Any]]:
    """CSER; gradient: 0 sends nothing of it."""

    def make(lr: float, local: Local) -> dict[str, Any]:
        first = pw.RandomK(gradient, block=512) if gradient else None
        second = pw.RandomK(model, block=512)
        return {"algorithm": pw.CSER(first, second, every=every, local=local(pw.SGD(lr), 1))}

    return make


def lans(lr: float, local: Local) -> dict[str, Any]:
    return {"algorithm": pw.LANS(averaged(local(pw.SGD(1.0), 1)), lr=lr)}


def clan(lr: float, local: Local) -> dict[str, Any]:
    mirrored = pw.Mirrored(lans(lr, local)["algorithm"], pw.Sign())
    return {"algorithm": mirrored, "client": (pw.ErrorFeedback(pw.Sign()),)}


def lans_by_differences(lr: float, local: Local) -> dict[str, Any]:
    """As CLAN, but what comes down is signs of the model's differences."""
    return {**clan(lr, local), "algorithm": pw.Downlink(lans(lr, local)["algorithm"], pw.Sign())}


def signum(lr: float, local: Local) -> dict[str, Any]:
    return {
        "algorithm": averaged(local(pw.SGD(1.0), 1)),
        "client": (pw.Momentum(0.9), pw.Sign(scaled=False)),
        "aggregator": pw.MajorityVote(),
        "server": (pw.Scale(lr),),
    }


def ada_alter(steps: int) -> Callable[[float, Local], dict[str, Any]]:
    return lambda lr, local: {"algorithm": pw.AdaAlter(local(pw.SGD(lr), steps))}


def ferret(lr: float, local: Local) -> dict[str, Any]:
    """The local rate is that of `every round`; the server's is chosen."""
    return {"algorithm": pw.Ferret(256, lr=lr, local=local(pw.AdamW(0.003), 20), weights="uniform")}


SGD_RATES = (0.05, 0.1, 0.2)
ALTER_RATES = (0.1, 0.2, 0.4)
FED_BACK_RATES = (0.005, 0.01, 0.02)
RESET_RATES = (0.05, 0.1, 0.2)
SIGN_RATES = (0.0003, 0.001, 0.003)
PLAIN_RATES = (0.3, 1.0, 3.0)
LANS_RATES = (0.003, 0.01, 0.03)
SLOWMO, DILOCO = pw.ServerSGD(1.0, momentum=0.5), pw.ServerSGD(0.7, momentum=0.9, nesterov=True)
ADAM_RATES = (0.003, 0.006, 0.012)

SILOS = {
    "every step": Method(1, SGD_RATES, plain(1, pw.SGD)),
    "local SGD, 10": Method(10, SGD_RATES, plain(10, pw.SGD)),
    "local SGD, 40": Method(40, SGD_RATES, plain(40, pw.SGD)),
    "SlowMo, 40": Method(40, SGD_RATES, plain(40, pw.SGD, SLOWMO)),
    "DiLoCo's outer step, 40": Method(40, SGD_RATES, plain(40, pw.SGD, DILOCO)),
    "sign momentum, 40": Method(40, (0.003, 0.01, 0.03), signed(40, pw.SGD, 0.1)),
    "CO2, 40": Method(40, SGD_RATES, late(40, pw.SGD, beta=0.0)),
    "CO2 with momentum .5, 40": Method(40, SGD_RATES, late(40, pw.SGD, beta=0.5)),
    "CO2 with momentum .5, no penalty": Method(40, SGD_RATES, late(40, pw.SGD, beta=0.5, gap="constant")),
    "AdaAlter, every step": Method(1, ALTER_RATES, ada_alter(1)),
    "Local AdaAlter, 4": Method(4, ALTER_RATES, ada_alter(4)),
    "error feedback, 1/64": Method(1, FED_BACK_RATES, fed_back(1 / 64)),
    "CSER, 1/64 (8, 16, 128)": Method(1, RESET_RATES, reset(1 / 128, 1 / 16, 8)),
    "error feedback, 1/256": Method(1, FED_BACK_RATES, fed_back(1 / 256)),
    "CSER, 1/256 (1, 256, -)": Method(1, RESET_RATES, reset(0.0, 1 / 256, 1)),
    "LANS": Method(1, LANS_RATES, lans),
    "CLAN": Method(1, LANS_RATES, clan),
    "LANS, signs of differences down": Method(1, LANS_RATES, lans_by_differences),
    "Signum": Method(1, SIGN_RATES, signum),
}
PLAYS = {
    "Adam, every step": Method(1, ADAM_RATES, by_server(lambda lr: pw.Adam(lr, beta2=0.99, tau=1e-6))),
    "local AdamW, 20": Method(20, ADAM_RATES, plain(20, pw.AdamW)),
    "SlowMo, 20": Method(20, ADAM_RATES, plain(20, pw.AdamW, SLOWMO)),
    "DiLoCo, 20": Method(20, ADAM_RATES, plain(20, pw.AdamW, DILOCO)),
    "sign momentum, 20": Method(20, (0.003, 0.006, 0.012), signed(20, pw.AdamW, 0.006)),
    "CO2, 20": Method(20, ADAM_RATES, late(20, pw.AdamW, beta=0.0)),
    "CO2 with momentum .5, 20": Method(20, ADAM_RATES, late(20, pw.AdamW, beta=0.5)),
    "CO2 with momentum .5, no penalty": Method(20, ADAM_RATES, late(20, pw.AdamW, beta=0.5, gap="constant")),
    "AdaAlter, every step": Method(1, ALTER_RATES, ada_alter(1)),
    "Local AdaAlter, 4": Method(4, ALTER_RATES, ada_alter(4)),
    "SGD, every step": Method(1, PLAIN_RATES, plain(1, pw.SGD)),
    "error feedback, 1/64": Method(1, (0.03, 0.06, 0.12), fed_back(1 / 64)),
    "CSER, 1/64 (8, 16, 128)": Method(1, PLAIN_RATES, reset(1 / 128, 1 / 16, 8)),
    "LANS": Method(1, LANS_RATES, lans),
    "CLAN": Method(1, LANS_RATES, clan),
    "LANS, signs of differences down": Method(1, LANS_RATES, lans_by_differences),
    "Ferret, 256 numbers, 20": Method(20, (0.01, 0.03, 0.1), ferret),
}


def silo_local(optimizer: Any, steps: int) -> pw.LocalTraining:
    return pw.LocalTraining(optimizer, batch_size=32, steps=steps)


def play_local(optimizer: Any, steps: int) -> pw.LocalTraining:
    return pw.LocalTraining(optimizer, batch_size=16, steps=steps, max_norm=1.0)


WORK = {
    "silos": Work(10, 800, ("accuracy", "central"), max, Stacked(), silo_local, SILOS),
    "plays": Work(4, 320, ("loss", "pooled"), min, Plain(), play_local, PLAYS),
}


def data(task: str) -> Any:
    if task == "silos":
        return pw.MNIST(mnist_folder(), partition=pw.Dirichlet(10, alpha=0.3), size="mlp", profiles=LINKS)
    folder = plays_folder()
    assert folder is not None
    shape: dict[str, Any] = {"width": 32, "layers": 2}
    return pw.ShakespeareGPT(plays_folder(), half="pretrain", clusters=4, test_share=0.03, profiles=LINKS, **shape)


def curve(task: str, method: Method, rate: float, seed: int) -> Curve:
    work = WORK[task]
    parts = method.make(rate, work.local)
    rounds = work.steps // method.steps
    overlapped = parts.pop("overlapped", False)
    scheduler = pw.Overlapped(rounds) if overlapped else pw.Synchronous(work.clients, rounds)
    with tempfile.TemporaryDirectory() as folder:
        result = pw.Experiment(
            data(task),
            scheduler=scheduler,
            evaluation=pw.Evaluation(every=max(1, rounds // 5), per_client=task == "plays"),
            checkpointing=pw.Checkpointing(every_seconds=1e9),
            runtime=pw.Simulate(executor=work.executor),
            seed=seed,
            **parts,
        ).run(Path(folder) / "run")
        rows = result.table(*work.metric)
    return [(r["value"], r["uplink_bytes"] / 1e6, r["downlink_bytes"] / 1e6, r["time"]) for r in rows]


class Kept:
    """What was made, in a file of the folder, a line for each run."""

    def __init__(self, folder: Path, task: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.task, self.path = task, folder / f"{task}.jsonl"
        lines = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        self.known: dict[tuple[str, float, int], Curve] = {
            (r["method"], r["rate"], r["seed"]): r["curve"] for r in lines
        }

    def curve(self, name: str, rate: float, seed: int) -> Curve:
        key = name, rate, seed
        if key not in self.known:
            began = time.process_time()
            try:
                self.known[key] = curve(self.task, WORK[self.task].methods[name], rate, seed)
            except pw.DivergedError:
                self.known[key] = [(math.nan,) * 4]
            row = {"method": name, "rate": rate, "seed": seed, "curve": self.known[key]}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            seconds = time.process_time() - began
            print(f"{name:34} rate {rate:<7g} seed {seed} {self.known[key][-1]} {seconds:.0f} s", flush=True)
        return self.known[key]

    def rate(self, name: str) -> float:
        """The best on seed 0; what is not a number is worst."""
        work = WORK[self.task]
        ends = {rate: self.curve(name, rate, 0)[-1][0] for rate in work.methods[name].rates}
        while True:
            known = [rate for rate, end in ends.items() if not math.isnan(end)]
            best = work.best(known, key=ends.__getitem__) if known else min(ends)
            if min(ends) < best < max(ends):
                return best
            more = best * 2 if best == max(ends) else best / 2
            ends[more] = self.curve(name, more, 0)[-1][0]


def table(rates: dict[str, float], found: dict[str, list[Curve]]) -> list[str]:
    lines = ["| method | rate | at the end | sd | up, MB | down, MB | seconds |", "|---|---|---|---|---|---|---|"]
    for name, runs in found.items():
        ends = [run[-1] for run in runs]
        quality, up, down, seconds = (statistics.mean(e[i] for e in ends) for i in range(4))
        deviation = statistics.stdev(e[0] for e in ends) if len(ends) > 1 else float("nan")
        size = [f"{b:.1f}" if b >= 10 else f"{b:.3g}" for b in (up, down)]
        cells = name, f"{rates[name]:g}", f"{quality:.4f}", f"{deviation:.4f}", *size, f"{seconds:.0f}"
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(task: str, found: dict[str, list[Curve]], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(14, 5.5), sharey=True)
    for number, (name, runs) in enumerate(found.items()):
        points = list(zip(*runs, strict=True))[1:]  # of one evaluation, over seeds; before the first byte is nowhere
        low, mean, high = ([f(p[0] for p in at) for at in points] for f in (min, statistics.mean, max))
        for axis, column in zip(axes, (1, 3), strict=True):
            x = [statistics.mean(p[column] for p in at) for at in points]
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
            axis.plot(x, mean, label=name, **style)
            axis.fill_between(x, low, high, alpha=0.12, color=style["color"])
    for axis, label in zip(axes, ("megabytes up, all clients", "seconds at 10 Mb/s up, 50 Mb/s down"), strict=True):
        axis.set(xlabel=label, xscale="log")
    axes[0].set_ylabel("accuracy" if task == "silos" else "loss a character")
    axes[0].set_ylim(*((0.85, 0.985) if task == "silos" else (2.2, 4.0)))
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def chosen(task: str, only: Iterable[str] | None) -> list[str]:
    return [name for name in WORK[task].methods if not only or name.startswith(tuple(only))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(WORK))
    parser.add_argument("--folder", type=Path, default=Path("fewer"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="methods whose names begin so")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if (mnist_folder() if args.task == "silos" else plays_folder()) is None:
        raise SystemExit(f"needs {args.task}: set PARTWISE_SHARED to the folder that holds data")
    where = describe(seed=1)
    print(where, flush=True)
    kept, names = Kept(args.folder, args.task), chosen(args.task, args.only)
    rates = {name: kept.rate(name) for name in names}
    found: dict[str, list[Curve]] = {name: [] for name in names}
    for seed in range(1, args.seeds + 1):
        for name in names:
            found[name].append(kept.curve(name, rates[name], seed))
    lines = table(rates, found)
    print("\n".join(lines))
    if args.out:
        picture = args.out / f"exchanges-{args.task}.svg"
        draw(args.task, found, picture)
        command = f"python benchmarks/fewer_exchanges.py {args.task} --seeds {args.seeds}"
        text = [f"# Fewer exchanges on {args.task}", "", f"`{command}` on {where} to {args.seeds}.", "", *lines, ""]
        text += [f"![quality against bytes and against time]({picture.name})", ""]
        (args.out / f"exchanges-{args.task}.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
