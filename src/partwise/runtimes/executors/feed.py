"""The batches of many clients, step by step: the same ones that each would draw alone.

Shapes: C clients in a chunk, A of them not finished yet, T local steps, b the widest batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.plan import Job, LocalPlan
from partwise.core.population import Batch, Dataset, Examples
from partwise.core.rng import derive, restarts

__all__ = ["Feed", "feed_bytes"]

Ints = NDArray[np.int64]


def feed_bytes(plan: LocalPlan, examples: int, steps: int) -> int:
    """What the positions of one client's batches take."""
    size = min(plan.batch_size or examples, examples)
    return 8 * size * (1 if size == examples else steps)


class Feed:
    """The batches of a chunk of jobs, most steps first.

    A batch shorter than the widest is padded with its own last example, whose weight is 0: what a client does not
    train on cannot make its loss infinite.

    Args:
        jobs: equal columns.
        steps: of each job; must not ascend.
        like: the shares' type and device.
        is_kept: whether a batch that stays the same is given again, to somebody who does not write into it.
    """

    def __init__(self, jobs: Sequence[Job], steps: Sequence[int], like: Tensor, *, is_kept: bool = False) -> None:
        counts = [len(job.data) for job in jobs]
        sizes = [min(job.plan.batch_size or n, n) for job, n in zip(jobs, counts, strict=True)]
        at, self._widths = _drawn([job.seed for job in jobs], np.array(counts), np.array(sizes), np.array(steps))
        self._is_constant, self._is_kept = sizes == counts, is_kept
        self._columns, at = _joined([job.data for job in jobs], at)
        self._like, self._at = like, torch.from_numpy(at).to(next(iter(self._columns.values())).device)
        self._active = (np.array(steps) > np.arange(steps[0])[:, None]).sum(1).tolist()
        self._made: dict[tuple[int, int], Tensor] = {}  # shares where all clients' batches are full
        self._last: tuple[int, Batch, Tensor] | None = None  # of so many clients, where batches stay the same

    def active(self, step: int) -> int:
        """How many of the clients take this step: A."""
        return int(self._active[step])

    def batch(self, step: int) -> tuple[Batch, Tensor]:
        """Columns (A * b, ...), client after client, and each example's share of its client's mean, (A, b)."""
        active = self._active[step]
        if self._last is not None and self._last[0] == active:
            return self._last[1:]
        widths = self._widths[step, :active]
        width = int(widths.max())
        at = self._at[0 if self._is_constant else step, :active, :width].reshape(-1)
        found = {name: column.index_select(0, at) for name, column in self._columns.items()}
        shares = self._shares(widths, width)
        if self._is_constant and self._is_kept:
            self._last = active, found, shares
        return found, shares

    def _shares(self, widths: Ints, width: int) -> Tensor:
        if int(widths.min()) < width:
            shares = (np.arange(width) < widths[:, None]) / widths[:, None]
            return torch.from_numpy(shares).to(self._like)
        key = len(widths), width
        if key not in self._made:
            self._made[key] = self._like.new_full(key, 1 / width)
        return self._made[key]


def _drawn(seeds: Sequence[int], counts: Ints, sizes: Ints, steps: Ints) -> tuple[Ints, Ints]:
    """The positions of each batch among its client's examples, (T, C, b), and how many of them count, (T, C).

    As `executors.plain.batches` draws them. A batch of everything is the same each time, in no order that is drawn:
    where nobody has another, T is 1 for the positions.

    Args:
        seeds: of the jobs.
        counts: examples of each client, (C,).
        sizes: of its batches but the last of a pass, (C,).
        steps: that it takes, (C,); must not ascend.
    """
    each = -(-counts // sizes)  # batches in a pass
    passes = np.where(each > 1, -(-steps // each), 1)
    lengths = np.repeat(counts, passes)
    begins = np.cumsum(lengths) - lengths  # of every pass in what is one line of them all
    line = np.arange(lengths.sum()) - np.repeat(begins, lengths)
    told = zip(seeds, each.tolist(), passes.tolist(), strict=True)
    drawn = [derive(seed, "batches", i) if many > 1 else None for seed, many, of in told for i in range(of)]
    chances = restarts([seed for seed in drawn if seed is not None])
    for seed, begin, length in zip(drawn, begins.tolist(), lengths.tolist(), strict=True):
        if seed is not None:
            next(chances).shuffle(line[begin : begin + length])  # what `permutation` does
    step = np.arange(steps[0])[:, None]
    before = step % each * sizes  # examples of the pass that came in earlier batches, (T, C)
    widths = np.minimum(sizes, counts - before)
    long = 1 if each.max() == 1 else steps[0]
    places = np.minimum(np.arange(sizes.max()), widths[:long, :, None] - 1) + before[:long, :, None]
    first = begins[np.cumsum(passes) - passes + step[:long] // each % passes]
    found: Ints = line[places + first[:, :, None]]
    return found, widths


def _joined(datas: Sequence[Dataset], at: Ints) -> tuple[Batch, Ints]:
    """The clients' columns as one each, and where in them the batches are.

    Without a copy where they are slices of the same columns; else of what is trained on only, where that is less than
    all there is.

    Args:
        datas: of each client.
        at: (T, C, b), a batch's positions among its client's examples.
    """
    places = [data.place() for data in datas if isinstance(data, Examples)]
    if len(places) == len(datas) and all(whole is places[0][0] for whole, _ in places):
        return places[0][0], at + np.array([begin for _, begin in places])[:, None]
    columns = [data.columns() for data in datas]
    ends = np.cumsum([len(data) for data in datas])
    if at.size >= ends[-1]:
        before = np.concatenate([[0], ends[:-1]])
        return {n: torch.cat([own[n] for own in columns]) for n in columns[0]}, at + before[:, None]
    taken = torch.from_numpy(np.ascontiguousarray(at.swapaxes(0, 1)).reshape(len(datas), -1))  # (C, T * b)
    order = np.arange(at.size).reshape(len(datas), len(at), -1).swapaxes(0, 1)
    return {
        n: torch.cat([own[n].index_select(0, rows.to(own[n].device)) for own, rows in zip(columns, taken, strict=True)])
        for n in columns[0]
    }, np.ascontiguousarray(order)
