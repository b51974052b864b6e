"""Many clients at once, along a leading dimension.

Shapes: C clients in a chunk.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from partwise.core.aggregate import Accumulator
from partwise.core.plan import Job, Trained
from partwise.core.scratch import Scratch
from partwise.core.summing import Outcome, Share, SumJob, Summed
from partwise.runtimes.executors.adding import add_one_, by_portions
from partwise.runtimes.executors.feed import feed_bytes
from partwise.runtimes.executors.groups import Unit, are_alike, unit_of
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.executors.together import FAILURES, Together, Way, train, way_of

__all__ = ["Stacked"]

_log = logging.getLogger("partwise")

_CPU_BYTES, _STREAMED_BYTES, _OTHER_BYTES = 8 << 20, 32 << 20, 1 << 30


class _Known(dict[Hashable, Any]):
    """What was found out of some jobs: it names what is in this process, and goes to no other with the executor."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Known, ()


@dataclass(frozen=True)
class Stacked:
    """The executor that trains many clients as one: their parameters have the clients along axis 0.

    Jobs are trained together where loss, optimiser, gradient terms, held shapes and what is trainable agree; the rows
    of tables, the examples and the steps may differ. Such a group takes the first way that holds for it:

    - the clients are folded into the batch of one forward pass, where parameters are used by linear maps, embeddings,
      layer norms, sums and products; plain SGD is applied within the backward pass. A model that consists of
      operations whose gradients are known here, as most small ones do, is run without autograd. Where only the sum of
      what they change is wanted, a large weight that is used by one linear map is not copied for each client, but kept
      as one matrix and the factors of its changes;
    - `torch.func.vmap` over the clients;
    - one after another, as `Plain` does it: convolutions on a CPU, dropout, buffers such as running means, optimisers
      and gradient terms of other makes, losses that draw at random.

    The first way is tried on two clients, once per model and shapes, and compared: without autograd with one client
    after another, otherwise with the second way. A group in which anything raises is run again one client after
    another, so that every job has its own exception. The results are those of `Plain` but for rounding: within 1e-9 of
    the largest value in float64 and 1e-4 in float32, whose products are summed in another order, after a few dozen
    steps; so who is trained together may change the last digits. A rule that jumps where its argument is nothing but
    rounding (cautious decay, Adam where a gradient should be 0) may differ by more in entries on which the loss does
    not depend.

    Args:
        max_clients: clients trained together at most, > 0.
        max_bytes: of held values and batches of the clients trained together, >= 0; one client may have more. 0: 8 MiB
            on a CPU, so that they stay in its cache, 32 where weights are kept as factors, and 1 GiB elsewhere, or what
            a GPU turns out to have room for. What is needed besides jobs and results is a small multiple of it,
            whatever the cohort.

    Example:
        >>> Stacked(max_clients=100).run([])
        []
    """

    max_clients: int = 256
    max_bytes: int = 0
    _ways: dict[Hashable, Way] = field(default_factory=_Known, init=False, repr=False, compare=False)
    _fit: dict[Hashable, int] = field(default_factory=_Known, init=False, repr=False, compare=False)
    _scratch: Scratch = field(default_factory=Scratch, init=False, repr=False, compare=False)
    _plain: Plain = field(default_factory=Plain, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_clients < 1:
            raise ValueError(
                f"Stacked(max_clients={self.max_clients}): must be above 0, got {self.max_clients}. 256 is usual."
            )
        if self.max_bytes < 0:
            raise ValueError(
                f"Stacked(max_bytes={self.max_bytes}): must be at least 0, got {self.max_bytes}. 0 suits the machine."
            )

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        results: dict[int, Trained | Exception] = {}
        for unit, at in _groups(jobs):
            found = self._run_group(unit, [jobs[i] for i in at])
            results.update(zip(at, found, strict=True))
        return [results[i] for i in range(len(jobs))]

    def add(self, job: SumJob) -> Summed:
        """The sum of what jobs change, added up client by client or, where they were trained together, all at once."""
        return by_portions(job, self._add)

    def explain(self, jobs: Sequence[Job]) -> list[str]:
        """How these jobs would be run, one sentence per group."""
        found = []
        for unit, at in _groups(jobs):
            way = self._way(unit, [jobs[i] for i in at])
            found.append(f"{len(at)} {'job' if len(at) == 1 else 'jobs'}: {_sentence(unit, way)}")
        return found

    def _run_group(self, unit: Unit | str, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        way = self._way(unit, jobs)
        if isinstance(unit, str) or way.name == "alone":
            return self._plain.run(jobs)
        results: dict[int, Trained | Exception] = {}
        for at, together in self._trained(unit, way, jobs):
            chunk = [jobs[i] for i in at]
            found = self._plain.run(chunk) if together is None else together.each(chunk)
            results.update(zip(at, found, strict=True))
        return [results[i] for i in range(len(jobs))]

    def _trained(
        self, unit: Unit, way: Way, jobs: Sequence[Job], *, is_summed: bool = False
    ) -> Iterator[tuple[list[int], Together | None]]:
        """The results of the jobs, a chunk at a time; None where anything raises, so that each must be run by itself.

        Where a GPU has no room for a chunk, its halves are tried, and no more are taken together from then on: what a
        model needs beside its values shows only then.
        """
        most = min(self.max_clients, self._fit.get(unit.kind, self.max_clients))
        for at in _chunks(unit, way, jobs, _Bounds(most, self.max_bytes, is_summed)):
            chunk, is_too_large = [jobs[i] for i in at], False
            together = None
            try:
                together = train(unit, chunk, way, self._scratch, is_summed=is_summed)
            except FAILURES as error:
                is_too_large = isinstance(error, torch.cuda.OutOfMemoryError) and len(chunk) > 1
                _log.info("stacked: %d jobs cannot be run together: %s", len(chunk), error)
            if not is_too_large:
                yield at, together
                continue
            self._fit[unit.kind] = len(chunk) // 2
            for part, found in self._trained(unit, way, chunk, is_summed=is_summed):
                yield [at[i] for i in part], found

    def _add(self, shares: Sequence[Share], total: Accumulator) -> Sequence[Outcome | Exception]:
        outcomes: dict[int, Outcome | Exception] = {}
        jobs = [share.job for share in shares]
        for unit, at in _groups(jobs):
            way = self._way(unit, [jobs[i] for i in at])
            if isinstance(unit, str) or way.name == "alone":
                outcomes.update((i, add_one_(total, shares[i], *self._plain.run([jobs[i]]))) for i in at)
                continue
            for part, together in self._trained(unit, way, [jobs[i] for i in at], is_summed=True):
                some = [at[i] for i in part]
                outcomes.update(zip(some, self._add_together(total, [shares[i] for i in some], together), strict=True))
        return [outcomes[i] for i in range(len(shares))]

    def _add_together(
        self, total: Accumulator, shares: Sequence[Share], together: Together | None
    ) -> Sequence[Outcome | Exception]:
        """Add what was trained together, or each by itself."""
        jobs = [share.job for share in shares]
        if together is not None and all(map(math.isfinite, together.losses)):
            ordered = [shares[i] for i in together.order]
            indices, weights = [share.index for share in ordered], [share.weight for share in ordered]
            if total.add_stacked_(indices, together.changes, weights):
                told = zip(together.order, together.steps, together.losses, strict=True)
                found = {i: Outcome(steps, loss, len(jobs[i].data)) for i, steps, loss in told}
                return [found[i] for i in range(len(shares))]
        results = self._plain.run(jobs) if together is None else together.each(jobs)
        return [add_one_(total, share, trained) for share, trained in zip(shares, results, strict=True)]

    def _way(self, unit: Unit | str, jobs: Sequence[Job]) -> Way:
        if isinstance(unit, str):
            return Way("alone", unit)
        if unit.model is None and len(jobs) == 1:
            return Way("alone", "no other job has its loss")
        if unit.kind in self._ways:
            return self._ways[unit.kind]
        way, is_certain = way_of(unit, jobs)
        if is_certain:
            if len(self._ways) >= 256:  # losses that are made anew for every task would fill the memory
                self._ways.clear()
                self._fit.clear()
            self._ways[unit.kind] = way
            _log.info("stacked: %s", _sentence(unit, way))
        return way


def _sentence(unit: Unit | str, way: Way) -> str:
    because = f", for {way.why}" if way.why else ""
    if isinstance(unit, str) or way.name == "alone":
        return f"one after another{because}"
    if way.name == "vmap":
        return f"together by torch.func.vmap{because}"
    how = ", without autograd" if way.tape is not None else ""
    return f"together, folded into the batch{how}" + (", SGD within the backward pass" if unit.is_plain else "")


# Groups and chunks


def _groups(jobs: Sequence[Job]) -> Iterator[tuple[Unit | str, list[int]]]:
    """Jobs that can be trained together, in order of their first; jobs with an obstacle, one list per obstacle."""
    units: dict[Hashable, tuple[Unit | str, list[int]]] = {}
    last: tuple[Job, list[int]] | None = None
    for i, job in enumerate(jobs):
        if last is not None and are_alike(last[0], job):
            last[1].append(i)
            continue
        try:
            unit: Unit | str = unit_of(job)
        except FAILURES as error:  # Plain will tell what is wrong with the job
            unit = f"{type(error).__name__}: {error}"
        key = unit if isinstance(unit, str) else unit.key
        units.setdefault(key, (unit, []))[1].append(i)
        last = None if isinstance(unit, str) else (job, units[key][1])
    yield from units.values()


class _Bounds(NamedTuple):
    """Of what is trained together. is_summed: whether only the sum is wanted."""

    clients: int
    bytes: int
    is_summed: bool = False

    def most(self, unit: Unit, way: Way, job: Job, size: _Size) -> int:
        """Clients like this one that go together."""
        is_cpu = next(iter(job.start.values())).is_cpu
        kept = way.factored(unit, job) if self.is_summed else {}
        # What is kept as factors is streamed through, once; what is not is read and written in every step.
        usual = (_STREAMED_BYTES if kept else _CPU_BYTES) if is_cpu else _OTHER_BYTES
        return max(1, min(self.clients, (self.bytes or usual) // max(1, _bytes_of(job, size, kept))))


def _chunks(unit: Unit, way: Way, jobs: Sequence[Job], bounds: _Bounds) -> Iterator[list[int]]:
    """Jobs of like size together, so that little is padded; chunks as even as the bounds allow."""
    sizes = [_size_of(unit, job) for job in jobs]
    order = sorted(range(len(jobs)), key=sizes.__getitem__, reverse=True)
    while order:
        most = bounds.most(unit, way, jobs[order[0]], sizes[order[0]])
        many = -(-len(order) // -(-len(order) // most))
        if way.name == "vmap":  # what looks at the whole batch must not see padding
            many = next((k for k in range(1, many) if sizes[order[k]][1:] != sizes[order[0]][1:]), many)
        while (not unit.is_plain and _has_much_padding([sizes[i].rows for i in order[:many]])) or _has_much_padding(
            [sizes[i].width for i in order[:many]]
        ):
            many = many * 3 // 4  # one alone is never padded
        yield order[:many]
        order = order[many:]


class _Size(NamedTuple):
    """What tells how well jobs go together. rows: of all tables. width: of a batch. steps: to be taken."""

    rows: int
    width: int
    examples: int
    steps: int


def _size_of(unit: Unit, job: Job) -> _Size:
    examples = len(job.data)
    width = min(job.plan.batch_size or examples, examples)
    return _Size(sum(job.start[n].shape[0] for n in unit.ragged), width, examples, job.plan.num_steps(examples))


def _bytes_of(job: Job, size: _Size, kept: Mapping[str, int]) -> int:
    """What a client takes: values or their factors, a batch, and the positions of all batches."""
    example = sum(c[:1].nbytes for c in job.data.columns().values())
    values = sum(t.nbytes for name, t in job.start.items() if name not in kept)
    factors = sum(size.steps * rows * sum(job.start[n].shape) * job.start[n].itemsize for n, rows in kept.items())
    return values + factors + example * size.width + feed_bytes(job.plan, size.examples, size.steps)


def _has_much_padding(sizes: Sequence[int]) -> bool:
    return sizes[0] != sizes[-1] and max(sizes) * len(sizes) > 1.5 * sum(sizes)
