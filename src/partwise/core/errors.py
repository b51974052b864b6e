"""The errors Partwise raises.

    PartwiseError
    ├── CompositionError   parts that do not fit together; raised when the experiment is built
    ├── SpecError          a specification with faults; lists all of them
    ├── DataError          data that cannot be used as given
    ├── ProtocolError      a message or peer that breaks the exchange
    ├── CheckpointError    a checkpoint or run directory that cannot be read or written
    └── DivergedError      a run whose parameters or loss are no longer finite

A wrong value given to a part is a `ValueError`, a wrong kind a `TypeError`, as everywhere in Python.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CompositionError",
    "DataError",
    "DivergedError",
    "PartwiseError",
    "ProtocolError",
    "SpecError",
]


class PartwiseError(Exception):
    """Base of every error that Partwise defines."""


class CompositionError(PartwiseError, ValueError):
    """Parts that do not fit together."""


class SpecError(PartwiseError, ValueError):
    """A specification with faults.

    Args:
        faults: one sentence per fault, each naming its line.
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        count = f"{len(faults)} fault{'s' if len(faults) != 1 else ''}"
        super().__init__(f"{count} in the specification:\n" + "\n".join(f"  {f}" for f in faults))


class DataError(PartwiseError, ValueError):
    """Data that cannot be used as given."""


class ProtocolError(PartwiseError):
    """A message or peer that breaks the exchange."""


class CheckpointError(PartwiseError):
    """A checkpoint or run directory that cannot be read or written."""


class DivergedError(PartwiseError):
    """A run whose parameters or loss are no longer finite."""
