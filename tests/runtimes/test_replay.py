"""Runs made again from their logs, bit by bit; and logs that do not fit, by the first message that does not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from partwise.algorithms import FedAvg
from partwise.core.codec import decode
from partwise.core.errors import CheckpointError, ProtocolError
from partwise.core.heard import FAILURE, START
from partwise.core.population import Fate, Profile
from partwise.core.program import SERVER
from partwise.runtimes import Processes, Simulate
from partwise.runtimes.executors import Auto, Plain, Stacked
from partwise.runtimes.replay import Replay, Retrace
from toy_federation import CASES, LOCAL, outcome, population, star
from toy_star import Clients, Eager, Log, Saving


@dataclass
class Fickle(Clients):
    """Every fifth task or so is lost somewhere; the server hears of it at once, or a little later."""

    def fate(self, client: int, task: int) -> Fate:
        stage: Any = {3: "download", 8: "train", 13: "upload"}.get((5 * task + client) % 17, "")
        return Fate(stage, 0.5, 0.002 * (task % 3), 0.001 * (task % 2))


def fickle() -> Fickle:
    steady = population()
    return Fickle(steady.columns, steady.profiles)


def play(runtime: Any, of: Any, log: Log | None = None) -> tuple[dict[int, bytes], Log, str]:
    log = log or Log()
    states, reason = runtime.run(of.programs(), of.population, log)
    return outcome(states), log, reason


def records(log: Log) -> list[tuple[str, dict[str, Any]]]:
    """Without the clients' own clocks, which only the wall has."""
    return [(r.kind, {k: v for k, v in r.fields.items() if k not in ("fetched", "trained")}) for r in log.records]


@pytest.mark.parametrize("case", CASES)
def test_a_race_of_worker_processes_is_made_again(case):
    """Clients of two processes race each other, and each reply is a version."""
    of = star(case, scheduler=Eager(5, 25))
    raced, log, reason = play(Processes(workers=2), of)
    assert reason == "done"
    again, other, reason = play(Replay(log.rows), star(case, scheduler=Eager(5, 25)))
    assert reason == "done"
    assert again[SERVER] == raced[SERVER]
    assert records(other) == records(log)
    assert other.rows == log.rows


def test_lost_clients_and_timers_are_in_the_log():
    of = star("scaffold", scheduler=Eager(5, 30), population=fickle())
    raced, log, _ = play(Processes(workers=2), of)
    assert log.of("lost")
    assert log.rows[0][1:] == (SERVER, START)
    assert [row[1:] for row in log.rows if row[1] == SERVER and row[2] == 7] == [(SERVER, 7)]
    again, other, _ = play(Replay(log.rows), star("scaffold", scheduler=Eager(5, 30), population=fickle()))
    assert again[SERVER] == raced[SERVER]
    assert records(other) == records(log)


@pytest.mark.parametrize("make", [Replay, lambda log: Retrace(log, Simulate())])
@pytest.mark.parametrize("scheduler", [None, Eager(5, 30)])
def test_a_simulated_run_is_made_again(make, scheduler):
    more = {"scheduler": scheduler} if scheduler else {}
    simulated, log, _ = play(Simulate(), star("error feedback", population=fickle(), **more))
    again, other, reason = play(make(log.rows), star("error feedback", population=fickle(), **more))
    assert reason == "done"
    assert again[SERVER] == simulated[SERVER]
    assert records(other) == records(log)
    assert other.rows == log.rows


def test_clients_that_are_trained_together_are_traced():
    of = star("fedavg", scheduler=Eager(6, 20))
    together, log, _ = play(Simulate(Stacked()), of)
    again, _, _ = play(Retrace(log.rows, Simulate(Stacked())), of)
    assert again == together


def test_a_choice_of_executor_is_taken_over():
    auto = Auto([Plain(), Stacked()], trial_seconds=0.01)
    of = star("fedavg", scheduler=Eager(6, 20))
    chosen, log, _ = play(Simulate(auto), of)
    (notes,) = log.of("executor")
    again, other, _ = play(Retrace(log.rows, Simulate(auto), notes), of)
    assert other.of("executor") == []
    assert again == chosen


class Moments(Saving):
    """Also notes how much of the log belongs to each moment."""

    def settled(self, world: Any) -> None:
        super().settled(world)
        self.seen.append(len(self.rows))


def test_from_any_moment_an_asynchronous_run_goes_on_with_the_same_log():
    """Replies in flight, tasks lost and timers that run: saved after any record, the rest is what it was."""

    def of() -> Any:
        return star("scaffold", scheduler=Eager(5, 20), population=fickle())

    whole = Moments()
    expected, _, _ = play(Simulate(), of(), whole)
    assert {len(whole.of(kind)) > 4 for kind in ("lost", "reply")} == {True}
    for entries, count in list(zip(whole.saved, whole.seen, strict=True))[::2]:
        log = Log()
        rest = of()
        found = {name: decode(entry) for name, entry in entries.items()}
        states, reason = Simulate().run(rest.programs(), rest.population, log, entries=found)
        assert reason == "done"
        assert outcome(states) == expected
        assert [*whole.rows[:count], *log.rows] == whole.rows


# Logs that do not fit

QUICK = {0: Profile(0.1875), 1: Profile(0.25), 2: Profile(0.5), 3: Profile(0.125)}


def quick() -> Any:
    return star("fedavg", scheduler=Eager(4, 8), population=replace(population(4), profiles=QUICK))


@pytest.fixture(scope="module")
def rows() -> list[tuple[float, int, int]]:
    return play(Simulate(), quick())[1].rows


def refusal(runtime: Any, of: Any = None) -> str:
    with pytest.raises(ProtocolError) as caught:
        play(runtime, of or quick())
    found = re.fullmatch(
        r"Replay\(log of (\d+) messages\): (.*) The log was altered, or is of another .*\.", str(caught.value)
    )
    assert found
    return found[2]


def test_the_log_of_the_example(rows):
    """Four fetch at once; three steps of client 3 take 0.375 s, and it fetches again."""
    asked = [(0.0, SERVER, START), *((0.0, client, 0) for client in range(4)), (0.001, SERVER, 7)]
    assert rows[:10] == [*asked, (0.375, 3, 0), (0.375, 3, 0), (0.5625, 0, 0), (0.5625, 0, 0)]


def test_the_log_says_who_was_first_not_the_clients_paces(rows):
    """The same clients with the paces of others come to other bits, but not when they are held to the log."""
    paces = {client: QUICK[3 - client] for client in QUICK}
    others = replace(population(4), profiles=paces)
    expected = play(Simulate(), quick())[0][SERVER]
    assert play(Simulate(), star("fedavg", scheduler=Eager(4, 8), population=others))[0][SERVER] != expected
    assert play(Replay(rows), star("fedavg", scheduler=Eager(4, 8), population=others))[0][SERVER] == expected


def test_an_altered_client(rows):
    at = next(i for i, row in enumerate(rows) if row[1] == 3 and row[0] > 0)
    altered = [*rows[:at], (rows[at][0], 6, 0), *rows[at + 1 :]]
    said = f"message {at + 1} must be what the run comes to, got a message of client 6 at {rows[at][0]} s, but "
    assert refusal(Retrace(altered, Simulate())) == f"{said}what comes next is a message of client 3 at 0.375 s."
    assert refusal(Replay(altered)) == f"{said}the client has nothing to say."


def test_an_altered_time(rows):
    at = next(i for i, row in enumerate(rows) if row[1] == 3 and row[0] > 0)
    altered = [*rows[:at], (rows[at][0] + 2**-40, 3, 0), *rows[at + 1 :]]
    assert refusal(Retrace(altered, Simulate())).endswith("what comes next is a message of client 3 at 0.375 s.")
    early = [*rows[:at], (0.0, 3, 0), *rows[at + 1 :]]
    assert refusal(Replay(early)).endswith(
        f"got a message of client 3 at 0.0 s, but it is {rows[at - 1][0]} s already."
    )


def test_a_timer_that_does_not_run_and_one_that_comes_too_soon(rows):
    at = rows.index((0.001, SERVER, 7))
    other, soon = ([*rows[:at], row, *rows[at + 1 :]] for row in ((0.001, SERVER, 8), (0.0009, SERVER, 7)))
    assert refusal(Replay(other)).endswith("got timer 8 at 0.001 s, but no such timer runs.")
    assert refusal(Replay(soon)).endswith("got timer 7 at 0.0009 s, but it comes at 0.001 s at the earliest.")


def test_a_log_that_goes_on_when_the_run_is_over(rows):
    longer = [*rows, (9.0, 2, 0)]
    said = f"message {len(rows) + 1} must be what the run comes to, got a message of client 2 at 9.0 s, but the run is "
    assert refusal(Retrace(longer, Simulate())) == refusal(Replay(longer)) == f"{said}over: done."


@pytest.mark.parametrize("make", [Replay, lambda log: Retrace(log, Simulate())])
def test_a_log_that_was_cut_ends_the_run_where_it_ends(make, rows):
    _, log, reason = play(make(rows[:14]), quick())
    assert reason == "the log is over"
    assert log.rows == rows[:14]


def test_another_specification(rows):
    of = star("fedavg", algorithm=FedAvg(replace(LOCAL, steps=4)), scheduler=Eager(4, 8), population=quick().population)
    assert "client 3 at 0.375 s, but what comes next is " in refusal(Retrace(rows, Simulate()), of)


def test_what_a_runtime_noticed_itself_is_in_no_log(rows):
    failed = [*rows[:5], (rows[5][0], 1, FAILURE), *rows[6:]]
    assert ": " not in refusal(Replay(failed))
    assert refusal(Replay(failed)).startswith(
        "message 6 must be what the run comes to, got the loss of client 1's work"
    )


def test_a_replay_is_not_resumed(rows):
    of = quick()
    with pytest.raises(CheckpointError, match=r"begins at the beginning, got a saved run\. Replay into a new folder\."):
        Replay(rows).run(of.programs(), of.population, Log(), entries={"clock": None})
