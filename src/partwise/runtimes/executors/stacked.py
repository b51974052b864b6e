"""Many clients at once, along a leading dimension.

Shapes: C clients in a chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from partwise.core.plan import Job, Trained
from partwise.runtimes.executors.feed import feed_bytes
from partwise.runtimes.executors.groups import Unit, are_alike, unit_of
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.executors.scratch import Scratch
from partwise.runtimes.executors.together import FAILURES, Way, train, way_of

__all__ = ["Stacked"]

_log = logging.getLogger("partwise")

_CPU_BYTES, _OTHER_BYTES = 8 << 20, 1 << 30


@dataclass(frozen=True)
class Stacked:
    """The executor that trains many clients as one: their parameters have the clients along axis 0.

    Jobs are trained together where loss, optimiser, gradient terms, held shapes and what is trainable agree; the rows
    of tables, the examples and the steps may differ. Such a group takes the first way that holds for it:

    - the clients are folded into the batch of one forward pass, where parameters are used by linear maps, embeddings,
      layer norms, sums and products; plain SGD is applied within the backward pass;
    - `torch.func.vmap` over the clients;
    - one after another, as `Plain` does it: convolutions on a CPU, dropout, buffers such as running means, optimisers
      and gradient terms of other makes, losses that draw at random.

    The first way is tried on two clients against the second, once per model and shapes. A group in which anything
    raises is run again one client after another, so that every job has its own exception. The results are those of
    `Plain` but for rounding: within 1e-9 of the largest value in float64 and 1e-4 in float32, whose products are
    summed in another order, after a few dozen steps; so who is trained together may change the last digits. A rule that
    jumps where its argument is nothing but rounding (cautious decay, Adam where a gradient should be 0) may differ by
    more in entries on which the loss does not depend.

    Args:
        max_clients: clients trained together at most, > 0.
        max_bytes: of held values and batches of the clients trained together, >= 0; one client may have more. 0: 8 MiB
            on a CPU, so that they stay in its cache, and 1 GiB elsewhere. What is needed besides jobs and results is a
            small multiple of it, whatever the cohort.

    Example:
        >>> Stacked(max_clients=100).run([])
        []
    """

    max_clients: int = 256
    max_bytes: int = 0
    _ways: dict[Hashable, Way] = field(default_factory=dict, init=False, repr=False, compare=False)
    _scratch: Scratch = field(default_factory=Scratch, init=False, repr=False, compare=False)

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
            return Plain().run(jobs)
        results: dict[int, Trained | Exception] = {}
        for at in _chunks(unit, way, jobs, self.max_clients, self.max_bytes):
            chunk = [jobs[i] for i in at]
            found: Sequence[Trained | Exception]
            try:
                found = train(unit, chunk, way, self._scratch)
            except FAILURES as error:
                _log.info("stacked: %d jobs are run one after another: %s", len(chunk), error)
                found = Plain().run(chunk)
            results.update(zip(at, found, strict=True))
        return [results[i] for i in range(len(jobs))]

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
            self._ways[unit.kind] = way
            _log.info("stacked: %s", _sentence(unit, way))
        return way


def _sentence(unit: Unit | str, way: Way) -> str:
    because = f", for {way.why}" if way.why else ""
    if isinstance(unit, str) or way.name == "alone":
        return f"one after another{because}"
    if way.name == "vmap":
        return f"together by torch.func.vmap{because}"
    return "together, folded into the batch" + (", SGD within the backward pass" if unit.is_plain else "")


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


def _chunks(unit: Unit, way: Way, jobs: Sequence[Job], max_clients: int, max_bytes: int) -> Iterator[list[int]]:
    """Jobs of like size together, so that little is padded; chunks as even as the bounds allow."""
    device = next(iter(jobs[0].start.values())).device
    bound = max_bytes or (_CPU_BYTES if device.type == "cpu" else _OTHER_BYTES)
    sizes = [_size_of(unit, job) for job in jobs]
    order = sorted(range(len(jobs)), key=sizes.__getitem__, reverse=True)
    while order:
        most = max(1, min(max_clients, bound // max(1, _bytes_of(jobs[order[0]], sizes[order[0]]))))
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
    return _Size(sum(len(job.start[n]) for n in unit.ragged), width, examples, job.plan.num_steps(examples))


def _bytes_of(job: Job, size: _Size) -> int:
    """What a client takes: values, a batch, and the positions of all batches."""
    example = sum(c[:1].nbytes for c in job.data.columns().values())
    values = sum(t.nbytes for t in job.start.values())
    return values + example * size.width + feed_bytes(job.plan, size.examples, size.steps)


def _has_much_padding(sizes: Sequence[int]) -> bool:
    return sizes[0] != sizes[-1] and max(sizes) * len(sizes) > 1.5 * sum(sizes)
