"""A channel of which the server reads only sums, and whose cost does not grow with the clients that are lost."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from partwise.channels.coding import FIELD, Code, open_coded, seal_coded
from partwise.channels.crypto import require
from partwise.channels.layout import Encoding, Sender, UpdatePlanner, sum_of, told_of
from partwise.channels.protocol import FLOOR, Rules, check_patience
from partwise.channels.ring import FixedPoint
from partwise.core.channel import ClientSession, Opened, Seat, ServerSession
from partwise.core.model import Params
from partwise.core.population import Client
from partwise.core.update import Update

__all__ = ["Coded"]


@dataclass(frozen=True)
class Coded:
    """Sums under masks that a code shares out: the server reads a sum over those who stayed, and none of its terms.

    Each client sends every other one a block of its mask, coded, before training is over; afterwards those who stayed
    tell the sum of what they have of one another, and that opens the sum, however many were lost. `Masked` sends
    clients less, and has the server make the masks of the lost again, one by one.

    It is for a server that follows the protocol. Values are rounded as by `Masked`.

    Args:
        limit: largest absolute value of an update's coordinate, > 0; take the clip's norm.
        bits: of a value, in 2..24.
        max_weight: the largest weight of a client, a whole number; weights above it are refused.
        max_cohort: the most clients in a sum; limits, weights and these must fit below 2^31.
        corrupt: T / N, the share of the clients that may work with the server, in [0, 1).
        lost: the share of the clients that may be lost once keys are known, in [0, 1 - corrupt). What a client sends
            the others beforehand is 1 / (1 - corrupt - lost) times its update.
        min_contributors: clients send only coordinates that so many hold, and none for a sum of fewer.
        binds_model: whether clients that were given different values cannot open each other's blocks.
        patience_seconds: how long the server waits for the answers to a message.

    Source: So et al., "LightSecAgg: a lightweight and versatile design for secure aggregation in federated learning",
        MLSys 2022, arXiv 2109.14236, algorithm 1.
    Differs: blocks are sealed for their receivers; masks come from the operating system's generator; one sum of masks
        is told in a round, ever. Not built: sums over several rounds, for asynchronous training.

    Example:
        >>> Coded(limit=0.5, bits=8, max_weight=1).step == 2 * 0.5 / 254
        True
    """

    limit: float = 1.0
    bits: int = 16
    max_weight: int = 64
    max_cohort: int = 500
    corrupt: float = 0.5
    lost: float = 0.3
    min_contributors: int = 5
    binds_model: bool = True
    patience_seconds: float = 60.0
    reveals: ClassVar[Literal["sum", "each"]] = "sum"
    exchanges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require()
        if not 0 < self.limit < math.inf or not 2 <= self.bits <= 24 or self.max_weight < 1 or self.max_cohort < FLOOR:
            raise ValueError(
                f"Coded(limit={self.limit}, bits={self.bits}, max_weight={self.max_weight}, max_cohort="
                f"{self.max_cohort}): needs a finite limit above 0, 2..24 bits, a weight of at least 1 and a cohort of "
                f"at least {FLOOR}. The limit is the clip's norm; 16 bits are usual."
            )
        if not (self.corrupt >= 0 and self.lost >= 0 and self.corrupt + self.lost < 1):
            raise ValueError(
                f"Coded(corrupt={self.corrupt}, lost={self.lost}): shares of the clients, which must stay below 1 "
                f"together, got {self.corrupt + self.lost}. 0.5 and 0.3 are usual."
            )
        check_patience(self, self.min_contributors, self.patience_seconds)
        largest = self._encoding.point.levels * self.max_weight * self.max_cohort
        if largest >= FIELD.prime:
            raise ValueError(
                f"Coded(bits={self.bits}, max_weight={self.max_weight}, max_cohort={self.max_cohort}): a sum must stay "
                f"below {FIELD.prime}, got {largest}. Use fewer bits, a smaller max_weight or a smaller cohort."
            )

    @property
    def step(self) -> float:
        """How far apart two values are that words can tell."""
        return self._encoding.point.step

    @property
    def _encoding(self) -> Encoding:
        point = FixedPoint.of_bits(self.limit, self.bits)
        return Encoding(point, self.max_weight, self.min_contributors, binds_model=self.binds_model)

    @property
    def _code(self) -> Code:
        return Code(self.corrupt, self.lost, self.max_cohort)

    @property
    def _rules(self) -> Rules:
        config = hashlib.sha256(f"Coded 1 {(self._encoding, self._code)!r}".encode()).digest()
        return Rules(self._code, None, self.min_contributors, config)

    def discloses(self) -> Sequence[str]:
        sums = (
            f"The server sees sums over at least {self.min_contributors} clients (values, weights, examples, losses), "
            f"and no client's own, as long as at most {self.corrupt:.0%} of the cohort work with it; against a server "
            "that follows the protocol."
        )
        return sums, "It sees who took part and when, and which rows each client asked for."

    def server(self, cohort: Sequence[Client], params: Params, session: int) -> ServerSession:
        encoding = self._encoding
        planner = UpdatePlanner(params, encoding)
        summed = yield from open_coded(cohort, self._rules, self._code, planner, session)
        return Opened(sum_of(summed, params, encoding), summed.clients, told_of(summed), summed.refused)

    def client(self, update: Update, params: Params, seat: Seat) -> ClientSession:
        sender = Sender(update, params, self._encoding, seat)
        yield from seal_coded(seat, self._rules, self._code, sender.held, sender.vector)
