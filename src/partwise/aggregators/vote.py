"""One client, one vote on the direction of each coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from partwise.core.aggregate import Sum, sum_updates
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, map_values

__all__ = ["MajorityVote"]


@dataclass(frozen=True)
class MajorityVote:
    """sign(sum of sign(v_i)) over the holders of each coordinate; a tie is 0, weights do not count.

    A client cannot move a coordinate by more than its vote. The step is 1 in every coordinate: put `Scale` into the
    server chain, with a factor two orders below that of gradient descent, and `Sign` into the client chain.

    Source: Bernstein et al., "signSGD with majority vote is communication efficient and fault tolerant", ICLR 2019,
        arXiv:1810.05291.
    Differs: submodels: those vote who hold; a tie moves nothing.

    Example:
        >>> from partwise.core.index import Whole
        >>> votes = [(1.0, -2.0, 0.5), (-3.0, -0.1, 0.2), (2.0, 4.0, -0.1)]
        >>> updates = [Update(Whole({"w": (3,)}), {"w": torch.tensor(v)}) for v in votes]
        >>> MajorityVote().reduce(updates, (), {"w": torch.zeros(3)})[0].values()["w"]
        tensor([ 1., -1.,  1.])
    """

    needs: ClassVar[Literal["sum", "each"]] = "each"

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        ballots = (Update(update.index, map_values(update, torch.sign).value) for update in got)
        votes = sum_updates(ballots, params)
        return Update(votes.index, {name: total.sign() for name, total in votes.value.items()}, votes.total), state
