"""Many updates in, one out."""

from partwise.aggregators.coordinatewise import Median, TrimmedMean
from partwise.aggregators.fixed import FixedMean
from partwise.aggregators.krum import Krum
from partwise.core.latest import Latest
from partwise.core.mean import Mean

__all__ = ["FixedMean", "Krum", "Latest", "Mean", "Median", "TrimmedMean"]
