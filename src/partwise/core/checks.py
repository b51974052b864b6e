"""What many parts check of their settings."""

from __future__ import annotations

__all__ = ["at_least"]


def at_least(part: object, **least: float) -> None:
    """Refuse settings below a bound.

    Example:
        >>> from partwise.aggregators import Krum
        >>> at_least(Krum(f=1), f=2)
        Traceback (most recent call last):
        ValueError: Krum(f=1): must be at least 2, got 1. Raise it.
    """
    for name, bound in least.items():
        value = getattr(part, name)
        if value < bound:
            raise ValueError(f"{type(part).__name__}({name}={value}): must be at least {bound}, got {value}. Raise it.")
