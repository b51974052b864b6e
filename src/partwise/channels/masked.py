"""The channel of which the server reads only sums."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from partwise.channels.crypto import require
from partwise.channels.graphs import Complete, Graph
from partwise.channels.identities import Identities
from partwise.channels.layout import Encoding, Sender, UpdatePlanner, sum_of, told_of
from partwise.channels.opening import open_sum
from partwise.channels.protocol import Rules, check_patience
from partwise.channels.ring import FixedPoint, fitting_ring
from partwise.channels.sealing import seal_sum
from partwise.core.channel import ClientSession, Opened, Seat, ServerSession
from partwise.core.model import Params
from partwise.core.population import Client
from partwise.core.update import Update

__all__ = ["Masked"]

_LARGEST_COHORT = 2**14


@dataclass(frozen=True)
class Masked:
    """Sums under masks that cancel: the server reads a sum over those who stayed, and none of its terms.

    Every pair of clients agrees on a mask that one adds and the other takes off; on top of it each has a mask of its
    own. Both are shared out among the clients, so that a sum can be opened when some are lost at any step, and so that
    nobody's update can: a client gives, of each other client, a share of one of the two.

    Values become whole numbers by unbiased rounding, at most a step off: 2 limit / (2^bits - 2) times the weight. The
    client chain must end with a bound of at most `limit`. Weights, examples and losses are summed under the masks too.

    Without `identities`, it is for a server that follows the protocol and works with fewer clients than open a secret.
    With them, clients sign their keys and who has stayed, and a server that lies about either is refused.

    Args:
        limit: largest absolute value of an update's coordinate, > 0; take the clip's norm.
        bits: of a value, in 2..32.
        max_weight: the largest weight of a client, a whole number; weights above it are refused.
        layout: `union`: all send the same rows, of those that anybody holds, with zeros where they hold none; `sparse`:
            each sends its own, masked with those who hold them too, for a server that follows the protocol.
        min_contributors: clients send only coordinates that so many hold, and give no shares for a sum of fewer.
        graph: who masks with whom.
        identities: signing keys of the clients.
        binds_model: whether masks cancel only between clients that were given the same values; not where a scheduler
            commits replies of several versions together, nor, with `identities`, where some hold whole what others
            hold a part of.
        patience_seconds: how long the server waits for the answers to a message.

    Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017; for
        `sparse`: Niu et al., "Billion-scale federated learning on mobile clients", MobiCom 2020.

    Example:
        >>> Masked(limit=0.5, bits=8).step == 2 * 0.5 / 254
        True
    """

    limit: float = 1.0
    bits: int = 16
    max_weight: int = 512
    layout: Literal["union", "sparse"] = "union"
    min_contributors: int = 5
    graph: Graph = field(default_factory=Complete)
    identities: Identities | None = None
    binds_model: bool = True
    patience_seconds: float = 60.0
    reveals: ClassVar[Literal["sum", "each"]] = "sum"
    exchanges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require()
        if not 0 < self.limit < math.inf or not 2 <= self.bits <= 32 or self.max_weight < 1:
            raise ValueError(
                f"Masked(limit={self.limit}, bits={self.bits}, max_weight={self.max_weight}): needs a finite limit "
                "above 0, 2..32 bits and a weight of at least 1. The limit is the clip's norm; 16 bits are usual."
            )
        if self.layout not in ("union", "sparse"):
            raise ValueError(f"Masked(layout={self.layout!r}): must be 'union' or 'sparse'. 'union' is a safe choice.")
        check_patience(self, self.min_contributors, self.patience_seconds)
        fitting_ring(self._encoding.point.levels, self.max_weight, _LARGEST_COHORT)
        self._check_trust()

    def _check_trust(self) -> None:
        trusting = [
            what
            for what, is_so in (("graph", self.graph.is_server_drawn), ("layout", self.layout == "sparse"))
            if is_so
        ]
        if self.identities is not None and trusting:
            raise ValueError(
                f"Masked(identities=...): guards against a server that lies, got a {trusting[0]} that the server "
                "makes. Use graph=Complete() and layout='union', or no identities."
            )
        if self.graph.is_server_drawn and self.layout == "sparse":
            raise ValueError(
                f"Masked(layout='sparse', graph={self.graph!r}): rows are masked among all who hold them, got a graph "
                "in which they may not be neighbours. Use graph=Complete()."
            )

    @property
    def step(self) -> float:
        """How far apart two values are that words can tell."""
        return self._encoding.point.step

    @property
    def _encoding(self) -> Encoding:
        point = FixedPoint.of_bits(self.limit, self.bits)
        is_sparse, is_trusting = self.layout == "sparse", self.identities is None
        return Encoding(point, self.max_weight, self.min_contributors, is_sparse, self.binds_model, is_trusting)

    @property
    def _rules(self) -> Rules:
        said = (self._encoding, self.graph, self.identities is not None)
        config = hashlib.sha256(f"Masked 1 {said!r}".encode()).digest()
        return Rules(self.graph, self.identities, self.min_contributors, config)

    def discloses(self) -> Sequence[str]:
        against = (
            "a server that follows the protocol"
            if self.identities is None
            else f"a server that lies, whose clients are those of {type(self.identities).__name__}"
        )
        rows = ", and how many hold each" if self.layout == "sparse" else ""
        sums = (
            f"The server sees sums over at least {self.min_contributors} clients (values, weights, examples, losses), "
            f"and no client's own, as long as fewer clients work with it than open a secret; against {against}."
        )
        return sums, f"It sees who took part and when, and which rows each client asked for{rows}."

    def server(self, cohort: Sequence[Client], params: Params, session: int) -> ServerSession:
        encoding = self._encoding
        summed = yield from open_sum(cohort, self._rules, UpdatePlanner(params, encoding), session)
        return Opened(sum_of(summed, params, encoding), summed.clients, told_of(summed), summed.refused)

    def client(self, update: Update, params: Params, seat: Seat) -> ClientSession:
        sender = Sender(update, params, self._encoding, seat)
        yield from seal_sum(seat, self._rules, sender.held, sender.rows, sender.vector)
