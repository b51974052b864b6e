"""A node: the warm model, its clients' data and states; what answers the part that Flower starts for every message."""

from __future__ import annotations

import hashlib
import socket
import time
import traceback
from collections.abc import Sequence

from partwise.core.codec import decode, encode
from partwise.core.errors import ProtocolError
from partwise.core.plan import Executor
from partwise.core.population import Client
from partwise.core.program import SERVER, NodeId
from partwise.deploy import line
from partwise.deploy.batch import Batch, Letter, opened, sealed
from partwise.deploy.enrolled import Enrolled
from partwise.deploy.memory import Memory, Remembered
from partwise.programs.census import count
from partwise.programs.client import forget_
from partwise.programs.messages import Held
from partwise.programs.star import Star
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.host import Host, HostPlan
from partwise.runtimes.transport import Envelope, Kind, joined

__all__ = ["CENSUS", "WORK", "Node", "serve"]

WORK, CENSUS = b"work", b"census"
_TEXT = 10_000  # characters of a traceback
_LETTERS = 4  # of a client in a batch, at most: what it trains on, what comes next, and what it is told or asked
_ROOM = 1 << 16  # bytes of a batch beside its messages
_PATIENCE_SECONDS = 60.0  # for a message to be there once it has begun


class Node:
    """What one node does with what comes.

    A batch is worked through, and what came of it is remembered before it is answered, so that a message is applied
    once: what the server sends again is answered again, from memory, if it took work, or was sent in the same life of
    the server. A run that has not been here begins with clients that know nothing.

    Args:
        star: the programs' definition, over the node's own data.
        memory: what is remembered.
        executor: runs local plans.
        max_bytes: limit of a message; a batch may have as many times that as its clients can be sent messages.
        memory_bytes: bound of what clients keep in memory; the rest is in a temporary file.
    """

    def __init__(
        self,
        star: Star,
        memory: Memory,
        executor: Executor | None = None,
        *,
        max_bytes: int = 1 << 32,
        memory_bytes: int = 128 << 20,
    ) -> None:
        population = star.population
        assert isinstance(population, Enrolled)
        self._star, self._memory, self._max_bytes = star, memory, max_bytes
        self._clients = population.owners()[population.here]
        self.batch_bytes = max_bytes * _LETTERS * len(self._clients) + _ROOM
        self._programs = star.programs()
        self._plan = HostPlan(self._programs, executor or Plain(), memory_bytes, None, time.monotonic())
        self._host: Host | None = None
        self._sent: list[Envelope] = []
        self._faults: list[tuple[NodeId, str]] = []
        self._life = ""

    def answer(self, verb: bytes, data: bytes) -> bytes:
        """What is answered.

        Raises:
            ProtocolError: the message is none that a server sends.
        """
        if verb == WORK:
            return self._work(opened(data, self.batch_bytes))
        if verb == CENSUS:
            return encode(count(self._star, self._clients))
        raise ProtocolError(f"a node answers {WORK!r} and {CENSUS!r}, got {verb[:20]!r}. Use the same Partwise.")

    def _work(self, batch: Batch) -> bytes:
        for letter in batch.letters:
            if letter.src != SERVER or letter.to not in self._clients:
                raise ProtocolError(
                    f"a message must be from the server to one of the clients {self._clients}, got one from "
                    f"{letter.src} to {letter.to}. Let the server enrol the clients that are here."
                )
        try:
            return self._through(batch)
        except BaseException:
            self._host = None  # what it had in hand is not to be relied upon; what is remembered is
            raise

    def _through(self, batch: Batch) -> bytes:
        host = self._opened_host(batch)
        answers: list[Letter] = []
        remembered: list[Remembered] = []
        for wave in _waves(batch.letters):
            fresh = []
            for letter, digest in wave:
                known = self._memory.answer(letter.to, digest)
                if known is not None and (known.worked or known.life == batch.life):
                    answers += decode(known.bodies)
                    if known.worked:
                        self._leave(host, letter)
                else:
                    fresh.append((letter, digest))
            remembered += self._handle(host, fresh, batch.life)
        answers += [letter for answer in remembered for letter in decode(answer.bodies)]
        states = {e.src: None if self._is_blank(e) else bytes(joined(e.body)) for e in host.states()}
        self._memory.save(states, remembered)
        faults, self._faults = self._faults, []
        return sealed(Batch(batch.life, batch.now, answers, faults))

    def _leave(self, host: Host, letter: Letter) -> None:
        """A task that was asked again by a server that was killed is done already: its client does not wait for it."""
        body = decode(letter.body, max_bytes=self._max_bytes)
        if isinstance(body, Held):
            host.change(letter.to, lambda state: forget_(state, body.id))

    def _handle(self, host: Host, fresh: Sequence[tuple[Letter, bytes]], life: str) -> list[Remembered]:
        """Have messages, at most one to a client, worked through; what each of them led to."""
        host.worked.clear()
        self._sent = []
        for letter, _ in fresh:
            host.take(Envelope(Kind.MESSAGE, letter.src, letter.to, letter.number, body=letter.body))
        while host.has_more:
            host.turn()
        sent: dict[Client, list[Letter]] = {}
        for envelope in self._sent:
            if envelope.kind == Kind.MESSAGE and envelope.to == SERVER:
                body = bytes(joined(envelope.body))
                sent.setdefault(envelope.src, []).append(Letter(envelope.src, SERVER, 0, body))
        return [
            Remembered(letter.to, digest, life, letter.to in host.worked, encode(sent.get(letter.to, [])))
            for letter, digest in fresh
        ]

    def _opened_host(self, batch: Batch) -> Host:
        if batch.run and self._memory.turn_to(batch.run):
            self._host = None  # its clients' states are those of another run
        if self._host is None:
            self._faults = []
            self._host = Host(self._plan, self._take, self._max_bytes, self._note)
            for client, body in self._memory.states():
                self._host.keep(client, decode(body))
        if batch.life != self._life:
            self._life, self._host.began = batch.life, time.monotonic() - batch.now
        return self._host

    def _take(self, envelope: Envelope) -> None:
        self._sent.append(envelope)

    def _note(self, client: NodeId, error: Exception) -> None:
        self._faults.append((client, "".join(traceback.format_exception(error))[-_TEXT:]))

    def _is_blank(self, envelope: Envelope) -> bool:
        return self._programs[envelope.src].is_blank(decode(joined(envelope.body)))


def _waves(letters: Sequence[Letter]) -> list[list[tuple[Letter, bytes]]]:
    """The first message of each client, then the second of each that has one, and so on; with their digests."""
    waves: list[list[tuple[Letter, bytes]]] = []
    depth: dict[Client, int] = {}
    for letter in letters:
        at = depth[letter.to] = depth.get(letter.to, -1) + 1
        if at == len(waves):
            waves.append([])
        waves[at].append((letter, hashlib.sha256(letter.body).digest()))
    return waves


def serve(node: Node, listening: socket.socket) -> None:
    """Answer one message after another, for ever. What fails is told to whoever asked, with its traceback."""
    while True:
        asking, _ = listening.accept()
        with asking:
            try:
                asking.settimeout(_PATIENCE_SECONDS)
                verb, _, data = line.receive(asking, node.batch_bytes).partition(b"\n")
                asking.settimeout(None)
                found = b"ok\n" + node.answer(verb, data)
            except (EOFError, TimeoutError):
                continue
            except Exception:  # noqa: BLE001 - a node outlives whatever one message leads to
                text = traceback.format_exc()[-_TEXT:]
                print(text, flush=True)  # noqa: T201 - into the node's own log
                found = b"no\n" + text.encode(errors="replace")
            try:
                line.reply(asking, found)
            except OSError:
                continue  # nobody waits for it any more; it is remembered
