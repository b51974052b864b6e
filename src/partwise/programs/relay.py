"""The relay: it stands for clients that take no time, where only the sum of their updates is wanted.

It plays what each of them would do, task by task, but hands their work out as one, and counts the bytes of the messages
that they and the server would have exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from partwise.core.algorithm import Task
from partwise.core.codec import encoded_size, register
from partwise.core.errors import DivergedError
from partwise.core.index import Index
from partwise.core.model import Params, Values
from partwise.core.plan import Job
from partwise.core.population import Client
from partwise.core.program import SERVER, Count, Effect, Message, NodeId, Send, Work
from partwise.core.sizes import int_size
from partwise.core.summing import Outcome, Share, SumJob, Summed
from partwise.core.update import Update
from partwise.programs.client import FAILURES, check_has_data
from partwise.programs.messages import Collect, Errand, Fetch, Gathered, Held, Refusal, Reply, Trouble

if TYPE_CHECKING:
    from partwise.programs.star import Star

__all__ = ["RelayNode", "RelayProgram"]

_Sizes = tuple[int, int, int]  # bytes of a Fetch, a Held and a Reply


@register
@dataclass
class RelayNode:
    """What a relay keeps between messages: the errand it is at."""

    errand: Errand | None = None


class RelayProgram:
    """Errand -> Collect -> Held -> one sum of many jobs -> Gathered."""

    def __init__(self, star: Star) -> None:
        self._star = star
        # Of the errand at hand, made anew with its jobs: task -> how far it came, and the bytes of its messages.
        self._came: dict[int, tuple[str, _Sizes]] = {}
        self._sizes: WeakKeyDictionary[Index, dict[tuple[int, ...], _Sizes]] = WeakKeyDictionary()

    def init(self, me: NodeId) -> RelayNode:
        return RelayNode()

    def is_blank(self, node: RelayNode) -> bool:
        """Whether it is at no errand."""
        return node.errand is None

    def step(self, node: RelayNode, message: Message) -> tuple[RelayNode, list[Effect]]:
        match message.body:
            case Errand(tasks) as errand:
                return RelayNode(errand), [Send(SERVER, Collect(tasks[0][1].id))]
            case Held(_, streams) if node.errand is not None:
                shares = partial(self._shares, node.errand, streams["model"])
                return node, [Work(SumJob(shares, streams["model"]), 0)]
            case Summed() as summed if node.errand is not None:
                return RelayNode(), self._gathered(node.errand, summed)
            case _:
                return node, []

    def _shares(self, errand: Errand, params: Params) -> Iterator[Share | Exception]:
        self._came.clear()
        for client, task in errand.tasks:
            self._came[task.id] = "select", (0, 0, 0)
            try:
                share: Share | Exception = self._share(client, task, params)
            except FAILURES as error:
                share = error
            yield share

    def _share(self, client: Client, task: Task, params: Params) -> Share:
        site, algorithm = self._star.site(client), self._star.algorithm
        check_has_data(site)
        index = algorithm.select(task, None, site)
        held = index.gather(params)
        examples = len(site.data)
        self._came[task.id] = "train", self._sizes_of(task, index, held, (0, examples))
        plan = algorithm.plan({"model": held}, index, task, None, site)
        self._came[task.id] = "train", self._sizes_of(task, index, held, (plan.num_steps(examples), examples))
        start = {**held, **plan.extra} if plan.extra else held
        job = Job(plan, start, site.localized(index), site.derive("work", task))
        return Share(job, index, algorithm.weight(site))

    def _sizes_of(self, task: Task, index: Index, held: Values, counts: tuple[int, int]) -> _Sizes:
        """Bytes of the messages about a task, which depend on shapes, the index, and how large numbers are."""
        known = self._sizes.setdefault(index, {})
        key = int_size(task.id), int_size(counts[0]), int_size(counts[1])
        if key not in known:
            reply = Reply(task.id, *counts, 0.0, {"model": Update(index, held)}, has_state=False)
            messages = Fetch(task.id, index), Held(task.id, {"model": held}), reply
            fetch, down, up = map(encoded_size, messages)
            known[key] = fetch, down, up
        return known[key]

    def _gathered(self, errand: Errand, summed: Summed) -> list[Effect]:
        effects: list[Effect] = []
        outcomes: list[Outcome | Trouble | Refusal] = []
        for (client, task), outcome in zip(errand.tasks, summed.outcomes, strict=True):
            stage, (fetch, held, reply) = self._came[task.id]
            up, down, messages = fetch + reply, encoded_size(task) + held, 4
            if isinstance(outcome, Outcome):
                outcomes.append(outcome)
            elif isinstance(outcome, DivergedError):
                outcomes.append(Refusal(task.id, str(outcome)))
            else:
                trouble = Trouble(task.id, stage, f"{type(outcome).__name__}: {outcome}")
                outcomes.append(trouble)
                up, messages = fetch + encoded_size(trouble), 4 if fetch else 2
            effects.append(Count(client, up, down, messages))
        ids = tuple(task.id for _, task in errand.tasks)
        return [*effects, Send(SERVER, Gathered(ids, outcomes, {"model": summed.sums}))]
