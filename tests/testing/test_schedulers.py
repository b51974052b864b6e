"""Each rule of the contract of schedulers can be broken."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pytest

from partwise.core.schedule import (
    Accept,
    After,
    Arrived,
    Commit,
    Deadline,
    Discard,
    Dispatch,
    GiveUp,
    Lost,
    Scheduler,
    Skipped,
    Started,
    Stop,
)
from partwise.schedulers import Synchronous
from partwise.testing import check, check_scheduler


class Turn(NamedTuple):
    number: int = 0
    waiting: int = -1
    failures: int = 0
    last: object = None


@dataclass(frozen=True)
class Broken(Scheduler):
    """Asks one client after another, each for at most nine seconds, and commits each reply alone; with one fault."""

    fault: str = ""
    state_types: ClassVar[tuple[type, ...]] = (Turn,)

    @property
    def versions(self):
        return 2 if self.fault == "versions" else 25

    @property
    def may_scale(self):
        return "scale" in self.fault and self.fault != "scales unsaid"

    @property
    def is_fresh(self):
        return self.fault in ("", "stale")

    def init(self, population):
        return Turn()

    def step(self, state, event, roster):
        if self.fault == "memory in self":
            object.__setattr__(self, "turn", state.number)
        match event:
            case Started():
                return self._next(state, [])
            case Arrived(_, reply, _):
                return self._next(state._replace(failures=0, last=reply), self._commit(state, reply))
            case Lost() if self.fault == "loss":
                raise KeyError("lost")
            case Lost():
                return self._next(state._replace(failures=state.failures + 1), [])
            case Deadline(_, tag) if tag == state.number:
                return self._next(state._replace(failures=state.failures + 1), [GiveUp([state.waiting])])
        return state, []

    def _commit(self, state, reply):
        match self.fault:
            case "scales unsaid" | "two scales" | "wild scale":
                scales = {"scales unsaid": (0.5,), "two scales": (0.5, 0.5), "wild scale": (math.nan,)}
                return [Commit([reply], scales[self.fault])]
            case "twice":
                return [Commit([reply if state.last is None else state.last])]
            case "never":
                return [Discard([reply])]
            case "gives up who answered":
                return [Commit([reply]), GiveUp([reply.client])]
            case "scales what it accepted":
                return [Accept([reply]), Commit([reply], (0.5,))]
            case "forgets what it accepted":
                return [Accept([reply])]
            case "discards what it accepted":
                return [Accept([reply]), Discard([reply])]
            case "stale":
                return [] if state.number % 4 < 2 else [Commit([reply if state.last is None else state.last])]
            case "accepts too early" if state.number % 2:
                return [Accept([reply])]
            case "accepts too early":
                return [Commit([state.last, reply])]
        return [Commit([reply])]

    def _next(self, state, actions):
        is_patient = state.failures < 20
        if state.number >= 25 or not is_patient:
            reason = "done" if is_patient or self.fault == "mute" else "nobody answers"
            hung = state._replace(number=state.number + 1)
            return (hung, actions) if self.fault == "hangs" else (state, [*actions, Stop(reason)])
        turn = state.number + 1
        client = random.randrange(30) if self.fault == "chance" else turn % 30 + 90 * (self.fault == "stranger")
        wanted = Dispatch(client, -1 if self.fault == "steps" else 0, 0.5 if self.fault == "group" else 0)
        seconds = {"waits for ever": math.inf, "back in time": -1.0}.get(self.fault, 9.0)
        actions = [*actions, "wait" if self.fault == "word" else wanted]
        if self.fault != "no deadline":
            actions += [After(seconds, turn)]
        if self.fault == "deadlines":
            actions += [After(1e5, -1)] * 4
        if self.fault == "asks twice":
            actions += [wanted]
        if self.fault == "asks thrice":
            actions[0] = wanted._replace(is_followed=True)
            actions += [actions[0], wanted]
        last = object() if self.fault == "unsaved" else state.last
        return state._replace(number=turn, waiting=client, last=last), actions


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("memory in self", "must keep its state outside itself"),
        ("hangs", "must wait for something until it stops, .*, got nothing. Dispatch, give every wait a deadline"),
        ("no deadline", "must wait for something until it stops, also where clients come and go, are late or silent"),
        ("mute", r"must stop, and say why, where no client ever answers, got Stop\('done'\). Bound every wait"),
        ("stranger", "must ask clients of the roster, got 91"),
        ("chance", "must depend on its state and the event alone"),
        ("twice", "must commit or discard each reply once, after it arrived"),
        ("never", "must commit something, got no commit"),
        ("loss", r"must take Lost\(.*\), got KeyError"),
        ("unsaved", "the state must have an encoding"),
        ("word", "acts by Dispatch, Accept, Commit, Discard, GiveUp, After and Stop, got wait"),
        ("stale", "must commit nothing that was begun before the last commit, as it says, got .*Leave is_fresh False"),
        ("versions", "must commit at most as often as `versions` says, 2, got 3"),
        ("steps", r"must ask for a whole number of steps from 0 on, .*, got Dispatch\(client=1, steps=-1, group=0, is"),
        ("group", r"in a group with a whole number, got Dispatch\(client=1, steps=0, group=0.5, is"),
        (
            "asks twice",
            "must not ask a client again that is still at work, but once after .*, got 1. Wait for it, GiveUp",
        ),
        ("asks thrice", "must not ask a client again that is still at work, but once after .*, got 1. Wait for it"),
        ("gives up who answered", r"must give up only clients that it waits for, once each, got \[1\]"),
        ("scales unsaid", r"must not scale where it says that it never does, got \[0.5\]. Leave may_scale True."),
        ("two scales", "must give each reply of a commit a scale, or none, got 2 for 1"),
        ("wild scale", r"must scale by finite numbers from 0 on, got \[nan\]"),
        ("scales what it accepted", r"must not scale what it has accepted, .*, got \[0.5\]. Leave Accept out."),
        ("forgets what it accepted", "must commit something, got no commit"),
        ("discards what it accepted", "must commit or discard each reply once"),
        ("accepts too early", r"must have asked all of a commit before it accepts any, .*, got \[0, 1\]. Accept noth"),
        ("waits for ever", r"must wait for a finite time from 0 on, .*, got After\(seconds=inf, tag=1\)"),
        ("back in time", r"must wait for a finite time from 0 on, .*, got After\(seconds=-1.0, tag=1\)"),
        ("deadlines", "must not leave ever more deadlines behind, got 61 that have not run out. Keep one After"),
    ],
)
def test_scheduler_rule_fails(fault, says):
    with pytest.raises(AssertionError, match=says):
        check(Broken(fault))


@dataclass(frozen=True)
class Careless(Scheduler):
    """Gives no list of actions, or commits clients instead of their replies."""

    gives_none: bool = False

    def init(self, roster):
        return 0

    def step(self, state, event, roster):
        if self.gives_none:
            return state, None
        return state, [Commit([event.reply.client])] if isinstance(event, Arrived) else [Dispatch(0), Dispatch(1)]


@pytest.mark.parametrize("gives_none", [True, False])
def test_what_is_no_action_is_a_rule_that_the_scheduler_broke(gives_none):
    says = rf"^Careless\(gives_none={gives_none}\): acts by a list of actions, which hold replies of Arrived"
    with pytest.raises(AssertionError, match=says):
        check(Careless(gives_none))


def test_a_scheduler_without_a_fault_passes():
    check(Broken())


@dataclass(frozen=True)
class Hasty(Scheduler):
    """Asks a client anew as soon as it is lost, and never tires of it."""

    def init(self, population):
        return 0

    def step(self, state, event, roster):
        match event:
            case Arrived(_, reply, _):
                return state, [Commit([reply]), Dispatch(reply.client)]
            case Lost(_, client, _):
                return state, [Dispatch(client)]
            case Deadline():
                return state, [Stop("it has been long enough")]
            case Started():
                return state, [After(1e6, 1), *map(Dispatch, roster.clients)]
        return state, []


@dataclass(frozen=True)
class Strict(Hasty):
    """Knows of no commit that came to nothing."""

    def step(self, state, event, roster):
        if isinstance(event, Skipped):
            raise ValueError("what is that?")
        return super().step(state, event, roster)


def test_a_commit_that_comes_to_nothing_must_be_taken():
    with pytest.raises(AssertionError, match=r"must take Skipped\(now=.*what is that\?"):
        check(Strict())


def test_endless_work_at_one_instant_is_a_fault():
    says = r"must not act without end at one instant, also where every client is lost at once, got 3001 events at 0.0"
    with pytest.raises(AssertionError, match=says):
        check(Hasty())


@dataclass(frozen=True)
class Sleepy(Scheduler):
    """Looks every so often whether there is an answer."""

    seconds: float

    def init(self, population):
        return 0

    def step(self, state, event, roster):
        match event:
            case Arrived(_, reply, _):
                return state, [Commit([reply]), Stop("it has answered")]
            case Lost():
                return state, [Stop("it does not answer")]
        return state, [*([Dispatch(2)] if event.now == 0 else []), After(self.seconds, 0)]


@pytest.mark.parametrize(("seconds", "after"), [(8.64e6, "400 days"), (1.0, "20000 events")])
def test_waiting_for_years_is_a_fault(seconds, after):
    says = f"must stop, and say why, where no client ever answers, got a run that goes on after {after}. Bound every"
    with pytest.raises(AssertionError, match=says):
        check(Sleepy(seconds))


def test_a_client_given_up_may_be_asked_again_and_its_first_answer_never_comes():
    check_scheduler(GivesUp())


@dataclass(frozen=True)
class GivesUp(Scheduler):
    """Waits three seconds for client 2, which takes five, and asks it once more, patiently."""

    def init(self, population):
        return 0

    def step(self, state, event, roster):
        match event:
            case Started():
                return 1, [Dispatch(2), After(3.0, 0)]
            case Arrived(_, reply, began):
                assert (began == 3.0) == (state == 2)
                assert reply.id == state - 1
                return 3, [Commit([reply]), Stop("it has answered")]
            case Deadline() if state == 1:
                return 2, [GiveUp([2]), Dispatch(2), After(9.0, 0)]
        return 3, [Stop("it does not answer")]


@pytest.mark.parametrize("settings", [{}, {"deadline_seconds": 2.5}, {"min_replies": 4, "steps": 7}])
def test_synchronous(settings):
    check_scheduler(Synchronous(cohort=5, rounds=6, **settings))
    with pytest.raises(ValueError, match="must be at most the population"):
        check_scheduler(Synchronous(cohort=5), num_clients=3)
