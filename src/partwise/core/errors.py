"""The errors Partwise raises.

    PartwiseError
    ├── CompositionError   parts that do not fit together; raised when the experiment is built
    ├── SpecError          a specification with faults; lists all of them
    ├── DataError          data that cannot be used as given
    ├── ProtocolError      a message or peer that breaks the exchange
    ├── CheckpointError    a checkpoint or run directory that cannot be read or written
    ├── DivergedError      a run whose parameters or loss are no longer finite
    └── ClientError        a client's failure, with client, version and stage

A wrong value given to a part is a `ValueError`, a wrong kind a `TypeError`, as everywhere in Python.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ClientError",
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


class ClientError(PartwiseError):
    """A client's failure.

    Args:
        client: who failed.
        version: the server version its work began from.
        stage: what it was doing: `select`, `train`, `finish`, `check`.
        reason: the sentence of the error underneath.
    """

    def __init__(self, client: int, version: int, stage: str, reason: str) -> None:
        self.client, self.version, self.stage, self.reason = client, version, stage, reason
        super().__init__(f"client {client} failed in {stage} (version {version}): {reason}")
