"""Randomised answers to "do you hold this row?", and what they tell.

Notation: p1, p2 are the chances that a client's lasting answer is yes, if it holds the row and if it does not; p3, p4
those that it says yes in a round, if its lasting answer is yes and if it is no.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["NO", "UNASKED", "YES", "Level", "answered", "said"]

UNASKED, NO, YES = 0, 1, 2  # a lasting answer


@dataclass(frozen=True)
class Level:
    """How often a client answers otherwise than is so.

    A lasting answer is given once for each row and never changed; what is said in a round is drawn anew from it. So one
    round tells little, and all rounds together no more than the lasting answer does. The guarantee is for one row: for
    two sets that differ in r rows, it is r times as weak.

    Args:
        p1: chance of a lasting yes for a row that is held; in [0, 1].
        p2: for one that is not; at most p1.
        p3: chance to say yes in a round, where the lasting answer is yes.
        p4: where it is no; at most p3.

    Source: Niu et al., "Billion-scale federated learning on mobile clients: a submodel design with tunable privacy",
        MobiCom 2020, arXiv:1911.02254.

    Example:
        >>> level = Level.even(7 / 8)
        >>> level.p5, level.p6, round(level.epsilon_ever, 4), round(level.epsilon_round, 4)
        (0.78125, 0.21875, 1.9459, 1.273)
    """

    p1: float = 15 / 16
    p2: float = 1 / 16
    p3: float = 15 / 16
    p4: float = 1 / 16

    def __post_init__(self) -> None:
        chances = (self.p1, self.p2, self.p3, self.p4)
        if not all(0 <= p <= 1 for p in chances) or self.p2 > self.p1 or self.p4 > self.p3:
            raise ValueError(
                f"Level{chances}: chances lie in [0, 1], with p2 <= p1 and p4 <= p3, got {chances}. "
                "Level.even(15 / 16) is usual; Level(1, 0, 1, 0) hides nothing, Level(1, 1, 1, 1) everything."
            )

    @classmethod
    def even(cls, p: float) -> Level:
        """The level at which both answers are so with chance p, whatever is held."""
        return cls(p, 1 - p, p, 1 - p)

    @property
    def p5(self) -> float:
        """Chance to say yes of a row that is held."""
        return self.p1 * (self.p3 - self.p4) + self.p4

    @property
    def p6(self) -> float:
        """Chance to say yes of a row that is not."""
        return self.p2 * (self.p3 - self.p4) + self.p4

    @property
    def epsilon_round(self) -> float:
        """What one round can tell of one row."""
        return max(_ratio(self.p5, self.p6), _ratio(1 - self.p6, 1 - self.p5))

    @property
    def epsilon_ever(self) -> float:
        """What all rounds together can tell of one row; where nothing is said, nothing."""
        return min(max(_ratio(self.p1, self.p2), _ratio(1 - self.p2, 1 - self.p1)), self._epsilon_of_saying())

    def _epsilon_of_saying(self) -> float:
        """Nothing comes through where yes and no are said alike."""
        return 0.0 if self.p3 == self.p4 else math.inf

    def log_ratio(self, rounds: int) -> float:
        """ln of how much likelier it is that a client that holds the row says yes in so many rounds, and in each."""
        yes = [p * self.p3**rounds + (1 - p) * self.p4**rounds for p in (self.p1, self.p2)]
        return _ratio(*yes)

    def posterior(self, prior: float) -> float:
        """The chance that a client which has said yes holds the row, for who believed it with chance `prior` before."""
        yes = prior * self.p5 + (1 - prior) * self.p6
        return prior * self.p5 / yes if yes else prior

    def expected_rows(self, held: int, union: int) -> float:
        """How many rows a client asks for, of a union of which it holds some."""
        return held * self.p5 + (union - held) * self.p6

    def popularity(self, said_yes: float, clients: int) -> tuple[float, float]:
        """How many of n clients hold a row of which so many said yes, unbiased; and its largest standard deviation.

        The deviation is that for the number estimated, cut to 0..n.

        Raises:
            ValueError: yes is said alike by who holds and who does not.
        """
        if self.p5 == self.p6:
            raise ValueError(
                f"{self!r}: nothing can be told from answers that are the same for all. Use a weaker level."
            )
        found = (said_yes - clients * self.p6) / (self.p5 - self.p6)
        holders = min(max(found, 0.0), float(clients))
        variance = holders * self.p5 * (1 - self.p5) + (clients - holders) * self.p6 * (1 - self.p6)
        return found, math.sqrt(variance) / (self.p5 - self.p6)


def _ratio(above: float, below: float) -> float:
    if above == below:
        return 0.0
    return math.log(above / below) if above > 0 and below > 0 else math.inf


def _uniform(secret: bytes, purpose: str, count: int) -> Tensor:
    """(count,) in [0, 1): the stream of a secret, by SHAKE-256; the same whenever it is asked for."""
    stream = hashlib.shake_256(len(secret).to_bytes(8, "little") + secret + purpose.encode()).digest(8 * count)
    words = np.frombuffer(stream, "<u8") >> np.uint64(11)  # 53 bits: what a float64 holds
    return torch.from_numpy(words * 2.0**-53)


def answered(
    before: Tensor, asked: Iterable[int] | Tensor, held: Tensor, level: Level, secret: bytes, table: str
) -> Tensor:
    """Lasting answers, those that are new included.

    Args:
        before: (V,) uint8, `UNASKED`, `NO` or `YES`; kept for ever where it is not `UNASKED`.
        asked: rows of the union.
        held: rows that the client holds.
        level: how.
        secret: the client's, 32 bytes.
        table: whose rows; tables with other secrets or names are answered for independently.

    Returns:
        (V,) uint8.
    """
    holds, is_asked = torch.zeros(len(before), dtype=torch.bool), torch.zeros(len(before), dtype=torch.bool)
    holds[held] = True
    is_asked[torch.as_tensor(asked, dtype=torch.int64)] = True
    # A chance of 0 is never yes, since no draw lies below it; one of 1 always is.
    yes = _uniform(secret, f"lasting|{table}", len(before)) < torch.where(holds, level.p1, level.p2).double()
    new = torch.where(yes, YES, NO).to(torch.uint8)
    return torch.where((before == UNASKED) & is_asked, new, before)


def said(lasting: Tensor, level: Level, secret: bytes, purpose: str) -> Tensor:
    """The rows of which a client says yes in one round: (r,) int64, ascending.

    Args:
        lasting: its lasting answers, (V,) uint8; of rows it was not asked about it says nothing.
        level: how.
        secret: the client's, 32 bytes.
        purpose: table and round; the same gives the same.
    """
    chance = torch.tensor([0.0, level.p4, level.p3], dtype=torch.float64)[lasting.long()]
    return (_uniform(secret, f"said|{purpose}", len(lasting)) < chance).nonzero().reshape(-1)
