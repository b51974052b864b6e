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
from partwise.core.population import Batch
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
        if len(set(counts)) == len(set(sizes)) == 1 and sizes[0] < counts[0] and not counts[0] % sizes[0]:
            at, self._widths = _even([job.seed for job in jobs], counts[0], sizes[0], steps)
        else:
            at, self._widths = _uneven([job.seed for job in jobs], counts, sizes, steps)
        self._is_constant, self._is_kept = sizes == counts, is_kept
        self._columns, at = _joined([job.data.columns() for job in jobs], at)
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


# The positions of each batch among its client's examples, (T, C, b), as `executors.plain.batches` draws them, and how
# many of them count, (T, C). A batch of everything is the same each time: where nobody has another, T is 1.


def _even(seeds: Sequence[int], examples: int, size: int, steps: Sequence[int]) -> tuple[Ints, Ints]:
    """Of clients that have as many examples, and no short batch."""
    passes = -(-steps[0] * size // examples)
    at = np.empty((len(seeds), passes, examples), np.int64)
    at[:] = np.arange(examples)
    drawn = [derive(seed, "batches", number) for seed in seeds for number in range(passes)]
    for order, chance in zip(at.reshape(-1, examples), restarts(drawn), strict=True):
        chance.shuffle(order)  # what `permutation` does
    by_step = at.reshape(len(seeds), -1, size).swapaxes(0, 1)[: steps[0]]
    return by_step, np.full((steps[0], len(seeds)), size)


def _uneven(
    seeds: Sequence[int], counts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]
) -> tuple[Ints, Ints]:
    """Of any clients."""
    each = [-(-n // size) for n, size in zip(counts, sizes, strict=True)]  # batches in a pass
    passes = [0 if many == 1 else -(-t // many) for many, t in zip(each, steps, strict=True)]
    long, wide = 1 if sizes == counts else steps[0], max(sizes)
    at, widths = np.zeros((long, len(seeds), wide), np.int64), np.ones((steps[0], len(seeds)), np.int64)
    drawn = restarts(
        [derive(seed, "batches", i) for seed, many in zip(seeds, passes, strict=True) for i in range(many)]
    )
    for c, (n, size) in enumerate(zip(counts, sizes, strict=True)):
        rows = min(long, steps[c])
        if not passes[c]:
            at[:rows, c, :size], widths[: steps[c], c] = np.arange(size), size  # in no order that is drawn
        else:
            padded, own = np.empty((passes[c], each[c] * size), np.int64), np.full((passes[c], each[c]), size)
            for row in padded:
                row[:n] = next(drawn).permutation(n)
                row[n:] = row[n - 1]
            own[:, -1] = n - (each[c] - 1) * size
            at[:rows, c, :size], widths[:rows, c] = padded.reshape(-1, size)[:rows], own.reshape(-1)[:rows]
        at[:rows, c, size:] = at[:rows, c, size - 1 : size]
    return at, widths


def _joined(datas: Sequence[Batch], at: Ints) -> tuple[dict[str, Tensor], Ints]:
    """The clients' columns as one each, and where in them the batches are.

    Without a copy where they are views of one; else of what is trained on only, where that is less than all there is.

    Args:
        datas: of each client.
        at: (T, C, b), a batch's positions among its client's examples.
    """
    names = list(datas[0])
    shared = _shared([[data[name] for name in names] for data in datas])
    if shared is not None:
        bases, starts = shared
        return dict(zip(names, bases, strict=True)), at + np.array(starts)[:, None]
    ends = np.cumsum([len(data[names[0]]) for data in datas])
    if at.size >= ends[-1]:
        before = np.concatenate([[0], ends[:-1]])
        return {n: torch.cat([data[n] for data in datas]) for n in names}, at + before[:, None]
    taken = torch.from_numpy(np.ascontiguousarray(at.swapaxes(0, 1)).reshape(len(datas), -1))  # (C, T * b)
    places = np.arange(at.size).reshape(len(datas), len(at), -1).swapaxes(0, 1)
    return {
        n: torch.cat([d[n].index_select(0, rows.to(d[n].device)) for d, rows in zip(datas, taken, strict=True)])
        for n in names
    }, np.ascontiguousarray(places)


def _shared(datas: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[int]] | None:
    """What all clients' columns are slices of, where the slices of every column begin at the same examples."""
    bases, found = [], None
    for columns in zip(*datas, strict=True):
        first = columns[0]
        stride = first.stride()
        width = stride[0] if stride else 0
        if not width or not first.numel():
            return None
        storage, offsets = first.untyped_storage().data_ptr(), [c.storage_offset() for c in columns]
        for c in columns:  # contiguous, so that equal strides are equal shapes but for the examples
            if c.stride() != stride or not c.is_contiguous() or c.untyped_storage().data_ptr() != storage:
                return None
        low = min(offsets)
        if any((offset - low) % width for offset in offsets):
            return None
        starts = [(offset - low) // width for offset in offsets]
        if found is not None and starts != found:
            return None
        found = starts
        total = max(start + c.shape[0] for start, c in zip(starts, columns, strict=True))
        bases.append(first.as_strided((total, *first.shape[1:]), stride, low))
    return (bases, found) if found is not None else None
