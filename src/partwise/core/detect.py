"""Who looks at the updates of a round and says whom it suspects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from partwise.core.codec import register
from partwise.core.model import Params
from partwise.core.population import Census, Client
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["DOUBTFUL", "GOOD", "Detector", "Reputation", "Verdict", "score_of"]

# In millionths: the score of a client that nobody suspects, and of one of whom nothing is certain.
GOOD, DOUBTFUL = 1_000_000, 300_000


def score_of(kind: str, *, is_confirmed: bool) -> int:
    """What a suspicion makes of a client's score: `DOUBTFUL`, or 0 of who is confirmed and not only unreliable."""
    return 0 if is_confirmed and kind != "unreliable" else DOUBTFUL


@dataclass(frozen=True)
class Reputation:
    """What a client has been worth so far, and counts for: r <- memory r + (1 - memory) score, in every commit.

    A score is 1 of a client that nobody suspects, 0.3 of one that is suspected, and 0 where that is confirmed and it
    is not only unreliable. The client's update is weighted by min(r, cap) in place of the weight that it states.

    Args:
        memory: mu, in [0, 1).
        start: r of a client that is new, in [0, 1].
        cap: above it, more reputation makes no difference, in (0, 1].
        least: updates of clients below it are left out, in [0, 1]. Their reputation may rise again.

    Source: robust accountability after Jaberzadeh et al., "Blockchain-based federated learning", 2023,
        arXiv:2307.10492.

    Example:
        >>> Reputation(least=0.4).after(0.5, 0.0)
        0.45
    """

    memory: float = 0.9
    start: float = 0.5
    cap: float = 1.0
    least: float = 0.0

    def __post_init__(self) -> None:
        bounds = {"memory": 0 <= self.memory < 1, "start": 0 <= self.start <= 1}
        bounds |= {"cap": 0 < self.cap <= 1, "least": 0 <= self.least <= 1}
        for name, is_fine in bounds.items():
            if not is_fine:
                value = getattr(self, name)
                raise ValueError(f"Reputation({name}={value}): must lie between 0 and 1, got {value}. See its bounds.")

    def after(self, before: float, score: float) -> float:
        """A client's reputation after one more score, both in [0, 1]."""
        return self.memory * before + (1 - self.memory) * score


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
