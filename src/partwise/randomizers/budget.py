"""What each client may still answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from partwise.core.errors import CompositionError
from partwise.randomizers.randomizer import MAX_EPSILON

__all__ = ["LocalBudget"]

_ROUNDING = 1e-9  # of a limit: what sums of thousands of reports are off by, and more


@dataclass(frozen=True)
class LocalBudget:
    """Epsilon that each client spends in its life, by its own limit; fresh reports add up.

    The state is a plain tree, client -> spent.

    Args:
        limit: of a client that is not in `limits`, > 0.
        limits: client -> its own limit, > 0.

    Example:
        >>> budget = LocalBudget(2.0, {7: 1.0})
        >>> state = budget.spend(budget.spend({}, 3, 1.5), 7, 1.0)
        >>> budget.left(state, 3), budget.left(state, 7)
        (0.5, 0.0)
    """

    limit: float
    limits: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for who, limit in (("limit", self.limit), *((f"limits[{c}]", x) for c, x in self.limits.items())):
            if not 0 < limit <= MAX_EPSILON:
                raise ValueError(
                    f"LocalBudget({who}={limit}): must lie in (0, {MAX_EPSILON:g}], got {limit}. 1 to 8 is usual."
                )

    def left(self, state: Mapping[int, float], client: int) -> float:
        """What a client may still spend."""
        return max(0.0, self.limits.get(client, self.limit) - state.get(client, 0.0))

    def spend(self, state: Mapping[int, float], client: int, epsilon: float) -> dict[int, float]:
        """The state after a client's fresh report.

        Raises:
            ValueError: no report has such an epsilon.
            CompositionError: the client has less left.
        """
        if not 0 <= epsilon <= MAX_EPSILON:
            raise ValueError(
                f"LocalBudget(): the epsilon of a report must lie in [0, {MAX_EPSILON:g}], got {epsilon}. Give that of "
                "the randomizer."
            )
        left = self.left(state, client)
        if epsilon > left + _ROUNDING * self.limits.get(client, self.limit):
            raise CompositionError(
                f"LocalBudget(): client {client} has epsilon {left:.4g} left, got a report of {epsilon:.4g}. Give the "
                "answer that it gave before, which costs nothing, or leave it out."
            )
        return {**state, client: state.get(client, 0.0) + epsilon}
