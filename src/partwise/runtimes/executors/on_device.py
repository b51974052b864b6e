"""Training on another device than that of the values: jobs go there, and what they change comes back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from partwise.core.errors import CompositionError, DataError
from partwise.core.model import Model, Params, Values
from partwise.core.plan import Executor, Job, Resident, Trained
from partwise.core.population import Batch, Dataset, Examples
from partwise.core.summing import Share, SumJob, Summed
from partwise.runtimes.devices import Precision, check_device, found_device, precise
from partwise.runtimes.executors.adding import added
from partwise.runtimes.executors.stacked import Stacked

__all__ = ["OnDevice", "moved"]


class _Columns:
    """Columns that are kept on a device: those of a population, of which clients have slices."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Batch, Examples]] = {}  # id -> the columns, which keeps the id, and theirs there

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Columns, ()

    def there(self, whole: Batch, device: torch.device, room: int) -> Examples | None:
        """The examples on a device; None where there is no room for so many bytes."""
        found = self._kept.get(id(whole))
        if found is None:
            if sum(t.nbytes for columns in (whole, *self._held()) for t in columns.values()) > room:
                return None
            found = self._kept[id(whole)] = whole, Examples(_copied(whole, device))
        return found[1]

    def _held(self) -> list[Batch]:
        return [columns for columns, _ in self._kept.values()]


def _copied(columns: Batch, device: torch.device) -> Batch:
    return {name: t.to(device) for name, t in columns.items()}


@dataclass(frozen=True)
class OnDevice:
    """The executor that trains on a GPU, by another executor.

    The server's values, the clients' states and everything that is sent stay in memory; a job's start values, examples
    and plan are copied to the device, what all jobs have in common once, and what they change is copied back. Where
    only the sum of the changes is wanted, they are added up there. Results are those of `inner` in memory but for
    rounding; on a GPU last bits may differ from run to run, where torch adds in an order by chance.

    A loss, a gradient term or a data set of your own may hold tensors in fields of dataclasses, lists and dicts; what a
    closure holds is not found, nor what is a plain attribute of a module. What it draws from its `rng` lies in memory,
    and must be moved to its parameters' device. On a GPU, an id or a label outside its range ends the run with an
    error: CUDA does not go on after it.

    Args:
        device: `cuda`, or one of several such as `cuda:1`; `cpu`; `auto`: a GPU where torch finds one, else the CPU.
        inner: runs the jobs there; not one that is `core.plan.Resident`, such as `Pool`.
        precision: of float32 products and convolutions on the GPU, as `torch.set_float32_matmul_precision` has it:
            `highest` is float32, `high` is TF32, `medium` may be bfloat16.
        data_bytes: columns that clients have slices of are kept on the device up to so many bytes, >= 0; of what is
            larger, each client's examples are copied when it trains.

    Example:
        >>> OnDevice("auto").run([])
        []
    """

    device: str = "cuda"
    inner: Executor = field(default_factory=Stacked)
    precision: Precision = "highest"
    data_bytes: int = 4 << 30
    _columns: _Columns = field(default_factory=_Columns, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_device("OnDevice", self.device)
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"OnDevice(precision={self.precision!r}): must be one of {', '.join(get_args(Precision))}, got "
                f"{self.precision!r}. 'highest' is float32."
            )
        if self.data_bytes < 0:
            raise ValueError(
                f"OnDevice(data_bytes={self.data_bytes}): must be at least 0, got {self.data_bytes}. 0 keeps nothing."
            )
        if isinstance(self.inner, Resident):
            raise CompositionError(
                f"OnDevice(inner={self.inner!r}): opens no executor, got one that keeps processes or a choice for a "
                "run. Use Stacked() or Plain()."
            )

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        there = self._there()
        with precise(there.device, self.precision):
            results = self.inner.run([there.job(job) for job in jobs])
            return [there.back(result, job.start) for result, job in zip(results, jobs, strict=True)]

    def add(self, job: SumJob) -> Summed:
        """The sum of what jobs change, added up on the device as far as `inner` does so."""
        there = self._there()

        def shares() -> Iterator[Share | Exception]:
            for share in job.shares():
                yield share if isinstance(share, Exception) else replace(share, job=there.job(share.job))

        with precise(there.device, self.precision):
            found = added(self.inner, SumJob(shares, job.params))
        for outcome in found.outcomes:
            _check_alive(outcome)
        return found

    def _there(self) -> _There:
        return _There(found_device("OnDevice", self.device), self._columns, self.data_bytes)


class _There:
    """A device during one call. room: bytes of columns that are kept."""

    def __init__(self, device: torch.device, columns: _Columns, room: int) -> None:
        self.device = device
        self._columns, self._room = columns, room
        self._last: dict[str, tuple[Tensor, Tensor]] = {}  # of the last job: name -> a start value, and it there

    def job(self, job: Job) -> Job:
        """A job that is trained there."""
        start = self._start(job.start)
        return job._replace(plan=moved(job.plan, self.device), start=start, data=self._data(job.data))

    def back(self, result: Trained | Exception, start: Params) -> Trained | Exception:
        """A result where the job's own values are."""
        if isinstance(result, Trained):
            return result._replace(change={n: t.to(start[n].device) for n, t in result.change.items()})
        _check_alive(result)
        return result

    def _start(self, start: Values) -> Values:
        """What the job before it has too is the same tensor there."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, t in start.items():
            before = self._last.get(name)
            found[name] = before if before is not None and before[0] is t else (t, t.to(self.device))
        self._last = found
        return {name: there for name, (_, there) in found.items()}

    def _data(self, data: Dataset) -> Dataset:
        if not isinstance(data, Examples):
            return _BatchByBatch(data, self.device)
        whole, begin = data.place()
        if len(data) < max(map(len, whole.values()), default=0):
            there = self._columns.there(whole, self.device, self._room)
            if there is not None:
                return there.slice(begin, begin + len(data))
        return Examples(_copied(data.columns(), self.device))


class _BatchByBatch:
    """A data set of which each batch is copied to a device."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self._data, self._device = data, device

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, at: Tensor) -> Batch:
        return _copied(self._data.batch(at), self._device)

    def columns(self) -> Batch:
        return _copied(self._data.columns(), self._device)


def _check_alive(result: object) -> None:
    """Refuse to go on with a GPU that does not."""
    if isinstance(result, RuntimeError) and "device-side assert" in str(result):
        raise DataError(
            "OnDevice(): a client's examples must be in range for its model, got an id or a label that is not, after "
            "which a GPU cannot go on. Find it with device='cpu', where only that client fails."
        )


def moved(thing: Any, device: torch.device) -> Any:
    """The same with every tensor in it on a device: in fields of dataclasses, in tuples, lists and dicts.

    What has no tensor in it is not copied.
    """
    if isinstance(thing, Tensor):
        return thing.to(device)
    if isinstance(thing, Model | str | bytes):
        return thing
    if isinstance(thing, Mapping):
        values = {key: moved(value, device) for key, value in thing.items()}
        return thing if all(values[key] is thing[key] for key in values) else values
    if isinstance(thing, tuple | list):
        items = [moved(item, device) for item in thing]
        if all(one is other for one, other in zip(items, thing, strict=True)):
            return thing
        return type(thing)(*items) if hasattr(thing, "_fields") else type(thing)(items)
    if not is_dataclass(thing) or isinstance(thing, type):
        return thing
    found = {f.name: moved(getattr(thing, f.name), device) for f in fields(thing)}
    changed = {name: value for name, value in found.items() if value is not getattr(thing, name)}
    if not changed:
        return thing
    made = copy.copy(thing)
    for name, value in changed.items():
        object.__setattr__(made, name, value)
    return made
