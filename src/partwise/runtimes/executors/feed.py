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
from partwise.core.rng import numpy_generator

__all__ = ["Feed"]

Ints = NDArray[np.int64]


class Feed:
    """The batches of a chunk of jobs, most steps first.

    A batch shorter than the widest is padded with its own last example, whose weight is 0: what a client does not
    train on cannot make its loss infinite.

    Args:
        jobs: equal columns.
        steps: of each job; must not ascend.
        like: the shares' type and device.
    """

    def __init__(self, jobs: Sequence[Job], steps: Sequence[int], like: Tensor) -> None:
        self._steps = np.array(steps)
        drawn = [_drawn(job.plan, len(job.data), many, job.seed) for job, many in zip(jobs, steps, strict=True)]
        self._is_constant = all(len(positions) == 1 for positions, _ in drawn)
        self._columns, starts = _joined([job.data.columns() for job in jobs])
        long, wide = max(len(p) for p, _ in drawn), max(p.shape[1] for p, _ in drawn)
        at = np.zeros((long, len(jobs), wide), np.int64)
        lengths = np.ones((long, len(jobs)), np.int64)
        for c, (positions, sizes) in enumerate(drawn):
            many, size = positions.shape
            many = long if many == 1 else many
            at[:many, c, :size] = positions + starts[c]
            at[:many, c, size:] = at[:many, c, size - 1 : size]
            lengths[:many, c] = sizes
        self._at = torch.from_numpy(at).to(self._device())
        shares = torch.from_numpy((np.arange(wide) < lengths[..., None]) / lengths[..., None])
        self._shares = shares.to(like)  # (T, C, b)
        self._widths = lengths
        self._last: tuple[int, tuple[Batch, Tensor]] | None = None

    def _device(self) -> torch.device:
        return next(iter(self._columns.values())).device

    def active(self, step: int) -> int:
        """How many of the clients take this step: A."""
        return int((self._steps > step).sum())

    def batch(self, step: int) -> tuple[Batch, Tensor]:
        """Columns (A * b, ...), client after client, and each example's share of its client's mean, (A, b)."""
        active = self.active(step)
        if self._is_constant:
            step = 0
            if self._last is not None and self._last[0] == active:
                return self._last[1]
        width = int(self._widths[step, :active].max())
        at = self._at[step, :active, :width].reshape(-1)
        found = {name: column.index_select(0, at) for name, column in self._columns.items()}
        self._last = active, (found, self._shares[step, :active, :width])
        return self._last[1]


def _drawn(plan: LocalPlan, examples: int, steps: int, seed: int) -> tuple[Ints, Ints]:
    """The positions of each batch (T, b), as `executors.plain.batches` draws them, and how many of them count (T,).

    One batch of everything is the same set at every step, so its order is not drawn: T is 1 then.
    """
    size = min(plan.batch_size or examples, examples)
    if size == examples:
        return np.arange(examples)[None], np.array([examples])
    each = -(-examples // size)
    passes = -(-steps // each)
    orders = np.empty((passes, each * size), np.int64)
    for i in range(passes):
        orders[i, :examples] = numpy_generator(seed, "batches", i).permutation(examples)
    orders[:, examples:] = orders[:, examples - 1 : examples]
    sizes = np.full((passes, each), size)
    sizes[:, -1] = examples - (each - 1) * size
    return orders.reshape(-1, size)[:steps], sizes.reshape(-1)[:steps]


def _joined(datas: Sequence[Batch]) -> tuple[dict[str, Tensor], list[int]]:
    """The clients' columns as one each, and where every client begins; without a copy where they are views of one."""
    names = list(datas[0])
    shared = _shared([[data[name] for name in names] for data in datas])
    if shared is not None:
        bases, starts = shared
        return dict(zip(names, bases, strict=True)), starts
    sizes = [len(data[names[0]]) for data in datas]
    return {n: torch.cat([data[n] for data in datas]) for n in names}, [0, *np.cumsum(sizes)[:-1].tolist()]


def _shared(datas: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[int]] | None:
    """What all clients' columns are slices of, where the slices of every column begin at the same examples."""
    bases, found = [], None
    for columns in zip(*datas, strict=True):
        first = columns[0]
        storage, width = first.untyped_storage().data_ptr(), first.stride(0) if first.dim() else 0
        same = all(c.untyped_storage().data_ptr() == storage and c.is_contiguous() for c in columns)
        if not same or not width or not first.numel() or any(c.stride(0) != width for c in columns):
            return None
        offsets = [c.storage_offset() for c in columns]
        low = min(offsets)
        if any((offset - low) % width for offset in offsets):
            return None
        starts = [(offset - low) // width for offset in offsets]
        if found is not None and starts != found:
            return None
        found = starts
        total = max(start + len(c) for start, c in zip(starts, columns, strict=True))
        bases.append(first.as_strided((total, *first.shape[1:]), first.stride(), low))
    return (bases, found) if found is not None else None
