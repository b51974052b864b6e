"""Executors: how local plans are run."""

from partwise.runtimes.executors.auto import Auto
from partwise.runtimes.executors.on_device import OnDevice
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.executors.pool import Pool
from partwise.runtimes.executors.stacked import Stacked

__all__ = ["Auto", "OnDevice", "Plain", "Pool", "Stacked"]
