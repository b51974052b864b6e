"""What a node does with a batch, and what it remembers when its process has gone."""

from __future__ import annotations

import socket
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from partwise.core.algorithm import Algorithm, Task
from partwise.core.codec import decode, encode
from partwise.core.errors import CheckpointError, DataError, ProtocolError
from partwise.core.program import SERVER
from partwise.deploy import line
from partwise.deploy.batch import Batch, Letter, opened, sealed
from partwise.deploy.enrolled import Enrolled, Member
from partwise.deploy.memory import Memory, Remembered
from partwise.deploy.node import CENSUS, WORK, Node, serve
from partwise.programs.messages import Fetch, Held, Reply, Trouble
from toy_federation import LOCAL, star
from toy_post import node_of

LIMIT = 1 << 24


def ask(node: Node, *bodies: Any, life: str = "one", to: int = 3) -> list[Any]:
    letters = [Letter(SERVER, to, number, encode(body)) for number, body in enumerate(bodies)]
    answer = opened(node.answer(WORK, sealed(Batch(life, 1.5, letters))), LIMIT)
    assert answer.life == life
    assert all(letter.src == to and letter.to == SERVER for letter in answer.letters)
    return [decode(letter.body) for letter in answer.letters]


def held(of: Any, fetch: Fetch) -> Held:
    params = of.algorithm.init(of.initial(), of.census)
    return Held(fetch.id, {name: part.gather(params[name]) for name, part in fetch.of(params).items()})


def task(id: int) -> Task:
    return Task(id, 0, 0, 0)


def same(one: Any, other: Any) -> bool:
    return encode(one._replace(fetched=0.0, trained=0.0)) == encode(other._replace(fetched=0.0, trained=0.0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


def test_answers_task_and_held_values(file):
    of = star("scaffold")
    node = node_of(of, "middle", file)
    (fetch,) = ask(node, task(8))
    assert isinstance(fetch, Fetch)
    (reply,) = ask(node, held(of, fetch))
    assert isinstance(reply, Reply)
    assert (reply.id, reply.examples) == (8, 9 + 4 * 3)


def test_what_took_work_is_not_done_twice_whoever_asks(file):
    """Not in the same process, nor in the next one, nor for a server that was killed and has come back."""
    of = star("error feedback")
    node = node_of(of, "middle", file)
    (fetch,) = ask(node, task(8))
    (reply,) = ask(node, held(of, fetch))
    before = dict(Memory(file).states())
    for again, life in ((node, "one"), (node_of(of, "middle", file), "one"), (node_of(of, "middle", file), "two")):
        (same_reply,) = ask(again, held(of, fetch), life=life)
        assert encode(same_reply) == encode(reply)
        assert dict(Memory(file).states()) == before
    (next_fetch,) = ask(node_of(of, "middle", file), task(9), life="two")
    (next_reply,) = ask(node_of(of, "middle", file), held(of, next_fetch), life="two")
    assert not same(next_reply._replace(id=8), reply)  # the residual has gone on from the first reply


def test_message_of_an_earlier_life_that_took_no_work_is_handled_anew(file):
    of = star("scaffold")
    node = node_of(of, "middle", file)
    (fetch,) = ask(node, task(8))
    assert [encode(f) for f in ask(node, task(8))] == [encode(fetch)]
    (again,) = ask(node_of(of, "middle", file), task(8), life="two")
    assert encode(again) == encode(fetch)
    other = held(of, fetch)
    other = other._replace(streams={s: {n: v + 1 for n, v in values.items()} for s, values in other.streams.items()})
    (reply,) = ask(node_of(of, "middle", file), other, life="two")  # it is at the task again
    assert isinstance(reply, Reply)


def test_state_is_that_of_a_node_that_was_never_gone(file, tmp_path):
    of = star("scaffold")
    one = node_of(of, "middle", file)
    for round in range(3):
        other = node_of(of, "middle", tmp_path / "other.sqlite")  # a new process every time
        replies = []
        for node in (one, other):
            (fetch,) = ask(node, task(round))
            replies += ask(node, held(of, fetch))
        assert same(*replies)
    assert dict(Memory(file).states()).keys() == {3}


def test_two_messages_to_one_client_are_handled_in_order(file):
    of = star("fedavg")
    found = ask(node_of(of, "middle", file), task(4), task(5))
    assert [f.id for f in found] == [4, 5]


@pytest.mark.parametrize(
    ("src", "to", "body", "reason"),
    [
        (SERVER, 0, encode(task(1)), "from the server to one of the clients range\\(3, 5\\), got one from -1 to 0"),
        (4, 3, encode(task(1)), "got one from 4 to 3"),
        (SERVER, 3, encode(Held("x", {})), "Held.id: must be a whole number from 0 on, got str"),
        (SERVER, 3, encode(Trouble(1, "", "")), "a server's message: must be Task, Held, Ask or Released, got"),
        (SERVER, 3, b"no message" * 9, "a message begins with b'PTWS'"),
    ],
)
def test_message_that_no_server_sends_is_refused_and_leaves_no_trace(file, src, to, body, reason):
    node = node_of(star("scaffold"), "middle", file)
    with pytest.raises(ProtocolError, match=reason):
        node.answer(WORK, sealed(Batch("one", 0.0, [Letter(src, to, 0, body)])))
    assert dict(Memory(file).states()) == {}
    assert isinstance(ask(node, task(8))[0], Fetch)  # it goes on
    with pytest.raises(ProtocolError, match="a node answers b'work' and b'census', got b'dance'"):
        node.answer(b"dance", b"")


def test_limit_is_that_of_a_message_and_not_of_all_that_come_together(file, tmp_path):
    of = star("fedavg")
    (fetch,) = ask(node_of(of, "middle", file), task(8))
    data = encode(held(of, fetch))
    small = Node(node_of(of, "middle", tmp_path / "own.sqlite")._star, Memory(file), max_bytes=len(data))
    letters = [Letter(SERVER, to, to, encode(task(to))) for to in (3, 4)]
    small.answer(WORK, sealed(Batch("two", 1.5, letters)))
    letters = [Letter(SERVER, to, to, encode(held(of, fetch)._replace(id=to))) for to in (3, 4)]
    path = tmp_path / "node.sock"
    threading.Thread(target=serve, args=(small, line.listen(path)), daemon=True).start()
    status, _, found = line.ask(path, WORK + b"\n" + sealed(Batch("two", 1.5, letters)), timeout=20.0).partition(b"\n")
    assert status == b"ok", found
    assert [type(decode(letter.body)) for letter in opened(found, LIMIT).letters] == [Reply, Reply]
    long = Letter(SERVER, 3, 9, encode("a" * len(data)))
    with pytest.raises(ProtocolError, match=f"a message may have {len(data)} bytes, got one of"):
        small.answer(WORK, sealed(Batch("two", 1.5, [long])))
    with pytest.raises(ProtocolError, match="a batch may have"):
        small.answer(WORK, sealed(Batch("two", 1.5, [long])) + bytes(small.batch_bytes))


class Clumsy(Algorithm):
    local = LOCAL

    def plan(self, held, index, task, own, site):
        def spill(params, batch, rng):
            raise ValueError("the tea is on the keyboard")

        return replace(self.local.plan(site, task), loss=spill)


def test_work_that_fails_is_told_with_its_traceback(file):
    of = star("fedavg", algorithm=Clumsy())
    node = node_of(of, "middle", file)
    (fetch,) = ask(node, task(8))
    data = sealed(Batch("one", 0.0, [Letter(SERVER, 3, 0, encode(held(of, fetch)))]))
    answer = opened(node.answer(WORK, data), LIMIT)
    ((client, text),) = answer.faults
    assert client == 3
    assert text.startswith("Traceback")
    assert "in spill" in text
    assert text.rstrip().endswith("ValueError: the tea is on the keyboard")
    assert isinstance(decode(answer.letters[0].body), Trouble)


def test_census_is_of_its_own_clients(file):
    counts = decode(node_of(star("fedsubavg capped"), "middle", file).answer(CENSUS, b""))
    assert counts.total_weight == 2.0
    assert float(counts.heat["table.weight"].max()) == 2.0


# The line


def test_line_carries_answers_and_failures(tmp_path):
    node = node_of(star("fedavg"), "middle")
    path = tmp_path / "node.sock"
    listening = line.listen(path)
    assert path.stat().st_mode & 0o007 == 0  # nobody else reaches it
    thread = threading.Thread(target=serve, args=(node, listening), daemon=True)
    thread.start()
    data = sealed(Batch("one", 0.0, [Letter(SERVER, 3, 0, encode(task(2)))]))
    status, _, found = line.ask(path, WORK + b"\n" + data, timeout=20.0).partition(b"\n")
    assert status == b"ok"
    assert isinstance(decode(opened(found, LIMIT).letters[0].body), Fetch)
    status, _, found = line.ask(path, b"dance\n", timeout=20.0).partition(b"\n")
    assert status == b"no"
    assert b"ProtocolError: a node answers" in found
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(path))
        rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert line.ask(path, CENSUS + b"\n", timeout=20.0).startswith(b"ok\n")


# What is remembered


def test_memory_keeps_the_last_answers_of_each_kind(file):
    memory = Memory(file)
    for number in range(20):
        memory.save({}, [Remembered(1, b"%d" % number, "one", number % 5 == 0, b"x")])
    kept = [n for n in range(20) if memory.answer(1, b"%d" % n) is not None]
    assert kept == [0, 5, 10, 15, 16, 17, 18, 19]
    assert memory.answer(2, b"19") is None


def test_memory_is_of_one_run_at_a_time_and_that_of_others_is_kept(file):
    memory = Memory(file)
    memory.save({1: b"a"}, [])
    assert not memory.turn_to("one")  # what no run was named for is the first one's
    assert memory.turn_to("two")
    assert dict(memory.states()) == {}
    memory.save({1: b"b"}, [])
    assert not Memory(file).turn_to("two")
    assert memory.turn_to("one")
    assert dict(memory.states()) == {1: b"a"}
    memory.close()
    assert Memory(file).turn_to("two")
    assert dict(Memory(file).states()) == {1: b"b"}
    assert {path.name for path in file.parent.glob("*.sqlite")} == {"state.sqlite", "state-one.sqlite"}


@pytest.mark.parametrize("run", ["../one", "a" * 65, 3])
def test_run_that_is_no_name_is_refused(run):
    with pytest.raises(ProtocolError, match=r"Batch\.run: must be at most 64 letters and digits"):
        opened(sealed(Batch("one", 1.5, [], run=run)), LIMIT)


def test_memory_is_written_whole_or_not_at_all(file):
    memory = Memory(file)
    memory.save({1: b"a", 2: b"b"}, [])
    with pytest.raises(CheckpointError, match=r"saving needs a file that can be written .* NOT NULL"):
        memory.save({1: b"c"}, [Remembered(1, b"d", "one", True, None)])  # type: ignore[arg-type]
    assert dict(memory.states()) == {1: b"a", 2: b"b"}
    memory.save({1: None}, [])
    assert dict(Memory(file).states()) == {2: b"b"}


def test_memory_refuses_what_is_none(tmp_path):
    (tmp_path / "text").write_text("a shopping list, and much longer than a database's head would be" * 30)
    with pytest.raises(CheckpointError, match="opening needs a file that can be written and is a node's memory"):
        Memory(tmp_path / "text")
    with closing(sqlite3.connect(tmp_path / "newer")) as newer:
        newer.execute("PRAGMA user_version = 9")
    with pytest.raises(CheckpointError, match=r"must have format 1, got 9\. Update Partwise\."):
        Memory(tmp_path / "newer")


# Who is enrolled


def test_enrolled_shows_what_is_here_and_no_more():
    population = Enrolled([Member("a", 0, [4, 5]), Member("b", 2, [6])])
    assert len(population.data(1)) == 5
    with pytest.raises(DataError, match=r"^client 1: its examples stay with its node, got a look at them\."):
        population.data(1).columns()
    assert population.counts() is None
    assert not population.is_open
    assert not population.is_instant


@pytest.mark.parametrize(
    "members", [[Member("a", 1, [3])], [Member("a", 0, [3]), Member("b", 0, [3])], [Member("a", 0, [])]]
)
def test_enrolled_clients_are_numbered_without_a_gap(members):
    with pytest.raises(ValueError, match="clients must be numbered without a gap and every node have one, got '"):
        Enrolled(members)


def test_data_must_be_what_was_enrolled():
    local = star("fedavg").population
    with pytest.raises(DataError, match=r"its data must have the 2 clients that it is enrolled with, got 7\."):
        Enrolled([Member("a", 0, [4, 5])], "a", local)
