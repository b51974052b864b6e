"""SybilWall: robustness.md §13, as far as a star has what it speaks of."""

import math

import pytest
import torch

from partwise.aggregators import FoolsGold, SybilWall
from partwise.aggregators.foolsgold import foolsgold_weights
from partwise.aggregators.sybilwall import _with_own
from partwise.core.codec import decode, encode
from toy_updates import moved, partial, senders, sent_by, value, whole


def raw_by_loops(rows):
    """FoolsGold's weights before they are divided by the largest, with plain floats."""

    def cos(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    m = len(rows)
    cs = [[cos(rows[i], rows[j]) if i != j else 0.0 for j in range(m)] for i in range(m)]
    most = [max(row) for row in cs]
    return [
        min(1.0, max(0.0, 1 - max(cs[i][j] * (most[i] / most[j] if most[i] < most[j] else 1.0) for j in range(m))))
        for i in range(m)
    ]


def scores_by_loops(rows, num):
    """Cut to the neighbours, and only then divided by their largest."""
    raw = raw_by_loops(rows)[:num]
    share = [min(w / max(raw), 0.99) for w in raw]
    return [min(1.0, max(0.0, math.log(w / (1 - w)) + 0.5)) if w else 0.0 for w in share]


def mean_with_own(rows, weights, own=1.0):
    total = sum(weights) + own
    return [sum(w * row[j] for w, row in zip(weights, rows, strict=True)) / total for j in range(len(rows[0]))]


def test_numbers_of_the_specification():
    """Scores .9 and .2 of neighbours at 10 and 20, own model 30: 20.476190 (not 10.625), by weights that sum to 1."""
    params = {"w": torch.tensor([30.0], dtype=torch.float64)}
    updates = whole([[10.0 - 30.0], [20.0 - 30.0]])
    got = _with_own(updates, params, torch.tensor([0.9, 0.2], dtype=torch.float64), 1.0, 1)
    assert 30.0 + got.values()["w"].item() == pytest.approx(20.476190, abs=1e-6)
    scores, plane = torch.tensor([0.9, 0.2], dtype=torch.float64), {"w": torch.zeros(2, dtype=torch.float64)}
    weights = _with_own(whole([[1.0, 0.0], [0.0, 1.0]]), plane, scores, 1.0, 1).values()["w"].tolist()
    assert [*weights, 1 - sum(weights)] == pytest.approx([0.428571, 0.095238, 0.476190], abs=1e-6)
    single = [moved(_with_own(whole([row]), params, torch.ones(1).double(), 1.0, 1)) for row in ([4.0], [0.0])]
    assert single == [{0: 2.0}, {0: 0.0}]


@pytest.mark.parametrize("seed", range(5))
def test_without_others_it_is_foolsgold_and_oneself(seed):
    rows = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed)).double().tolist()
    expected = mean_with_own(rows, scores_by_loops(rows, 6))
    assert value(SybilWall(), rows) == pytest.approx(expected, abs=1e-9)
    assert value(SybilWall(own=0.0), rows) == pytest.approx(value(FoolsGold(), rows), abs=1e-12)


def test_dissimilar_neighbours_give_the_plain_mean():
    rows = [[3.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 8.0]]
    assert value(SybilWall(), rows) == pytest.approx([3 / 4, 5 / 4, 2.0])


@pytest.mark.parametrize("seed", range(5))
def test_with_others_against_plain_loops(seed):
    """Five were there before, of whom two come again; they are compared with the three that do not."""
    rows = torch.rand(7, 4, generator=torch.Generator().manual_seed(10 + seed)).double()
    part, params = SybilWall(), {"w": torch.zeros(4, dtype=torch.float64)}
    _, state = part.reduce(whole(rows[:5].tolist()), {}, params, sent_by(0, 1, 2, 3, 4))
    got, state = part.reduce(whole(rows[3:].tolist()), state, params, sent_by(1, 2, 5, 6))
    histories = [rows[1] + rows[3], rows[2] + rows[4], rows[5], rows[6], rows[0], rows[3], rows[4]]
    weights = scores_by_loops([h.tolist() for h in histories], 4)
    assert weights != pytest.approx(scores_by_loops([h.tolist() for h in histories[:4]], 4))
    assert got.values()["w"].tolist() == pytest.approx(mean_with_own(rows[3:].tolist(), weights), abs=1e-9)
    assert list(state) == [0, 3, 4, 1, 2, 5, 6]
    assert foolsgold_weights(torch.eye(3).double(), num=2)[0].tolist() == [1.0, 1.0]


def test_crowd_that_comes_one_by_one_is_seen():
    """Each commit has three honest clients and a new Sybil: FoolsGold follows it, SybilWall does not."""
    rng = torch.Generator().manual_seed(5)
    honest = [[1.0, 0.1, 0.0, 0.0], [0.0, 1.0, 0.1, 0.0], [0.0, 0.0, 1.0, 0.1]]
    params, last = {"w": torch.zeros(4, dtype=torch.float64)}, {}
    for part in (FoolsGold(), SybilWall()):
        state = part.init(params, None)
        for number in range(6):
            sybil = (torch.tensor([-1.0, -1.0, -1.0, 9.0]) + 1e-3 * torch.randn(4, generator=rng)).double()
            updates = whole([*honest, sybil.tolist()])
            got, state = part.reduce(updates, state, params, sent_by(0, 1, 2, 100 + number))
        last[type(part)] = got.values()["w"].tolist()
    assert last[FoolsGold][3] > 2.0
    assert last[SybilWall][3] < 0.1
    assert min(last[SybilWall][:3]) > 0.2


def test_more_sybils_do_not_help():
    honest = [[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]]
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    for crowd in (2, 5, 40):
        _, state = SybilWall().reduce(whole([[0.0, -1.0, 9.0]]), {}, params, sent_by(1000))
        got, _ = SybilWall().reduce(whole([*honest, *[[0.0, -1.0, 9.0]] * crowd]), state, params, senders(2 + crowd))
        assert got.values()["w"].tolist() == pytest.approx(mean_with_own(honest, [1.0, 1.0]), abs=1e-9)


def test_all_like_somebody_else_move_nothing():
    params = {"w": torch.zeros(2, dtype=torch.float64)}
    for own in (0.0, 1.0):
        _, state = SybilWall(own=own).reduce(whole([[1.0, 2.0]]), {}, params, sent_by(7))
        got, _ = SybilWall(own=own).reduce(whole([[2.0, 4.0]] * 2), state, params, sent_by(8, 9))
        assert moved(got) == {0: 0.0, 1: 0.0}


def test_memory_is_bounded_and_keeps_whom_it_heard_of_last():
    part, params, state = SybilWall(remembered=3), {"w": torch.zeros(2, dtype=torch.float64)}, {}
    for client in (5, 4, 3, 2, 5, 1):
        _, state = part.reduce(whole([[1.0, float(client)]]), state, params, sent_by(client))
        assert len(state) <= 4
        state = decode(encode(state))
    assert list(state) == [3, 2, 5, 1]
    assert state[5].values()["w"].tolist() == [2.0, 10.0]


@pytest.mark.parametrize("part", [FoolsGold(), SybilWall(own=0.0)])
def test_two_updates_of_one_client_are_no_crowd(part):
    """As when replies are buffered: both count as much as their sender."""
    params = {"w": torch.zeros(2, dtype=torch.float64)}
    start = part.init(params, None)
    got, _ = part.reduce(whole([[3.0, 0.0], [6.0, 0.0], [0.0, 9.0]]), start, params, sent_by(4, 4, 5))
    assert got.values()["w"].tolist() == pytest.approx([3.0, 3.0])


def test_submodels_with_the_model_itself():
    """A coordinate is the mean over its holders and the model; what nobody holds is left out."""
    got, _ = SybilWall().reduce(
        partial([{0: 4.0, 1: 2.0}, {2: 6.0}]), {}, {"w": torch.zeros(5, dtype=torch.float64)}, senders(2)
    )
    assert moved(got) == {0: 2.0, 1: 1.0, 2: 3.0}
    few, _ = SybilWall(min_holders=2).reduce(
        partial([{0: 4.0, 1: 2.0}, {1: -6.0, 2: 6.0}]), {}, {"w": torch.zeros(5, dtype=torch.float64)}, senders(2)
    )
    assert moved(few) == pytest.approx({1: -4 / 3})


def test_refusals():
    with pytest.raises(ValueError, match=r"SybilWall\(kappa=0\): must be finite and above 0, got 0\. Use 1\."):
        SybilWall(kappa=0)
    with pytest.raises(ValueError, match=r"SybilWall\(remembered=0\): must be at least 1, got 0\. Raise it\."):
        SybilWall(remembered=0)
    with pytest.raises(ValueError, match=r"SybilWall\(own=-1\): must be finite and at least 0, got -1\. 1 is usual\."):
        SybilWall(own=-1)
    with pytest.raises(ValueError, match=r"needs to know who sent each update, got 1 updates and 0 senders"):
        SybilWall().reduce(whole([[1.0]]), {}, {"w": torch.zeros(1)})
