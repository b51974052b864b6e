"""What a message must be made of, checked where it arrives from another process or machine."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from partwise.core.algorithm import Algorithm, Task
from partwise.core.errors import CompositionError, DivergedError, ProtocolError
from partwise.core.given import check_given, misgiven
from partwise.core.index import Index, members_of
from partwise.core.joined import Joined, check_packed
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan
from partwise.core.program import Failed
from partwise.core.rng import Rng
from partwise.core.sampled import Sampled
from partwise.core.schedule import After, Commit, Dispatch, ReplyInfo, Scheduler
from partwise.core.seeded import Seeded
from partwise.core.transform import Chain, State, Transform, applied
from partwise.core.update import Packed, Update, all_finite, check_update, is_finite, sent_shapes
from partwise.programs.messages import Answer, Ask, Fetch, Held, Refusal, Released, Reply, Trouble

__all__ = [
    "MISFITS",
    "check_action",
    "check_committed",
    "check_fit",
    "check_from_client",
    "check_from_server",
    "check_total",
    "fault_of",
    "indexed",
    "no_action",
    "passed_on",
    "planned",
]

MISFITS = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError)  # of what a peer made up

_TEXT = 10_000  # characters of a reason
_LARGEST = 1 << 53  # of a count, so that it is the same number as a float


def check_from_client(body: Any) -> None:
    """Refuse what no client sends to a server.

    Whether an update fits the model, and is finite, the server's program looks at: this is about kinds and ranges.

    Raises:
        ProtocolError: it names what is wrong.
    """
    match body:
        case Fetch(id, index, streams):
            _count("Fetch.id", id)
            _coordinates("Fetch.index", index)
            for name, part in _mapping("Fetch.streams", streams or {}):
                _coordinates(f"Fetch.streams[{name!r}]", part)
        case Reply():
            _reply(body)
        case Trouble(id, stage, reason):
            _count("Trouble.id", id)
            _text("Trouble.stage", stage)
            _text("Trouble.reason", reason)
        case Answer(session, turn, _):
            _count("Answer.session", session)
            _count("Answer.turn", turn)
        case Refusal(session, turn, reason):
            _count("Refusal.session", session)
            _count("Refusal.turn", turn)
            _text("Refusal.reason", reason)
        case Failed(stage, reason, seed):
            _text("Failed.stage", stage)
            _text("Failed.reason", reason)
            _is("Failed.seed", seed, int | None, "a whole number")
        case _:
            raise _fail("a client's message", "Fetch, Reply, Trouble, Answer, Refusal or Failed", body)


def check_from_server(body: Any) -> None:
    """Refuse what no server sends to a client.

    Raises:
        ProtocolError: it names what is wrong.
    """
    match body:
        case Task():
            for name in ("id", "version", "attempt", "steps"):
                _count(f"Task.{name}", getattr(body, name))
            _is("Task.committed", body.committed, Sequence, "a sequence")
            for id in body.committed:
                _count("Task.committed", id)
            _is("Task.is_followed", body.is_followed, bool, "true or false")
        case Held(id, streams):
            _count("Held.id", id)
            for stream, values in _mapping("Held.streams", streams):
                _shapes(f"Held.streams[{stream!r}]", values)
        case Ask(session, turn, id, stream, _):
            for name, number in (("session", session), ("turn", turn), ("id", id)):
                _count(f"Ask.{name}", number)
            _text("Ask.stream", stream)
        case Released(id):
            _count("Released.id", id)
        case _:
            raise _fail("a server's message", "Task, Held, Ask or Released", body)


def check_fit(update: Update, params: Mapping[str, Tensor]) -> None:
    """Refuse an update that does not fit `params`, in its shapes or in its types: it could not be added up.

    Raises:
        ProtocolError: it says what does not fit.
    """
    check_update(update, params)
    if isinstance(update.weight, Mapping) and any(isinstance(part, Seeded) for part in members_of(update.index)):
        raise ProtocolError(
            "Update(): along directions there is one weight for all, got weights by name. Give a number."
        )
    check_packed("Update.value", update.value, params)
    for name, value in update.values().items():
        if name in params and value.dtype != params[name].dtype:
            raise ProtocolError(
                f"Update({name!r}): the value must have the parameter's type {params[name].dtype}, got {value.dtype}. "
                "Client and server must build the same model."
            )


def fault_of(reply: Reply, expected: Collection[str], streams: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Why a server cannot use a reply; a peer's word is taken for nothing that can be checked. Empty if it can.

    Args:
        reply: the reply.
        expected: the streams that it must hold.
        streams: stream -> the server's parameters.
    """
    if set(reply.updates) != set(expected):
        return f"a reply must hold the streams {sorted(expected)}, got {sorted(reply.updates)}. Send all of them."
    try:
        for stream, update in reply.updates.items():
            check_fit(update, streams.get(stream, {}))  # first, since a misfit may unpack to any size
            if not is_finite(update):
                return (
                    f"stream {stream!r} must be finite, got NaN or infinity. "
                    "Lower the client's learning rate or look at its data."
                )
    except (ProtocolError, *MISFITS) as error:
        return str(error)
    if not all(map(math.isfinite, reply.report.values())):
        return f"a report must be of finite numbers, got {dict(reply.report)}. Look at the client's data."
    if not math.isfinite(reply.loss) or reply.steps < 0 or reply.examples < 0:
        return (
            f"a reply must state a finite loss and counts from 0 on, got loss {reply.loss}, {reply.steps} steps "
            f"and {reply.examples} examples. Lower the client's learning rate or look at its data."
        )
    return ""


def check_total(part: object, total: Update, params: Mapping[str, Tensor]) -> None:
    """Refuse what an aggregator or a server chain made, if it is no update of the model.

    It would be added somewhere, stretched to fit perhaps, but not where it belongs.

    Raises:
        CompositionError: it names the part.
    """
    if not isinstance(total, Update):
        got = f"a {type(total).__name__}"
        raise CompositionError(f"{part!r}: must give an update of the server's model, got {got}. Return Update(...).")
    try:
        check_update(total, params)
    except ProtocolError as error:
        raise CompositionError(f"{part!r}: must give an update of the server's model, got: {error}") from error


def passed_on(
    part: Transform, total: Update, state: State, rng: Rng, params: Mapping[str, Tensor]
) -> tuple[Update, State]:
    """What a server chain makes of an aggregate, and its next state; looked at behind each stage, for the next one.

    Raises:
        CompositionError: it names the stage whose is no update of the model.
    """
    if not isinstance(part, Chain):
        total, state = applied(part, total, state, rng)
        check_total(part, total, params)
        return total, state
    after = []
    for stage, own in zip(part.stages, state, strict=True):
        total, own = passed_on(stage, total, own, rng, params)
        after.append(own)
    return total, tuple(after)


def indexed(algorithm: Algorithm, found: Index) -> Index:
    """The part of the model that a client selects; what is none is refused."""
    shapes = getattr(found, "shapes", None)
    if type(shapes) is not dict and not isinstance(shapes, Mapping):
        raise misgiven(algorithm, "select", found, "an index, such as site.whole()")
    return found


def planned(algorithm: Algorithm, found: LocalPlan) -> LocalPlan:
    """What a client is to train; what is no plan is refused."""
    if type(found) is not LocalPlan:
        check_given(algorithm, "plan", found, LocalPlan, "a LocalPlan, such as LocalTraining().plan(site, task)")
    return found


def check_committed(algorithm: Algorithm, streams: Mapping[str, Values], like: Params, version: int) -> None:
    """Refuse what an algorithm's own commit made, if it is no model any more.

    Raises:
        CompositionError: it has not the model's parameters, in their shapes and types.
        DivergedError: they are not finite.
    """
    words = "the server's streams, with the model's parameters as `model`"
    if algorithm.only_adds:
        return  # the aggregate was looked at
    model = streams.get("model") if isinstance(streams, Mapping) else None
    if model is None or not isinstance(model, Mapping):
        raise misgiven(algorithm, "commit", model if isinstance(streams, Mapping) else streams, words)
    wrong = [n for n in like.keys() | model.keys() if n not in like or _kind(model.get(n)) != _kind(like[n])]
    if wrong:
        raise CompositionError(
            f"{algorithm!r}: commit must give {words}, got other names, shapes or types for {sorted(wrong)[:3]}. "
            "partwise.testing.check says more."
        )
    if not all(map(all_finite, model.values())):
        raise DivergedError(
            f"version {version}: the model that commit of {algorithm!r} made is no longer finite. "
            "Lower the learning rates; the last checkpoint is from before."
        )


def _kind(tensor: object) -> object:
    return (tensor.shape, tensor.dtype) if isinstance(tensor, Tensor) else None


def check_action(scheduler: Scheduler, action: object, clients: Sequence[int], here: Mapping[int, object]) -> None:
    """Refuse what a scheduler cannot mean.

    Args:
        scheduler: whose action it is.
        action: what it wants.
        clients: all that there are.
        here: by number, the replies that came and were neither committed nor discarded.

    Raises:
        CompositionError: it names the scheduler, and the rule.
    """
    match action:
        case Dispatch():
            _check_dispatch(scheduler, action, clients)
        case Commit():
            _check_commit(scheduler, action, here)
        case After():
            _check_after(scheduler, action)


def _check_dispatch(scheduler: Scheduler, wanted: Dispatch, clients: Sequence[int]) -> None:
    """Nobody who is not there, for no less than nothing."""
    if isinstance(clients, range) and wanted.client not in clients:
        raise no_action(scheduler, f"must ask clients of the roster, 0 to {len(clients) - 1}", wanted.client)
    if not type(wanted.client) is type(wanted.steps) is type(wanted.group) is int:
        # A float would lose the client, a number of numpy end the run when it is saved.
        for name, number in (("client", wanted.client), ("steps", wanted.steps), ("group", wanted.group)):
            if not isinstance(number, int):
                raise no_action(scheduler, f"must ask by whole numbers, as int() makes them, for {name}", number)
    if wanted.steps < 0:
        raise no_action(scheduler, "must ask for a number of steps from 0 on", wanted.steps)


def _check_after(scheduler: Scheduler, wanted: After) -> None:
    """For no less than no time."""
    if not wanted.seconds >= 0 or not isinstance(wanted.tag, int):
        raise no_action(scheduler, "must wait for seconds from 0 on, with a whole number as tag", wanted)


def _check_commit(scheduler: Scheduler, commit: Commit, here: Mapping[int, object]) -> None:
    """Only what came, by scales that are some."""
    replies, scales = commit.replies, commit.scales
    if not {ReplyInfo} >= set(map(type, replies)):
        raise no_action(scheduler, "must commit replies as Arrived brings them", list(replies))
    ids = [reply.id for reply in replies]
    if not here.keys() >= (once := set(ids)) or len(once) < len(ids):
        raise no_action(scheduler, "must commit each reply once, after it arrived", ids)
    if len(scales) not in (0, len(ids)):
        raise no_action(scheduler, "must give each reply of a commit a scale, or none", f"{len(scales)} for {len(ids)}")
    if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
        raise no_action(scheduler, "must scale by finite numbers from 0 on", list(scales))


def no_action(scheduler: Scheduler, rule: str, got: object) -> CompositionError:
    """What is said of a scheduler that asks for what there is not."""
    return CompositionError(f"{scheduler!r}: {rule}, got {got!r}. partwise.testing.check says more.")


def _reply(reply: Reply) -> None:
    for name in ("id", "steps", "examples"):
        _count(f"Reply.{name}", getattr(reply, name))
    for name in ("loss", "fetched", "trained"):
        _number(f"Reply.{name}", getattr(reply, name))
    _is("Reply.has_state", reply.has_state, bool, "a bool")
    _is("Reply.turns", reply.turns, Sequence, "a sequence")
    if len(reply.turns) not in (0, 2):
        raise _fail("Reply.turns", "two moments, or none", tuple(reply.turns))
    for moment in reply.turns:
        _number("Reply.turns", moment)
    for name, number in _mapping("Reply.report", reply.report):
        _number(f"Reply.report[{name!r}]", number)
    for stream, update in _mapping("Reply.updates", reply.updates):
        _update(f"Reply.updates[{stream!r}]", update)


def _update(what: str, update: Any) -> None:
    _is(what, update, Update, "an update")
    for part in members_of(update.index):  # directions that lie in coordinates may be sent
        _coordinates(f"{what}.index", part.base if isinstance(part, Seeded) else part)
    shapes = _shapes(f"{what}.value", update.value)
    if not isinstance(update.weight, Mapping):
        _number(f"{what}.weight", update.weight)
        return
    for name, weight in _mapping(f"{what}.weight", update.weight):
        _is(f"{what}.weight[{name!r}]", weight, Tensor, "a tensor")
        held = shapes.get(name, ())[: weight.dim()]
        if name not in shapes or any(w not in (1, h) for w, h in zip(weight.shape, held, strict=False)):
            raise _fail(f"{what}.weight[{name!r}]", f"broadcastable to {shapes.get(name)}", tuple(weight.shape))
        if weight.dim() > len(shapes[name]):
            raise _fail(f"{what}.weight[{name!r}]", f"broadcastable to {shapes[name]}", tuple(weight.shape))


def _shapes(what: str, value: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of tensors, packed or not; none is unpacked yet."""
    for name in _names(what, value):
        if not isinstance(value, Joined):
            _is(f"{what}[{name!r}]", value[name], (Tensor, Packed), "a tensor")
    return sent_shapes(value)


def _coordinates(what: str, index: Any) -> None:
    """Refuse what is no index of coordinates: a few bytes may ask for any number of directions."""
    for part in members_of(index):
        if isinstance(part, Sampled):
            _coordinates(what, part.base)
        _is(what, part, Index, "an index")
        if isinstance(part, Seeded):
            raise _fail(what, "an index of coordinates", part)


def _mapping(what: str, value: Any) -> Sequence[tuple[str, Any]]:
    _names(what, value)
    return list(value.items())


def _names(what: str, value: Any) -> Sequence[str]:
    _is(what, value, Mapping, "a mapping")
    for name in value:
        _is(f"a key of {what}", name, str, "text")
    return list(value)


def _count(what: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise _fail(what, "a whole number from 0 on", value)


def _number(what: str, value: Any) -> None:
    if type(value) not in (int, float) or (type(value) is int and abs(value) > _LARGEST):
        raise _fail(what, "a number, whole ones of at most 2**53", value)


def _text(what: str, value: Any) -> None:
    if type(value) is not str or len(value) > _TEXT:
        raise _fail(what, f"text of at most {_TEXT} characters", value)


def _is(what: str, value: Any, kind: Any, said: str) -> None:
    if not isinstance(value, kind):
        raise _fail(what, said, value)


def _fail(what: str, rule: str, got: Any) -> ProtocolError:
    shown = repr(got) if isinstance(got, int | float | tuple) else type(got).__name__
    return ProtocolError(f"{what}: must be {rule}, got {shown[:80]}. Use the same Partwise on both sides.")
