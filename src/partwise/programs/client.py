"""The client's side of the star."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from partwise.core.algorithm import ClientState, Site, Task
from partwise.core.channel import ClientSession, Seat, fingerprint
from partwise.core.codec import register
from partwise.core.compressor import chosen, common
from partwise.core.errors import CompositionError, DataError, PartwiseError
from partwise.core.given import check_given, check_two
from partwise.core.index import Index, Whole
from partwise.core.model import Params, Values
from partwise.core.plan import Job, Trained
from partwise.core.population import Fate
from partwise.core.program import SERVER, Effect, Failed, Message, NodeId, Send, Wake, Work
from partwise.core.rng import derive, generator
from partwise.core.transform import State, applied
from partwise.core.update import Update
from partwise.programs.download import Coded, opened
from partwise.programs.messages import Answer, Ask, Fetch, Held, Refusal, Released, Reply, Trouble
from partwise.programs.schema import indexed, planned

if TYPE_CHECKING:
    from partwise.programs.star import Star

_THROUGH = Fate()

FAILURES = (PartwiseError, ValueError, TypeError, RuntimeError, ArithmeticError, LookupError)  # of one client's work

__all__ = ["FAILURES", "ClientNode", "ClientProgram", "OpenTask", "Withheld", "check_has_data", "forget_"]


@register
@dataclass
class OpenTask:
    """A task under way: what was asked for, and what came.

    Args:
        task: what is to be done.
        index: the part of the model that was asked for.
        held: stream -> what came.
        seed: of the job.
        fetched: when that came.
        began: when training began.
        fate: what will become of it.
        came: what came while the task before was under way, as it came.
        asker: the client's state when it asked for that, if another task was under way; of length 1 then.
    """

    task: Task
    index: Index
    held: dict[str, Values] | None = None
    seed: int = 0
    fetched: float = 0.0
    began: float = 0.0
    fate: Fate = _THROUGH
    came: dict[str, Coded] | None = None
    asker: tuple[ClientState, ...] = ()


@register
@dataclass
class Withheld:
    """What a client keeps back of a reply, for a channel's exchange.

    Args:
        updates: stream -> update.
        given: stream -> name -> fingerprint of the values it was given, where it holds all of a parameter.
        examples: how many it has.
        loss: its mean training loss.
    """

    updates: dict[str, Update]
    given: dict[str, dict[str, bytes]]
    examples: int
    loss: float


@register
@dataclass
class ClientNode:
    """What a client keeps between messages.

    Args:
        own: the algorithm's client state.
        met: whether that state has been made.
        chains: stream -> state of the client chain.
        open: the task under way, if any.
        next: the one that follows it, if it has been asked already.
        ready: the reply to the one before, and how late it will be, until the open one begins.
        kept: reply -> what is held back for a channel's exchange.
        memory: stream -> what the channel keeps from one exchange to the next.
    """

    own: ClientState = None
    met: bool = False
    chains: dict[str, State] = field(default_factory=dict)
    open: OpenTask | None = None
    next: OpenTask | None = None
    ready: tuple[Reply, float] | None = None
    kept: dict[int, Withheld] = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)


_NOTHING = Whole({})
_FINISHED = "a dict of Updates by stream and the client's next state, two things"


class ClientProgram:
    """Task -> Fetch -> Held -> work -> Reply; then the channel's exchange, where it has one."""

    def __init__(self, star: Star) -> None:
        self._star = star
        self._sessions: dict[tuple[NodeId, int, str], tuple[ClientSession, Seat]] = {}  # never saved: restarted

    def init(self, me: NodeId) -> ClientNode:
        return ClientNode()

    def is_blank(self, node: ClientNode) -> bool:
        """Whether nothing is under way, and neither the algorithm nor a chain keeps anything."""
        is_idle = node.open is None and node.ready is None and not node.kept
        return is_idle and node.own is None and not node.memory and _is_empty(node.chains)

    def step(self, node: ClientNode, message: Message) -> tuple[ClientNode, list[Effect]]:
        """One message in; a failure of any stage becomes a message to the server."""
        body = message.body
        if isinstance(body, Task):
            if node.next is not None and node.next.task.id == body.id:
                node.next = None  # a server that was resumed asks once more
            first = node.open
            if first is not None and first.task.is_followed and first.task.id != body.id and node.next is None:
                return node, self._ahead(node, first, message)
            node.next = None
        if isinstance(body, Held) and node.next is not None and body.id == node.next.task.id:
            node.next.came, node.next.fetched = dict(body.streams), message.now
            return node, []
        effects = self._told(node, message)
        while node.open is None and node.next is not None:
            node.open, node.next = node.next, None
            if node.open.came is not None:
                held = Held(node.open.task.id, node.open.came)
                effects += self._told(node, message._replace(src=SERVER, body=held))
        return node, effects

    def _ahead(self, node: ClientNode, first: OpenTask, message: Message) -> list[Effect]:
        """Begin the task that follows the one under way."""
        node.open = None
        effects = self._one(node, message)
        node.open, node.next = first, node.open
        if node.next is None:
            first.task = first.task._replace(is_followed=False)
        else:
            node.next.asker = (node.own,)
        return effects

    def _told(self, node: ClientNode, message: Message) -> list[Effect]:
        """One message; the reply to the task before goes when the open one has begun, or come to nothing."""
        was_asked = node.open is not None or isinstance(message.body, Task)
        ready, node.ready = node.ready, None
        effects = self._one(node, message)
        if ready is None:
            return effects
        if was_asked and (node.open is None or node.open.held is not None):
            reply = ready[0]._replace(turns=(ready[0].turns[0], message.now))
            return [Send(SERVER, reply, after=ready[1]), *effects]
        node.ready = ready
        return effects

    def _one(self, node: ClientNode, message: Message) -> list[Effect]:
        """What a message about the open task, or about none, comes to."""
        body = message.body
        stage = {Task: "select", Held: "train", Trained: "finish"}.get(type(body), "exchange")
        if isinstance(body, Failed):
            is_old = body.seed is not None and (node.open is None or body.seed != node.open.seed)
            return [] if is_old else self._give_up(node, body.stage, body.reason)
        try:
            return self._effects(node, message)
        except FAILURES as error:
            return self._give_up(node, stage, f"{type(error).__name__}: {error}")

    def _give_up(self, node: ClientNode, stage: str, reason: str) -> list[Effect]:
        if node.open is None:
            return []
        trouble = Trouble(node.open.task.id, stage, reason)
        node.open = None
        return [Send(SERVER, trouble)]

    def _effects(self, node: ClientNode, message: Message) -> list[Effect]:
        me, now, body = message.me, message.now, message.body
        match body:
            case Task():
                return self._begin(node, self._star.site(me, body.version), body, now)
            case Held() if node.open is not None and body.id == node.open.task.id:
                return self._train(node, self._site(me, node.open), body, now)
            case Trained() if node.open is not None and node.open.held is not None and body.seed == node.open.seed:
                return self._finish(node, self._site(me, node.open), body, now)
            case Ask():
                return self._answer(node, me, body)
            case Released(id):
                node.kept.pop(id, None)
                forget_(node, id)
                for key in [key for key in self._sessions if key[0] == me]:
                    del self._sessions[key]
            case Wake():
                pass
        return []

    def _begin(self, node: ClientNode, site: Site, task: Task, now: float) -> list[Effect]:
        algorithm, population = self._star.algorithm, self._star.population
        node.open = OpenTask(task, _NOTHING)  # so that a failing select knows its task
        node.open.fate = population.fate(site.client, task.id)
        if node.open.fate.stage == "download" or population.next_available(site.client, now) > now:
            return self._lose(node, "download")
        check_has_data(site)
        if not node.met:
            node.own, node.met = algorithm.client_init(site), True
        node.open.index = indexed(algorithm, algorithm.select(task, node.own, site))
        streams = algorithm.fetch(node.open.index, task, node.own, site)
        check_given(algorithm, "fetch", streams, Mapping | None, "a dict of indices by stream, or None")
        return [Send(SERVER, Fetch(task.id, node.open.index if streams is None else _NOTHING, streams))]

    def _train(self, node: ClientNode, site: Site, held: Held, now: float) -> list[Effect]:
        assert node.open is not None
        came = opened(held.streams, self._star.like)
        (asker,) = node.open.asker or (node.own,)
        algorithm = self._star.algorithm
        received = algorithm.receive(came, node.open.index, node.open.task, asker, site)
        check_given(algorithm, "receive", received, Mapping, "a dict of held values by stream")
        if node.open.came is None:
            node.open.fetched = now
        node.open.held, node.open.came, node.open.asker = {s: dict(values) for s, values in received.items()}, None, ()
        node.open.began = now
        work = self._work(node, site)
        node.open.seed = work.job.seed
        population, fate = self._star.population, node.open.fate
        seconds = work.steps * population.profile(site.client, now).seconds_per_step
        left = population.available_until(site.client, now) - now
        if fate.stage == "train" or left < seconds:
            return self._lose(node, "train", min(left, seconds * fate.share if fate.stage == "train" else seconds))
        if not work.steps:
            nothing = {name: torch.zeros_like(t) for name, t in work.job.start.items()}
            return self._finish(node, site, Trained(nothing, 0, 0.0, work.job.seed), now)
        return [work]

    def _lose(self, node: ClientNode, stage: str, seconds: float = 0.0) -> list[Effect]:
        """A task is lost in the world, so many seconds from now: the server hears of it later, or never."""
        assert node.open is not None
        trouble, notice = Trouble(node.open.task.id, stage, "the client went away"), node.open.fate.notice_seconds
        node.open = None
        return [Send(SERVER, trouble, after=seconds + notice)]

    def rework(self, me: NodeId, node: ClientNode) -> Work | None:
        """What the client is at."""
        if node.open is None or node.open.held is None:
            return None
        return self._work(node, self._site(me, node.open))

    def _site(self, me: NodeId, task: OpenTask) -> Site:
        return self._star.site(me, task.task.version)

    def _work(self, node: ClientNode, site: Site) -> Work:
        assert node.open is not None and node.open.held is not None
        task, index, algorithm = node.open.task, node.open.index, self._star.algorithm
        plan = planned(algorithm, algorithm.plan(node.open.held, index, task, node.own, site))
        used = algorithm.personalize(node.open.held["model"], node.own)
        check_given(algorithm, "personalize", used, Mapping, "a dict of tensors by name")
        start = {**used, **plan.extra}
        data = algorithm.examples(index, node.own, site)
        job = Job(plan, start, data, site.derive("work", task))
        return Work(job, plan.num_steps(len(data)))

    def _finish(self, node: ClientNode, site: Site, trained: Trained, now: float) -> list[Effect]:
        assert node.open is not None and node.open.held is not None
        task, index, fate = node.open.task, node.open.index, node.open.fate
        fetched, began = node.open.fetched, node.open.began
        if self._star.population.available_until(site.client, began) < now:
            return self._lose(node, "train")
        algorithm, held = self._star.algorithm, node.open.held
        told = algorithm.report(node.open.held, trained, task, node.own, site)
        check_given(algorithm, "report", told, Mapping, "a dict of numbers by name")
        report = {name: _plain(number) for name, number in told.items()}
        if report and self._star.channel.reveals == "sum":
            raise _telling(algorithm, report)
        found = algorithm.finish(node.open.held, trained, index, task, node.own, site)
        check_two(algorithm, "finish", found, _FINISHED)
        check_given(algorithm, "finish", found[0], dict, _FINISHED)
        for update in found[0].values():
            check_given(algorithm, "finish", update, Update, _FINISHED)
        updates, node.own = found
        for stream, update in updates.items():
            if stream not in self._star.client_chain:
                continue
            # What all clients of a version draw alike follows from the version alone.
            transform = chosen(self._star.client_chain[stream], task.group)
            transform = common(transform, derive(site.seed, f"common {stream}", task.version))
            state = node.chains[stream] if stream in node.chains else transform.init(site.like)
            rng = generator(site.seed, f"client chain {stream}", site.client, task.version, task.attempt)
            updates[stream], node.chains[stream] = applied(transform, update, state, rng)
        updates = {stream: _weighed(update) for stream, update in updates.items()}
        if fate.stage == "upload":
            return self._lose(node, "upload")
        node.open = None
        examples, loss, channel = len(site.data), trained.loss, self._star.channel
        if channel.exchanges:
            given = (
                {s: _given(u.index, held.get(s, {})) for s, u in updates.items()} if channel.reveals == "sum" else {}
            )
            node.kept[task.id] = Withheld(updates, given, examples, loss)
            updates = {}
            if channel.reveals == "sum":  # numbers of one client say what the sum is to hide
                examples, loss = 0, 0.0
        has_state = node.own is not None
        turns = () if began == fetched and not task.is_followed else (began, now)
        reply = Reply(task.id, trained.steps, examples, loss, updates, fetched, now, report, has_state, turns)
        if task.is_followed:
            node.ready = reply, fate.late_seconds
            return []
        return [Send(SERVER, reply, after=fate.late_seconds)]

    def _answer(self, node: ClientNode, me: NodeId, ask: Ask) -> list[Effect]:
        key = (me, ask.session, ask.stream)
        if key not in self._sessions and ask.id not in node.kept:
            return []  # it was released, or is from before this client began anew
        try:
            if key not in self._sessions:
                self._sessions[key] = self._enter(node, me, ask)
            side, seat = self._sessions[key]
            try:
                answer = side.send(ask.body)
            finally:
                if seat.memory:
                    node.memory[ask.stream] = dict(seat.memory)
        except StopIteration:
            del self._sessions[key]
            return []
        except FAILURES as error:
            self._sessions.pop(key, None)
            # What other errors say may be of the client's data, which the server is not to read.
            reason = str(error) if isinstance(error, PartwiseError | ValueError) else type(error).__name__
            return [Send(SERVER, Refusal(ask.session, ask.turn, reason))]
        return [Send(SERVER, Answer(ask.session, ask.turn, answer))]

    def _enter(self, node: ClientNode, me: NodeId, ask: Ask) -> tuple[ClientSession, Seat]:
        """Take part in an exchange."""
        seat = self._seat(node, me, ask)
        update = node.kept[ask.id].updates[ask.stream]
        side = self._star.channel.client(update, _shapes_of_stream(update.index, self._star.site(me).like), seat)
        next(side)
        return side, seat

    def _seat(self, node: ClientNode, me: NodeId, ask: Ask) -> Seat:
        kept = node.kept[ask.id]
        return Seat(
            client=me,
            session=ask.session,
            reply=ask.id,
            stream=ask.stream,
            given=kept.given.get(ask.stream, {}),
            examples=kept.examples,
            loss=kept.loss,
            rng=generator(self._star.seed, f"channel {ask.stream}", me, ask.id),
            memory=dict(node.memory.get(ask.stream, {})),
        )


def forget_(node: ClientNode, id: int) -> None:
    """Wait no longer for what was fetched for a task: it will not come."""
    if node.next is not None and node.next.task.id == id:
        node.next = None
    if node.open is not None and node.open.task.id == id and node.open.held is None:
        node.open = None
        if node.next is not None and node.next.came is None:
            node.open, node.next = node.next, None


def _given(index: Index, held: Values) -> dict[str, bytes]:
    """Fingerprints of the values that the client was given, of parameters that it holds whole."""
    whole = [n for n, shape in index.shapes.items() if n in held and tuple(held[n].shape) == tuple(shape)]
    return {name: fingerprint(held[name]) for name in whole}


def _shapes_of_stream(index: Index, model: Params) -> Params:
    """What a stream is over: the model, or what the update is over, where that has other shapes."""
    if all(n in model and tuple(model[n].shape) == tuple(shape) for n, shape in index.shapes.items()):
        return model
    return {name: torch.empty(shape, device="meta") for name, shape in index.shapes.items()}


def _plain(number: Any) -> float:
    """Python's own number for one of another library, which a message that is checked does not hold."""
    if type(number) in (int, float):
        return number  # type: ignore[no-any-return]
    return int(number) if isinstance(number, Integral) else float(number)


def _weighed(update: Update) -> Update:
    """The update with a weight that is Python's own number, where it is one number."""
    if not isinstance(update, Update) or isinstance(update.weight, Mapping) or type(update.weight) in (int, float):
        return update
    return replace(update, weight=_plain(update.weight))


def _telling(algorithm: object, report: Mapping[str, float]) -> CompositionError:
    return CompositionError(
        f"{algorithm!r}: reports {sorted(report)} of each client, which a channel that reveals only sums must not "
        "tell. Use a channel that reveals each, or an algorithm that reports nothing."
    )


def check_has_data(site: Site) -> None:
    """Refuse a client without examples.

    Raises:
        DataError: it has none.
    """
    if not len(site.data):
        raise DataError(f"client {site.client}: has no examples to train on. Leave it out of the population.")


def _is_empty(tree: Any) -> bool:
    """Whether a tree has no leaf: what a transform without state gives."""
    if isinstance(tree, dict):
        return all(map(_is_empty, tree.values()))
    return tree is None or (isinstance(tree, tuple | list) and all(map(_is_empty, tree)))
