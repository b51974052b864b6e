"""Nodes behind a post: the simulator's bits, and nodes that are late, leave, lie, or send what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.codec import decode, encode
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.population import Counts
from partwise.core.program import SERVER, Wake
from partwise.core.update import map_values
from partwise.deploy.batch import Batch, Letter, opened, sealed
from partwise.deploy.network import Timing
from partwise.deploy.post import Collected
from partwise.programs.messages import Fetch, Reply, Trouble
from partwise.runtimes import Simulate
from partwise.schedulers import FedBuff, Synchronous
from toy_federation import CASES, LOCAL, outcome, play, star
from toy_post import QUICK, SPLIT, LocalPost, deployed
from toy_star import Log, Saving

LIMIT = 1 << 20


def run(case: str, log: Any = None, rounds: int = 5, **more: Any) -> tuple[bytes, Any, Any]:
    """What the server ends with, the log, and the post."""
    of, runtime, post = deployed(star(case, rounds=rounds, scheduler=everybody(rounds)), **more)
    log = Log() if log is None else log
    states, reason = runtime.run(of.programs(), of.population, log)
    assert reason == "done"
    return outcome({SERVER: states[SERVER]})[SERVER], log, post


def everybody(rounds: int) -> Synchronous:
    return Synchronous(cohort=7, rounds=rounds)


def expected(case: str, rounds: int = 5) -> bytes:
    return play(Simulate(), star(case, rounds=rounds, scheduler=everybody(rounds)))[0][SERVER]


@pytest.mark.parametrize("case", CASES)
def test_ends_with_the_bits_of_the_simulator(case):
    found, log, post = run(case)
    assert found == expected(case)
    assert {node for node, _, _ in post.sent} == set(SPLIT)
    assert not log.of("lost")
    assert not log.of("rejected")


def test_messages_to_a_node_go_together():
    _, _, post = run("fedavg", rounds=2)
    letters = [len(opened(data, LIMIT).letters) for node, kind, data in post.sent if node == "north"]
    assert letters == [3] * 4  # tasks and held values of two rounds


# Who is there


def test_node_that_joins_late_and_one_that_leaves():
    """Two rounds without south; then three with it, but for one in which north is away."""
    log, versions = Log(), []

    def look(world: Any) -> None:
        versions.append(world.state(SERVER).version)

    def is_there(node: str) -> bool:
        round = len(versions)
        return not (node == "south" and round < 2) and not (node == "north" and round == 3)

    log.look = look
    _, log, _ = run("fedavg", log, is_there=is_there)
    assert [c["clients"] for c in log.of("commit")][:2] == [[0, 1, 2, 3, 4]] * 2
    assert all(set(range(5, 7)) <= set(c["clients"]) for c in log.of("commit")[3:])
    changes = [(f["node"], f["is_there"]) for f in log.of("node")]
    assert changes[:2] == [("north", True), ("middle", True)]
    assert changes.index(("south", True)) > 1
    assert ("north", False) in changes


def test_message_to_a_node_that_is_gone_is_lost_after_a_while():
    log = Log()
    away: list[bool] = []

    def is_there(node: str) -> bool:
        if node == "middle" and log.of("started"):
            away.append(True)
        return not (node == "middle" and len(away) > 1)

    of, runtime, _ = deployed(star("fedavg", rounds=1, scheduler=everybody(1)), is_there=is_there)
    of.population.next_available = lambda client, now: now  # a scheduler that does not look
    of.population.are_there = lambda clients, now: [True] * len(clients)
    timing = Timing(0.001, 0.0011, 0.05)
    states, _ = replace(runtime, timing=timing).run(of.programs(), of.population, log)
    assert {(f["client"], f["stage"], f["reason"]) for f in log.of("lost")} <= {
        (c, "node", "node middle is not there") for c in (3, 4)
    }
    assert states[SERVER].version == 1


def test_answer_that_never_comes_is_not_waited_for():
    of, runtime, _ = deployed(
        star("fedavg", rounds=3, scheduler=everybody(3)),
        spoil=lambda node, number, got: None if (node, number) == ("south", 3) else got,
    )
    log = Log()
    replace(runtime, patience_seconds=0.3).run(of.programs(), of.population, log)
    assert {(f["client"], f["reason"], f["version"]) for f in log.of("lost")} == {
        (c, "node south gave no answer in time", 1) for c in (5, 6)
    }
    assert [c["replies"] for c in log.of("commit")] == [7, 5, 7]


@pytest.mark.parametrize("change", [lambda letters: [], lambda letters: [letter._replace(src=0) for letter in letters]])
def test_client_of_which_its_nodes_answer_has_no_word_is_not_waited_for(change):
    def spoil(node: str, number: int, got: Collected) -> Collected:
        batch = opened(got.data, LIMIT)
        is_spoiled = (node, number) == ("south", 3)
        return got._replace(data=sealed(batch._replace(letters=change(batch.letters)))) if is_spoiled else got

    of, runtime, _ = deployed(star("fedavg", rounds=3, scheduler=everybody(3)), spoil=spoil)
    log = Log()
    _, reason = replace(runtime, patience_seconds=0.5).run(of.programs(), of.population, log, until=20.0)
    assert reason == "done"
    assert {(f["client"], f["reason"], f["version"]) for f in log.of("lost")} == {
        (c, "node south answered without a word of this client", 1) for c in (5, 6)
    }
    assert [c["replies"] for c in log.of("commit")] == [7, 5, 7]


def test_node_has_one_batch_at_a_time():
    of, runtime, post = deployed(star("fedavg", scheduler=FedBuff(buffer=2, concurrency=6, versions=12)))
    kept, open_, most = post.send, dict[str, str](), []

    def send(node: str, data: bytes, **more: Any) -> str:
        assert node not in open_.values()
        most.append(len(opened(data, LIMIT).letters))
        open_[id] = node if (id := kept(node, data, **more)) else ""
        return id

    def collect(ids: Any) -> Any:
        found = LocalPost.collect(post, ids)
        for got in found:
            del open_[got.id]
        return found

    post.send, post.collect = send, collect
    states, _ = runtime.run(of.programs(), of.population, Log())
    assert states[SERVER].version == 12
    assert max(most) > 1


def test_batch_of_a_node_that_was_started_anew_is_lost_at_once():
    of, runtime, post = deployed(star("fedavg", rounds=3, scheduler=everybody(3)))

    def spoil(node: str, number: int, got: Collected) -> Collected | None:
        if (node, number) == ("south", 3):
            post.marks["south"] = "another process"
            return None
        return got

    post.spoil, log = spoil, Log()
    replace(runtime, patience_seconds=1e6).run(of.programs(), of.population, log)
    assert {(f["client"], f["reason"]) for f in log.of("lost")} == {(c, "node south was started anew") for c in (5, 6)}
    assert [c["replies"] for c in log.of("commit")] == [7, 5, 7]


def test_census_waits_for_every_node_and_says_who_is_missing():
    of, runtime, post = deployed(star("fedsubavg capped"), is_there=lambda node: node != "middle")
    with pytest.raises(CompositionError, match=r"got no answer from \['middle'\] in 0.1 s\. Start them, mend them, or"):
        replace(runtime, timing=Timing(0.001, 0.001, 0.0, 0.1)).run(of.programs(), of.population, Log())
    assert {kind for _, kind, _ in post.sent} == {"query"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: [1], "node south: must answer a census with finite counts from 0 on"),
        (lambda c: c._replace(total_weight=float("nan")), "node south: must answer a census with finite counts"),
        (lambda c: c._replace(heat={n: -h for n, h in c.heat.items()}), "node south: must answer a census with finite"),
        (lambda c: c._replace(weight={}), r"node south: must count the same parameters as the others, got \[\]"),
    ],
)
def test_census_that_is_none_is_refused_by_name(change, reason):
    def spoil(node: str, number: int, got: Collected) -> Collected:
        return got._replace(data=encode(change(decode(got.data)))) if node == "south" else got

    of, runtime, _ = deployed(star("fedsubavg capped"), spoil=spoil)
    with pytest.raises(ProtocolError, match=reason):
        runtime.run(of.programs(), of.population, Log())


def test_node_that_was_started_anew_is_asked_for_its_census_again():
    of, runtime, post = deployed(star("fedsubavg capped"))

    def spoil(node: str, number: int, got: Collected) -> Collected | None:
        if (node, number) == ("south", 0):
            post.marks["south"] = "another process"
            return None
        return got

    post.spoil = spoil
    _, reason = runtime.run(of.programs(), of.population, Log())
    assert reason == "done"
    assert [node for node, kind, _ in post.sent if kind == "query"].count("south") == 2


def test_census_that_fails_at_a_node_is_said_with_its_reason():
    def spoil(node: str, number: int, got: Collected) -> Collected:
        return got._replace(data=b"", fault="Traceback ...\nDataError: no words") if node == "south" else got

    of, runtime, _ = deployed(star("fedsubavg capped"), spoil=spoil)
    with pytest.raises(CompositionError, match=r"got no answer from \['south'\] in 0.1 s; south failed: DataError"):
        replace(runtime, timing=Timing(0.001, 0.001, 0.0, 0.1)).run(of.programs(), of.population, Log())


def test_census_is_that_of_the_whole_population():
    whole, (of, runtime, _) = star("fedsubavg capped"), deployed(star("fedsubavg capped"))
    runtime.run(of.programs(), of.population, Log())
    counts, right = of.population.counts(), whole.census.counts
    assert isinstance(counts, Counts)
    assert counts.total_weight == right.total_weight == 7
    for name, heat in right.heat.items():
        assert torch.equal(counts.heat[name], heat)
        assert torch.equal(counts.weight[name], right.weight[name])


# What comes back


def last_round_of(node: str, spoil: Any) -> Any:
    """Spoil what a node answers to the held values of the second round."""
    return lambda who, number, got: spoil(got) if (who, number) == (node, 3) else got


def changed(got: Collected, change: Any) -> Collected:
    batch = opened(got.data, LIMIT)
    return got._replace(data=sealed(batch._replace(letters=[change(letter) for letter in batch.letters])))


def body_of(change: Any) -> Any:
    def spoil(got: Collected) -> Collected:
        return changed(got, lambda letter: letter._replace(body=change(letter.body)))

    return spoil


def with_nan(body: bytes) -> bytes:
    reply = decode(body)
    assert isinstance(reply, Reply)
    spoiled = {s: map_values(u, lambda v: torch.full_like(v, float("nan"))) for s, u in reply.updates.items()}
    return encode(reply._replace(updates=spoiled))


def with_type(body: bytes) -> bytes:
    reply = decode(body)
    return encode(
        reply._replace(updates={s: map_values(u, lambda v: v.to(torch.int64)) for s, u in reply.updates.items()})
    )


def with_shape(body: bytes) -> bytes:
    reply = decode(body)
    return encode(reply._replace(updates={s: map_values(u, lambda v: v[:1]) for s, u in reply.updates.items()}))


def with_index(body: bytes) -> bytes:
    reply = decode(body)
    return encode(reply._replace(updates={s: replace(u, index="all of it") for s, u in reply.updates.items()}))


def flipped(body: bytes) -> bytes:
    return body[:-2] + bytes([body[-2] ^ 9]) + body[-1:]


SPOILED = {
    "nan": (body_of(with_nan), "stream 'model' must be finite, got NaN or infinity"),
    "truncated": (body_of(lambda body: body[:-7]), "it is truncated"),
    "flipped": (body_of(flipped), "checksum must match"),
    "oversized": (body_of(lambda body: body + bytes(LIMIT)), "it is longer than it says"),
    "expanding": (
        body_of(lambda body: encode(torch.zeros(LIMIT))),
        "a message's tensors may have ",
    ),
    "type": (body_of(with_type), "must have the parameter's type torch.float32, got torch.int64"),
    "shape": (body_of(with_shape), "must have the held shape"),
    "index": (body_of(with_index), "Reply.updates['model'].index: must be an index, got str"),
    "wake": (
        body_of(lambda body: encode(Wake())),
        "a client's message: must be Fetch, Reply, Trouble, Answer, Refusal",
    ),
    "number": (body_of(lambda body: encode(Trouble("7", "x", "y"))), "Trouble.id: must be a whole number from 0 on"),
    "no batch": (lambda got: got._replace(data=b"GET / HTTP/1.1"), "a message begins with b'PTWS', got b'GET '"),
    "half a batch": (lambda got: got._replace(data=got.data[: len(got.data) // 2]), "it is truncated"),
    "another tree": (lambda got: got._replace(data=encode([1, 2])), "a batch: must be one, got list"),
    "letters": (
        lambda got: got._replace(data=sealed(Batch("", 0.0, [7]))),
        "a letter: must be of (int, int, int, byte",
    ),
    "an old life": (
        lambda got: got._replace(data=sealed(opened(got.data, LIMIT)._replace(life="before"))),
        "a batch must answer one of this life of the server, got an old one.",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_cannot_be_used_is_refused_by_name_and_the_run_goes_on(case):
    spoil, reason = SPOILED[case]
    of, runtime, _ = deployed(star("fedavg", rounds=3, scheduler=everybody(3)), spoil=last_round_of("middle", spoil))
    log = Log()
    states, ended = replace(runtime, max_message_bytes=LIMIT).run(of.programs(), of.population, log)
    assert ended == "done"
    refused = log.of("refused")
    assert {f["client"] for f in refused} == {3, 4}
    assert all(f["version"] == 1 and reason in f["reason"] for f in refused), refused
    assert [c["replies"] for c in log.of("commit")] == [7, 5, 7]
    assert all(bool(t.isfinite().all()) for t in states[SERVER].streams["model"].values())


def test_batch_that_is_too_long_is_refused_before_it_is_opened():
    of, runtime, _ = deployed(
        star("fedavg", rounds=3, scheduler=everybody(3)),
        spoil=last_round_of("middle", lambda got: got._replace(data=got.data + bytes(3 * LIMIT))),
    )
    log = Log()
    replace(runtime, max_message_bytes=LIMIT).run(of.programs(), of.population, log)
    (rejected,) = log.of("rejected")
    assert rejected["node"] == "middle"
    assert "a batch may have 2162688 bytes, got one of 31" in rejected["reason"]


def test_node_cannot_speak_for_the_clients_of_another():
    def pretend(got: Collected) -> Collected:
        batch = opened(got.data, LIMIT)
        forged = [letter._replace(src=0) for letter in batch.letters]
        return got._replace(data=sealed(batch._replace(letters=[*batch.letters, *forged])))

    found, log, _ = run("fedavg", spoil=last_round_of("south", pretend))
    assert found == expected("fedavg")
    assert [f["reason"] for f in log.of("rejected")] == [
        "node south sent a message from 0 to -1, which is not its to send"
    ] * 2


def test_message_that_is_sent_again_is_rejected():
    kept: list[Letter] = []

    def spoil(node: str, number: int, got: Collected) -> Collected:
        batch = opened(got.data, LIMIT)
        kept.extend(batch.letters if (node, number) == ("north", 1) else [])
        again = kept if (node, number) == ("north", 5) else []
        return got._replace(data=sealed(batch._replace(letters=[*batch.letters, *again])))

    found, log, _ = run("fedavg", spoil=spoil)
    assert found == expected("fedavg")
    assert [f["reason"] for f in log.of("rejected")] == [
        f"node north sent a message of client {c} once more" for c in range(3)
    ]


def test_failure_at_a_node_comes_with_its_traceback():
    spoil = last_round_of(
        "north", lambda got: got._replace(data=b"", fault="Traceback\n  File x\nKeyError: 'the door'")
    )
    _, log, _ = run("fedavg", spoil=spoil)
    (error,) = log.of("node_error")
    assert (error["node"], error["clients"]) == ("north", [0, 1, 2])
    assert error["text"].startswith("Traceback")
    assert {(f["stage"], f["reason"]) for f in log.of("lost")} == {("node", "node north: KeyError: 'the door'")}


class Unsayable(FedAvg):
    """One client reports what no message can hold, in every round."""

    def report(self, held, trained, task, own, site):
        return {"thing": object()} if site.client == 5 else {}


def test_client_that_fails_in_the_same_words_again_is_lost_again():
    of, runtime, _ = deployed(star("fedavg", algorithm=Unsayable(LOCAL), scheduler=everybody(3)))
    log = Log()
    _, reason = runtime.run(of.programs(), of.population, log, until=20.0)
    assert reason == "done"
    assert [(f["client"], f["version"]) for f in log.of("lost")] == [(5, 0), (5, 1), (5, 2)]
    assert [c["replies"] for c in log.of("commit")] == [6, 6, 6]
    assert not log.of("rejected")


def test_shapes_that_are_not_the_servers_are_refused():
    def spoil(node: str, number: int, got: Collected) -> Collected:
        def lie(letter: Letter) -> Letter:
            fetch = decode(letter.body)
            assert isinstance(fetch, Fetch)
            return letter._replace(body=encode(replace(fetch, index=type(fetch.index)({"no such": (2,)}))))

        return changed(got, lie) if (node, number) == ("south", 2) else got

    _, log, _ = run("fedavg", spoil=spoil)
    assert {f["client"] for f in log.of("refused")} == {5, 6}
    assert all("with shapes that are not the server's" in f["reason"] for f in log.of("refused"))


# The server goes on


@pytest.mark.parametrize("case", ["scaffold", "error feedback", "fedsubavg capped"])
def test_goes_on_from_any_saved_moment_with_the_nodes_alive(case):
    """Killed at that moment: what was under way is sent again, and what was worked through is not worked twice."""
    right, moments = expected(case, rounds=3), 0
    for moment in range(1, 60, 5):
        of, runtime, _ = deployed(star(case, rounds=3, scheduler=everybody(3)))
        stop = StopAt(moment)
        runtime.run(of.programs(), of.population, stop)
        if not stop.entries:
            break
        moments += 1
        states, reason = runtime.run(of.programs(), of.population, Log(), entries=stop.entries)
        assert reason == "done"
        assert outcome({SERVER: states[SERVER]})[SERVER] == right
    assert moments > 3


@pytest.mark.parametrize("case", ["scaffold", "error feedback"])
def test_second_run_on_the_same_nodes_begins_with_clients_that_know_nothing(case):
    of, runtime, _ = deployed(star(case, rounds=3, scheduler=everybody(3)))
    for _ in range(2):
        states, _ = runtime.run(of.programs(), of.population, Log())
        assert outcome({SERVER: states[SERVER]})[SERVER] == expected(case, 3)


class StopAt(Saving):
    """Keeps one settled moment, and lets the server die a little later; the nodes have gone on meanwhile."""

    def __init__(self, moment: int) -> None:
        super().__init__()
        self.moment = moment
        self.entries: dict[str, Any] = {}

    def settled(self, world: Any) -> None:
        super().settled(world)
        if len(self.saved) == self.moment + 1:
            self.entries = {name: decode(data) for name, data in self.saved[self.moment].items()}

    def heard(self, now: float, src: int, tag: int) -> str | None:
        return "killed" if len(self.saved) > self.moment + 4 else None


def test_timing_is_checked():
    with pytest.raises(ValueError, match=r"^Timing\(poll_seconds=0\): must be above 0, got 0"):
        Timing(poll_seconds=0)
    assert QUICK.grace_seconds == 0.2
