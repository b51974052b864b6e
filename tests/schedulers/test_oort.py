"""Oort's rules; the numbers are those worked out in the notes on the method."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from partwise.core.schedule import ReplyInfo
from partwise.schedulers.choices import Oort
from partwise.schedulers.oort import bonus, scores, slowed


@dataclass
class Town:
    size: int
    seed: int = 3
    sizes: dict[int, int] = field(default_factory=dict)
    away: set[int] = field(default_factory=set)
    asked: int = 0

    @property
    def clients(self):
        return range(self.size)

    def next_available(self, client, now):
        return now + (client in self.away)

    def examples(self, client):
        self.asked += 1
        return self.sizes.get(client, 10)


def told(client, utility=None, examples=5, loss=0.0):
    return ReplyInfo(0, client, 0, 1, examples, loss, report={} if utility is None else {"utility": utility})


class Game:
    """Picks and answers, by hand."""

    def __init__(self, choice, roster):
        self.choice, self.roster, self.turn = choice, roster, 0
        self.state = choice.init(roster)

    def pick(self, count, busy=()):
        picked, self.state = self.choice.pick(self.state, count, turn=self.turn, now=0.0, roster=self.roster, busy=busy)
        self.turn += 1
        return picked

    def hear(self, client, seconds=1.0, **reply):
        self.state = self.choice.heard(self.state, told(client, **reply), seconds)


# ---- scores ---------------------------------------------------------------------------------------------------------

KNOWN = {0: (10.0, 1, 1, 5.0), 1: (20.0, 4, 1, 10.0), 2: (40.0, 4, 1, 40.0)}


def test_scores_of_the_notes():
    found = scores(KNOWN, 5, clip=1.0)
    assert [round(s, 6) for s in found.values()] == [0.401511, 0.534144, 1.200589]


def test_scores_of_the_notes_with_speed():
    found = scores(KNOWN, 5, clip=1.0, preferred=5.0, power=2.0)
    assert [round(s, 6) for s in found.values()] == [0.401511, 0.133536, 0.018759]


def test_without_a_power_speed_plays_no_role():
    assert scores(KNOWN, 5, clip=1.0, preferred=5.0, power=0.0) == scores(KNOWN, 5, clip=1.0)


def test_bonus_and_slowing_of_the_notes():
    assert round(bonus(5, 2), 6) == 0.283676
    assert bonus(1, 1) == 0
    utility = 3 * math.sqrt(3)
    assert round(slowed(utility, 20.0, 10.0, 2.0), 6) == 1.299038
    assert slowed(utility, 10.0, 10.0, 2.0) == utility


def test_utilities_are_cut_at_the_quantile():
    """Of four at 0.5 that is the third, int(4 * 0.5) = 2; the range stays that of what was told."""
    known = {c: (u, 1, 1, 1.0) for c, u in enumerate((1.0, 2.0, 3.0, 1000.0))}
    found = scores(known, 1, clip=0.5)
    span = 1000 - 0.999
    assert found == pytest.approx({0: 0.001 / span, 1: 1.001 / span, 2: 2.001 / span, 3: 2.001 / span})


def test_who_never_answered_has_its_bonus_and_who_has_no_loss_counts_for_little():
    found = scores({0: (None, 2, 0, None), 1: (0.0, 9, 1, 9.0), 2: (8.0, 2, 1, 1.0), 3: (4.0, 2, 1, 1.0)}, 5, clip=1.0)
    assert found[0] == pytest.approx(bonus(5, 2))
    assert found[1] == 0.0  # -0.9985 and a bonus, not less than nothing
    assert found[2] == pytest.approx(1 + bonus(5, 2))
    assert scores({0: (None, 2, 0, None)}, 5, clip=0.98) == {0: bonus(5, 2)}


# ---- preferred duration and the pacer -------------------------------------------------------------------------------


@pytest.mark.parametrize(("percentile", "preferred"), [(10, 5), (0, 5), (34, 10), (99, 40), (100, math.inf)])
def test_preferred_duration_is_a_percentile_of_what_was_measured(percentile, preferred):
    game = Game(Oort(percentile=percentile), Town(9))
    assert game.choice._preferred(game.state) == math.inf  # nobody known
    for client, seconds in enumerate((10.0, 40.0, 5.0)):
        game.hear(client, seconds, utility=1.0)
    assert game.choice._preferred(game.state) == preferred


def paced(gains, **settings):
    """The percentile after each pick, where one exploited client tells a utility after each."""
    game = Game(Oort(exploration=0.0, exploration_min=0.0, pacer_rounds=2, **settings), Town(2))
    game.hear(0, utility=1.0)
    game.hear(1, utility=1.0)
    found = []
    for gain in gains:
        for client in game.pick(2):
            game.hear(client, utility=gain)
        found.append(game.state["percentile"])
    return found


def test_pacer_raises_where_utility_stands_still():
    """Windows of two: at R = 4 the history is (0, 100, 105, 95): A = 100, B = 200, nothing. At R = 6: 200, 205."""
    assert paced([100, 105, 95, 100, 105, 1]) == [10, 10, 10, 10, 10, 15]


def test_pacer_lowers_where_utility_leaps():
    """At R = 6 A = 1 + 1 and B = 1 + 11, six times as much; never below one step."""
    assert paced([1, 1, 1, 1, 11, 1]) == [10, 10, 10, 10, 10, 5]
    assert paced([1, 1, 1, 1, 11, 1], percentile=7.0, pacer_step=6.0)[-1] == 6
    assert paced([1, 1, 1, 1, 7, 1])[-1] == 10


def test_pacer_stops_at_a_hundred():
    assert paced([1] * 8, percentile=97.0)[-1] == 100


def test_the_measure_is_the_mean_of_those_chosen_by_score():
    game = Game(Oort(exploration=0.5, exploration_decay=1.0), Town(12))
    for client in range(6):
        game.hear(client, utility=1.0)
    picked = game.pick(4)
    exploited = [c for c in picked if c < 6]
    assert len(exploited) == 2
    for client in picked:
        game.hear(client, utility=3.0 + 4.0 * (client == exploited[0]) if client < 6 else 99.0)
    game.pick(4)
    assert game.state["history"] == [0.0, 5.0]


# ---- who is picked --------------------------------------------------------------------------------------------------


def test_exploration_decays_to_its_least():
    """0.9 * 0.95 = 0.855: of ten, one is exploited; with 0.2, eight are."""
    game = Game(Oort(), Town(10_000))
    for client in range(200):
        game.hear(client, utility=1.0)
    shares, exploited = [], []
    for _ in range(40):
        before = set(game.state["known"])
        exploited.append(len(before.intersection(game.pick(10))))
        shares.append(game.state["exploration"])
    assert shares[:2] == pytest.approx([0.855, 0.81225])
    assert shares[-1] == 0.2
    assert (exploited[0], exploited[-1]) == (1, 8)


def test_when_all_are_known_nobody_is_explored():
    game = Game(Oort(), Town(6))
    for client in range(6):
        game.hear(client, utility=1.0)
    assert len(game.pick(4)) == 4
    assert game.state["exploration"] == 0


def test_only_those_near_the_cut_are_drawn_in_proportion_to_their_scores():
    """At R = 1 there is no bonus; n_e = 2, so x is the second score; 0.7 x leaves three of five."""
    utilities = {0: 10.0, 1: 60.0, 2: 70.0, 3: 50.0, 4: 20.0}
    seen = Counter()
    for seed in range(3000):
        game = Game(Oort(), Town(5, seed=seed))
        for client, utility in utilities.items():
            game.hear(client, utility=utility)
        seen[game.pick(2)] += 1
    w = {c: u - 9.99 for c, u in utilities.items() if c in {1, 2, 3}}
    total = sum(w.values())

    def both(a, b):
        return w[a] * w[b] / total * (1 / (total - w[a]) + 1 / (total - w[b]))

    assert seen.keys() == {(1, 2), (1, 3), (2, 3)}
    square = sum((seen[p] - 3000 * both(*p)) ** 2 / (3000 * both(*p)) for p in seen)
    assert square < 18.4  # 2 degrees of freedom, one in ten thousand


def test_slow_ones_fall_behind():
    game = Game(Oort(cutoff=1.0), Town(3))
    for client, (utility, seconds) in enumerate(((10.0, 5.0), (20.0, 10.0), (40.0, 40.0))):
        game.hear(client, seconds, utility=utility)
    game.turn = 4
    for client, last in enumerate((1, 4, 4)):
        game.state["known"][client][1] = last
    assert game.pick(1) == (0,)  # 0.401511, 0.133536, 0.018759
    fast = Game(Oort(cutoff=1.0, round_penalty=0.0), Town(3))
    for client, utility in enumerate((10.0, 20.0, 40.0)):
        fast.hear(client, 1.0 + client, utility=utility)
    assert fast.pick(1) == (2,)


def test_explored_are_those_with_the_most_examples():
    """K = 2 explores both, so the window is that of the ten largest; cut at 600 examples, ties by number."""
    sizes = {c: 1000 if c >= 90 else c + 1 for c in range(100)}
    seen = Counter()
    for seed in range(300):
        game = Game(Oort(), Town(100, seed=seed, sizes=sizes, away={99}))
        seen.update(game.pick(2))
    assert seen.keys() == {*range(89, 99)}
    assert seen[89] < min(seen[c] for c in range(90, 99))  # 90 examples against 600
    assert seen[90] > 20


def test_explored_are_not_explored_again_and_then_come_the_next():
    game = Game(Oort(exploration=1.0, exploration_decay=1.0, window=1), Town(40, sizes={c: c for c in range(40)}))
    assert [game.pick(3, busy={38}) for _ in range(3)] == [(36, 37, 39), (33, 34, 35), (30, 31, 32)]
    assert game.pick(3) == (28, 29, 38)


def test_a_pass_over_all_clients_is_rare(monkeypatch):
    monkeypatch.setattr("partwise.schedulers.oort._RANKED", 40)
    roster = Town(500, sizes={c: 1 + (7 * c) % 500 for c in range(500)})
    game = Game(Oort(exploration=1.0, exploration_decay=1.0, window=1), roster)
    order = [roster.sizes[c] for _ in range(100) for c in sorted(game.pick(5), key=lambda c: -roster.sizes[c])]
    assert order == sorted(order, reverse=True)
    assert len(set(order)) == 500
    assert roster.asked < 500 * (500 / 100 / 2 + 2) + 3 * 500  # five passes over those who are left


def test_too_few_to_explore_is_filled_up():
    game = Game(Oort(exploration=1.0, exploration_decay=1.0), Town(8, away={5, 6, 7}))
    for client in range(4):
        game.hear(client, utility=1.0)
    assert len(game.pick(5)) == 5
    assert len(game.pick(9)) == 5


def test_a_single_client_is_exploited_as_often_as_the_share_says():
    seen = 0
    for seed in range(1000):
        game = Game(Oort(exploration=0.4, exploration_decay=1.0), Town(50, seed=seed))
        game.hear(7, utility=1.0)
        seen += game.pick(1) == (7,)
    assert abs(seen - 600) < 4 * math.sqrt(240)


def test_barred_are_those_used_most_and_come_when_there_is_nobody_else():
    game = Game(Oort(max_uses=2, max_barred=0.3), Town(10))
    for client in range(10):
        for _ in range(1 + client):
            game.hear(client, utility=1.0)
    assert game.choice._barred(game.state["known"], 10) == {7, 8, 9}
    assert {c for _ in range(20) for c in game.pick(4)} == set(range(7))
    assert set(range(7)) < set(game.pick(9))
    assert not Oort()._barred(game.state["known"], 10)


@pytest.mark.parametrize("hundredths", [7, 29, 57])
def test_as_many_are_barred_as_the_share_says(hundredths):
    """0.29 times 100 is a hair less than 29 in floating point."""
    game = Game(Oort(max_uses=1, max_barred=hundredths / 100), Town(100))
    for client in range(100):
        for _ in range(2):
            game.hear(client, utility=1.0)
    assert set(game.pick(100 - hundredths)) == set(range(hundredths, 100))  # all have answered as often as one another


def test_utility_is_the_report_or_else_examples_times_loss():
    game = Game(Oort(), Town(5))
    game.hear(0, utility=4.5, examples=5, loss=2.0)
    game.hear(1, examples=5, loss=2.0)
    game.hear(2, utility=float("nan"))
    game.hear(3, utility=-1.0)
    assert [game.state["known"][c][0] for c in range(4)] == [4.5, 10.0, 0.0, 0.0]


def test_a_lost_client_is_no_longer_untried():
    game = Game(Oort(), Town(3))
    (first,) = game.pick(1)
    game.state = game.choice.lost(game.state, first)
    assert game.state["known"][first] == [None, 1, 0, None, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exploration": 1.5}, r"Oort\(exploration=1\.5\): must lie in 0\.\.1, got 1\.5\. 0\.9 is usual\."),
        ({"exploration_decay": 0.0}, r"Oort\(exploration_decay=0\.0\): must be greater than 0, got 0\.0\. Raise it\."),
        ({"exploration_min": -0.1}, r"must lie in 0\.\.1, got -0\.1\. 0\.2 is usual\."),
        ({"round_penalty": -1.0}, r"Oort\(round_penalty=-1\.0\): must be finite and at least 0, got -1\.0\. 2\.0 is"),
        ({"round_penalty": math.inf}, r"must be finite and at least 0, got inf\."),
        ({"pacer_rounds": 0}, r"must be finite and at least 1, got 0\. 20 is usual\."),
        ({"pacer_step": 0.0}, r"must be greater than 0, got 0\.0\."),
        ({"percentile": 101.0}, r"must lie in 0\.\.100, got 101\.0\. 10\.0 is usual\."),
        ({"clip": math.nan}, r"must lie in 0\.\.1, got nan\. 0\.98 is usual\."),
        ({"cutoff": 2.0}, r"must lie in 0\.\.1, got 2\.0\. 0\.7 is usual\."),
        ({"window": 0}, r"must be finite and at least 1, got 0\. 5 is usual\."),
        ({"max_examples": 0}, r"at least 1, got 0\. 600 is usual\."),
        ({"max_uses": -1}, r"at least 0, got -1\. 0 is usual\."),
        ({"max_barred": 1.1}, r"must lie in 0\.\.1, got 1\.1\. 0\.3 is usual\."),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Oort(**settings)


def test_defaults_are_those_of_the_release():
    found = SimpleNamespace(**vars(Oort()))
    assert (found.exploration, found.exploration_decay, found.exploration_min) == (0.9, 0.95, 0.2)
    assert (found.round_penalty, found.pacer_rounds, found.pacer_step, found.percentile) == (2.0, 20, 5.0, 10.0)
    assert (found.clip, found.cutoff, found.window, found.max_examples) == (0.98, 0.7, 5, 20 * 30)
