"""Models that never travel: both sides make the same steps from the same few numbers.

A client keeps the model of some version. It fetches the numbers of the versions since, from a row of the log for each,
and makes their steps as the server did; only where the log no longer reaches back, or the model is shorter than what of
it was missed, does it fetch the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from partwise.core.algorithm import ServerState, Site, Task
from partwise.core.codec import register
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.index import Index, Rows, Whole
from partwise.core.model import Params, Values
from partwise.core.schedule import ReplyInfo

__all__ = [
    "THE_VERSION",
    "VERSION",
    "Replica",
    "advanced",
    "asked",
    "caught_up",
    "check_kept",
    "check_versions",
    "each_missed",
    "first",
    "holds_all",
    "is_near",
    "log_of",
    "rows_of_log",
]

VERSION = "version"
THE_VERSION = Whole({VERSION: (1,)})  # of a log, what says which version the server is at


@register
@dataclass(frozen=True, eq=False)
class Replica:
    """A client's copy of the model.

    Args:
        version: whose it is.
        value: name -> tensor; nothing stands for the model that the seed makes.
    """

    version: int = 0
    value: Values = field(default_factory=dict)


def log_of(fields: Params, keep: int) -> Values:
    """A log of `keep` versions, each with these fields; and the version that the server is at."""
    rows = {name: torch.zeros((keep, *t.shape), dtype=t.dtype) for name, t in fields.items()}
    return {**rows, VERSION: torch.zeros(1, dtype=torch.int64)}


def advanced(log: Values, fields: Params) -> Values:
    """The log with one version more; its buffers are written to."""
    version, keep = log[VERSION] + 1, len(next(t for name, t in log.items() if name != VERSION))
    for name, value in fields.items():
        log[name][int(version) % keep] = value
    return {**log, VERSION: version}


def asked(own: Replica, task: Task, fields: Params, keep: int, site: Site) -> dict[str, Index]:
    """What a client fetches of the streams `model` and `log`."""
    missed = range(own.version + 1, task.version + 1)
    row, model = (sum(t.nbytes for t in values.values()) for values in (fields, site.like))
    if not is_near(missed, keep) or len(missed) * row >= model:
        return {"model": site.whole(), "log": THE_VERSION}
    return {"model": Whole({}), "log": rows_of_log({name: t.shape for name, t in fields.items()}, missed, keep)}


def is_near(missed: range, keep: int) -> bool:
    """Whether a log can be counted on for these versions: meanwhile newer ones may take the places of the oldest."""
    return len(missed) <= max(1, keep // 2)


def rows_of_log(shapes: Mapping[str, Sequence[int]], missed: range, keep: int) -> Index:
    """What of a log some versions have, and the version. shapes: of its fields, by name."""
    rows = torch.tensor(sorted(v % keep for v in missed), dtype=torch.int64)
    logs = {name: (keep, *shape) for name, shape in shapes.items()}
    return Rows({**logs, VERSION: (1,)}, {**dict.fromkeys(logs, rows), VERSION: None})


def check_kept(rule: str, since: int, version: int, keep: int) -> None:
    """Refuse what a log has brought if the first that was missed has been overwritten meanwhile."""
    if version - since > keep:
        raise ProtocolError(
            f"{rule} since version {since}, got those up to {version}, the last of which have taken the place of the "
            f"first. Raise keep={keep}."
        )


def holds_all(index: Index, site: Site) -> bool:
    """Whether a client holds the whole model."""
    return index.shapes.keys() == site.like.keys() and not any(index.grain(name) for name in index.shapes)


def each_missed(fields: Params, missed: range, keep: int) -> Iterator[tuple[int, Values]]:
    """Each version and its fields, in order, of what `rows_of_log` brought."""
    at = {v: i for i, v in enumerate(sorted(missed, key=lambda v: v % keep))}
    for v in missed:
        yield v, {name: rows[at[v]] for name, rows in fields.items()}


def first(own: Replica, site: Site) -> Values:
    """The client's model, in buffers of its own."""
    return {name: t.clone() for name, t in own.value.items()} or site.model.init(site.seed)


def caught_up(
    held: Mapping[str, Values],
    own: Replica,
    task: Task,
    site: Site,
    *,
    keep: int,
    step_: Callable[[Values, int, Values], None],
) -> tuple[Values, int]:
    """The model and its version, once the steps that were missed are made.

    Args:
        held: what came.
        own: what the client kept.
        task: what it is asked for.
        site: whose it is.
        keep: versions in the log.
        step_: makes a step in place, of the version that it starts at, from the fields of the log.

    Raises:
        ProtocolError: the first that were missed have been overwritten meanwhile.
    """
    fields = dict(held["log"])
    version = int(fields.pop(VERSION))
    if not fields:
        return {name: t.clone() for name, t in held["model"].items()}, version
    check_kept(f"client {site.client}: must get the steps", own.version, version, keep)
    missed, model = range(own.version + 1, task.version + 1), first(own, site)
    for v, of in each_missed(fields, missed, keep):
        step_(model, v - 1, of)
    return model, max(own.version, task.version)


def check_versions(part: object, state: ServerState, replies: Sequence[ReplyInfo]) -> int:
    """The version that the server is at, which all replies must be of: their numbers belong to its directions."""
    version = int(state["log"][VERSION])
    others = sorted({info.version for info in replies} - {version})
    if others:
        raise CompositionError(
            f"{part!r}: adds numbers of one version's directions, got replies of versions {others} at {version}. Use "
            "Synchronous."
        )
    return version
