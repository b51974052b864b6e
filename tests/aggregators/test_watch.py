"""What an observer said of a client counts in later commits."""

from dataclasses import dataclass

import pytest
import torch

from partwise.aggregators import (
    Bucketing,
    FoolsGold,
    Latest,
    Mean,
    Median,
    NearestNeighbours,
    SybilWall,
    TrimmedMean,
    Watch,
)
from partwise.core.detect import Reputation, Verdict, score_of
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.update import Update
from partwise.observers import MUDHoG
from toy_updates import sent_by

PARAMS = {"w": torch.zeros(1, dtype=torch.float64)}


@dataclass(frozen=True)
class Says:
    """Round by round: client -> (kind, is confirmed)."""

    rounds: tuple[dict[int, tuple[str, bool]], ...]

    def init(self, params, census):
        return 0

    def judge(self, updates, replies, state, params):
        said = self.rounds[state] if state < len(self.rounds) else {}
        return [Verdict(c, kind, "", sure, sure) for c, (kind, sure) in sorted(said.items())], state + 1


def play(part, rounds):
    """rounds: of each, client -> its value. The mean and what is told, of each."""
    state, found = part.init(PARAMS, None), []
    for values in rounds:
        updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([v]).double()}, 7.0) for v in values.values()]
        replies = sent_by(*values)
        got, state = part.reduce(updates, state, PARAMS, replies)
        found.append((float(got.values()["w"]) if got.value else None, part.told(state)))
    return found


def test_scores_are_those_of_the_journal():
    assert score_of("noise", is_confirmed=False) == 300_000
    assert score_of("noise", is_confirmed=True) == 0
    assert score_of("unreliable", is_confirmed=True) == 300_000


def test_reputation_by_hand():
    """r <- 0.8 r + 0.2 score from 0.5: client 0 has 0.6, 0.68; client 1 suspected, then confirmed, 0.46, 0.368."""
    says = Says(({1: ("noise", False)}, {1: ("noise", True)}))
    part = Watch(says, Mean("holders"), reputation=Reputation(memory=0.8))
    (first, told), (second, later), (third, last) = play(part, [{0: 10.0, 1: 40.0}] * 2 + [{2: 3.0, 0: 1.0}])
    assert first == pytest.approx((0.6 * 10 + 0.46 * 40) / 1.06)
    assert told["suspects"][0]["reputation"] == pytest.approx(0.46)
    assert second == pytest.approx((0.68 * 10 + 0.368 * 40) / 1.048)
    assert later["excluded"] == []
    assert third == pytest.approx((0.6 * 3 + 0.744 * 1) / 1.344)
    assert last == {}


def test_who_has_little_is_left_out_until_it_has_more():
    """0.5, then 0.25 left out, 0.625 of a score of 1 again."""
    says = Says(({1: ("noise", True)}, {}))
    part = Watch(says, Mean("holders"), reputation=Reputation(memory=0.5, least=0.4))
    (first, told), (second, later) = play(part, [{0: 10.0, 1: 40.0}] * 2)
    assert (first, told["excluded"]) == (10.0, [1])
    assert second == pytest.approx((0.875 * 10 + 0.625 * 40) / 1.5)
    assert later == {}


def test_more_than_the_cap_makes_no_difference():
    part = Watch(Says(()), Mean("holders"), reputation=Reputation(memory=0.5, cap=0.6))
    assert play(part, [{0: 1.0}, {0: 1.0}, {0: 1.0, 1: 4.0}])[2][0] == pytest.approx((0.6 * 1 + 0.6 * 4) / 1.2)


def test_worst_of_what_is_said_counts_once_a_commit():
    """Two updates of client 1, under two suspicions: 0.9 x 0.5, not its square. Who is not in the commit keeps its."""

    class Twice(Says):
        def judge(self, updates, replies, state, params):
            found = [Verdict(1, "noise", "", True, False), Verdict(1, "noise", "", False, False)]
            return [*found, Verdict(5, "noise", "", True, False)], state

    part = Watch(Twice(()), Mean("holders"), reputation=Reputation())
    updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([v]).double()}) for v in (1.0, 2.0, 6.0)]
    replies = sent_by(1, 1, 2)
    got, state = part.reduce(updates, part.init(PARAMS, None), PARAMS, replies)
    assert float(got.values()["w"]) == pytest.approx((0.45 * 3 + 0.55 * 6) / 1.45)
    assert [s.get("reputation") for s in part.told(state)["suspects"]] == [0.45, 0.45, None]


def test_what_an_observer_saw_of_a_refused_commit_is_forgotten():
    """The one that flips its sign is left out, of five; so few the rule refuses. Its first round is that of six."""
    part = Watch(MUDHoG(start=1, delay=2, silhouette=1.0), TrimmedMean(trim_count=2), exclude=True)
    state = part.init(PARAMS, None)
    values = [1.0, 1.1, 0.9, 1.2, 0.8, -1.0]
    updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([v]).double()}) for v in values]
    with pytest.raises(ValueError, match=r"needs at least 2b\+1 = 5 updates, got 4"):
        part.reduce(updates[1:], state, PARAMS, sent_by(*range(1, 6)))
    _, state = part.reduce(updates, state, PARAMS, sent_by(*range(6)))
    (suspect,) = part.told(state)["suspects"]
    assert (suspect["client"], suspect["kind"], suspect["confirmed"]) == (5, "sign flip", False)
    _, state = part.reduce(updates, state, PARAMS, sent_by(*range(6)))
    assert part.told(state)["suspects"][0]["confirmed"]


def test_behind_a_mixture_of_neighbours_what_is_stale_is_scaled_once():
    """It gets 1, 2 and 6, which the server has scaled by a half; with f = 0 each becomes the mean of all, 3."""
    updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([v]).double()}, 7.0) for v in (1.0, 2.0, 6.0)]
    replies = [reply._replace(scale=0.5) for reply in sent_by(0, 1, 2)]
    for inner in (Mean("holders"), Mean("cohort"), Median(min_holders=1)):
        part = NearestNeighbours(0, Watch(Says(()), inner))
        got, _ = part.reduce(updates, part.init(PARAMS, None), PARAMS, replies)
        assert float(got.values()["w"]) == pytest.approx(3.0)


def test_rules_that_know_no_weights_are_given_who_is_left():
    says = Says(({4: ("sign flip", True)},))
    part = Watch(says, TrimmedMean(trim_count=0), reputation=Reputation(memory=0.5, least=0.3))
    assert play(part, [{0: 1.0, 1: 2.0, 2: 6.0, 4: 100.0}])[0][0] == pytest.approx(3.0)
    assert play(Watch(says, Median()), [{0: 1.0, 1: 2.0, 2: 6.0, 4: 100.0}])[0][0] == pytest.approx(4.0)


@pytest.mark.parametrize("wrong", [{"memory": 1.0}, {"start": 1.5}, {"cap": 0.0}, {"least": -0.1}])
def test_refusals(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"Reputation\({name}={value}\): must lie between 0 and 1, got {value}\."):
        Reputation(**wrong)


SENDERS_KNOWN = [FoolsGold(), SybilWall(), Latest(), Watch(MUDHoG()), NearestNeighbours(1, FoolsGold())]


@pytest.mark.parametrize("rule", SENDERS_KNOWN)
def test_buckets_have_no_sender(rule):
    said = r"Bucketing\(inner=.*\): hands on means of several clients, got a rule that must know who sent each update\."
    with pytest.raises(CompositionError, match=said):
        Bucketing(rule)
    assert Watch(MUDHoG(), Bucketing(Median())).needs == "each"
