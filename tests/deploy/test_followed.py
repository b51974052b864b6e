"""Followed tasks, over nodes that are started anew and a server that is killed: nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest

from partwise.core.codec import decode, encode
from partwise.core.program import SERVER
from partwise.deploy.post import Collected
from partwise.runtimes import Simulate
from partwise.schedulers import Overlapped
from toy_federation import outcome, play, star
from toy_post import deployed, node_of
from toy_star import Log

ROUNDS = 4
SOON = 20.0  # seconds, of which a run takes less than one


def of() -> Any:
    return star("error feedback", scheduler=Overlapped(rounds=ROUNDS))


class Killed(Log):
    """Saves when a commit is settled, as a run does, and dies some messages later; the nodes have gone on meanwhile."""

    def __init__(self, version: int, later: int) -> None:
        super().__init__()
        self.version, self.later, self.heard_since = version, later, -1
        self.entries: dict[str, Any] = {}

    def settled(self, world: Any) -> None:
        if not self.entries and len(self.of("commit")) == self.version:
            entries, _ = world.entries()
            self.entries = {name: decode(encode(entries[name])) for name in entries}
            self.heard_since = 0

    def heard(self, now: float, src: int, tag: int) -> str | None:
        self.heard_since += self.heard_since >= 0
        return "killed" if self.heard_since > self.later else None


@pytest.mark.parametrize("later", [1, 8, 14])
@pytest.mark.parametrize("version", [1, 2])
def test_server_that_was_killed_goes_on_to_the_bits_of_the_simulator(version, later):
    whole, runtime, _ = deployed(of())
    killed = Killed(version, later)
    _, reason = runtime.run(whole.programs(), whole.population, killed, until=SOON)
    assert reason == "killed"
    log, until = Log(), killed.entries["clock"]["now"] + SOON
    states, reason = runtime.run(whole.programs(), whole.population, log, entries=killed.entries, until=until)
    assert reason == "done"
    assert not log.of("lost")
    assert outcome({SERVER: states[SERVER]})[SERVER] == play(Simulate(), of())[0][SERVER]


@pytest.mark.parametrize("number", range(1, 5))
def test_clients_of_a_node_that_was_started_anew_take_part_again(number):
    """Its answer to a batch is lost with it: the tasks of its clients are, and those of later rounds are not."""
    whole, runtime, post = deployed(of())
    memory = post.nodes["south"]._memory.path

    def spoil(node: str, batch: int, got: Collected) -> Collected | None:
        if (node, batch) != ("south", number):
            return got
        post.marks["south"], post.nodes["south"] = "another process", node_of(of(), "south", memory)
        return None

    post.spoil, log = spoil, Log()
    _, reason = runtime.run(whole.programs(), whole.population, log, until=SOON)
    assert reason == "done"
    assert {f["client"] for f in log.of("lost")} == {5, 6}
    replies = [commit["replies"] for commit in log.of("commit")]
    assert len(replies) == ROUNDS
    assert sum(replies) == 7 * ROUNDS - 4  # two tasks of each of its two clients
