"""A mean whose divisor is fixed in advance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from partwise.core.aggregate import Sum
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["FixedMean"]


@dataclass(frozen=True)
class FixedMean:
    """Sum of w_i v_i, divided by K W, whoever answers; a coordinate that a client does not hold is no change.

    What one client adds does not depend on who else is there, so that its share is bounded: by C / K where
    ‖v_i‖ <= C and w_i <= W. A mean over those who answered, or over the holders of a coordinate, has no such bound.

    Args:
        cohort: K, the number of clients that a commit is expected to have, > 0; q N under Poisson sampling.
        max_weight: W, the most a client may count for, > 0; `CapWeight` sees to it.

    Source: McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, arXiv:1710.06963,
        estimator f̃_f.

    Example:
        >>> import torch
        >>> from partwise.core.aggregate import sum_updates
        >>> from partwise.core.index import Whole
        >>> params = {"w": torch.zeros(1)}
        >>> got = sum_updates([Update(Whole({"w": (1,)}), {"w": torch.tensor([v])}) for v in (3.0, 5.0)], params)
        >>> FixedMean(cohort=10).reduce(got, (), params)[0].values()["w"]
        tensor([0.8000])
    """

    cohort: float
    max_weight: float = 1.0
    needs: ClassVar[Literal["sum", "each"]] = "sum"

    def __post_init__(self) -> None:
        for name in ("cohort", "max_weight"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"FixedMean({name}={value}): must be finite and above 0, got {value}. Raise it.")

    @property
    def divisor(self) -> float:
        """K."""
        return self.cohort

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert isinstance(got, Sum)
        by = self.cohort * self.max_weight
        return Update(got.index, {name: total / by for name, total in got.value.items()}, by), state
