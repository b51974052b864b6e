"""How updates reach the aggregator, and what that reveals."""

from partwise.channels.coded import Coded
from partwise.channels.lowrank import LowRankSum
from partwise.channels.masked import Masked
from partwise.channels.plain import Plain

__all__ = ["Coded", "LowRankSum", "Masked", "Plain"]
