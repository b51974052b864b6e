"""What many parts check of their settings."""

from __future__ import annotations

import math
from numbers import Real

__all__ = ["at_least"]


def at_least(part: object, **least: float) -> None:
    """Refuse settings below a bound, or that are no numbers.

    Example:
        >>> from partwise.aggregators import Krum
        >>> at_least(Krum(f=1), f=2)
        Traceback (most recent call last):
        ValueError: Krum(f=1): must be at least 2, got 1. Raise it.
    """
    for name, bound in least.items():
        value = getattr(part, name)
        if not isinstance(value, Real):
            kind = type(value).__name__
            raise TypeError(f"{type(part).__name__}({name}={value!r}): must be a number, got a {kind}. Give one.")
        if value < bound or math.isnan(value):
            raise ValueError(f"{type(part).__name__}({name}={value}): must be at least {bound}, got {value}. Raise it.")
