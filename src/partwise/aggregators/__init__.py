"""Many updates in, one out."""

from partwise.aggregators.coordinatewise import Median, TrimmedMean
from partwise.aggregators.fixed import FixedMean
from partwise.aggregators.krum import Krum
from partwise.aggregators.vote import MajorityVote
from partwise.core.latest import Latest
from partwise.core.mean import Mean

__all__ = ["FixedMean", "Krum", "Latest", "MajorityVote", "Mean", "Median", "TrimmedMean"]
