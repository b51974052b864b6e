"""Replies that are added up before they are committed, so that they need not be kept."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from partwise.core.aggregate import Accumulator, Aggregator, Running, Sum, sum_updates
from partwise.core.model import Params
from partwise.core.schedule import ReplyInfo
from partwise.core.seeded import by_coordinates
from partwise.core.update import Update

if TYPE_CHECKING:
    from partwise.programs.server_node import ServerNode

__all__ = ["Sums", "fitting"]


class Sums:
    """Adds up accepted replies in order of client, as it would at the commit, so that no result depends on it.

    A reply is added, and its updates forgotten, once no client with a lower number may still be committed with it.
    What is known here but for `streams` can be made anew from the server's state.

    Args:
        streams: those whose aggregator needs no more than the sum.
    """

    def __init__(self, streams: Iterable[str]) -> None:
        self._streams = tuple(streams)
        self._heaps: tuple[list[tuple[int, int]], list[tuple[int, int]]] | None = None  # (client, task)

    def asked(self, client: int, id: int) -> None:
        """A client was asked at the current version."""
        if self._heaps is not None:
            heapq.heappush(self._heaps[0], (client, id))

    def accept(self, node: ServerNode, infos: Sequence[ReplyInfo]) -> None:
        """These will be in the next commit."""
        new = [info for info in infos if info.id not in node.added]
        if not self._streams or not new:
            return
        self._heaps = self._heaps or _heaps(node)
        for info in new:
            node.accepted[info.id] = None
            heapq.heappush(self._heaps[1], (info.client, info.id))

    def gathered(self, node: ServerNode, ids: Iterable[int], sums: Mapping[str, Running]) -> None:
        """These replies were added up by a relay: they are committed all together, or not at all.

        Raises:
            RuntimeError: others wait for the same commit.
        """
        if node.added or node.accepted:
            raise RuntimeError(
                "commits_together=True: must commit what it has asked before it asks anew, got clients asked in two "
                "steps of the scheduler. Commit or discard the first replies, or set it to False."
            )
        node.added = dict.fromkeys(ids)
        node.sums = dict(sums)

    def discard(self, node: ServerNode, infos: Sequence[ReplyInfo]) -> None:
        """These will never be committed.

        Raises:
            RuntimeError: some of them were added to a sum that others are left in.
        """
        gone = [info.id for info in infos if node.added.pop(info.id, self) is None]
        if gone and node.added:
            raise RuntimeError(
                f"Discard(): must leave what was added up with others, got {gone[:5]} and not {list(node.added)[:5]}. "
                "A scheduler that accepts replies, or commits all together, discards none or all of them."
            )
        if gone:
            node.sums = {}

    def add_up(self, node: ServerNode) -> None:
        """Add what can be added."""
        if not node.accepted:
            return
        self._heaps = self._heaps or _heaps(node)
        ahead, ready = self._heaps
        while ready:
            while ahead and not _may_come(node, ahead[0][1]):
                heapq.heappop(ahead)
            if ahead and ahead[0] < ready[0]:
                return
            _, id = heapq.heappop(ready)
            self._add(node, id)
            del node.accepted[id]
            node.added[id] = None

    def _add(self, node: ServerNode, id: int, scale: float = 1.0) -> None:
        updates = node.inbox[id].updates
        for stream in self._streams:
            state = node.sums.setdefault(stream, Running())
            Accumulator(node.streams[stream], state).add_(updates.pop(stream).take(), scale)

    def take(self, node: ServerNode, infos: Sequence[ReplyInfo], scales: Sequence[float] = ()) -> dict[str, Sum]:
        """The sums of these replies, in order; the next ones begin at nothing. scales: of each, () for 1.

        Raises:
            RuntimeError: a reply that was accepted is not among them, or is to be scaled.
        """
        if scales and (node.accepted or node.added):
            raise RuntimeError(
                "Commit(scales=...): replies that were accepted are added up unscaled, got scales for some. "
                "A scheduler that scales updates accepts none."
            )
        left = {*node.accepted, *node.added} - {info.id for info in infos}
        if left:
            raise RuntimeError(
                f"Commit(): must hold every accepted reply, got none of {sorted(left)[:5]}. "
                "A scheduler accepts only what its next commit will have."
            )
        for number, info in enumerate(infos):
            if info.id not in node.added:
                self._add(node, info.id, scales[number] if scales else 1.0)
        found = {s: Accumulator(node.streams[s], node.sums.get(s)).take() for s in self._streams}
        node.sums, node.accepted, node.added = {}, {}, {}
        self._heaps = None
        return found


def _heaps(node: ServerNode) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Who may still come, and what waits to be added."""
    ahead = [(f.client, id) for id, f in node.in_flight.items() if f.task.version == node.version]
    ahead += [(w.client, id) for id, w in node.inbox.items() if _may_come(node, id)]
    ready = [(node.inbox[id].client, id) for id in node.accepted]
    heapq.heapify(ahead)
    heapq.heapify(ready)
    return ahead, ready


def _may_come(node: ServerNode, id: int) -> bool:
    return id in node.in_flight or (id in node.inbox and id not in node.accepted and id not in node.added)


def fitting(got: Sum | Iterable[Update], aggregator: Aggregator, params: Params) -> Sum | Sequence[Update]:
    """Updates as the aggregator wants them: summed, or each by coordinates and without packing."""
    if isinstance(got, Sum):
        return got
    return (
        sum_updates(got, params) if aggregator.needs == "sum" else [by_coordinates(u.unpacked(), params) for u in got]
    )
