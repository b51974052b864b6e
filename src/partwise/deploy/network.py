"""A transport over a post that carries one batch to a node and one back, as Flower's grid does."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from partwise.core.codec import decode, encode_parts
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.population import Client, Counts
from partwise.core.program import SERVER, Failed
from partwise.deploy.batch import Batch, Letter, opened, sealed
from partwise.deploy.post import Collected, Post
from partwise.runtimes.transport import Envelope, Kind, joined

__all__ = ["Network", "Timing"]

_KNOWN = 4096  # of a client's messages, by which one that is sent again is told
_ROOM = 1 << 16  # bytes of a batch beside its messages
_TEXT = 10_000  # characters of what a node says of itself


@dataclass(frozen=True)
class Timing:
    """How often a network is looked at, and how long it is waited for.

    Args:
        poll_seconds: between two looks for answers, > 0.
        look_seconds: between two looks at who is there, > 0.
        grace_seconds: a message to a node that is not there is kept so long, >= 0.
        census_seconds: so long all nodes are waited for, where a part must know who holds what.
    """

    poll_seconds: float = 0.3
    look_seconds: float = 2.0
    grace_seconds: float = 90.0
    census_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("poll_seconds", "look_seconds", "grace_seconds", "census_seconds"):
            value = getattr(self, name)
            if value < 0 or not (value or name == "grace_seconds"):
                raise ValueError(f"Timing({name}={value}): must be above 0, got {value}. Leave it out for the default.")


@dataclass
class _Waiting:
    """Messages to one node that have not left."""

    since: float
    envelopes: list[Envelope] = field(default_factory=list)


class _Sent(NamedTuple):
    node: str
    mark: str
    envelopes: list[Envelope]
    until: float


class Network:
    """A `Transport` whose hosts are nodes on a network: what they say is taken for nothing that can be checked.

    A node has one batch at a time; what comes up meanwhile goes together when it has answered. A node that was started
    anew has lost the batch it had. Of what comes back, only what is from a
    client of that very node, and was not there before, is handed over. What is not is recorded as `rejected`, with the
    node; a node that comes or goes as `node`, and work that failed at a node, with its traceback, as `node_error`.
    States stay with the nodes.

    Args:
        post: carries the batches.
        owners: node -> the numbers of its clients.
        began: when the run began, by `time.monotonic`.
        max_bytes: limit of a message; a batch may have as many times that as messages were sent, and a little more.
        timing: how often it looks, and how long it waits.
        run: by which nodes tell this run from others; a run that is resumed has that which it had.
    """

    def __init__(
        self,
        post: Post,
        owners: Mapping[str, range],
        began: float,
        *,
        max_bytes: int = 1 << 32,
        timing: Timing | None = None,
        run: str = "",
    ) -> None:
        self.life, self._run = secrets.token_hex(8), run
        self._post, self._owners, self._began, self._max_bytes = post, owners, began, max_bytes
        self._timing = timing or Timing()
        self._node_of = {client: node for node, clients in owners.items() for client in clients}
        self._there: Mapping[str, str] = {}
        self._clients: frozenset[Client] = frozenset()
        self._looked = -math.inf
        self._unsent: dict[str, _Waiting] = {}
        self._sent: dict[str, _Sent] = {}
        self._owed: dict[Client, float] = {}  # who said nothing in its node's answer, and until when it is waited for
        self._arrived: deque[Envelope] = deque()
        self._seen: dict[Client, dict[bytes, None]] = {}

    # What the server's process calls

    def nodes(self) -> Collection[Client]:
        self._look_around()
        return self._clients

    def push(self, envelopes: Iterable[Envelope]) -> None:
        for envelope in envelopes:
            if envelope.kind == Kind.LOOK:
                self._tell_held()
            else:
                waiting = self._unsent.setdefault(self._node_of[envelope.to], _Waiting(time.monotonic()))
                waiting.envelopes.append(envelope)

    def pull(self) -> list[Envelope]:
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived

    def wait(self, seconds: float | None, minimum: int = 1) -> bool:
        end = math.inf if seconds is None else time.monotonic() + seconds
        while True:
            self._move()
            left = end - time.monotonic()
            if len(self._arrived) >= minimum or left <= 0:
                return True
            if seconds is None and not (self._sent or self._unsent or self._owed):
                return bool(self._arrived)
            time.sleep(min(self._timing.poll_seconds, left))

    def census(self) -> Counts:
        """Who holds what, counted by the nodes; all of them are waited for, and asked again where they fail.

        Raises:
            CompositionError: a node did not answer in time.
            ProtocolError: what one answered is no census.
        """
        counts: dict[str, Counts] = {}
        faults: dict[str, str] = {}
        end, open = time.monotonic() + self._timing.census_seconds, dict[str, tuple[str, str]]()
        while counts.keys() != self._owners.keys():
            self._look_around()
            # A node that was started anew has lost the question.
            open = {id: (n, mark) for id, (n, mark) in open.items() if self._there.get(n, mark) == mark}
            asked = {node for node, _ in open.values()}
            for node in [n for n in self._there if n not in counts and n not in asked]:
                seconds = max(1.0, end - time.monotonic())
                if id := self._post.send(node, b"\0", kind="query", seconds=seconds, group="census"):
                    open[id] = node, self._there[node]
            for got in self._post.collect(list(open)) if open else ():
                node, _ = open.pop(got.id)
                if got.fault:
                    faults[node] = _last_line(got.fault)
                else:
                    counts[node] = _checked(node, got.data, self._max_bytes)
            if time.monotonic() > end:
                missing = sorted(self._owners.keys() - counts.keys())
                why = "".join(f"; {node} failed: {faults[node]}" for node in missing if node in faults)
                raise CompositionError(
                    f"Network(): a part needs to know how many clients hold each coordinate, got no answer from "
                    f"{missing} in {self._timing.census_seconds:g} s{why}. Start them, mend them, or use a part that "
                    "does without, such as FedSubAvg('count')."
                )
            time.sleep(self._timing.poll_seconds)
        return _total({node: counts[node] for node in self._owners})

    # Out

    def _move(self) -> None:
        self._look_around()
        self._send_all()
        if self._sent:
            for got in self._post.collect(list(self._sent)):
                self._receive(got)
        for id, sent in list(self._sent.items()):
            if time.monotonic() >= sent.until:
                del self._sent[id]
                self._lose(sent.envelopes, f"node {sent.node} gave no answer in time")
        for client in [client for client, until in self._owed.items() if time.monotonic() >= until]:
            self._lose_client(client, f"node {self._node_of[client]} answered without a word of this client")

    def _look_around(self) -> None:
        if time.monotonic() - self._looked < self._timing.look_seconds:
            return
        self._looked = time.monotonic()
        now = {node: mark for node, mark in self._post.there().items() if node in self._owners}
        for id, sent in [(id, s) for id, s in self._sent.items() if now.get(s.node, s.mark) != s.mark]:
            del self._sent[id]
            self._lose(sent.envelopes, f"node {sent.node} was started anew")
        for node in [n for n in self._owners if (n in now) != (n in self._there)]:
            fields = {"node": node, "is_there": node in now, "clients": len(self._owners[node])}
            self._note("node", fields)
        self._there = now
        self._clients = frozenset(client for node in now for client in self._owners[node])

    def _send_all(self) -> None:
        busy = {sent.node for sent in self._sent.values()}
        for node, waiting in list(self._unsent.items()):
            if node in busy:
                continue  # it would not begin before it has answered, and until then more may go with it
            if node in self._there:
                del self._unsent[node]
                self._send(node, waiting.envelopes)
            elif time.monotonic() - waiting.since > self._timing.grace_seconds:
                del self._unsent[node]
                self._lose(waiting.envelopes, f"node {node} is not there")

    def _send(self, node: str, envelopes: list[Envelope]) -> None:
        now = time.monotonic() - self._began
        letters = [Letter(e.src, e.to, e.number, bytes(joined(e.body))) for e in envelopes]
        seconds = max(1.0, min(e.deadline for e in envelopes) - now)
        group = str(max(e.version for e in envelopes))
        for envelope in envelopes:
            self._owed.pop(envelope.to, None)
        data = sealed(Batch(self.life, now, letters, run=self._run))
        id = self._post.send(node, data, kind="train", seconds=min(seconds, 1e9), group=group)
        if id:
            self._sent[id] = _Sent(node, self._there[node], envelopes, time.monotonic() + seconds)
        else:
            self._lose(envelopes, f"node {node} cannot be reached")

    def _tell_held(self) -> None:
        """All that was pushed and not answered, so that it can be saved and sent again."""
        held = [sent.envelopes for sent in self._sent.values()] + [w.envelopes for w in self._unsent.values()]
        self._arrived.extend(envelope._replace(kind=Kind.HELD) for envelopes in held for envelope in envelopes)
        self._arrived.append(Envelope(Kind.LOOKED))

    # In

    def _receive(self, got: Collected) -> None:
        sent = self._sent.pop(got.id, None)
        if sent is None:
            return
        if got.fault:
            fields = {"node": sent.node, "clients": sorted({e.to for e in sent.envelopes}), "text": got.fault[-_TEXT:]}
            self._note("node_error", fields)
            self._lose(sent.envelopes, f"node {sent.node}: {_last_line(got.fault)}")
            return
        try:
            batch = opened(got.data, self._max_bytes * len(sent.envelopes) + _ROOM)
            if batch.life != self.life:
                raise ProtocolError("a batch must answer one of this life of the server, got an old one.")
        except ProtocolError as error:
            reason = f"sent what cannot be read: {error}"
            self._reject(sent.node, reason)
            for client in sorted({e.to for e in sent.envelopes}):
                self._arrived.append(Envelope(Kind.MESSAGE, client, SERVER, fault=str(error)))
            return
        for client, text in batch.faults:
            if client in self._owners[sent.node]:
                self._note("node_error", {"node": sent.node, "clients": [client], "text": text[-_TEXT:]})
        self._owed.update((envelope.to, sent.until) for envelope in sent.envelopes)
        for letter in batch.letters:
            self._take(sent.node, letter)

    def _take(self, node: str, letter: Letter) -> None:
        if letter.src not in self._owners[node] or letter.to != SERVER:
            self._reject(node, f"sent a message from {letter.src} to {letter.to}, which is not its to send")
            return
        seen, digest = self._seen.setdefault(letter.src, {}), hashlib.sha256(letter.body).digest()
        if digest in seen and not _is_failure(letter.body, self._max_bytes):
            self._reject(node, f"sent a message of client {letter.src} once more")
            return
        seen[digest] = None
        if len(seen) > _KNOWN:
            del seen[next(iter(seen))]
        self._owed.pop(letter.src, None)
        self._arrived.append(Envelope(Kind.MESSAGE, letter.src, SERVER, letter.number, body=letter.body))

    def _lose(self, envelopes: Iterable[Envelope], fault: str) -> None:
        for client in sorted({envelope.to for envelope in envelopes}):
            self._lose_client(client, fault)

    def _lose_client(self, client: Client, fault: str) -> None:
        self._owed.pop(client, None)
        self._arrived.append(Envelope(Kind.LOST, client, fault=fault))

    def _reject(self, node: str, reason: str) -> None:
        self._note("rejected", {"node": node, "reason": f"node {node} {reason}"})

    def _note(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._arrived.append(Envelope(Kind.RECORD, body=list(encode_parts((kind, dict(fields))))))


def _is_failure(body: bytes, max_bytes: int) -> bool:
    """Whether a message says no more than that its client has failed, which may happen in the same words again."""
    try:
        return type(decode(body, max_bytes=max_bytes)) is Failed
    except ProtocolError:
        return False


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "failed"


def _checked(node: str, data: bytes, max_bytes: int) -> Counts:
    counts = decode(data, max_bytes=max_bytes)
    is_right = type(counts) is Counts and type(counts.total_weight) in (int, float) and counts.total_weight >= 0
    for covers in (counts.heat, counts.weight) if is_right else ():
        is_right = is_right and isinstance(covers, dict) and all(map(_is_count, covers.values()))
    if not is_right:
        raise ProtocolError(
            f"node {node}: must answer a census with finite counts from 0 on, got others. Use the same Partwise there."
        )
    return counts  # type: ignore[no-any-return]


def _is_count(cover: Any) -> bool:
    return isinstance(cover, Tensor) and cover.is_floating_point() and bool(((cover >= 0) & cover.isfinite()).all())


def _total(counts: Mapping[str, Counts]) -> Counts:
    """The sum over the nodes, in their order."""
    first = next(iter(counts.values()))

    def added(which: str) -> dict[str, Tensor]:
        total = {name: cover.clone() for name, cover in getattr(first, which).items()}
        for node, found in list(counts.items())[1:]:
            covers = getattr(found, which)
            shapes = {name: cover.shape for name, cover in covers.items()}
            if shapes != {name: cover.shape for name, cover in total.items()}:
                raise ProtocolError(
                    f"node {node}: must count the same parameters as the others, got {sorted(covers)}. "
                    "All nodes must build the same model."
                )
            for name, cover in covers.items():
                total[name] += cover
        return total

    return Counts(added("heat"), added("weight"), sum(float(found.total_weight) for found in counts.values()))
