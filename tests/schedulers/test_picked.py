"""What a choice of one's own picks is looked at before anybody is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from partwise.core.schedule import Arrived, ReplyInfo, Started
from partwise.schedulers import FedAsync, FedBuff, Synchronous, Tiered
from partwise.schedulers.choices import Choice
from toy_roster import Play, Roster, asked


@dataclass(frozen=True)
class Fixed(Choice):
    """Picks what is written down."""

    found: Any
    is_any_number: bool = False

    @property
    def is_exact(self) -> bool:
        return not self.is_any_number

    def __repr__(self) -> str:
        return "Fixed()"

    def pick(self, state, count, *, turn, now, roster, busy=()):
        return self.found


def began(scheduler, roster):
    return scheduler.step(scheduler.init(roster), Started(0.0), roster)


def all_answer(scheduler, state, clients, roster):
    for number, client in enumerate(clients):
        state, _ = scheduler.step(state, Arrived(1.0, ReplyInfo(number, client, 0, 5, 7), 0.0), roster)


@pytest.mark.parametrize(
    ("found", "got"),
    [
        (None, "the clients and its next state, a tuple of two, got None."),
        ((0, 1, 2), "the clients and its next state, a tuple of two, got (0, 1, 2)."),
        ((0, 1), "its clients as a tuple, got 0."),
        ((range(3), ()), "its clients as a tuple, got range(0, 3)."),
        (((c for c in (0, 1)), ()), "its clients as a tuple, got <generator"),
        ((torch.arange(3), ()), "its clients as a tuple, got tensor([0, 1, 2])."),
        ((tuple(np.arange(3)), ()), "clients by numbers, as int() makes them, got ("),
        (((True,), ()), "clients by numbers, as int() makes them, got (True,)."),
        (((0, 2, 2), ()), "different clients, got (0, 2, 2)."),
        (((0, 1, 2, 3), ()), "at most the 3 clients that are wanted, as a choice that is_exact, got (0, 1, 2, 3)."),
    ],
)
@pytest.mark.parametrize("scheduler", [lambda c: Synchronous(3, 2, choice=c), lambda c: FedBuff(2, 3, choice=c)])
def test_a_choice_is_named_that_picks_what_cannot_be_asked(scheduler, found, got):
    with pytest.raises(ValueError, match=re.escape(f"Fixed(): pick must give {got}")):
        began(scheduler(Fixed(found)), Roster(5))


def test_a_choice_whose_number_is_chance_may_pick_more_than_are_expected():
    _, actions = began(Synchronous(3, 2, choice=Fixed(((0, 1, 2, 3), ()), is_any_number=True)), Roster(5))
    assert asked(actions) == [0, 1, 2, 3]


def test_a_list_of_clients_is_as_good_as_a_tuple():
    _, actions = began(Synchronous(3, 2, choice=Fixed(([4, 0, 2], ()))), Roster(5))
    assert sorted(asked(actions)) == [0, 2, 4]


def test_a_client_that_is_busy_is_not_picked_again():
    """Client 0 answers while 1 is at work; who is asked in its place may not be 1."""

    @dataclass(frozen=True)
    class First(Choice):
        def pick(self, state, count, *, turn, now, roster, busy=()):
            return ((0, 1) if turn == 0 else (1,)), state

    roster, scheduler = Roster(5), FedBuff(1, 2, choice=First())
    state, actions = began(scheduler, roster)
    assert asked(actions) == [0, 1]
    with pytest.raises(ValueError, match=r"First\(\): pick must give no clients that are busy, got \(1,\)"):
        scheduler.step(state, Arrived(1.0, ReplyInfo(0, 0, 0, 5, 7), 0.0), roster)


def test_the_choice_of_a_tier_is_looked_at_too():
    roster, scheduler = Roster(4), Tiered(tiers=1, cohort=2, choice=Fixed(((0, 0), ())))
    state, actions = began(scheduler, roster)
    with pytest.raises(ValueError, match=r"Fixed\(\): pick must give different clients, got \(0, 0\)"):
        all_answer(scheduler, state, asked(actions), roster)


@dataclass(frozen=True)
class Noting(Choice):
    """Picks the first who are free, and notes its turns and what it is told."""

    turns: list[int] = field(default_factory=list)
    told: list[tuple[int, float]] = field(default_factory=list)

    def pick(self, state, count, *, turn, now, roster, busy=()):
        self.turns.append(turn)
        return tuple(client for client in roster.clients if client not in busy)[:count], state

    def heard(self, state, reply, seconds):
        self.told.append((reply.client, seconds))
        return state

    def lost(self, state, client):
        self.told.append((client, -1.0))
        return state


@pytest.mark.parametrize(
    "part",
    [
        lambda choice: Synchronous(cohort=2, rounds=6, choice=choice),
        lambda choice: FedAsync(concurrency=2, versions=6, choice=choice),
        lambda choice: FedBuff(buffer=2, concurrency=2, versions=6, choice=choice),
        lambda choice: FedBuff(buffer=2, concurrency=2, versions=6, replace="commit", choice=choice),
        lambda choice: Tiered(tiers=2, cohort=2, versions=6, choice=choice),
    ],
    ids=["Synchronous", "FedAsync", "FedBuff", "FedBuff by commits", "Tiered"],
)
def test_a_choice_is_told_its_turns_and_what_became_of_those_it_picked(part):
    """Chance is derived from turns: of one for all, the same clients would be drawn again and again."""
    choice, warm_up = Noting(), 9 if part(Noting()).__class__ is Tiered else 0

    def seconds(client, id):
        return -0.5 if id == warm_up + 3 else 1.0 + client / 16

    play = Play(part(choice), Roster(9), seconds).run()
    assert len(play.commits) == 6
    assert len(choice.turns) >= 6
    assert sorted(choice.turns) == list(range(len(choice.turns)))
    heard = [(client, lasted) for client, lasted in choice.told if lasted > 0]
    assert len(heard) >= sum(len(clients) for _, clients in play.commits)
    assert all(lasted == 1.0 + client / 16 for client, lasted in heard)  # since it was asked, not since the run began
    assert len(choice.told) == len(heard) + 1
