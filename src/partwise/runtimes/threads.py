"""How many threads torch uses in this process, and calls that are made at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

import torch

__all__ = ["at_once", "torch_threads"]

_T = TypeVar("_T")


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Torch's threads, as they were afterwards; 0 leaves them alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def at_once(calls: Sequence[Callable[[], _T]]) -> list[_T]:
    """What calls return, each made in a thread of its own, among which torch's threads are divided.

    Torch divides one operation among its threads, which gains nothing where operations are small. Python runs in one
    thread at a time, but not while it waits for an operation.

    Raises:
        BaseException: what one of the calls has raised, once all have ended.
    """
    if len(calls) < 2:
        return [call() for call in calls]
    each = max(1, torch.get_num_threads() // len(calls))
    found: dict[int, _T] = {}
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            found[number] = calls[number]()
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
            raised.append(error)

    def run_beside(number: int) -> None:
        torch.set_num_threads(each)  # of this thread alone
        run(number)

    with torch_threads(each):
        others = [Thread(target=run_beside, args=(number,)) for number in range(1, len(calls))]
        for thread in others:
            thread.start()
        run(0)
        for thread in others:
            thread.join()
    if raised:
        raise raised[0]
    return [found[number] for number in range(len(calls))]
