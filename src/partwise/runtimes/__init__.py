"""What makes time pass and messages move: the only place with clocks, processes, sockets and devices."""

from partwise.runtimes.processes import Processes
from partwise.runtimes.ray import Ray
from partwise.runtimes.simulate import Simulate

__all__ = ["Processes", "Ray", "Simulate"]
