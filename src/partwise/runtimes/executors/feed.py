"""The batches of many clients, step by step: the same ones that each would draw alone.

Shapes: C clients in a chunk, A of them not finished yet, T local steps, b the widest batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.plan import Job, LocalPlan
from partwise.core.population import Batch
from partwise.core.rng import Restarts

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
        kinds = [_kind(job.plan, n, many) for job, n, many in zip(jobs, counts, steps, strict=True)]
        long, wide = max(k[0] for k in kinds), max(k[1] for k in kinds)
        self._is_constant, self._is_kept = long == 1, is_kept
        at = np.zeros((long, len(jobs), wide), np.int64)
        self._widths = np.ones((steps[0], len(jobs)), np.int64)
        restarts = Restarts() if any(size < n for n, (_, size) in zip(counts, kinds, strict=True)) else None
        for c, (job, (many, size)) in enumerate(zip(jobs, kinds, strict=True)):
            rows = long if many == 1 else many
            if restarts is None or size == counts[c]:
                at[:rows, c, :size] = np.arange(size)  # the order of one batch of everything is not drawn
                self._widths[: steps[c], c] = size
            else:
                drawn = _drawn(counts[c], size, many, partial(restarts.at, job.seed, "batches"))
                at[:rows, c, :size], self._widths[: steps[c], c] = drawn
            if size < wide:
                at[:rows, c, size:] = at[:rows, c, size - 1 : size]
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


def _kind(plan: LocalPlan, examples: int, steps: int) -> tuple[int, int]:
    """How many different batches a client has, and how large they are: a batch of everything is the same each time."""
    size = min(plan.batch_size or examples, examples)
    return (1 if size == examples else steps), size


def _drawn(
    examples: int, size: int, steps: int, chance: Callable[[int], np.random.Generator]
) -> tuple[Ints, Ints | int]:
    """The positions of each batch (T, b), as `executors.plain.batches` draws them, and how many of them count (T,).

    chance: the generator of each pass.
    """
    each = -(-examples // size)
    passes = -(-steps // each)
    drawn = [chance(i).permutation(examples) for i in range(passes)]
    if each * size == examples:
        order = drawn[0] if passes == 1 else np.concatenate(drawn)
        return order[: steps * size].reshape(steps, size), size
    padded = np.empty((passes, each * size), np.int64)
    for row, order in zip(padded, drawn, strict=True):
        row[:examples], row[examples:] = order, order[-1]
    sizes = np.full((passes, each), size)
    sizes[:, -1] = examples - (each - 1) * size
    return padded.reshape(-1, size)[:steps], sizes.reshape(-1)[:steps]


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
