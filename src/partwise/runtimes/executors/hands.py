"""One process of a pool: from inside, a loop of jobs; from outside, what it was given and what became of it."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch

from partwise.core.errors import ProtocolError
from partwise.core.plan import Job
from partwise.runtimes import child
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.executors.slots import Inherited, Place, Slot, UnsendableError, pickles

__all__ = ["Hand"]

_FRAME = struct.Struct("<BBQQQ")  # kind, slot, place
_SLOTS = 2  # one job is worked on while the next one waits
_FALSE_STARTS = 3
_NOWHERE = Place(0, 0, 0)


class _Kind(IntEnum):
    READY = 1  # it can compute gradients
    JOB = 2  # to it
    DONE = 3
    FATAL = 4  # an error that the plain executor would not have caught
    UNREADABLE = 5  # a job that was sent, and does not come out as one


class Hand:
    """A forked process that trains with one thread.

    Args:
        name: what errors call it.
        inherited: what it has from the fork.
    """

    def __init__(self, name: str, inherited: Inherited) -> None:
        self.name, self._inherited = name, inherited
        self._slots = [Slot() for _ in range(_SLOTS)]
        self.under_way: deque[tuple[int, int]] = deque()  # (number of the job, slot), in the order they are done
        self._clear()
        self.socket: socket.socket
        self.is_dead, self._is_ready, self._false_starts = True, False, 0

    # Outside

    def start(self, others: Sequence[Hand]) -> None:
        """Fork the process. others: those whose sockets are none of its business.

        Raises:
            OSError: this system cannot fork.
        """
        closing = [other.socket for other in others if not other.is_dead]
        self.process, self.socket = child.start(self._serve, closing=closing)
        self.is_dead, self._is_ready = False, False

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def has_room(self, waiting: int = 1) -> bool:
        """Whether it can be given another job, with so many there already at most."""
        return not self.is_dead and len(self.under_way) < min(waiting, _SLOTS)

    def give(self, number: int, job: Job) -> None:
        """Give it a job.

        Raises:
            UnsendableError: there is something in it that must be inherited.
        """
        slot = self._free[-1]
        place = self._slots[slot].write(job, self._inherited)
        self._free.pop()
        self.under_way.append((number, slot))
        with contextlib.suppress(ConnectionError):  # that it is dead is seen where it is read
            _send(self.socket, _Kind.JOB, slot, place)

    def take(self, use: Callable[[int, Any], None]) -> None:
        """Hear what it has to say, which must have come.

        Args:
            use: is called with the number of a job that is done and its result, whose tensors are there as long as the
                call takes; an `UnsendableError` if there was something in the job that must be inherited.

        Raises:
            ProtocolError: it does not start.
            Exception: what it met, if the plain executor would have raised it.
        """
        try:
            kind, slot, place = _receive(self.socket)
        except (EOFError, ConnectionError):
            self._bury()
            return
        if kind == _Kind.READY:
            self._is_ready, self._false_starts = True, 0
            return
        found: Any = UnsendableError()
        if kind != _Kind.UNREADABLE:
            found = self._slots[slot].read(place, self._inherited)
        if kind == _Kind.FATAL:
            error, text = found
            raise error from ProtocolError(f"{self.name}: {text}")
        number, _ = self.under_way.popleft()
        use(number, found)
        self._free.append(slot)

    def _bury(self) -> None:
        self.is_dead, self.fate = True, child.how_it_ended(self.process)
        child.end(self.process, self.socket)
        self._false_starts += not self._is_ready
        if self._false_starts > _FALSE_STARTS:
            raise ProtocolError(f"{self.name}: must start, got one that {self.fate}. Use Plain(), or free some memory.")

    def drop(self) -> tuple[list[int], list[int]]:
        """The numbers of the jobs that a dead process had: the one that it was at, and those it had not begun."""
        numbers = [number for number, _ in self.under_way]
        self._clear()
        return (numbers[:1], numbers[1:]) if self._is_ready else ([], numbers)

    def stop(self) -> None:
        """End the process, if it lives, whatever it is at."""
        self._clear()
        if not self.is_dead:
            self.is_dead = True
            child.end(self.process, self.socket)

    def _clear(self) -> None:
        self.under_way.clear()
        self._free = list(range(_SLOTS))

    def close(self) -> None:
        """End the process and give its memory up."""
        self.stop()
        for slot in self._slots:
            slot.close()

    # Inside

    def _serve(self, up: socket.socket) -> None:
        torch.set_num_threads(1)
        child.keep_pages()
        gc.freeze()  # what was inherited is not looked through, and so not copied
        slot, plain = 0, Plain()
        try:
            torch.ones((), requires_grad=True).mul(2).backward()  # fails where a GPU was used before the fork
            _send(up, _Kind.READY, 0, _NOWHERE)
            while True:
                _, slot, place = _receive(up)
                try:
                    job = self._slots[slot].read(place, self._inherited)
                except Exception:  # noqa: BLE001 - what classes do when they are unpickled is theirs
                    _send(up, _Kind.UNREADABLE, slot, _NOWHERE)
                    continue
                (result,) = plain.run([job])
                self._answer(up, _Kind.DONE, slot, pickles(result) if isinstance(result, Exception) else result)
        except (EOFError, ConnectionError):
            return
        except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
            self._answer(up, _Kind.FATAL, slot, (pickles(error), traceback.format_exc()))

    def _answer(self, up: socket.socket, kind: _Kind, slot: int, tree: object) -> None:
        _send(up, kind, slot, self._slots[slot].write(tree, self._inherited))


def _send(to: socket.socket, kind: _Kind, slot: int, place: Place) -> None:
    to.sendall(_FRAME.pack(kind, slot, *place))


def _receive(source: socket.socket) -> tuple[_Kind, int, Place]:
    frame = b""
    while len(frame) < _FRAME.size:
        got = source.recv(_FRAME.size - len(frame))
        if not got:
            raise EOFError
        frame += got
    kind, slot, *place = _FRAME.unpack(frame)
    return _Kind(kind), slot, Place(*place)
