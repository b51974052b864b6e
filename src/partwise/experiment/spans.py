"""What clients did with their time, and what was committed of it, read from a run's record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from partwise.experiment.store import RunStore

__all__ = ["Committed", "Span", "Use", "gini", "read_commits", "read_spans", "shares", "uses"]


class Span(NamedTuple):
    """A task at a client, from when it was asked until its reply was in, or the server heard that there will be none.

    Args:
        client: whose.
        id: of the task.
        began: when the client was asked, seconds since the run began; and so the next three.
        fetched: when it had what it trains; of one that was lost, `began`.
        trained: when it had trained; of one that was lost, `began`.
        ended: when the reply arrived, or the loss was noticed.
        lost: "" for a reply, else the stage in which it was lost, or `refused`.
        started: when training began, where the task before was still under way; by default `fetched`.
        sent: when the reply left, where the task after had to begin first; by default `trained`.
    """

    client: int
    id: int
    began: float
    fetched: float
    trained: float
    ended: float
    lost: str = ""
    started: float | None = None
    sent: float | None = None

    @property
    def stages(self) -> Sequence[tuple[float, float]]:
        """Download, training, upload: when each began and ended."""
        started = self.fetched if self.started is None else self.started
        sent = self.trained if self.sent is None else self.sent
        return (self.began, self.fetched), (started, self.trained), (sent, self.ended)


class Committed(NamedTuple):
    """A version. clients: whose replies it was made of, each as often as it had one; staleness: of these replies."""

    version: int
    time: float
    clients: Sequence[int]
    staleness: Sequence[int]


class Use(NamedTuple):
    """A client's time in a run, in seconds.

    Args:
        client: whose; -1 for the mean over those that were asked.
        tasks: how many it was asked to do and are over.
        download: until it had what it trained.
        train: training; where tasks overlap, beside download and upload.
        upload: from the end of training, or the beginning of the next task's, until its reply was in.
        lost: with tasks that came to nothing, until that was noticed.
        idle: with none.
    """

    client: int
    tasks: float
    download: float
    train: float
    upload: float
    lost: float
    idle: float


def read_spans(folder: str | Path) -> list[Span]:
    """All tasks that are over, by when they began.

    Raises:
        CheckpointError: the folder holds no run.
    """
    with RunStore(folder, "read") as store:
        found = [Span(*row) for row in store.reply_times()]
        for kind in ("lost", "refused"):
            for event in store.events(kind):
                body, now = event["body"], event["time"]
                began = body.get("began", now)
                stage = str(body.get("stage", kind)) if kind == "lost" else kind
                found.append(Span(body["client"], body.get("id", -1), began, began, began, now, stage))
    return _in_turn(sorted(found, key=lambda span: (span.began, span.client, span.id)))


def _in_turn(spans: list[Span]) -> list[Span]:
    """A client that was asked while it was at a task trains one after another, and replies once the next has begun."""
    last: dict[int, int] = {}  # client -> where its last reply is
    for at, span in enumerate(spans):
        if span.lost:
            continue
        before = last.get(span.client)
        last[span.client] = at
        if before is not None and spans[before].ended > span.began:
            started = max(span.fetched, spans[before].trained)
            sent = min(started, spans[before].ended)
            spans[at] = span._replace(started=started)
            spans[before] = spans[before]._replace(sent=sent)
    return spans


def read_commits(folder: str | Path) -> list[Committed]:
    """All versions, in order.

    Raises:
        CheckpointError: the folder holds no run.
    """
    with RunStore(folder, "read") as store:
        return [
            Committed(e["body"]["version"], e["time"], e["body"].get("clients", ()), e["body"].get("staleness", ()))
            for e in store.events("commit")
        ]


def uses(spans: Iterable[Span], end: float) -> list[Use]:
    """The time of every client that was asked, by number; before them their mean, if there are any.

    Args:
        spans: as `read_spans` gives them.
        end: of the run, in seconds.
    """
    by_client: dict[int, list[Span]] = {}
    for span in spans:
        by_client.setdefault(span.client, []).append(span)
    found = [_use(client, by_client[client], end) for client in sorted(by_client)]
    if not found:
        return []
    means = (sum(column) / len(found) for column in list(zip(*found, strict=True))[1:])
    return [Use(-1, *means), *found]


def _use(client: int, spans: Sequence[Span], end: float) -> Use:
    kept = [span for span in spans if not span.lost]
    busy, until = 0.0, 0.0
    for span in spans:  # those of a client that was asked again before they were over overlap
        busy += max(0.0, span.ended - max(until, span.began))
        until = max(until, span.ended)
    download, train, upload = (sum(span.stages[i][1] - span.stages[i][0] for span in kept) for i in range(3))
    return Use(
        client,
        len(spans),
        download,
        train,
        upload,
        sum(span.ended - span.began for span in spans if span.lost),
        max(0.0, end - busy),
    )


def gini(values: Sequence[float]) -> float:
    """How unequal values are: 0 where all are alike, near 1 where one has all; nan where there is nothing to share.

    G = sum_i (2 i - n - 1) x_i / (n sum_i x_i), x ascending, i from 1 to n.

    Source: C. Gini, "Variabilità e mutabilità", 1912, in the form for a sorted sample.

    Example:
        >>> gini([3, 3, 3]), gini([0, 0, 0, 8]), gini([1, 2, 5])
        (0.0, 0.75, 0.3333333333333333)
    """
    ordered, n = sorted(values), len(values)
    total = sum(ordered)
    if not total:
        return float("nan")
    return sum((2 * i - n - 1) * x for i, x in enumerate(ordered, 1)) / (n * total)


def shares(commits: Iterable[Committed], num_clients: int) -> list[int]:
    """How often an update of each client was committed, ascending; clients that never were among them."""
    often = Counter(client for commit in commits for client in commit.clients)
    return [0] * max(0, num_clients - len(often)) + sorted(often.values())
