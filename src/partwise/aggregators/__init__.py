"""Many updates in, one out."""

from partwise.aggregators.coordinatewise import Median, TrimmedMean
from partwise.aggregators.krum import Krum
from partwise.core.mean import Mean

__all__ = ["Krum", "Mean", "Median", "TrimmedMean"]
