"""The same programs in worker processes and on the virtual clock; and workers that die, lie or never answer."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from partwise.core.algorithm import Algorithm, Task
from partwise.core.codec import decode, encode
from partwise.core.errors import ProtocolError
from partwise.core.program import SERVER
from partwise.core.schedule import After, Deadline, Scheduler, Started, Stop
from partwise.core.spool import Kept
from partwise.local import LocalTraining
from partwise.programs.messages import Reply
from partwise.runtimes import Processes, Simulate, transport, wire, worker
from partwise.runtimes.crew import Crew
from partwise.runtimes.executors import Plain
from partwise.runtimes.host import HostPlan
from partwise.runtimes.threads import torch_threads
from partwise.runtimes.transport import Envelope, Kind
from partwise.schedulers import Synchronous
from toy_federation import CASES, LOCAL, outcome, play, population, star
from toy_star import (
    Cohorts,
    Log,
    Saving,
    everybody,
    full_batch,
    number_model,
    parabolas,
    star_of,
    workers_end_with,
)

ROUNDS = 4
STATELESS = {
    "download chain",
    "fedavg",
    "fedprox",
    "fedsubavg capped",
    "fedlaavg server",
    "mcpsgd",
}  # their clients keep nothing, and so no node


@pytest.mark.parametrize("case", CASES)
def test_ends_bit_equal_to_the_simulator(case):
    here, log = play(Simulate(), star(case))
    there, other = play(Processes(workers=2), star(case))
    assert here.keys() == there.keys()
    assert len(here) == 1 if case in STATELESS else len(here) > 5
    assert [node for node in here if here[node] != there[node]] == []
    assert here[SERVER] != play(Simulate(), star(case, rounds=4))[0][SERVER]
    assert len(log.of("commit")) == len(other.of("commit")) == 5


def test_number_of_workers_and_memory_change_nothing():
    expected, _ = play(Simulate(), star("scaffold"))
    assert play(Processes(workers=3, memory_bytes=0), star("scaffold"))[0] == expected


def test_counts_the_traffic_that_the_simulator_counts():
    here, there = (Log(lambda world: (world.traffic.uplink, dict(world.traffic.clients))) for _ in range(2))
    play(Simulate(), star("error feedback"), here)
    play(Processes(), star("error feedback"), there)
    assert here.seen == there.seen
    assert here.seen[-1][0] > 5000


def test_threads_of_the_parent_do_not_hang_the_workers():
    with torch_threads(2):
        torch.randn(700, 700) @ torch.randn(700, 700)  # now OpenMP has a pool of threads, which no child inherits
        torch.arange(3e6).sum()
        here, _ = play(Simulate(), star("fedavg", rounds=1))
        assert play(Processes(workers=1), star("fedavg", rounds=1))[0] == here


# What goes wrong


@dataclass(frozen=True)
class Odd(Algorithm):
    """Federated averaging in which client 2 does something else, once."""

    what: Any
    local: LocalTraining = LOCAL
    at: int = 1

    def plan(self, held, index, task, own, site):
        if site.client == 2 and task.version == self.at:
            self.what()
        return self.local.plan(site, task)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def odd_star(what: Any, at: int = 1, **more: Any) -> Any:
    return star("fedavg", algorithm=Odd(what, at=at), scheduler=Synchronous(cohort=7, rounds=ROUNDS), **more)


def test_killed_worker_loses_its_clients_tasks_and_nothing_else():
    states, log = {}, Log()
    of = odd_star(die)
    states, reason = Processes(workers=2).run(of.programs(), of.population, log)
    assert reason == "done"
    assert [c["version"] for c in log.of("commit")] == [1, 2, 3, 4]
    lost = log.of("lost")
    assert {2} <= {fields["client"] for fields in lost} <= {0, 2, 4, 6}
    assert all(fields["stage"] == "worker" and fields["version"] == 1 for fields in lost)
    assert {fields["reason"] for fields in lost} == {"worker 0 was killed by SIGKILL"}
    assert log.of("commit")[1]["replies"] == 7 - len(lost)
    assert log.of("commit")[2]["replies"] == 7
    assert set(states) == {SERVER}  # clients of federated averaging keep nothing


def test_worker_that_dies_idle_loses_the_clients_that_it_knew():
    """They may be in the middle of something: the server knows, and lets those be who are not."""
    of = star("fedavg")
    with closing(Crew(2, HostPlan(of.programs(), Plain(), 0, None, 0.0), max_bytes=1 << 20, max_restarts=1)) as crew:
        crew.start()
        crew.push([Envelope(Kind.MESSAGE, SERVER, client, 0, body=Kept(Task(client, 0, 0, 0))) for client in (1, 4)])
        found: list[Envelope] = []
        while crew.wait(None):  # until both workers have nothing to do: their clients wait for what they have asked for
            found += crew.pull()
        assert sorted((envelope.src, envelope.kind) for envelope in found) == [(1, Kind.MESSAGE), (4, Kind.MESSAGE)]
        os.kill(next(hand.process.pid for hand in crew._hands if hand.hosts(4)), signal.SIGKILL)
        crew.wait(10.0)
        (lost,) = crew.pull()
        assert (lost.kind, lost.src, lost.fault) == (Kind.LOST, 4, "worker 0 was killed by SIGKILL")


def test_worker_that_dies_too_often_ends_the_run():
    of = odd_star(die, at=0)
    with pytest.raises(
        ProtocolError, match=r"^Processes\(workers=2\): worker 0: may be started again 0 times, was kill"
    ):
        Processes(max_restarts=0).run(of.programs(), of.population, Log())
    assert multiprocessing.active_children() == []


def test_clients_go_on_from_their_state_when_last_looked_at():
    """A world that is looked at after every version loses nothing but the task of the round."""
    of = star("scaffold", scheduler=Synchronous(cohort=7, rounds=3))
    pids: list[int] = []

    def kill_once(world: Any) -> Any:
        before = encode([world.state(c).own for c in range(7)])
        if not pids:
            pids.extend(p.pid for p in multiprocessing.active_children())
            os.kill(pids[0], signal.SIGKILL)
        return before

    log = Log(kill_once)
    states, _ = Processes().run(of.programs(), of.population, log)
    expected, _ = play(Simulate(), star("scaffold", scheduler=Synchronous(cohort=7, rounds=3)))
    assert pids
    if not log.of("lost"):  # it died before it was asked again: then nothing is lost at all
        assert outcome(states) == expected
    assert all(states[c].own.value for c in range(7))


def garble(parts: list[Any]) -> list[Any]:
    return [b"no message at all, but long enough to have a prefix"]


def cut(parts: list[Any]) -> list[Any]:
    return [b"".join(parts)[:-5]]


def age(parts: list[Any]) -> list[Any]:
    old = bytearray(b"".join(parts))
    old[4] = 99
    return [bytes(old)]


def flip(parts: list[Any]) -> list[Any]:
    changed = bytearray(b"".join(parts))
    changed[-3] ^= 4
    return [bytes(changed)]


def swell(parts: list[Any]) -> list[Any]:
    return [*parts, bytes(100_000)]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (garble, "a message begins with b'PTWS', got b'no m'"),
        (cut, "it is truncated"),
        (age, "message of format version 99, this is 1"),
        (flip, "checksum must match"),
        (swell, "a message may have 20000 bytes, got one of 10"),
    ],
)
def test_message_that_cannot_be_read_is_refused_by_name(monkeypatch, spoil, reason):
    encode_parts = transport.encode_parts

    def spoiled(body: Any) -> Any:
        is_from_2 = isinstance(body, Reply) and body.examples == 17 and body.id < 7
        return spoil(encode_parts(body)) if is_from_2 else encode_parts(body)

    monkeypatch.setattr(transport, "encode_parts", spoiled)
    of, log = odd_star(lambda: None), Log()
    Processes(max_message_bytes=20_000).run(of.programs(), of.population, log)
    (refused,) = log.of("refused")
    assert (refused["client"], refused["version"]) == (2, 0)
    assert refused["reason"].startswith("client 2 sent what cannot be read: ")
    assert reason in refused["reason"]
    assert [c["replies"] for c in log.of("commit")] == [6, 7, 7, 7]
    assert not log.of("lost")


def babble(up: Any) -> None:
    up.sendall(b"what follows is no frame, and nothing after it can be trusted")


def pretend(up: Any) -> None:
    SEND(up, Envelope(Kind.MESSAGE, 1, SERVER, body=encode("I am client 1")))


def overstep(up: Any) -> None:
    SEND(up, Envelope(Kind.LOOK))


def break_off(up: Any) -> None:
    up.sendall(bytes(wire._HEAD.pack(b"PTWF", Kind.MESSAGE, 2, SERVER, 0, 0.0, 5000)) + bytes(99))
    die()


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        (
            babble,
            "worker 0 sent what is no frame: Reader(): a frame must begin with b'PTWF' and a known kind, got b'what'",
        ),
        (pretend, "worker 0 sent a message of node 1, which it does not host"),
        (overstep, "worker 0 sent a frame that is not its to send (LOOK)"),
        (break_off, "worker 0 was killed by SIGKILL"),
    ],
)
def test_worker_that_breaks_the_exchange_is_replaced(monkeypatch, misbehave, reason):
    def send(up: Any, envelope: Envelope) -> None:
        body = decode(b"".join(envelope.body)) if envelope.kind == Kind.MESSAGE else None
        if isinstance(body, Reply) and body.examples == 17 and body.id < 7:
            misbehave(up)
        SEND(up, envelope)

    monkeypatch.setattr(worker, "send", send)
    of, log = odd_star(lambda: None), Log()
    Processes().run(of.programs(), of.population, log)
    lost = log.of("lost")
    assert {2} <= {f["client"] for f in lost} <= {0, 2, 4, 6}
    assert all(f["stage"] == "worker" and f["reason"].startswith(reason) for f in lost)
    assert [c["replies"] for c in log.of("commit")] == [7 - len(lost), 7, 7, 7]


def test_body_without_encoding_is_the_clients_loss(monkeypatch):
    def plan(self, held, index, task, own, site):
        return self.local.plan(site, task)

    monkeypatch.setattr(Odd, "plan", plan)
    monkeypatch.setattr(Odd, "report", lambda self, *of: {object(): 1.0} if of[-1].client == 4 else {})
    of, log = odd_star(None), Log()
    Processes().run(of.programs(), of.population, log)
    assert {(f["client"], f["stage"]) for f in log.of("lost")} == {(4, "encode")}
    assert "a dict's keys are str, int or tuples" in log.of("lost")[0]["reason"]


def test_error_that_no_program_catches_ends_the_run_and_is_told(capfd):
    def fail() -> None:
        raise AssertionError("the moon is not full")

    of = odd_star(fail)
    with pytest.raises(ProtocolError, match=r"worker 0: must get through .* got: AssertionError: the moon is not full"):
        Processes().run(of.programs(), of.population, Log())
    assert "the moon is not full" in capfd.readouterr().err  # with its traceback


def test_worker_that_cannot_start_says_why(monkeypatch, capfd):
    def serve(self, up):
        raise OSError("no room at the inn")

    monkeypatch.setattr(worker.Worker, "_turn", lambda self: serve(self, None))
    monkeypatch.setattr(worker, "send", lambda up, envelope: None if envelope.kind == 1 else SEND(up, envelope))
    of = star("fedavg")
    with pytest.raises(ProtocolError, match=r"worker 0: must start, got: OSError: no room at the inn. Look at what"):
        Processes(workers=1).run(of.programs(), of.population, Log())
    assert multiprocessing.active_children() == []


SEND = worker.send


def test_nothing_is_left_behind():
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of this very moment

    play(Processes(), star("fedavg", rounds=1))
    before = open_files()
    play(Processes(workers=3, memory_bytes=0), star("fedavg", rounds=1))
    assert open_files() == before
    assert multiprocessing.active_children() == []


def test_workers_leave_ctrl_c_to_the_parent():
    def interrupt(world: Any) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)

    expected, _ = play(Simulate(), star("fedavg"))
    assert play(Processes(), star("fedavg"), Log(interrupt))[0] == expected


def test_workers_die_with_their_parent():
    code = (
        "from toy_federation import star; from toy_star import Log; from partwise.runtimes import Processes\n"
        "of = star('fedavg', rounds=10**6)\n"
        "class L(Log):\n"
        "    def record(self, record, world):\n"
        "        if record.kind == 'commit' and record.fields['version'] == 2: print('ready', flush=True)\n"
        "Processes().run(of.programs(), of.population, L())\n"
    )
    assert workers_end_with(code)


# Time


@dataclass
class Patient(Scheduler):
    """A scheduler that asks nobody, and stops when it is woken."""

    seconds: float
    state_types: tuple[type, ...] = ()

    def init(self, population: Any) -> int:
        return 0

    def step(self, state: int, event: Any, roster: Any) -> Any:
        match event:
            case Started():
                return state, [After(self.seconds, 7)]
            case Deadline(now, 7):
                return state, [Stop(f"woken {'late' if now >= self.seconds else 'early'}")]
        return state, []


def test_timers_and_the_end_of_time():
    of = star("fedavg", scheduler=Patient(0.01))
    assert Processes().run(of.programs(), of.population, Log())[1] == "woken late"
    of = star("fedavg", scheduler=Patient(3600.0))
    assert Processes().run(of.programs(), of.population, Log(), until=0.02)[1] == "time is up"
    of = star("fedavg", scheduler=Patient(float("inf")))
    assert Processes().run(of.programs(), of.population, Log())[1] == "nothing left to do"


# Going on


@pytest.mark.parametrize("case", ["scaffold", "error feedback"])
def test_goes_on_from_any_saved_moment_on_any_runtime(case):
    expected, _ = play(Simulate(), star(case, rounds=3))
    makers = [Processes(), Simulate(memory_bytes=0)]
    for maker, others in ((makers[0], makers), (makers[1], makers)):
        log = Saving()
        assert play(maker, star(case, rounds=3), log)[0] == expected
        assert len(log.saved) > 10
        for moment in (0, 3, len(log.saved) // 2, len(log.saved) - 2):
            for other in others:
                entries = {name: decode(data) for name, data in log.saved[moment].items()}
                assert play(other, star(case, rounds=3), entries=entries)[0] == expected


@pytest.mark.parametrize(
    ("name", "value"), [("workers", 0), ("memory_bytes", -1), ("max_message_bytes", 0), ("max_restarts", -1)]
)
def test_arguments_are_checked(name, value):
    with pytest.raises(ValueError, match=rf"^Processes\({name}={value}\): must be at least \d, got {value}"):
        Processes(**{name: value})


def test_many_more_clients_than_workers_and_one_that_is_slow():
    """Arrival order differs from client order: worker 1 has the client with the most work."""
    size = (1,) * 12 + (400,)
    clients = parabolas([1.0 + 0.1 * i for i in range(13)], [0.3 * i for i in range(13)], size)
    from partwise.algorithms import FedAvg
    from toy_star import full_batch, number_model, star_of

    def make() -> Any:
        return star_of(FedAvg(full_batch(30)), number_model(), clients, everybody(clients, 2))

    assert play(Processes(workers=2), make())[0] == play(Simulate(), make())[0]


def test_population_has_distinct_sizes():
    assert len({len(population().data(c)) for c in range(7)}) == 7  # else a mean by samples is one by clients


@dataclass(frozen=True)
class Reckoned(Algorithm):
    """One step of every client, which counts for so much, and says so."""

    each: tuple[Any, ...]

    def plan(self, held, index, task, own, site):
        return full_batch(1).plan(site, task)

    def weight(self, site):
        return self.each[site.client]

    def report(self, held, trained, task, own, site):
        return {"weight": self.each[site.client]}


def reckoned(runtime, *each):
    star, log = star_of(Reckoned(each), number_model(), parabolas(), Cohorts(((0, 1),))), Log()
    states, _ = runtime.run(star.programs(), star.population, log)
    return float(states[SERVER].streams["model"]["w"]), log


@pytest.mark.parametrize("runtime", [Simulate(), Processes(workers=1)])
@pytest.mark.parametrize(
    "each", [(np.float64(3), np.float32(1)), (np.int64(3), torch.tensor(1.0)), (torch.tensor([3]), True)]
)
def test_clients_may_count_with_numbers_of_other_libraries(runtime, each):
    """Steps of 0.1 from 0: client 0 stays, client 1 goes by 0.1 * 3 * 4 = 1.2 and has a quarter of the weight."""
    value, log = reckoned(runtime, *each)
    assert value == pytest.approx(0.3)
    assert log.of("commit")[0]["clients"] == [0, 1]


@pytest.mark.parametrize("runtime", [Simulate(), Processes(workers=1)])
def test_a_report_of_words_loses_the_task_of_its_client_alone(runtime):
    value, log = reckoned(runtime, "much", 3.0)
    assert [(lost["client"], lost["stage"]) for lost in log.of("lost")] == [(0, "finish")]
    assert "much" in log.of("lost")[0]["reason"]
    assert value == pytest.approx(1.2)
