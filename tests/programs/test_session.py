"""A channel of two messages through the real server: who answers, who is lost, who is late."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

from partwise.aggregators import Median
from partwise.algorithms import FedAvg
from partwise.core.aggregate import Sum, sum_updates
from partwise.core.channel import Opened
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.population import Profile
from partwise.core.program import SERVER, Message, Wake
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, map_values
from partwise.programs.messages import Answer
from partwise.programs.session import TIMERS, Session
from partwise.runtimes import Processes, Simulate
from toy_star import Clients, Log, everybody, full_batch, number_model, parabolas, server, star_of

LR, STEPS, A, B, SIZES = 0.1, 2, (1.0, 3.0, 0.5), (0.5, 4.0, -2.0), (2, 3, 7)


@dataclass(frozen=True)
class TwoMessages:
    """Asks for a key, then for the update plus the key; the server takes the keys off and sums.

    silent: weight of a client -> the message that it does not answer.
    """

    silent: Mapping[float, int] = field(default_factory=dict)
    patience_seconds: float = 50.0
    reveals: ClassVar[str] = "sum"
    limit: ClassVar[float | None] = None
    exchanges: ClassVar[bool] = True

    def server(self, cohort: Sequence[int], params: Any, *seat: Any) -> Any:
        keys = yield dict.fromkeys(cohort, "your key")
        sealed = yield {client: sorted(keys) for client in keys}
        opened = {c: map_values(update, lambda v, key=keys[c]: v - key) for c, update in sealed.items()}
        return sum_updates((opened[c] for c in sorted(opened)), params)

    def client(self, update: Update, params: Any, *seat: Any) -> Any:
        silent = self.silent.get(float(update.weight), 0)
        asked = yield
        assert asked == "your key"
        if silent == 1:
            return
        present = yield float(update.weight) * 64
        assert len(present) >= 1
        if silent == 2:
            return
        yield map_values(update, lambda v: v + update.weight * 64)


def oracle(rounds: Sequence[Sequence[int]]) -> float:
    """The number after rounds in which only the clients listed were heard, mean by samples."""
    w = 0.0
    for heard in rounds:
        moved = {}
        for i in heard:
            v = w
            for _ in range(STEPS):
                v -= LR * A[i] * (v - B[i])
            moved[i] = v - w
        w += sum(SIZES[i] * moved[i] for i in heard) / sum(SIZES[i] for i in heard)
    return w


def play(channel: Any, rounds: int = 2, population: Clients | None = None, runtime: Any = None, **more: Any) -> Any:
    clients = population or parabolas(A, B, SIZES)
    star = star_of(FedAvg(full_batch(STEPS, LR)), number_model(), clients, everybody(clients, rounds))
    star = type(star)(**{**{n: getattr(star, n) for n in ("algorithm", "scheduler", "model", "population")}, **more},
                      channel=channel)  # fmt: skip
    log = Log(lambda world: (float(server(world).streams["model"]["w"]), world.now))
    states, reason = (runtime or Simulate()).run(star.programs(), clients, log)
    return states, log, reason


@pytest.mark.parametrize(
    ("silent", "heard"),
    [({}, (0, 1, 2)), ({3.0: 1}, (0, 2)), ({7.0: 2}, (0, 1)), ({2.0: 1, 3.0: 2}, (2,))],
    ids=["all answer", "one lost at message 1", "one lost at message 2", "two lost, at different messages"],
)
def test_those_who_answer_are_summed(silent, heard):
    states, log, reason = play(TwoMessages(silent))
    assert reason == "done"
    assert [w for w, _ in log.seen] == pytest.approx([oracle([heard]), oracle([heard] * 2)], abs=1e-12)
    assert oracle([heard]) != pytest.approx(oracle([(0, 1)] if heard != (0, 1) else [(0, 1, 2)]), abs=1e-3)
    waited = 50.0 * len(silent)  # once per message that somebody left unanswered
    assert [now for _, now in log.seen] == [waited, 2 * waited]
    last = [list(states[c].kept) for c in range(3)]
    assert last == [[4], [5], [6]]  # told that round 1 is over; the run has ended before they are told of round 2


def test_same_on_both_runtimes():
    here, _, _ = play(TwoMessages())
    there, _, _ = play(TwoMessages(), runtime=Processes())
    assert torch.equal(here[SERVER].streams["model"]["w"], there[SERVER].streams["model"]["w"])
    assert here[SERVER].next_id == there[SERVER].next_id  # answers, however many, number no task


def test_patience_on_the_wall_clock():
    """Long enough for clients 0 and 2 to answer, also where the machine has other things to do."""
    _, log, reason = play(TwoMessages({3.0: 1}, patience_seconds=0.5), runtime=Processes())
    assert reason == "done"
    assert log.seen[0][0] == pytest.approx(oracle([(0, 2)]), abs=1e-12)
    assert log.seen[1][1] >= 1.0


@dataclass(frozen=True)
class Deadly:
    """A channel that client 1 does not survive, once."""

    patience_seconds: float = 1e6
    reveals: ClassVar[str] = "sum"
    limit: ClassVar[float | None] = None
    exchanges: ClassVar[bool] = True

    def server(self, cohort: Sequence[int], params: Any, *seat: Any) -> Any:
        return (yield from TwoMessages().server(cohort, params, *seat))

    def client(self, update: Update, params: Any, *seat: Any) -> Any:
        if abs(float(update.values()["w"]) - oracle_move(1)) < 1e-12:
            os.kill(os.getpid(), signal.SIGKILL)
        return TwoMessages().client(update, params, *seat)


def test_client_whose_process_dies_is_not_waited_for():
    """Clients 0 and 2 share a worker; only client 1 is lost, long before the end of patience."""
    _, log, reason = play(Deadly(), runtime=Processes())
    assert reason == "done"
    assert [w for w, _ in log.seen] == pytest.approx([oracle([(0, 2)]), oracle([(0, 2), (0, 1, 2)])], abs=1e-12)


@dataclass(frozen=True)
class DeadlyLater(Deadly):
    """Client 1 does not survive the pause after its first answer, once: client 0 keeps the others waiting for it.

    ends: of a pipe, on which client 1 says that it goes; clients of other workers are not waited for by the clock.
    """

    ends: tuple[int, int] = field(default_factory=os.pipe)

    def client(self, update: Update, params: Any, *seat: Any) -> Any:
        moved = float(update.values()["w"])
        if abs(moved - oracle_move(1)) < 1e-12:
            threading.Timer(0.3, self.go).start()
        if abs(moved - oracle_move(0)) < 1e-12:
            assert select.select(self.ends[:1], [], [], 60.0)[0]
            time.sleep(0.2)  # until the server has seen it, or it asks one who is gone
        return TwoMessages().client(update, params, *seat)

    def go(self) -> None:
        os.write(self.ends[1], b".")
        os.kill(os.getpid(), signal.SIGKILL)


def test_client_whose_process_dies_idle_is_not_asked_again():
    """The answer that client 1 had given is there, but not what it would have to remember for the next one."""
    channel = DeadlyLater()
    try:
        _, log, reason = play(channel, runtime=Processes())
    finally:
        for end in channel.ends:
            os.close(end)
    assert reason == "done"
    assert [w for w, _ in log.seen] == pytest.approx([oracle([(0, 2)]), oracle([(0, 2), (0, 1, 2)])], abs=1e-12)


def slow_clients(seconds: float, slow: Mapping[int, float]) -> Clients:
    """Local steps take so long in all; a client's uplink is so many bytes per second."""
    clients = parabolas(A, B, SIZES)
    inf = float("inf")
    clients.profiles = {i: Profile(seconds / STEPS, slow.get(i, inf), inf, inf, 1.0) for i in range(3)}
    return clients


def test_late_answers_are_ignored():
    """Client 1's key comes after the patience for keys, while the server waits for the updates of the others."""
    size = 75  # of the encoded answer, about; its Reply is longer, and takes as long as it takes
    clients = slow_clients(0.0, {1: size / 70.0})
    _, log, _ = play(TwoMessages({2.0: 2}), rounds=1, population=clients)
    assert log.seen[0][0] == pytest.approx(oracle([(2,)]), abs=1e-12)
    (replies,) = [[r for r in log.of("reply") if r["client"] == 1]]
    assert len(replies) == 1


def test_timers_of_a_finished_exchange_change_nothing():
    """Training takes 30 s, patience 50: the timers of exchange 1 (at 30) are due at 80, in the midst of exchange 2."""
    _, log, _ = play(TwoMessages(), population=slow_clients(30.0, {}))
    assert [now for _, now in log.seen] == [30.0, 60.0]  # nobody waits for a timer
    channel = TwoMessages({3.0: 1})
    _, log, _ = play(channel, population=slow_clients(30.0, {}))
    assert [now for _, now in log.seen] == [30.0 + 50.0, 80.0 + 30.0 + 50.0]
    _, log, _ = play(Sometimes({3.0: 1}), population=slow_clients(30.0, {}))
    assert [now for _, now in log.seen] == [30.0, 60.0 + 50.0]  # and not 80, when the first timer runs out
    assert log.seen[1][0] == pytest.approx(oracle([(0, 1, 2), (0, 2)]), abs=1e-12)


@dataclass(frozen=True)
class Sometimes:
    """As `TwoMessages`, but silent only once the number has moved: from the second exchange on."""

    silent: Mapping[float, int]
    patience_seconds: float = 50.0
    reveals: ClassVar[str] = "sum"
    limit: ClassVar[float | None] = None
    exchanges: ClassVar[bool] = True

    def server(self, cohort: Sequence[int], params: Any, *seat: Any) -> Any:
        return (yield from TwoMessages().server(cohort, params, *seat))

    def client(self, update: Update, params: Any, *seat: Any) -> Any:
        first = {2.0: oracle_move(0), 3.0: oracle_move(1), 7.0: oracle_move(2)}[float(update.weight)]
        is_first = abs(float(update.values()["w"]) - first) < 1e-12
        return TwoMessages({} if is_first else self.silent).client(update, params, *seat)


def oracle_move(i: int) -> float:
    return oracle([(i,)])


def test_aggregator_that_needs_each_does_not_fit():
    with pytest.raises(CompositionError, match=r"^Median\(.*needs each update of stream 'model', but TwoMessages\("):
        play(TwoMessages(), aggregators={"model": Median()})


# The session by itself

PARAMS = {"model": {"w": torch.zeros(1, dtype=torch.float64)}}


def info(client: int, id: int) -> ReplyInfo:
    return ReplyInfo(id, client, 0, 1, 1)


def session(channel: Any = None) -> Session:
    return Session(channel or TwoMessages(), [info(3, 11), info(5, 12)], ["model"], PARAMS)


def answer(of: Session, client: int, turn: int, body: Any, number: int = 40) -> list[Any]:
    message = Message(0.0, SERVER, client, Answer(number, turn, body))
    return of.step(message) if of.is_for(message) else []


def test_lost_client_is_not_waited_for():
    it = session()
    assert [s.to for s in it.open(40)] == [3, 5, SERVER]
    assert answer(it, 3, 1, 64.0) == []
    sends = it.lose(5)
    assert [s.to for s in sends] == [3, SERVER]
    assert it.lose(5) == it.lose(99) == []
    assert answer(it, 5, 2, 1.0) == []  # not asked
    assert it.lose(3) == []
    assert it.is_done  # nobody is left: the sum of nothing
    assert it.opened["model"].count == 0


def test_client_that_is_gone_after_its_answer_is_not_asked_again():
    it = session()
    it.open(40)
    assert answer(it, 5, 1, 64.0) == []
    assert it.lose(5) == []
    assert [s.to for s in answer(it, 3, 1, 64.0)] == [3, SERVER]
    assert it.silent == {5}
    update = Update(Whole({"w": (1,)}), {"w": torch.ones(1, dtype=torch.float64) + 64.0}, 1.0)
    assert answer(it, 3, 2, update) == []
    assert it.is_done
    assert (it.lost, it.opened["model"].count) == ({5}, 1)


def test_exchange_goes_on_when_all_it_would_ask_are_gone():
    it = session()
    it.open(40)
    assert answer(it, 5, 1, 64.0) == []
    assert it.lose(5) == it.lose(3) == []
    assert it.is_done
    assert it.silent == {3, 5}
    assert it.opened["model"].count == 0


def test_only_answers_to_the_open_question_count():
    it = session()
    it.open(40)
    assert answer(it, 3, 1, 64.0, number=39) == []
    assert answer(it, 3, 0, 64.0) == []
    assert answer(it, 3, 1, 64.0) == []
    assert answer(it, 3, 1, 65.0) == []  # twice is still one
    assert [s.to for s in answer(it, 5, 1, 1.0)] == [3, 5, SERVER]
    assert it.step(Message(0.0, SERVER, SERVER, Wake(TIMERS - (40 * 1024 + 1)))) == []  # patience for message 1


@dataclass(frozen=True)
class Mute:
    """A channel that asks nobody, or nobody in its second message."""

    asks: int
    patience_seconds: float = 9.0
    reveals: ClassVar[str] = "sum"
    limit: ClassVar[float | None] = None
    exchanges: ClassVar[bool] = True

    def server(self, cohort: Sequence[int], params: Any, *seat: Any) -> Any:
        for _ in range(self.asks):
            got = yield {}
            assert got == {}
        return Sum(None, {}, {}, 0.0, self.asks)  # type: ignore[arg-type]

    def client(self, update: Update, params: Any, *seat: Any) -> Any:
        yield


@pytest.mark.parametrize("asks", [0, 1, 2])
def test_channel_that_asks_nobody_is_done_at_once(asks):
    it = session(Mute(asks))
    assert it.open(7) == []
    assert it.is_done
    assert it.opened["model"].count == asks


def test_two_replies_of_one_client_do_not_fit():
    with pytest.raises(CompositionError, match=r"one reply per client, got 3 replies of 2 clients. Use a scheduler"):
        Session(TwoMessages(), [info(3, 1), info(4, 2), info(3, 3)], ["model"], PARAMS)


@dataclass(frozen=True)
class Misled(TwoMessages):
    """Its server's side yields one thing, and returns another."""

    first: Any = None
    last: Any = None

    def server(self, cohort: Sequence[int], params: Any, *seat: Any) -> Any:
        yield self.first
        return self.last


@pytest.mark.parametrize(
    ("first", "last", "says"),
    [
        (None, None, "must yield client -> message, got a NoneType"),
        (["hello"], None, "must yield client -> message, got a list"),
        ({3: "hello", 99: "hello"}, None, r"must yield messages to its cohort, \[3, 5\], got \[99\]"),
        ({}, None, "must return a Sum, updates, or Opened(.*), got a NoneType"),
        ({}, 3, "must return a Sum, updates, or Opened(.*), got a int"),
        ({}, Opened([3], (3,)), "must return a Sum, updates, or Opened(.*), got a list"),
    ],
)
def test_what_a_channel_cannot_mean_is_named(first, last, says):
    with pytest.raises(CompositionError, match=rf"^Misled\(.*: its server's side {says}"):
        session(Misled(first=first, last=last)).open(7)
