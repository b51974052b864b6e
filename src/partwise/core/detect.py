"""Who looks at the updates of a round and says whom it suspects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from partwise.core.codec import register
from partwise.core.model import Params
from partwise.core.population import Census, Client
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["DOUBTFUL", "GOOD", "Detector", "Verdict", "score_of"]

# In millionths: the score of a client that nobody suspects, and of one of whom nothing is certain.
GOOD, DOUBTFUL = 1_000_000, 300_000


def score_of(kind: str, *, is_confirmed: bool) -> int:
    """What a suspicion makes of a client's score: `DOUBTFUL`, or 0 of who is confirmed and not only unreliable."""
    return 0 if is_confirmed and kind != "unreliable" else DOUBTFUL


@register
class Verdict(NamedTuple):
    """What an observer says of a client.

    Args:
        client: its number.
        kind: `sign flip`, `noise`, `targeted`, `unreliable`, `harmful`, `coverage`.
        reason: the number that says so, in words.
        is_confirmed: whether it was under suspicion for long enough.
        is_out: whether its update of this round is better left out.
    """

    client: Client
    kind: str
    reason: str
    is_confirmed: bool
    is_out: bool


@runtime_checkable
class Detector(Protocol):
    """Looks at the updates of a round."""

    def init(self, params: Params, census: Census) -> Any: ...

    def judge(
        self, updates: Sequence[Update], replies: Sequence[ReplyInfo], state: Any, params: Params
    ) -> tuple[Sequence[Verdict], Any]:
        """What it says of the senders, and its next state."""
        ...
