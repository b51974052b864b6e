"""What crosses the network between the server and a node: many messages at once, each encoded by itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from partwise.core.codec import decode, encode, register
from partwise.core.errors import ProtocolError
from partwise.core.population import Counts
from partwise.core.program import NodeId

__all__ = ["Batch", "Letter", "opened", "sealed"]

register(Counts)  # core/population.py has it for the same process only

_MOST_LETTERS = 1 << 20
_LIFE = 64  # characters at most
_RUN = re.compile(r"[0-9A-Za-z]*")  # it becomes part of a file's name


@register
class Letter(NamedTuple):
    """One message. body: encoded by the codec, and not looked at before it is known whose it is."""

    src: NodeId
    to: NodeId
    number: int
    body: bytes


@register
class Batch(NamedTuple):
    """What goes to a node or comes from it.

    Args:
        life: of the server's process, which is told by all that answers it.
        now: the server's clock; seconds since the run began.
        letters: the messages, in order.
        faults: (client, text) for each piece of work that failed at the node, with its traceback.
        run: whose clients' states the node is to go on from; the same in every life of the server; "" for whatever run.
    """

    life: str
    now: float
    letters: Sequence[Letter]
    faults: Sequence[tuple[NodeId, str]] = ()
    run: str = ""


def sealed(batch: Batch) -> bytes:
    """The batch as bytes."""
    return encode(batch)


def opened(data: bytes, max_bytes: int) -> Batch:
    """Undo `sealed`, and check every field.

    Raises:
        ProtocolError: it is too long, broken, or no batch.
    """
    if len(data) > max_bytes:
        raise ProtocolError(f"a batch may have {max_bytes} bytes, got one of {len(data)}. Raise max_message_bytes.")
    batch = decode(data, max_bytes=max_bytes)
    if type(batch) is not Batch:
        raise _fail("a batch", "one", batch)
    if type(batch.life) is not str or len(batch.life) > _LIFE:
        raise _fail("Batch.life", f"text of at most {_LIFE} characters", batch.life)
    if type(batch.run) is not str or len(batch.run) > _LIFE or not _RUN.fullmatch(batch.run):
        raise _fail("Batch.run", f"at most {_LIFE} letters and digits", batch.run)
    if type(batch.now) is not float or not math.isfinite(batch.now):
        raise _fail("Batch.now", "a finite number", batch.now)
    for what, rows in (("letters", batch.letters), ("faults", batch.faults)):
        if not isinstance(rows, list | tuple) or len(rows) > _MOST_LETTERS:
            raise _fail(f"Batch.{what}", f"a list of at most {_MOST_LETTERS}", rows)
    for letter in batch.letters:
        kinds = [type(letter)] if type(letter) is not Letter else [type(field) for field in letter]
        if kinds != [int, int, int, bytes]:
            raise _fail("a letter", "of (int, int, int, bytes)", letter)
    for fault in batch.faults:
        if type(fault) is not tuple or [type(field) for field in fault] != [int, str]:
            raise _fail("a fault", "of (int, str)", fault)
    return batch


def _fail(what: str, rule: str, got: Any) -> ProtocolError:
    return ProtocolError(f"{what}: must be {rule}, got {type(got).__name__}. Use the same Partwise on both sides.")
