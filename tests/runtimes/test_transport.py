"""Four calls: what every transport keeps to, here the one over worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from partwise.core.algorithm import Task
from partwise.core.codec import decode, encode
from partwise.core.program import SERVER, Halt, Record, Send, Work
from partwise.core.spool import Kept
from partwise.programs.messages import Fetch
from partwise.runtimes.crew import Crew
from partwise.runtimes.executors import Plain
from partwise.runtimes.host import HostPlan
from partwise.runtimes.parcel import Failed
from partwise.runtimes.transport import Envelope, Kind, envelope_of, joined, parts_of
from toy_federation import star


@pytest.fixture
def crew() -> Iterator[Crew]:
    plan = HostPlan(star("fedavg").programs(), Plain(), 1 << 20, None, time.monotonic())
    with closing(Crew(2, plan, max_bytes=1 << 20, max_restarts=0)) as crew:
        crew.start()
        yield crew


def task(client: int, number: int) -> Envelope:
    return Envelope(Kind.MESSAGE, SERVER, client, number, body=Kept(Task(number, 0, 0, 0)))


def test_nothing_can_come_where_nothing_was_pushed(crew):
    assert list(crew.nodes()) == list(range(7))
    assert not crew.wait(None)
    assert crew.wait(0.01)  # so long, and no longer
    assert crew.pull() == []


def test_waits_for_as_many_as_it_is_told(crew):
    crew.push([task(0, 1), task(1, 2), task(2, 3)])
    assert crew.wait(30.0, 3)
    got = crew.pull()
    assert sorted((envelope.src, decode(joined(envelope.body)).id) for envelope in got) == [(0, 1), (1, 2), (2, 3)]
    assert all(isinstance(decode(joined(envelope.body)), Fetch) and envelope.to == SERVER for envelope in got)


def test_look_is_answered_with_what_was_not_handled(crew):
    """Whatever the moment, each message is either handled, and its answer comes, or it is held."""
    crew.push([task(client, 10 + client) for client in range(7)])
    crew.push([Envelope(Kind.LOOK)])
    got: list[Envelope] = []
    while not got or got[-1].kind != Kind.LOOKED:
        assert crew.wait(None)
        got += crew.pull()
    answered = {envelope.src for envelope in got if envelope.kind == Kind.MESSAGE}
    held = {envelope.to for envelope in got if envelope.kind == Kind.HELD}
    assert answered | held == set(range(7))
    assert not answered & held
    assert [envelope.kind for envelope in got].count(Kind.LOOKED) == 1


def test_what_an_effect_tells_the_server():
    sent = envelope_of(3, Send(SERVER, "x", after=2.0))
    assert sent is not None
    assert (sent.kind, sent.src, sent.to, sent.after, decode(joined(sent.body))) == (Kind.MESSAGE, 3, SERVER, 2.0, "x")
    record, halt = envelope_of(3, Record("seen", {"a": 1})), envelope_of(3, Halt("enough"))
    assert record is not None
    assert halt is not None
    assert decode(joined(record.body)) == ("seen", {"a": 1})
    assert (halt.kind, decode(joined(halt.body))) == (Kind.HALT, "enough")
    assert envelope_of(3, Send(SERVER, "never", after=float("inf"))) is None
    assert envelope_of(3, Work(None, 1)) is None
    unfit = envelope_of(3, Send(SERVER, object()))
    assert unfit is not None
    assert isinstance(decode(joined(unfit.body)), Failed)


def test_bodies_in_parts_and_whole():
    whole = encode({"a": list(range(9))})
    assert joined(whole) is whole
    assert joined([whole[:5], whole[5:]]) == whole
    assert b"".join(parts_of(Kept({"a": list(range(9))}))) == whole
