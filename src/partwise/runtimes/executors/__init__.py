"""Executors: how local plans are run."""

from partwise.runtimes.executors.auto import Auto
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.executors.pool import Pool
from partwise.runtimes.executors.stacked import Stacked

__all__ = ["Auto", "Plain", "Pool", "Stacked"]
