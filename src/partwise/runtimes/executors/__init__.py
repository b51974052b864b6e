"""Executors: how local plans are run."""

from partwise.runtimes.executors.plain import Plain

__all__ = ["Plain"]
