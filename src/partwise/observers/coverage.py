"""Who holds too much: an update declares its own index, and one that piles onto rare coordinates may own them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from partwise.aggregators.columns import num_held
from partwise.core.detect import Verdict
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["CoverageLimit"]


@dataclass(frozen=True)
class CoverageLimit:
    """Suspects whoever's update holds more than a share of the model's coordinates.

    Where few clients hold a coordinate, one more that claims to hold it counts for much there; an attacker that
    claims everything is in every such place. `Watch` with `exclude` leaves the update out.

    Args:
        max_share: of all coordinates of the model, in (0, 1); above what an honest client needs.

    Source: ours; the defence against the coverage attack that an update's own index makes possible.

    Example:
        >>> from partwise.aggregators import TrimmedMean, Watch
        >>> Watch(CoverageLimit(0.25), TrimmedMean(), exclude=True).exclude
        True
    """

    max_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.max_share < 1:
            raise ValueError(
                f"CoverageLimit(max_share={self.max_share}): must lie in (0, 1), got {self.max_share}. 0.5 is usual."
            )

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def judge(
        self, updates: Sequence[Update], replies: Sequence[ReplyInfo], state: Any, params: Params
    ) -> tuple[Sequence[Verdict], Any]:
        size = sum(like.numel() for like in params.values())
        shares = [num_held(update) / size for update in updates]
        return [
            Verdict(
                reply.client,
                "coverage",
                f"holds {share:.0%} of the model, above {self.max_share:.0%}",
                is_confirmed=True,
                is_out=True,
            )
            for reply, share in zip(replies, shares, strict=True)
            if share > self.max_share
        ], state
