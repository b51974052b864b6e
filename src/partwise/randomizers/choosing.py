"""Which randomiser to take."""

from __future__ import annotations

import math

from partwise.randomizers.randomizer import Randomizer
from partwise.randomizers.response import RandomizedResponse
from partwise.randomizers.unary import UnaryEncoding

__all__ = ["best"]


def best(size: int, epsilon: float) -> Randomizer:
    """The randomiser of least variance: randomised response for few values, unary encoding for many.

    k < 3e + 2 is where the former is the better one.

    Args:
        size: k.
        epsilon: of one report.

    Source: Wang et al., "Locally differentially private protocols for frequency estimation", USENIX Security 2017.

    Example:
        >>> type(best(10, math.log(3))).__name__, type(best(11, math.log(3))).__name__
        ('RandomizedResponse', 'UnaryEncoding')
    """
    is_few = size < 3 * math.exp(epsilon) + 2 - 1e-9
    return RandomizedResponse(size, epsilon) if is_few else UnaryEncoding(size, epsilon)
