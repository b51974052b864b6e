"""A channel's exchange of several messages, driven by the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from partwise.core.aggregate import Sum
from partwise.core.algorithm import ServerState
from partwise.core.channel import Channel, Opened, ServerSession
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.program import SERVER, Message, Send, Wake
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.programs.messages import Answer, Ask, Refusal

__all__ = ["TIMERS", "Session"]

TIMERS = -(2**40)  # tags of session timers lie below every tag a scheduler would use


class Session:
    """One exchange about the updates of some replies, stream after stream.

    Args:
        channel: makes the two generators.
        replies: whose updates; a client appears once.
        streams: in which order.
        params: stream -> parameters.
    """

    def __init__(
        self, channel: Channel, replies: Sequence[ReplyInfo], streams: Sequence[str], params: ServerState
    ) -> None:
        self.replies = replies
        self.silent: set[int] = set()  # clients that left a message unanswered
        self.lost: set[int] = set()  # clients that are not in what was opened
        self.refusals: dict[int, str] = {}  # client -> why it would not answer, or why its answer could not be used
        self.told: Mapping[str, float] = {}  # numbers of all of them together
        self.failure = ""  # why the exchange came to nothing
        self.opened: dict[str, Sum | Sequence[Update]] = {}
        self._channel, self._params = channel, params
        self._streams = list(streams)
        self._ids = {info.client: info.id for info in replies}
        if len(self._ids) < len(replies):
            raise CompositionError(
                f"{channel!r}: exchanges messages about one reply per client, got {len(replies)} replies of "
                f"{len(self._ids)} clients. Use a scheduler that commits each client once."
            )
        self._number, self._turn_number = 0, 0
        self._side: ServerSession | None = None
        self._asked: set[int] = set()
        self._answers: dict[int, Any] = {}
        self._gone: set[int] = set()  # clients that have forgotten what they were told, and are not asked any more

    @property
    def is_done(self) -> bool:
        return not self._streams

    def is_for(self, message: Message) -> bool:
        """Whether a message belongs to this exchange."""
        match message.body:
            case Answer(session, turn, _) | Refusal(session, turn, _):
                return session == self._number and turn == self._turn_number
            case Wake(int() as tag):
                return tag <= TIMERS
            case _:
                return False

    def open(self, number: int) -> list[Send]:
        """The first messages."""
        self._number = number
        return self._go_on()

    def step(self, message: Message) -> list[Send]:
        """One answer, or the end of patience; the next messages once all have answered."""
        match message.body:
            case Answer(_, _, body) if message.src in self._asked:
                self._answers[message.src] = body
                return self._go_on_if_all()
            case Refusal(_, _, reason):
                self.refusals[message.src] = reason
                return self._leave_out(message.src)
            case Wake(int() as tag) if tag == self._timer():
                return self._go_on()
            case _:
                return []

    def lose(self, client: int) -> list[Send]:
        """A client that is gone is not waited for, nor asked again."""
        self._gone.add(client)
        return self._leave_out(client)

    def _leave_out(self, client: int) -> list[Send]:
        """Do not wait for the answer of a client."""
        if client not in self._asked or client in self._answers:
            return []
        self._asked.discard(client)
        self.silent.add(client)
        return self._go_on_if_all()

    def _go_on_if_all(self) -> list[Send]:
        return self._go_on() if self._answers.keys() == self._asked else []

    def _timer(self) -> int:
        return TIMERS - (self._number * 1024 + self._turn_number)

    def _go_on(self) -> list[Send]:
        """Hand the answers to the channel, until it has a message for somebody or every stream is opened."""
        self.silent |= self._asked - self._answers.keys()
        answers: dict[int, Any] | None = {client: self._answers[client] for client in sorted(self._answers)}
        while self._streams:
            if self._side is None:
                params = self._params[self._streams[0]]
                self._side, answers = self._channel.server(sorted(self._ids), params, self._number), None
            try:
                messages = next(self._side) if answers is None else self._side.send(answers)
            except StopIteration as end:
                self._open(self._streams.pop(0), end.value)
                continue
            except ProtocolError as error:  # too few are left: nothing is opened, of no stream
                self.failure, self._side = str(error), None
                self._streams.clear()
                return []
            sends = self._send(messages)
            if self._asked:
                return sends
            answers = {}
        return []

    def _open(self, stream: str, found: Sum | Sequence[Update] | Opened) -> None:
        self._side = None
        if isinstance(found, Opened):
            self.lost |= self._ids.keys() - set(found.clients)
            self.refusals.update(found.refused)
            self.told = self.told or found.told
            found = found.got
        else:
            self.lost |= self.silent
        is_each = isinstance(found, Sequence) and all(isinstance(update, Update) for update in found)
        if not isinstance(found, Sum) and not is_each:
            raise self._misfit(
                "must return a Sum, updates, or Opened(one of them, clients)", f"a {type(found).__name__}"
            )
        self.opened[stream] = found

    def _misfit(self, rule: str, got: object) -> CompositionError:
        says = "partwise.testing.check_channel says more."
        return CompositionError(f"{self._channel!r}: its server's side {rule}, got {got}. {says}")

    def _send(self, messages: dict[int, Any]) -> list[Send]:
        if not isinstance(messages, Mapping):
            raise self._misfit("must yield client -> message", f"a {type(messages).__name__}")
        if unknown := messages.keys() - self._ids.keys():
            raise self._misfit(f"must yield messages to its cohort, {sorted(self._ids)}", sorted(unknown, key=str))
        self._turn_number += 1
        self.silent |= self._gone & messages.keys()
        self._asked, self._answers = messages.keys() - self._gone, {}
        number, turn, stream = self._number, self._turn_number, self._streams[0]
        sends = [Send(c, Ask(number, turn, self._ids[c], stream, messages[c])) for c in sorted(self._asked)]
        return [*sends, Send(SERVER, Wake(self._timer()), after=self._channel.patience_seconds)]
