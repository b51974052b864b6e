"""The virtual clock: order, time, and a memory that no result depends on."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from partwise.algorithms import FedAvg, Scaffold
from partwise.core.codec import decode, encode
from partwise.core.population import Fate, Profile
from partwise.core.program import SERVER, Message, Program, Record, Send, Wake, Work
from partwise.core.runtime import Traffic
from partwise.runtimes import Processes, Simulate, simulate
from partwise.runtimes.executors import Plain
from partwise.schedulers import Synchronous
from toy_federation import CASES, LOCAL, model, outcome, play, population, star
from toy_star import Clients, Log


@dataclass
class Peak(Log):
    """How much lay in the file at most, seen at every record."""

    in_file: list[int] = field(default_factory=list)

    def record(self, record: Record, world: Any) -> str | None:
        server = world.nodes[SERVER].tree
        replies = [kept for waiting in server.inbox.values() for kept in waiting.updates.values()]
        self.in_file.append(world._spool.bytes_in_file + 40_000 * sum(r.is_in_file for r in replies))
        return super().record(record, world)


def wide() -> Any:
    from torch import nn

    from partwise.core.model import CrossEntropy, Model

    return Model(
        lambda: nn.Sequential(nn.Embedding(60, 150), nn.Flatten(), nn.Linear(450, 3)), CrossEntropy(), ("words",)
    )


def big_star(**more: Any) -> Any:
    from partwise.channels import Plain as InTheClear
    from partwise.programs.star import Star

    scheduler = Synchronous(cohort=7, rounds=2)
    parts = {"algorithm": FedAvg(LOCAL), "channel": InTheClear(), **more}
    return Star(scheduler=scheduler, model=wide(), seed=3, **parts)


@pytest.mark.parametrize("profiles", ["as they are", "no time at all"])
def test_what_is_beyond_the_bound_goes_to_disk_and_changes_nothing(profiles):
    people = population()
    if profiles == "no time at all":
        people.profiles = {}
    runs = {}
    for bound in (128 << 20, 400_000, 0):
        log = Peak()
        runs[bound] = play(Simulate(memory_bytes=bound), big_star(population=people), log)[0], max(log.in_file)
    assert runs[400_000][0] == runs[0][0] == runs[128 << 20][0]
    assert runs[128 << 20][1] == 0
    assert 2 * 40_000 < runs[400_000][1] < runs[0][1]
    assert runs[0][1] >= 6 * 40_000


def test_states_of_clients_that_lost_a_task_go_to_disk_like_others():
    @dataclass
    class Fickle(Clients):
        def fate(self, client: int, task: int) -> Fate:
            return Fate("train", 0.5) if task >= 7 and client < 6 else Fate()  # in the second round

    def in_memory(world: Any) -> list[int]:
        return [node for node, kept in world.nodes.items() if node != SERVER and not kept.is_in_file]

    people = Fickle(population().columns, population().profiles)
    of = big_star(population=people, algorithm=Scaffold(LOCAL))
    log = Log(look=in_memory)
    Simulate(memory_bytes=0).run(of.programs(), people, log)
    assert len(log.of("lost")) == 6
    assert [len(nodes) <= 1 for nodes in log.seen] == [True, True]  # the one whose message was the last


@pytest.mark.parametrize("case", CASES)
def test_every_contract_run_is_the_same_on_disk(case):
    assert play(Simulate(memory_bytes=0), star(case))[0] == play(Simulate(), star(case))[0]


def test_two_runs_are_bit_equal():
    first, log = play(Simulate(), star("scaffold"))
    second, again = play(Simulate(), star("scaffold"))
    assert first == second
    assert log.records == again.records


@dataclass
class Counting:
    """The plain executor, which notes how many jobs it was given at once."""

    given: list[int] = field(default_factory=list)

    def run(self, jobs: Sequence[Any]) -> Any:
        self.given.append(len(jobs))
        return Plain().run(jobs)


def test_jobs_are_run_together_but_not_more_than_fit(monkeypatch):
    together, few, little = Counting(), Counting(), Counting()
    expected = play(Simulate(together), big_star(population=population()))[0]
    assert play(Simulate(little, memory_bytes=0), big_star(population=population()))[0] == expected
    assert max(together.given) > 4
    assert little.given == together.given  # so that no result depends on the memory there is
    monkeypatch.setattr(simulate, "_TOGETHER_BYTES", 3 * 42_000)
    monkeypatch.setattr(simulate, "_A_FEW", 1)
    assert play(Simulate(few), big_star(population=population()))[0] == expected
    assert 1 <= max(few.given) <= 3
    assert sum(together.given) == sum(few.given) == 14


@dataclass
class Curious(Log):
    """Keeps the encoded entries of every record's moment, settled or not."""

    saved: list[dict[str, bytes]] = field(default_factory=list)

    def record(self, record: Record, world: Any) -> str | None:
        self.saved.append({name: encode(entry) for name, entry in world.entries()[0].items()})
        return super().record(record, world)


def test_a_run_that_was_saved_has_the_same_clients_trained_together(monkeypatch):
    """Jobs that wait are not run in order to save them, but made anew from what their clients keep."""
    monkeypatch.setattr(simulate, "_TOGETHER_BYTES", 1)
    monkeypatch.setattr(simulate, "_A_FEW", 2)
    people = population()
    people.profiles = {i: Profile(0.01 * (1 + i * 3 % 7), math.inf, math.inf, math.inf, 1.0) for i in range(7)}

    def of() -> Any:
        return star("scaffold", population=people)

    alone, saving, log = Counting(), Counting(), Curious()
    expected = play(Simulate(alone), of())[0]
    assert play(Simulate(saving), of(), log)[0] == expected
    assert saving.given == alone.given
    waiting = [saved for saved in log.saved if any(decode(data) is None for data in saved.values())]
    assert waiting
    for saved in waiting[::3]:
        for runtime in (Simulate(), Processes(workers=1)):
            entries = {name: decode(data) for name, data in saved.items()}
            assert play(runtime, of(), entries=entries)[0] == expected


@pytest.mark.parametrize(("bound", "given"), [(1 << 20, [4] * 5), (3 * 1340, [3, 1] * 5), (1, [1] * 20)])
def test_clients_that_take_no_time_are_trained_together_within_a_bound(monkeypatch, bound, given):
    """A client holds 318 numbers of 4 bytes, 1272 bytes, and 64 count for the dict around them."""
    people = population()
    people.profiles = {}
    expected, log = play(Simulate(), star("scaffold", population=people))
    monkeypatch.setattr(simulate, "_TOGETHER_BYTES", bound)
    monkeypatch.setattr(simulate, "_A_FEW", 1)
    executor = Counting()
    found, other = play(Simulate(executor), star("scaffold", population=people))
    assert executor.given == given
    assert found == expected
    assert other.records == log.records


def test_no_more_than_so_many_clients_are_trained_together(monkeypatch):
    people = population()
    expected = play(Simulate(), star("scaffold", population=people))[0]
    monkeypatch.setattr(simulate, "_MANY", 3)
    for profiles in (people.profiles, {}):
        people.profiles = profiles
        executor = Counting()
        assert play(Simulate(executor), star("scaffold", population=people))[0] == expected
        assert max(executor.given) == 3
        assert sum(executor.given) == 20


def test_clients_that_take_no_time_reply_one_after_another():
    """However many train together: when a reply is in, no other one is on its way."""
    people = population()
    people.profiles = {}
    seen: list[int] = []

    def look(world: Any) -> None:
        seen.append(sum(p.to == SERVER != p.src and not p.is_late for p in world._queue))

    play(Simulate(), star("fedavg", population=people), Log(look, kind="reply"))
    assert len(seen) == 20
    assert max(seen) == 0


def test_saved_amid_simultaneous_events_it_goes_on_as_it_would_have(monkeypatch):
    """What has been gathered is counted again when a run is resumed."""
    monkeypatch.setattr(simulate, "_TOGETHER_BYTES", 3 * 1340)
    monkeypatch.setattr(simulate, "_A_FEW", 1)
    people = population()
    people.profiles = {}
    log, executor = Curious(), Counting()
    expected, _ = play(Simulate(), star("scaffold", population=people, rounds=2), log)
    assert any(parcel.is_late for saved in log.saved for parcel in decode(saved["queue"]))
    for moment, saved in enumerate(log.saved):
        if moment % 3 == 1:
            entries = {name: decode(data) for name, data in saved.items()}
            assert (
                play(Simulate(executor), star("scaffold", population=people, rounds=2), entries=entries)[0] == expected
            )
    assert max(executor.given) == 3


# Time, by hand


def script(steps: dict[int, Any]) -> dict[int, Program]:
    """Programs that note what they get in their state and answer as written down."""

    def step(state: list[Any], message: Message) -> Any:
        effects = steps[message.me](message)
        return [*state, (message.now, message.src, message.body)], effects

    return {node: Program(lambda me: [], step) for node in steps}


def test_messages_take_their_bytes_and_steps_their_pace():
    clients = Clients([{}], {0: Profile(0.5, 10.0, 40.0, float("inf"), 1.0)})
    seen: list[tuple[float, Any]] = []

    def server(message: Message) -> list[Any]:
        seen.append((message.now, message.body))
        if message.body == Wake():
            return [Send(0, "x" * 17), Send(SERVER, Wake(3), after=9.0), Send(0, "never", after=float("inf"))]
        return [Record("got", {})]

    def client(message: Message) -> list[Any]:
        return [Send(SERVER, "y" * 13, after=2.0)]

    log = Log(lambda world: world.traffic, kind="got")
    _, reason = Simulate().run(script({SERVER: server, 0: client}), clients, log)
    from partwise.core.codec import encode

    down, up = len(encode("x" * 17)), len(encode("y" * 13))
    arrived = down / 40.0 + 2.0 + up / 10.0
    assert seen == [(0.0, Wake()), (pytest.approx(arrived), "y" * 13), (9.0, Wake(3))]
    assert log.seen[-1] == Traffic(up, down, 2, {0: (up, down)})
    assert reason == "nothing left to do"


def test_ties_go_to_the_lower_client_then_to_the_message_sent_first():
    clients = Clients([{}, {}, {}])
    order: list[Any] = []

    def server(message: Message) -> list[Any]:
        order.append(message.body)
        return [Send(c, "go") for c in (2, 0, 1)] if message.body == Wake() else []

    def client(message: Message) -> list[Any]:
        return [Send(SERVER, (message.me, n)) for n in (1, 2)]

    Simulate().run(script({SERVER: server, 0: client, 1: client, 2: client}), clients, Log())
    assert order == [Wake(), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]


def test_until_leaves_what_is_later():
    def server(message: Message) -> list[Any]:
        return [Send(SERVER, Wake(1), after=5.0)]

    states, reason = Simulate().run(script({SERVER: server}), Clients([]), Log(), until=12.0)
    assert reason == "time is up"
    assert [now for now, _, _ in states[SERVER]] == [0.0, 5.0, 10.0]


def test_work_that_raises_is_told_to_its_node():
    from partwise.core.plan import Job
    from partwise.core.program import Failed

    class Broken:
        def run(self, jobs: Sequence[Any]) -> list[Exception]:
            return [ValueError("no"), ArithmeticError("neither")][: len(jobs)]

    def server(message: Message) -> list[Any]:
        return [Send(0, "go")] if message.body == Wake() else []

    def client(message: Message) -> list[Any]:
        return [Work(Job(None, {"w": torch.zeros(3)}, None, 1), 1)] if message.body == "go" else []  # type: ignore[arg-type]

    states, _ = Simulate(Broken()).run(script({SERVER: server, 0: client}), Clients([{}]), Log())
    assert states[0][-1] == (0.0, 0, Failed("train", "ValueError: no", seed=1))


def test_memory_must_be_some():
    with pytest.raises(ValueError, match=r"^Simulate\(memory_bytes=-1\): must be at least 0, got -1. 0 keeps next to"):
        Simulate(memory_bytes=-1)


def test_states_stay_readable_after_the_run():
    of = star("scaffold")
    states, _ = Simulate(memory_bytes=0).run(of.programs(), of.population, Log())
    assert outcome(states) == outcome(states)
    assert len(states) > 5
    assert set(model().init(3)) == set(states[SERVER].streams["model"])


@pytest.mark.parametrize(("often", "during"), [((700, 10, 10), 10_000), ((20_000, 5, 5), 20_000), ((0, 10, 10), 0)])
def test_garbage_is_looked_for_as_often_as_before_when_the_run_is_over(often, during):
    class Watching(Log):
        def ended(self, world, reason):
            seen.append(gc.get_threshold())

    class Raising(Log):
        def record(self, record, world):
            raise LookupError("no more")

    seen, before = [], gc.get_threshold()
    try:
        gc.set_threshold(*often)
        play(Simulate(), star("fedavg", rounds=1), Watching())
        assert seen == [(during, *often[1:])]
        assert gc.get_threshold() == often
        with pytest.raises(LookupError, match="no more"):
            play(Simulate(), star("fedavg", rounds=1), Raising())
        assert gc.get_threshold() == often
    finally:
        gc.set_threshold(*before)
