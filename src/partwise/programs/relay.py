"""The relay: it stands for clients that take no time, where only the sum of their updates is wanted.

It plays what each of them would do, task by task, but hands their work out as one, and counts the bytes of the messages
that they and the server would have exchanged.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from partwise.core.algorithm import Task
from partwise.core.codec import Lengths, encoded_lengths, encoded_size, register
from partwise.core.errors import DivergedError
from partwise.core.index import Index
from partwise.core.model import Params, Values
from partwise.core.plan import Job
from partwise.core.population import Client
from partwise.core.program import SERVER, Count, Effect, Message, NodeId, Send, Work
from partwise.core.sizes import int_size
from partwise.core.summing import Outcome, Share, SumJob, Summed
from partwise.core.update import Update, check_shapes
from partwise.programs.client import FAILURES, check_has_data
from partwise.programs.download import opened
from partwise.programs.messages import Collect, Errand, Fetch, Gathered, Held, Refused, Reply, Trouble
from partwise.programs.schema import indexed, planned

if TYPE_CHECKING:
    from partwise.programs.star import Star

__all__ = ["RelayNode", "RelayProgram"]

_Sizes = tuple[Lengths, ...]
_MANY = 4096
_NONE = (Lengths(0, 0),) * 3


@register
@dataclass
class RelayNode:
    """What a relay keeps between messages: the errand it is at."""

    errand: Errand | None = None


class RelayProgram:
    """Errand -> Collect -> Held -> one sum of many jobs -> Gathered."""

    def __init__(self, star: Star) -> None:
        self._star = star
        # Of the errand at hand, made anew with its jobs: task -> how far it came, its messages, steps and examples.
        self._came: dict[int, tuple[str, _Sizes, int, int]] = {}
        self._known: WeakKeyDictionary[Index, _Sizes] = WeakKeyDictionary()
        self._alike: dict[Hashable, _Sizes] = {}
        self._task_sizes: dict[tuple[int, ...], int] = {}

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
                params = opened(streams, self._star.like)["model"]
                return node, [Work(SumJob(partial(self._shares, node.errand, params), params), 0)]
            case Summed() as summed if node.errand is not None:
                return RelayNode(), self._gathered(node.errand, summed)
            case _:
                return node, []

    def _shares(self, errand: Errand, params: Params) -> Iterator[Share | Exception]:
        self._came.clear()
        for client, task in errand.tasks:
            self._came[task.id] = "select", _NONE, 0, 0
            try:
                share: Share | Exception = self._share(client, task, params)
            except FAILURES as error:
                share = error
            yield share

    def _share(self, client: Client, task: Task, params: Params) -> Share:
        site, algorithm = self._star.site(client), self._star.algorithm
        check_has_data(site)
        index = indexed(algorithm, algorithm.select(task, None, site))
        held = index.gather(params)
        examples = len(site.data)
        lengths = self._lengths_of(index, held)
        self._came[task.id] = "train", lengths, 0, examples
        plan = planned(algorithm, algorithm.plan({"model": held}, index, task, None, site))
        self._came[task.id] = "train", lengths, plan.num_steps(examples), examples
        start = {**held, **plan.extra} if plan.extra else held
        job = Job(plan, start, algorithm.examples(index, None, site), site.derive("work", task))
        return Share(job, index, algorithm.weight(site))

    def _lengths_of(self, index: Index, held: Values) -> _Sizes:
        """Those of a Fetch, a Held and a Reply whose numbers are 0; they depend on shapes and the index alone."""
        found = self._known.get(index)
        if found is None:
            check_shapes(index, self._star.like)
            shapes = tuple((name, t.shape, t.dtype) for name, t in held.items())
            key = type(index), encoded_lengths(index), shapes
            found = self._alike.get(key)
            if found is None:
                reply = Reply(0, 0, 0, 0.0, {"model": Update(index, held)}, has_state=False)
                if len(self._alike) >= _MANY:
                    self._alike.clear()
                messages = Fetch(0, index), Held(0, {"model": held}), reply
                found = self._alike[key] = tuple(map(encoded_lengths, messages))
            self._known[index] = found
        return found

    def _size_of_task(self, task: Task) -> int:
        if task.committed:
            return encoded_size(task)
        key = tuple(map(int_size, (task.id, task.version, task.attempt, task.steps, task.group)))
        if key not in self._task_sizes:
            self._task_sizes[key] = encoded_size(task)
        return self._task_sizes[key]

    def _gathered(self, errand: Errand, summed: Summed) -> list[Effect]:
        effects: list[Effect] = []
        outcomes: list[Outcome | Trouble | Refused] = []
        for (client, task), outcome in zip(errand.tasks, summed.outcomes, strict=True):
            stage, lengths, steps, examples = self._came[task.id]
            number = _more(task.id)
            fetch, held = lengths[0].total(number), lengths[1].total(number)
            up = fetch + lengths[2].total(number + _more(steps) + _more(examples))
            down, messages = self._size_of_task(task) + held, 4
            if isinstance(outcome, Outcome):
                outcomes.append(outcome)
            elif isinstance(outcome, DivergedError):
                outcomes.append(Refused(task.id, str(outcome)))
            else:
                trouble = Trouble(task.id, stage, f"{type(outcome).__name__}: {outcome}")
                outcomes.append(trouble)
                up, messages = fetch + encoded_size(trouble), 4
                if lengths is _NONE:
                    up, down, messages = encoded_size(trouble), self._size_of_task(task), 2
            effects.append(Count(client, up, down, messages))
        ids = tuple(task.id for _, task in errand.tasks)
        return [*effects, Send(SERVER, Gathered(ids, outcomes, {"model": summed.sums}))]


def _more(number: int) -> int:
    """Bytes of an integer beyond those of 0."""
    return int_size(number) - 1
