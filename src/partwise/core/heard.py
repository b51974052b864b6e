"""A row of a run's log: a message that the server handled. Standard library only."""

from __future__ import annotations

from typing import NamedTuple

from partwise.core.program import RELAY, SERVER, NodeId

__all__ = ["FAILURE", "START", "Heard"]

START = -(1 << 63)  # the tag of the first message, below that of every timer
FAILURE = 1  # of a runtime's word that a client's work, or its message, is gone


class Heard(NamedTuple):
    """A message that the server handled.

    Args:
        now: when, seconds since the run began.
        src: who sent it.
        tag: the timer's, where `src` is the server, `START` for the first of all; from a client 0, or `FAILURE`.

    Example:
        >>> print(Heard(2.5, 7, 0)), print(Heard(3.0, -1, 12))
        a message of client 7 at 2.5 s
        timer 12 at 3.0 s
        (None, None)
    """

    now: float
    src: NodeId
    tag: int

    def __str__(self) -> str:
        if self.src == RELAY:
            what = "a message of the relay"
        elif self.src != SERVER:
            what = f"the loss of client {self.src}'s work" if self.tag == FAILURE else f"a message of client {self.src}"
        else:
            what = "the start" if self.tag == START else f"timer {self.tag}"
        return f"{what} at {self.now!r} s"
