"""What a journal pays and slashes: ten clients share MNIST, of whom one copies, one flips labels, and one sends noise.

    python benchmarks/robust_journal.py [--seeds 1] [--rounds 10] [--edits 1000]

Four ways to train on the same clients, all ten in every round, one epoch of batches of 32, learning rate 0.05, a
small MLP: the mean; the mean with a journal whose operator judges by MUD-HoG; a journal whose suspects are left out,
before a trimmed mean; and one by whose reputations clients count, at 0.4 and more, in a mean. Clients 7, 8 and 9 are
hostile: 7 flips all labels, 8 sends the update of an honest client, to the last bit, and 9 sends noise. `paid` is per
client, in thousandths of what was paid in all; `below half` the first round after which a slashed stake is less than
half of what was put in, as a `stake_min` of that would make ineligible. Then random bytes of the last journal are
changed, one at a time, and looked for.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from machine import describe, mnist_folder
from robust import images

import partwise as pw
from partwise.aggregators import TrimmedMean, Watch
from partwise.attacks import GaussianReplace, Hostile, LabelFlip, Mixture
from partwise.core.aggregate import Aggregator
from partwise.core.attack import Attack, Scene
from partwise.core.update import Update
from partwise.experiment.journal_check import check_journal
from partwise.experiment.journaling import JOURNAL
from partwise.journal import Books, Entry, entry_hash, find_tampering
from partwise.observers import MUDHoG, Reputation
from partwise.populations import Dirichlet, from_partition
from partwise.runtimes.executors import Stacked
from partwise.workloads.models import ImageMLP

CLIENTS = 10
KINDS = {"honest": tuple(range(7)), "flips labels": (7,), "copies": (8,), "noise": (9,)}
STAKE = 1_000_000


@dataclass(frozen=True)
class Copy(Attack):
    """Sends what an honest client sent."""

    def forge(self, scene: Scene) -> list[Update]:
        return [replace(scene.honest[0]) for _ in scene.own]


def workload_of(folder: Path, seed: int) -> pw.Workload:
    data = images(folder)
    test = pw.Examples({"x": data["x_test"], "y": data["y_test"]})
    found = from_partition(
        {"x": data["x_train"], "y": data["y_train"]}, Dirichlet(CLIENTS, alpha=10.0), seed=seed, central_test=test
    )
    model = pw.Model(lambda: ImageMLP(784, 64, 10), pw.CrossEntropy())
    return pw.Workload(model, found, (pw.Accuracy(),))


def run(workload: pw.Workload, seed: int, rounds: int, rule: Aggregator, into: Path, *, keeps: bool) -> float:
    attack = Mixture((LabelFlip(10), Copy(), GaussianReplace(0.1)), ((7,), (8,), (9,)))
    experiment = pw.Experiment(
        workload,
        pw.FedAvg(pw.LocalTraining(pw.SGD(0.05), batch_size=32, epochs=1), weights="uniform"),
        pw.Synchronous(cohort=CLIENTS, rounds=rounds),
        seed=seed,
        aggregator=rule,
        hostile=Hostile(attack, clients=attack.members()),
        journal=pw.Journaling(into.parent / "operator.key", stake=STAKE) if keeps else None,
        evaluation=pw.Evaluation(every=rounds, per_client=False),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        runtime=pw.Simulate(Stacked()),
    )
    return experiment.run(into).value("accuracy", "central")


def below_half(lines: list[str]) -> dict[str, int]:
    """Author -> the first round after which its stake was below half."""
    books, found = Books(), dict[str, int]()
    for line in lines:
        fields = json.loads(line)["entry"]
        entry = Entry(*(fields[name] for name in Entry._fields))
        books.apply(entry, entry_hash(entry))
        if entry.type == "settle":
            for author, stake in books.stakes.items():
                if 2 * stake < STAKE:
                    found.setdefault(author, books.round)
    return found


def rows(folder: Path) -> list[list[str]]:
    """Of each kind of client: paid, stake, reputation, and when it was below half."""
    checked = check_journal(folder)
    assert checked.is_whole, checked.fault
    standing = {who.author: who for who in checked.standings}
    gone = below_half((folder / JOURNAL).read_text().splitlines())
    total = sum(who.paid for who in checked.standings)
    found = []
    for kind, members in KINDS.items():
        own = [standing[f"client-{client}"] for client in members]
        rounds = [gone[who.author] for who in own if who.author in gone]
        found.append(
            [
                kind,
                f"{1000 * statistics.mean(who.paid for who in own) / total:.0f}",
                f"{statistics.mean(who.stake for who in own) / STAKE:.2f}",
                f"{statistics.mean(who.reputation for who in own) / 1e6:.2f}",
                ", ".join(map(str, rounds)) or "never",
            ]
        )
    return found


def detected(lines: list[str], edits: int, seed: int) -> tuple[int, int]:
    """Of random changes of one byte, how many are found, and how many at the right line."""
    draw, hits, places = random.Random(seed), 0, 0
    for _ in range(edits):
        at = draw.randrange(len(lines))
        place = draw.randrange(len(lines[at]))
        other = draw.choice([c for c in map(chr, range(32, 127)) if c != lines[at][place]])
        fault = find_tampering([*lines[:at], lines[at][:place] + other + lines[at][place + 1 :], *lines[at + 1 :]])
        hits += fault is not None
        places += fault is not None and fault.at == at
    return hits, places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--edits", type=int, default=1000)
    args = parser.parse_args()
    folder = mnist_folder()
    if folder is None:
        raise SystemExit("needs MNIST: set PARTWISE_SHARED to the folder that holds data/mnist.npz")
    torch.set_num_threads(1)
    print(f"{describe(seed=1)}\n{vars(args)}\n")
    ways: dict[str, Aggregator] = {
        "mean": pw.Mean("holders"),
        "journal": Watch(MUDHoG(), pw.Mean("holders")),
        "journal, suspects left out, trimmed mean": Watch(MUDHoG(), TrimmedMean(trim_fraction=0.2), exclude=True),
        "journal, mean by reputation": Watch(MUDHoG(), pw.Mean("holders"), reputation=Reputation(least=0.4)),
    }
    for seed in range(1, args.seeds + 1):
        workload = workload_of(folder, seed)
        with tempfile.TemporaryDirectory() as scratch:
            last = Path()
            for name, rule in ways.items():
                began, into = time.monotonic(), Path(scratch) / name
                accuracy = run(workload, seed, args.rounds, rule, into, keeps=name != "mean")
                print(
                    f"seed {seed}, {name}: accuracy {100 * accuracy:.1f}, {time.monotonic() - began:.0f} s", flush=True
                )
                if name != "mean":
                    last = into
                    print("| client | paid | stake left | reputation | below half |\n|---|---|---|---|---|")
                    print("\n".join("| " + " | ".join(row) + " |" for row in rows(into)), flush=True)
            lines = (last / JOURNAL).read_text().splitlines()
            hits, places = detected(lines, args.edits, seed)
            print(f"changes found: {hits} of {args.edits}, at their line: {places}; {len(lines)} entries", flush=True)


if __name__ == "__main__":
    main()
