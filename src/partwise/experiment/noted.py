"""An aggregator that tells the digest of every update it was given: what a journal is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from partwise.core.aggregate import Aggregator, Sum, given_to, told_by
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.probe import MakeProbe, probed
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.journal.entries import digest_of

__all__ = ["Noted"]


@dataclass(frozen=True)
class Noted:
    """An aggregator that also tells whose update had which digest, in order: `digests`, pairs of client and digest.

    Args:
        inner: the aggregator.
    """

    inner: Aggregator
    needs: ClassVar[Literal["sum", "each"]] = "each"
    takes_sent: ClassVar[bool] = True  # a digest is of what the client sent

    def init(self, params: Params, census: Census) -> Any:
        return self.inner.init(params, census), ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        digests = tuple((reply.client, digest_of(update)) for reply, update in zip(replies, got, strict=True))
        total, inner = self.inner.reduce(given_to(self.inner, got, params, replies), state[0], params, replies)
        return total, (inner, digests)

    def told(self, state: Any) -> Mapping[str, Any]:
        """What the aggregator tells, and the digests."""
        inner, digests = state
        return {**told_by(self.inner, inner), "digests": [list(pair) for pair in digests]}

    def probed(self, make: MakeProbe) -> Noted:
        """The same with an aggregator that has its probe."""
        return replace(self, inner=probed(self.inner, make))
