"""A channel's exchange of several messages, driven by the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from partwise.core.aggregate import Sum
from partwise.core.algorithm import ServerState
from partwise.core.channel import Channel, ServerSession
from partwise.core.program import SERVER, Message, Send, Wake
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.programs.messages import Answer, Ask

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
        self.opened: dict[str, Sum | Sequence[Update]] = {}
        self._channel, self._params = channel, params
        self._streams = list(streams)
        self._ids = {info.client: info.id for info in replies}
        self._number, self._turn_number = 0, 0
        self._side: ServerSession | None = None
        self._asked: set[int] = set()
        self._answers: dict[int, Any] = {}

    @property
    def is_done(self) -> bool:
        return not self._streams

    def is_for(self, message: Message) -> bool:
        """Whether a message belongs to this exchange."""
        match message.body:
            case Answer(session, turn, _):
                return session == self._number and turn == self._turn_number
            case Wake(int() as tag):
                return tag <= TIMERS
            case _:
                return False

    def open(self, number: int) -> list[Send]:
        """The first messages."""
        self._number = number
        return self._next_stream()

    def step(self, message: Message) -> list[Send]:
        """One answer, or the end of patience; the next messages once all have answered."""
        match message.body:
            case Answer(_, _, body):
                if message.src in self._asked:
                    self._answers[message.src] = body
                return self._go_on() if self._answers.keys() == self._asked else []
            case Wake(int() as tag):
                return self._go_on() if tag == self._timer() else []
            case _:
                return []

    def _timer(self) -> int:
        return TIMERS - (self._number * 1024 + self._turn_number)

    def _next_stream(self) -> list[Send]:
        self._side = self._channel.server(sorted(self._ids), self._params[self._streams[0]])
        return self._send(next(self._side))

    def _go_on(self) -> list[Send]:
        assert self._side is not None
        answers = {client: self._answers[client] for client in sorted(self._answers)}
        try:
            return self._send(self._side.send(answers))
        except StopIteration as end:
            self.opened[self._streams.pop(0)] = end.value
            return self._next_stream() if self._streams else []

    def _send(self, messages: dict[int, Any]) -> list[Send]:
        self._turn_number += 1
        self._asked, self._answers = set(messages), {}
        number, turn, stream = self._number, self._turn_number, self._streams[0]
        sends = [Send(c, Ask(number, turn, self._ids[c], stream, messages[c])) for c in sorted(messages)]
        return [*sends, Send(SERVER, Wake(self._timer()), after=self._channel.patience_seconds)]
