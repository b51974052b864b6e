"""Submodels in the clear, under masks, and under masks with rows that can be denied, on StdlibCode.

295 modules of the Python standard library are clients; 13,549 names are rows of a table. 30 clients a round take 20
local steps of rate 3; FedSubAvg("count"), updates clipped to a norm. The variants have the same cohorts and seeds:

- `clear`: everything in the clear, every row;
- `clear, 3 holders`: the same, but rows that fewer than three of a cohort hold do not move, as under masks;
- `masked`: sums under masks, of rows that at least three of the cohort hold;
- `p`: the union of all clients' rows is found under masks, and each client asks for rows by `Level.even(p)`.

Examples are those of the population's own test sets. Bytes are those of a client in a round, mean over the run.

    python benchmarks/deniable.py [--rounds 60] [--seeds 1] [--levels 1 0.9375 0.875 0.75] [--clip 3] [--layout sparse]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from machine import describe

from partwise.algorithms import Deniable, FedSubAvg
from partwise.algorithms.answers import Level
from partwise.algorithms.deniable import write_universe
from partwise.channels import Masked, Plain
from partwise.channels.unions import MaskedUnion
from partwise.core.index import Rows
from partwise.core.program import SERVER
from partwise.core.runtime import Observer
from partwise.core.update import Update
from partwise.experiment import Evaluation, Experiment
from partwise.local import SGD, LocalTraining
from partwise.programs.union import UnionStar
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Stacked
from partwise.schedulers import Synchronous
from partwise.transforms import Clip
from partwise.workloads import StdlibCode

SEED, COHORT, FEWEST = 1, 30, 3
INNER = FedSubAvg("count", LocalTraining(SGD(3.0), batch_size=32, steps=20))


@dataclass(frozen=True)
class InTheClear:
    """As `Plain`, but rows that too few of the cohort hold do not move."""

    fewest: int = FEWEST
    reveals: ClassVar[Literal["sum", "each"]] = "each"
    exchanges: ClassVar[bool] = True
    limit: ClassVar[float | None] = None
    patience_seconds: ClassVar[float] = 60.0

    def server(self, cohort: Sequence[int], params: Any, session: int) -> Any:
        updates = yield dict.fromkeys(cohort)
        heat = {n: torch.zeros((len(t), *(1,) * (t.dim() - 1))) for n, t in params.items()}
        for update in updates.values():
            update.index.cover_(heat, 1.0)
        return [self._without(updates[client], heat) for client in sorted(updates)]

    def _without(self, update: Update, heat: Any) -> Update:
        rows, value = dict(update.index.rows), dict(update.value)
        for name, at in rows.items():
            if at is not None:
                kept = heat[name][at].reshape(-1) >= self.fewest
                rows[name], value[name] = at[kept], value[name][kept]
        return Update(Rows(update.index.shapes, rows), value, update.weight)

    def client(self, update: Update, params: Any, seat: Any) -> Any:
        yield
        yield update


class Quiet(Observer):
    """Notes nothing but bytes."""

    def record(self, record: Any, world: Any) -> str | None:
        return None

    def settled(self, world: Any) -> None: ...

    def ended(self, world: Any, reason: str) -> None:
        self.bytes = world.traffic.uplink, world.traffic.downlink


def experiment(algorithm: Any, channel: Any, args: argparse.Namespace, seed: int = SEED) -> Experiment:
    return Experiment(
        StdlibCode(),
        algorithm,
        Synchronous(cohort=COHORT, rounds=args.rounds),
        seed=seed,
        client=(Clip(args.clip),),
        channel=channel,
        evaluation=Evaluation(every=args.rounds),
        runtime=Simulate(executor=Stacked()),
    )


def measure(algorithm: Any, channel: Any, args: argparse.Namespace) -> tuple[list[str], Any]:
    """Cells of a line, over seeds: AUC with its standard deviation, bytes and seconds in the mean; parameters."""
    found, params = [], {}
    for seed in range(SEED, SEED + args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            result = experiment(algorithm, channel, args, seed).run(Path(folder) / "run")
            seconds = (time.process_time() - began) / args.rounds
            last = [row for row in result.table() if row["name"] == "auc"][-1]
            each = COHORT * args.rounds * 1e3
            found.append((last["value"], last["uplink_bytes"] / each, last["downlink_bytes"] / each, seconds))
            params = params or {n: t.clone() for n, t in result.params.items()}
    auc, *rest = zip(*found, strict=True)
    up, down, seconds = map(statistics.fmean, rest)
    spread = f" ± {statistics.stdev(auc):.4f}" if len(auc) > 1 else ""
    return [f"{statistics.fmean(auc):.4f}{spread}", f"{up:,.0f}", f"{down:,.0f}", f"{seconds:.2f}"], params


def rows(args: argparse.Namespace) -> Iterator[str]:
    masked = Masked(args.clip, args.bits, 1, args.layout, FEWEST)
    for name, channel in (("clear", Plain()), ("clear, 3 holders", InTheClear()), ("masked", masked)):
        cells, _ = measure(INNER, channel, args)
        yield "| " + " | ".join([name, "", "", *cells]) + " |"
    once = argparse.Namespace(**{**vars(args), "rounds": 1, "seeds": 1})
    one, other = measure(INNER, InTheClear(), once)[1], measure(INNER, masked, once)[1]
    gap = max(float((one[n] - t).abs().max()) for n, t in other.items())
    notes = [
        f"After one round, a parameter of `masked` is at most {gap / masked.step:.2f} steps from `clear, 3 holders`"
    ]
    with tempfile.TemporaryDirectory() as folder:
        star, _ = experiment(INNER, Plain(), args).build()
        seen, began = Quiet(), time.process_time()
        states, reason = Simulate().run(UnionStar(star, MaskedUnion()).programs(), star.population, seen)
        union, seconds = states[SERVER].index, time.process_time() - began
        if union is None:
            raise RuntimeError(reason)
        write_universe(Path(folder) / "union.npz", union)
        clients = len(star.population.clients)
        up, down = (b / clients / 1e3 for b in seen.bytes)
        found = sum(len(r) for r in union.rows.values())
        notes.append(f"Union: {found:,} rows, once; {up:,.0f} kB up and {down:,.0f} kB down a client, {seconds:.0f} s")
        for p in args.levels:
            level = Level.even(p)
            deniable = Deniable(INNER, (level,), str(Path(folder) / "union.npz"), "simulated")
            cells, _ = measure(deniable, masked, args)
            told = [f"{level.epsilon_round:.2f}", f"{level.epsilon_ever:.2f}"]
            yield "| " + " | ".join([f"p = {p:g}", *told, *cells]) + " |"
    yield from ["", *notes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--levels", type=float, nargs="+", default=[1.0, 15 / 16, 7 / 8, 3 / 4])
    parser.add_argument("--clip", type=float, default=3.0)
    parser.add_argument("--bits", type=int, default=20)
    parser.add_argument("--layout", choices=["union", "sparse"], default="sparse")
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = f"{args.seeds} seeds from it, {args.rounds} rounds, clip {args.clip}, {args.bits} bits"
    print(f"{describe(SEED)}; {about}, layout {args.layout}")
    head = ("variant", "ε of a round", "ε for ever", "AUC", "up, kB", "down, kB", "s a round")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for line in rows(args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
