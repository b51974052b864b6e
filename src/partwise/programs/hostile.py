"""Where an attack is played: hostile clients' data, and what the aggregator gets instead of their updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from partwise.core.aggregate import Aggregator, Sum, given_to, told_by
from partwise.core.attack import Hostile, Scene
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.model import Params
from partwise.core.population import Census, Client
from partwise.core.rng import generator
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, check_update

__all__ = ["Attacked"]


@dataclass(frozen=True)
class Attacked:
    """An aggregator that gets what hostile clients make up instead of what they computed.

    Args:
        inner: the aggregator under attack.
        hostile: what they do, and when.
        members: the hostile clients.
        seed: the experiment's.
    """

    inner: Aggregator
    hostile: Hostile
    members: frozenset[Client] = field(repr=False)
    seed: int = 0
    needs: ClassVar[Literal["sum", "each"]] = "each"
    takes_sent: ClassVar[bool] = True  # what is made up is scaled as what it replaces

    def init(self, params: Params, census: Census) -> Any:
        return self.inner.init(params, census)

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        sent = list(got)
        active = [at for at, reply in enumerate(replies) if self._is_hostile(reply)]
        if active:
            chosen = set(active)
            honest = [update for at, update in enumerate(sent) if at not in chosen]
            version = max(replies[at].version for at in active)
            rng = generator(self.seed, "attack", version, *(replies[at].id for at in active))
            clients = [replies[at].client for at in active]
            scene = Scene([sent[at] for at in active], honest, params, version, rng, clients)
            for at, update in zip(active, self._forged(scene), strict=True):
                sent[at] = update
        return self.inner.reduce(given_to(self.inner, sent, params, replies), state, params, replies)

    def _forged(self, scene: Scene) -> Sequence[Update]:
        """What hostile clients send, one update each, of the model: a server would have refused anything else."""
        attack, many = self.hostile.attack, len(scene.own)
        forged = attack.forge(scene)
        if not isinstance(forged, Sequence) or len(forged) != many:
            got = f"{len(forged)} for {many}" if isinstance(forged, Sequence) else f"a {type(forged).__name__}"
            raise CompositionError(
                f"{attack!r}: must make up one update for each hostile client, got {got}. "
                "Return a list as long as `scene.own`."
            )
        for update in forged:
            try:
                check_update(update, scene.params)
            except ProtocolError as error:
                raise CompositionError(f"{attack!r}: must make updates that fit the model, got: {error}") from error
        return forged

    def _is_hostile(self, reply: ReplyInfo) -> bool:
        return reply.client in self.members and self.hostile.when.is_active(reply.version, self.seed)

    def told(self, state: Any) -> dict[str, Any]:
        """What the aggregator under attack tells."""
        return told_by(self.inner, state)
