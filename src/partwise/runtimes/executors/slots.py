"""Shared memory between a process and its forks: trees with tensors in it, without names or files."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from partwise.core.model import Model
from partwise.core.plan import Job

__all__ = ["Inherited", "Place", "Slot", "UnsendableError", "pickles"]

_ALIGNED = 64  # bytes, as torch aligns what it allocates: some kernels give other last bits elsewhere
_PAGE = 4096
_REFUSED = (pickle.PicklingError, AttributeError, TypeError, ValueError, RuntimeError, LookupError)


class UnsendableError(Exception):
    """Something that can only be inherited."""


_PlaceOf = tuple[torch.dtype, tuple[int, ...], tuple[int, ...] | None, int]  # type, shape, strides, offset


def _is_plain(x: Tensor) -> bool:
    return x.is_cpu and x.layout == torch.strided and not x.requires_grad


def _place_of(x: Tensor, offset: int) -> tuple[_PlaceOf, int]:
    """Where a copy goes, and what is behind it."""
    # Strides that `clone` would give: a kernel may sum in another order where they differ.
    stride = None if x.is_contiguous() else torch.empty_like(x, device="meta").stride()
    return (x.dtype, tuple(x.shape), stride, offset), offset + -(-x.nbytes // _ALIGNED) * _ALIGNED


class Inherited:
    """What forks have because they were forked when it was there; it is sent as a number.

    That holds for models, which are code, and for the memory of which a client's examples are a slice. Neither may
    change while the forks live. It also holds for jobs that cannot be sent.
    """

    def __init__(self) -> None:
        self._things: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._storages: dict[int, int] = {}  # address -> number
        self._common = Slot()
        self._in_common: dict[int, _PlaceOf] = {}  # id of a tensor -> where it is

    def learn(self, job: Job) -> bool:
        """Note what of a job is to be inherited; False if the rest of it cannot be sent."""
        try:
            _Learner(self, is_data=True).dump(job.data)
            _Learner(self, is_data=False).dump(job)
        except _REFUSED:
            return False
        return True

    def add(self, thing: object) -> None:
        """Note a thing; it is kept as long as this is."""
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self._things)
            self._things.append(thing)

    def add_storage(self, storage: torch.UntypedStorage) -> None:
        """Note the memory of a tensor."""
        if storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = len(self._things)
            self._things.append(storage)

    def forget(self, things: Sequence[object]) -> None:
        """Things that will not be sent again; their numbers stay taken."""
        for thing in things:
            number = self._numbers.pop(id(thing), None)
            if number is not None:
                self._things[number] = None

    def share(self, jobs: Sequence[Job]) -> None:
        """Write the start values that jobs have in common once for all of them, in place of those of other jobs."""
        times = Counter(id(t) for job in jobs for t in job.start.values())
        many = {id(t): t for job in jobs for t in job.start.values() if times[id(t)] > 1 and _is_plain(t)}
        places, end = {}, 0
        for key, t in many.items():
            places[key], end = _place_of(t, end)
        self._common.extend(end)
        for key, t in many.items():
            self._common.view(*places[key]).copy_(t)
        self._in_common = places

    def common(self, x: Tensor) -> tuple[Any, ...] | None:
        """Where forks find a tensor that was shared; its number is below 0, and says how much memory they map."""
        place = self._in_common.get(id(x))
        return None if place is None else (-self._common.capacity, *place)

    def in_common(self, number: int, place: _PlaceOf) -> Tensor:
        """A tensor that was shared."""
        self._common.map_all(-number)
        return self._common.view(*place)

    def close(self) -> None:
        """Give the memory up that is written for all."""
        self._common.close()

    def number(self, thing: object) -> int | None:
        """The number under which forks have a thing, if they have it."""
        return self._numbers.get(id(thing))

    def storage(self, storage: torch.UntypedStorage) -> int | None:
        """The number under which forks have the memory of a tensor, if they have it."""
        number = self._storages.get(storage.data_ptr())
        return number if number is not None and self._things[number].nbytes() == storage.nbytes() else None

    def __getitem__(self, number: int) -> Any:
        return self._things[number]


class _Learner(pickle.Pickler):
    """Pickles to nowhere, and notes what it meets."""

    def __init__(self, inherited: Inherited, *, is_data: bool) -> None:
        super().__init__(io.BytesIO(), protocol=5)
        self._inherited, self._is_data = inherited, is_data

    def persistent_id(self, x: object) -> object:
        if isinstance(x, Model):
            self._inherited.add(x)
            return True
        if type(x) is not Tensor:
            return None
        if self._is_data and x.untyped_storage().nbytes() > x.nbytes:
            self._inherited.add_storage(x.untyped_storage())
        return True


class Place(NamedTuple):
    """Where in a slot a tree is. capacity: of the slot."""

    capacity: int
    start: int
    length: int


class _Packer(pickle.Pickler):
    """Pickles a tree in which tensors are places, and lists the tensors with their offsets."""

    def __init__(self, file: io.BytesIO, inherited: Inherited) -> None:
        super().__init__(file, protocol=5)
        self._inherited = inherited
        self._met: dict[int, tuple[Any, ...]] = {}
        self.placed: list[tuple[Tensor, tuple[Any, ...]]] = []  # keeps the tensors, so that no id comes twice
        self.end = 0

    def persistent_id(self, x: object) -> object:
        if type(x) is Tensor and _is_plain(x):
            return self._met.get(id(x)) or self._inherited.common(x) or self._place(x)
        number = self._inherited.number(x)
        if number is None and isinstance(x, Model):
            raise UnsendableError
        return number

    def _place(self, x: Tensor) -> tuple[Any, ...]:
        shape, storage = tuple(x.shape), x.untyped_storage()
        number = self._inherited.storage(storage)
        if number is not None:
            place: tuple[Any, ...] = (number, x.dtype, shape, x.stride(), x.storage_offset())
        else:
            found, self.end = _place_of(x, self.end)
            place = (None, *found)
        self._met[id(x)] = place
        self.placed.append((x, place))
        return place


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, slot: Slot, inherited: Inherited) -> None:
        super().__init__(file)
        self._slot, self._inherited = slot, inherited

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, int):
            return self._inherited[pid]
        number, dtype, shape, stride, offset = pid
        if number is None:
            return self._slot.view(dtype, shape, stride, offset)
        if number < 0:
            return self._inherited.in_common(number, (dtype, shape, stride, offset))
        return torch.empty((0,), dtype=dtype).set_(self._inherited[number], offset, shape, stride)


class Slot:
    """Memory that a process and its forks share, one of them using it at a time.

    It has no name, so that nothing is left of it when the last of them has gone, however that came about.
    """

    def __init__(self) -> None:
        if sys.platform == "linux":
            self._fd = os.memfd_create("partwise")
        else:
            with tempfile.TemporaryFile() as file:
                self._fd = os.dup(file.fileno())
        self.capacity = 0
        self._map: mmap.mmap | None = None

    def extend(self, size: int) -> None:
        """Have room for so many bytes at least."""
        if size > self.capacity:
            size = -(-(size + size // 4) // _PAGE) * _PAGE
            os.ftruncate(self._fd, size)
            self.map_all(size)

    def map_all(self, capacity: int) -> None:
        """See what another process has made room for."""
        if capacity != self.capacity:
            self._map, self.capacity = mmap.mmap(self._fd, capacity), capacity

    def view(self, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> Tensor:
        """A tensor in this memory; valid until something else is written."""
        count = 1
        for length in shape:
            count *= length
        if not count:
            return torch.empty(shape, dtype=dtype)
        assert self._map is not None
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)
        return flat.view(shape) if stride is None else flat.as_strided(shape, stride)

    def write(self, tree: object, inherited: Inherited) -> Place:
        """Put a tree here, in place of what was here.

        Raises:
            UnsendableError: there is something in it that forks do not have and that cannot be sent.
        """
        file = io.BytesIO()
        packer = _Packer(file, inherited)
        try:
            packer.dump(tree)
        except _REFUSED as error:
            raise UnsendableError(str(error)) from error
        skeleton = file.getbuffer()
        self.extend(packer.end + len(skeleton))
        assert self._map is not None
        for tensor, (number, dtype, shape, stride, offset) in packer.placed:
            if number is None:
                self.view(dtype, shape, stride, offset).copy_(tensor)
        self._map[packer.end : packer.end + len(skeleton)] = skeleton
        return Place(self.capacity, packer.end, len(skeleton))

    def read(self, place: Place, inherited: Inherited) -> Any:
        """The tree at a place; its tensors lie in this memory."""
        self.map_all(place.capacity)
        assert self._map is not None
        skeleton = self._map[place.start : place.start + place.length]
        return _Unpacker(io.BytesIO(skeleton), self, inherited).load()

    def close(self) -> None:
        """Give the memory up."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._map = -1, None


def pickles(error: Exception) -> Exception:
    """The same error if it survives being sent, else one that says the same."""
    with contextlib.suppress(Exception):  # an error's own pickling may raise anything
        if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301 - it was here all the time
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")
