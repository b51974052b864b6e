"""How updates reach the aggregator, and what that reveals."""

from partwise.channels.masked import Masked
from partwise.channels.plain import Plain

__all__ = ["Masked", "Plain"]
