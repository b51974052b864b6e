"""MUD-HoG: the sequences of robustness.md §10, and a crowd of four kinds of hostile clients."""

import math

import pytest
import torch

from partwise.aggregators import Mean, Median, Watch
from partwise.core.index import Coords
from partwise.core.update import Update
from partwise.observers import MUDHoG
from partwise.observers.clusters import dbscan, gap_threshold, silhouette, two_means
from partwise.observers.mud_hog import History, _cosines, _median
from toy_updates import senders, sent_by, whole


def squared(points):
    return torch.tensor([[math.dist(a, b) ** 2 for b in points] for a in points], dtype=torch.float64)


def test_gap_threshold_by_hand():
    assert gap_threshold([0.9, 0.1, 0.95, 0.2]) == (pytest.approx(0.55), pytest.approx(0.7))


def test_dbscan_by_hand():
    points = [(0, 0), (0, 1), (1, 0), (10, 10), (10, 11), (11, 10), (50, 0)]
    assert dbscan(squared(points), eps=1.1, min_samples=3) == [0, 0, 0, 1, 1, 1, -1]
    chain = [(float(i), 0.0) for i in range(5)]
    assert dbscan(squared(chain), eps=1.0, min_samples=3) == [0] * 5  # its ends are reached, and no cores
    assert dbscan(squared(chain), eps=0.5, min_samples=2) == [-1] * 5


def test_two_means_and_silhouette():
    points = [(0, 0), (0, 1), (1, 0), (10, 10), (10, 11), (0.5, 0.5)]
    second = two_means(squared(points))
    groups = {tuple(i for i in range(6) if bool(second[i]) == side) for side in (True, False)}
    assert groups == {(0, 1, 2, 5), (3, 4)}
    assert silhouette(squared(points), second) > 0.8
    one = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).tolist()
    assert silhouette(squared(one), two_means(squared(one))) < 0.1


PARAMS = {"w": torch.zeros(1, dtype=torch.float64)}


def histories(part, values):
    state, found = part.init(PARAMS, None), []
    for value in values:
        part._remember_(state.clients.setdefault(0, History()), whole([[float(value)]])[0], PARAMS)
        history = state.clients[0]
        found.append((float(part.short(history, PARAMS).values()["w"]), float(history.total.values()["w"])))
    return found


def test_short_and_long_histories_of_the_table():
    short, long = zip(*histories(MUDHoG(), [1, 2, 3, 10, 20, 30]), strict=True)
    assert short == (1.0, 1.5, 2.0, 5.0, 11.0, 20.0)
    assert long == (1.0, 3.0, 6.0, 16.0, 36.0, 66.0)


def test_released_code_freezes_the_short_history():
    short, long = zip(*histories(MUDHoG(legacy_frozen_short=True), [1, 2, 3, 10, 20, 30]), strict=True)
    assert short == (1.0, 1.5, 2.0, 2.0, 2.0, 2.0)
    assert long[-1] == 66.0


def test_history_of_a_submodel_is_by_the_rounds_in_which_it_was_held():
    part, params, history = MUDHoG(), {"w": torch.zeros(3).double()}, History()
    for held, value in (([0, 1], 2.0), ([1, 2], 4.0)):
        index = Coords({"w": (3,)}, {"w": torch.tensor(held)})
        part._remember_(history, Update(index, {"w": torch.full((2,), value).double()}), params)
    assert part.short(history, params).values()["w"].tolist() == [2.0, 3.0, 4.0]
    assert history.total.values()["w"].tolist() == [2.0, 6.0, 4.0]


def watched(part, rounds, state=None):
    """The verdicts of each round. rounds: rows of each."""
    params = {"w": torch.zeros(len(rounds[0][0])).double()}
    state, found = part.init(params, None) if state is None else state, []
    for rows in rounds:
        verdicts, state = part.judge(whole(rows), senders(len(rows)), state, params)
        found.append({v.client: (v.kind, v.is_confirmed) for v in verdicts})
    return found


def test_sign_flip_of_the_table_and_its_confirmation():
    """Flagged from round 3 on, the first in which anybody is; confirmed in round 4."""
    rows = [[1.0, 0.2], [0.9, 0.1], [1.1, 0.3], [-1.0, -0.2]]
    found = watched(MUDHoG(min_overlap=1), [rows] * 4)
    assert found == [{}, {}, {3: ("sign flip", False)}, {3: ("sign flip", True)}]


def test_median_and_cosines_of_the_table():
    shorts = dict(enumerate(whole([[1.0, 0.2], [0.9, 0.1], [1.1, 0.3], [-1.0, -0.2]])))
    params = {"w": torch.zeros(2).double()}
    assert _median(list(shorts.values()), params).values()["w"].tolist() == pytest.approx([0.95, 0.15])
    found = _cosines(shorts, list(shorts.values()), params, 1)
    assert [found[c] for c in range(4)] == pytest.approx([0.9992, 0.9989, 0.9940, -0.9992], abs=5e-5)


def test_who_is_clean_again_is_cleared_until_it_is_confirmed():
    """Suspected in rounds 3, 5 and 6: the first does not count in 5, two in a row are enough, and that stays."""
    good = [[1.0, 0.2], [0.9, 0.1], [1.1, 0.3]]
    rounds = [[*good, [-1.0, -0.2] if number in (3, 5, 6) else [1.0, 0.2]] for number in range(1, 9)]
    found = watched(MUDHoG(window=1, silhouette=1.0, min_overlap=1), rounds)
    once, sure = {3: ("sign flip", False)}, {3: ("sign flip", True)}
    assert found == [{}, {}, once, {}, once, sure, sure, sure]


@pytest.mark.parametrize(("min_samples", "is_noise"), [(2, False), (3, True), (6, True), (7, False)])
def test_min_samples_takes_effect(min_samples, is_noise):
    """Two near one another, apart from six: a cluster of their own for 2, in none for 3 to 6; for 7 there is none."""
    rows = [[10.0, 0.1 * i] for i in range(6)] + [[10.0, 8.0], [10.0, 8.5]]
    part = MUDHoG(start=1, eps=0.2, min_samples=min_samples, silhouette=1.0, min_overlap=1)
    assert watched(part, [rows]) == [dict.fromkeys((6, 7), ("noise", False)) if is_noise else {}]


def crowd(rounds, size=400, seed=0):
    """40 clients: 21 honest of whom 4 are unreliable, 5 flip signs, 6 add noise, 8 are after a class of their own."""
    rng = torch.Generator().manual_seed(seed)
    way, goal = torch.randn(size, generator=rng).double(), torch.randn(size, generator=rng).double()
    found = []
    for _ in range(rounds):
        rows = []
        for client in range(40):
            own = way + 0.3 * torch.randn(size, generator=rng).double()
            if client < 5:
                own = -own
            elif client < 11:
                own = own + 3.0 * torch.randn(size, generator=rng).double()
            elif client < 19:
                own = way + 0.6 * goal + 0.3 * torch.randn(size, generator=rng).double()
            elif client < 23:
                own = 0.9 * way + 0.8 * torch.randn(size, generator=rng).double()
            rows.append(own.tolist())
        found.append(rows)
    return found


def test_19_of_40_hostile_clients_in_their_kinds():
    last = watched(MUDHoG(eps=0.7), crowd(12))[-1]
    kinds = {"sign flip": range(5), "noise": range(5, 11), "targeted": range(11, 19), "unreliable": range(19, 23)}
    for kind, clients in kinds.items():
        assert {c for c, (k, sure) in last.items() if k == kind and sure} == set(clients), kind
    assert set(last) == set(range(23))


def test_precision_and_recall_of_the_crowd():
    """From the round in which a kind may first be confirmed, 4 of signs and noise and 6 of targeted, all and only they.

    Precision is the share of the confirmed who are malicious, recall the share of the 19 malicious who are confirmed.
    """
    found, bad = watched(MUDHoG(eps=0.7), crowd(8)), set(range(19))
    sure = [{c for c, (k, is_sure) in now.items() if is_sure and k != "unreliable"} for now in found]
    assert [len(s & bad) / len(s) if s else None for s in sure] == [None] * 3 + [1.0] * 5
    assert [len(s & bad) / 19 for s in sure] == [0.0] * 3 + [11 / 19] * 2 + [1.0] * 3
    assert {c: found[2][c] for c in (5, 11)} == {5: ("noise", False), 11: ("targeted", False)}


@pytest.mark.parametrize("unit", [1e-3, 1e4])
def test_verdicts_have_no_unit(unit):
    """eps is a share of the median length, so that longer updates, of a larger model say, are judged alike."""
    rounds = crowd(6, size=60)
    scaled = [[[unit * x for x in row] for row in rows] for rows in rounds]
    part = MUDHoG(eps=0.7)
    expected = watched(part, rounds)
    assert {kind for kind, _ in expected[-1].values()} >= {"sign flip", "noise"}
    assert watched(part, scaled) == expected


def test_nobody_is_accused_where_all_are_honest():
    rng = torch.Generator().manual_seed(3)
    way = torch.randn(200, generator=rng).double()
    rounds = [(way + 0.4 * torch.randn(15, 200, generator=rng).double()).tolist() for _ in range(10)]
    assert watched(MUDHoG(), rounds) == [{}] * 10


def test_watch_reports_or_excludes():
    rows = [[1.0, 0.2], [0.9, 0.1], [1.1, 0.3], [-100.0, -0.2]]
    params, results = {"w": torch.zeros(2).double()}, {}
    for exclude in (False, True):
        part = Watch(MUDHoG(min_overlap=1), Mean("holders"), exclude=exclude)
        state = part.init(params, None)
        for _ in range(4):
            got, state = part.reduce(whole(rows), state, params, senders(4))
        results[exclude] = got.values()["w"].tolist()
        told = part.told(state)
        assert told["suspects"][0]["client"] == 3
        assert told["suspects"][0]["kind"] == "sign flip"
        assert told["excluded"] == ([3] if exclude else [])
    assert results[False][0] == pytest.approx((3.0 - 100.0) / 4)
    assert results[True] == pytest.approx([1.0, 0.2])
    with pytest.raises(ValueError, match=r"Watch\(MUDHoG\(.*\)\): needs to know who sent each update, got 4"):
        part.reduce(whole(rows), state, params)


@pytest.mark.parametrize("wild", [[3e38] * 60, [2e38] * 60, [-3e38, 1.0] * 30, [math.inf] * 60, [math.nan] * 60])
def test_who_sends_more_than_can_be_summed_is_suspected_and_hides_nobody(wild):
    """Three times 2e38 is no float32, though each is; the others are judged as if it had not been there."""
    part, params, size = MUDHoG(eps=0.7), {"w": torch.zeros(60)}, 60
    alone, beside = part.init(params, None), part.init(params, None)
    for rows in crowd(6, size=size):
        expected, alone = part.judge(whole(rows, torch.float32), senders(40), alone, params)
        verdicts, beside = part.judge(whole([*rows, wild], torch.float32), senders(41), beside, params)
        assert [v for v in verdicts if v.client != 40] == expected
    assert {"sign flip", "noise"} <= {v.kind for v in expected}
    assert [(v.kind, v.is_confirmed, v.is_out) for v in verdicts if v.client == 40] == [("noise", True, True)]


def test_nobody_else_is_needed_to_suspect_who_cannot_be_summed():
    part, params = MUDHoG(start=1), {"w": torch.zeros(20)}
    verdicts, _ = part.judge(whole([[math.inf] * 20] * 3), senders(3), part.init(params, None), params)
    assert [(v.client, v.kind, v.is_confirmed) for v in verdicts] == [(c, "noise", False) for c in range(3)]


def test_two_replies_of_one_client_in_a_commit_are_one_round_of_suspicion():
    """As where commits hold replies and not clients: one that was late, and the next one."""
    part, clients = MUDHoG(start=1, delay=2), [0, 1, 2, 3, 4, 5, 5]
    rows = [[-1.0 if client == 5 else 1.0] * 20 for client in clients]
    state = part.init({"w": torch.zeros(20)}, None)
    verdicts, state = part.judge(whole(rows), sent_by(*clients), state, {"w": torch.zeros(20)})
    assert [(v.client, v.kind, v.is_confirmed) for v in verdicts] == [(5, "sign flip", False)]
    assert state.clients[5].suspected == {"sign flip": 1}
    assert len(state.clients[5].last) == 2


def test_of_two_clusters_of_the_same_size_none_is_the_smaller():
    part, rows = MUDHoG(start=1, eps=9.0), [[9.0, 1.0] * 5] * 3 + [[1.0, 9.0] * 5] * 3
    for order in (range(6), range(5, -1, -1)):
        state = part.init({"w": torch.zeros(10)}, None)
        updates = whole([rows[client] for client in order])
        assert part.judge(updates, sent_by(*order), state, {"w": torch.zeros(10)})[0] == []
    updates = whole([*rows, rows[0]])
    found, _ = part.judge(updates, sent_by(*range(7)), part.init({"w": torch.zeros(10)}, None), {"w": torch.zeros(10)})
    assert [(v.client, v.kind) for v in found] == [(3, "targeted"), (4, "targeted"), (5, "targeted")]


def test_refusals():
    with pytest.raises(ValueError, match=r"MUDHoG\(window=0\): must be at least 1, got 0\."):
        MUDHoG(window=0)
    with pytest.raises(ValueError, match=r"MUDHoG\(eps=0\.0\): must be above 0, got 0\.0\."):
        MUDHoG(eps=0.0)
    assert Watch(MUDHoG(), Median()).inner == Median()
