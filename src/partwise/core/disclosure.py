"""What a run lets the server see, in the words of the parts that decide it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

__all__ = ["Discloses", "disclosed"]


@runtime_checkable
class Discloses(Protocol):
    """A part that says what the server can see because of it, what it cannot, and as long as what."""

    def discloses(self) -> Sequence[str]:
        """Sentences, for the report."""
        ...


def disclosed(part: object) -> tuple[str, ...]:
    """What a part says; nothing, of one that says nothing."""
    return tuple(part.discloses()) if isinstance(part, Discloses) else ()
