"""How fast updates are added up, against the memory's own speed.

    python benchmarks/aggregation.py [--passes 5] [--params 1000000 10000000] [--clients 10000] [--rows 1000000]

Dense: 50 updates of a whole model in eight tensors, added with a weight into fresh buffers. GB/s counts the bytes of
the updates, each once; an addition in place moves three times as much. Sparse: every client brings 50 different rows
of width 32 of one table, half of them among its first hundredth; what is sought is the sum and the number of holders
of each row. Where a variant needs all rows in one tensor, making it is counted. `commit` brings the mean into the
server's parameters: what a round needs in the end.

The variants take turns; one turn of each before the first is not counted. `gap`: the largest difference from the first
variant's sum or, after a commit, from that of the first to commit, over its largest entry.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import sums_by_hand as sums
import torch
from executors import spread
from machine import describe
from torch import Tensor

from partwise.core.aggregate import Accumulator, Sum
from partwise.core.index import Rows, Whole, shapes_of
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.rowsum import RowSum
from partwise.core.update import Update, check_update, is_finite

SEED, UPDATES, WEIGHT, POOL_BYTES = 1, 50, 60.0, 400_000_000
WIDTH, TOUCHED = 32, 50

Variants = dict[str, Callable[[], sums.Found]]


def times(variants: Variants, passes: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Variant -> milliseconds of each pass, and what it gave, as large as the largest."""
    found = {name: (at, value.clone()) for name, run in variants.items() for at, value in [run()]}
    shape = max((value.shape for _, value in found.values()), key=math.prod)
    ends = {n: v if at is None else v.new_zeros(shape).index_copy_(0, at, v) for n, (at, v) in found.items()}
    took: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(passes):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            took[name].append(1e3 * (time.perf_counter() - began))
    return took, ends


def ratios(took: Sequence[float], base: Sequence[float]) -> str:
    return spread([b / t for t, b in zip(took, base, strict=True)], ".2f")


def gap(end: Tensor, first: Tensor) -> str:
    return f"{float((end - first).abs().max() / first.abs().max()):.0e}"


def sum_of(updates: Sequence[Update], params: Params, *, is_checked: bool = False) -> Sum:
    accumulator = Accumulator(params)
    for update in updates:
        if is_checked:  # as the server does with every reply
            check_update(update, params)
            if not is_finite(update):
                raise ValueError("not finite")
        accumulator.add_(update)
    return accumulator.take()


def commit(mean: Mean, updates: Sequence[Update], server: Values) -> None:
    total, _ = mean.reduce(sum_of(updates, server), mean.init(server, Census(len(updates))), server)
    total.index.scatter_add_(server, total.values())


# Dense


def one_of(run: Callable[[], Values]) -> Callable[[], sums.Found]:
    return lambda: (None, run()["0.weight"])


def dense_variants(size: int) -> Variants:
    """About `size` parameters in four layers."""
    side = math.isqrt(size // 4)
    like = {f"{i}.{n}": torch.zeros(s) for i in range(4) for n, s in (("weight", (side, side)), ("bias", (side,)))}
    draw = torch.Generator().manual_seed(SEED)
    pool = [
        {n: torch.randn(t.shape, generator=draw) for n, t in like.items()}
        for _ in range(max(1, min(UPDATES, POOL_BYTES // (4 * size))))
    ]
    values = [pool[i % len(pool)] for i in range(UPDATES)]
    index = Whole(shapes_of(like))
    updates = [Update(index, value, WEIGHT) for value in values]
    server = {n: torch.zeros_like(t) for n, t in like.items()}

    def add() -> Values:
        total = {n: torch.zeros_like(t) for n, t in like.items()}
        for value in values:
            for n, t in total.items():
                t.add_(value[n], alpha=WEIGHT)
        return total

    def stack() -> Values:
        return {n: torch.stack([v[n] for v in values]).sum(0).mul_(WEIGHT) for n in like}

    def by_hand() -> Values:
        for n, total in add().items():
            server[n].copy_(total.div_(WEIGHT * UPDATES))
        return server

    def ours() -> Values:
        for t in server.values():
            t.zero_()
        commit(Mean("cohort"), updates, server)
        return server

    found: dict[str, Callable[[], Values]] = {
        "add_": add,
        "stack, sum": stack,
        "Accumulator": lambda: sum_of(updates, like).value,
        "Accumulator, replies checked": lambda: sum_of(updates, like, is_checked=True).value,
        "commit: add_, divide": by_hand,
        "commit: Accumulator, Mean('cohort')": ours,
    }
    return {name: one_of(run) for name, run in found.items()}


def dense(size: int, passes: int) -> tuple[list[str], list[float]]:
    """Lines of the table, and GB/s of the first variant in each pass."""
    took, ends = times(dense_variants(size), passes)
    first, lines = next(iter(took)), []
    last = next(name for name in took if name.startswith("commit"))
    done = UPDATES * 4 * (4 * math.isqrt(size // 4) ** 2 + 4 * math.isqrt(size // 4)) / 1e6  # MB a pass
    for name, ms in took.items():
        rate = spread([done / t for t in ms], ".2f")
        off = gap(ends[name], ends[last if name.startswith("commit") else first])
        lines.append(f"| {size:,} | {name} | {spread(ms, '.1f')} | {rate} | {ratios(ms, took[first])} | {off} |")
    return lines, [done / t for t in took[first]]


# Sparse


def drawn(clients: int, table: int) -> sums.Held:
    """Each client's rows, ascending, and its values."""
    rng, hot = np.random.default_rng(SEED), max(TOUCHED, table // 100)
    values = torch.randn(clients, TOUCHED, WIDTH, generator=torch.Generator().manual_seed(SEED))
    found = []
    for c in range(clients):
        near = rng.choice(hot, TOUCHED // 2, replace=False)
        far = hot + rng.choice(table - hot, TOUCHED - TOUCHED // 2, replace=False)
        found.append((torch.from_numpy(np.sort(np.concatenate([near, far]))), values[c]))
    return found


def sparse_variants(clients: int, table: int) -> Variants:
    held: sums.Held = drawn(clients, table)
    like = {"table": torch.zeros(table, WIDTH)}
    updates = [Update(Rows(shapes_of(like), {"table": rows}), {"table": value}) for rows, value in held]
    server = {"table": torch.zeros(table, WIDTH)}

    def row_sum() -> sums.Found:
        one = torch.ones((), dtype=torch.float64).expand(TOUCHED)
        running = RowSum(table)
        for rows, value in held:
            running.add_(rows, value, one)
        return running.total()[:2]

    def accumulator() -> sums.Found:
        got = sum_of(updates, like)
        assert isinstance(got.index, Rows)
        return got.index.rows["table"], got.value["table"]

    def by_hand() -> sums.Found:
        server["table"].zero_()
        return None, sums.add_mean_(held, server["table"])

    def ours() -> sums.Found:
        server["table"].zero_()
        commit(Mean("holders"), updates, server)
        return None, server["table"]

    return {
        "index_put_(accumulate), whole table": partial(sums.index_put, held, table),
        "index_add_, whole table": partial(sums.index_add, held, table),
        "index_add_ per client, whole table": partial(sums.one_by_one, held, table),
        "sort, segment_reduce": partial(sums.segments, held, table),
        "unique, index_add_": partial(sums.unique, held, table),
        "RowSum": row_sum,
        "Accumulator": accumulator,
        "commit: index_add_ of shares": by_hand,
        "commit: Accumulator, Mean('holders')": ours,
    }


def sparse(clients: int, table: int, passes: int, add_rate: Sequence[float]) -> list[str]:
    took, ends = times(sparse_variants(clients, table), passes)
    rows, lines = clients * TOUCHED, []
    groups = {is_commit: [n for n in took if n.startswith("commit") is is_commit] for is_commit in (False, True)}
    for names in groups.values():
        best = min(names, key=lambda name: statistics.median(took[name]))
        for name in names:
            ms = took[name]
            rates = [4e-6 * rows * WIDTH / t for t in ms]  # GB/s, of the values
            to_add = spread([r / a for r, a in zip(rates, add_rate, strict=True)], ".3f")
            cells = [name, spread(ms, ".0f"), spread([1e-3 * rows / t for t in ms], ".2f"), spread(rates, ".2f")]
            cells += [to_add, ratios(ms, took[best]), gap(ends[name], ends[names[0]])]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--params", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{describe(SEED)}, threads: {args.threads}, medians and ranges of {args.passes} passes\n")
    print(f"{UPDATES} updates of a whole model:\n")
    print("| parameters | variant | ms | GB/s of updates | rate / add_ | gap |\n|---|---|---|---|---|---|")
    for size in args.params:
        lines, add_rate = dense(size, args.passes)
        print("\n".join(lines), flush=True)
    print(f"\n{args.clients:,} clients with {TOUCHED} rows of width {WIDTH} each, a table of {args.rows:,} rows:\n")
    print("| variant | ms | million rows/s | GB/s of values | GB/s / add_ | rate / best | gap |\n|" + "---|" * 7)
    print("\n".join(sparse(args.clients, args.rows, args.passes, add_rate)))


if __name__ == "__main__":
    main()
