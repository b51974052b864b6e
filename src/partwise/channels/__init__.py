"""How updates reach the aggregator, and what that reveals."""

from partwise.channels.plain import Plain

__all__ = ["Plain"]
