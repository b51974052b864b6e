"""What carries bytes to nodes and their answers back. Standard library only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

__all__ = ["PARENT", "Collected", "Post"]

PARENT = "PARTWISE_DEPLOY_PID"  # environment variable: the process that all others of a server end with


class Collected(NamedTuple):
    """What came back for a batch.

    Args:
        id: which batch.
        data: the answer.
        fault: why there is none.
    """

    id: str
    data: bytes
    fault: str = ""


class Post(Protocol):
    """Carries bytes to nodes, and their answers back."""

    def there(self) -> Mapping[str, str]:
        """The nodes that can be reached now: name -> a mark that is another one when the node was started anew."""
        ...

    def send(self, node: str, data: bytes, *, kind: str, seconds: float, group: str) -> str:
        """Put a batch on its way; its id, or "" if it cannot be taken.

        Args:
            node: its name.
            data: the batch.
            kind: `train` for work, `query` for a census.
            seconds: after which nobody waits for the answer.
            group: to be logged with it.
        """
        ...

    def collect(self, ids: Collection[str]) -> Sequence[Collected]:
        """The answers that are there."""
        ...
