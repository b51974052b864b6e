"""Answers by enumeration of one row, and by frequency over many."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from partwise.algorithms.answers import NO, UNASKED, YES, Level, answered, said

SECRET = bytes(range(32))
TABLE = [  # a, p5, p6, epsilon ever, epsilon of a round
    (15 / 16, 0.8828125, 0.1171875, 2.7081, 2.0193),
    (7 / 8, 0.78125, 0.21875, 1.9459, 1.2730),
    (3 / 4, 0.625, 0.375, 1.0986, 0.5108),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]:g}")
def test_chances_of_the_specification(row):
    a, p5, p6, ever, once = row
    level = Level.even(a)
    assert (level.p5, level.p6) == (p5, p6)
    assert level.epsilon_ever == pytest.approx(ever, abs=5e-5)
    assert level.epsilon_round == pytest.approx(once, abs=5e-5)


@pytest.mark.parametrize("level", [Level(), Level(0.9, 0.2, 0.7, 0.1), Level(0.6, 0.6, 1.0, 0.0)], ids=repr)
def test_chances_by_enumeration(level):
    """Over the lasting answer and what is said of it."""
    for held, total in ((True, level.p5), (False, level.p6)):
        first = level.p1 if held else level.p2
        chance = 0.0
        for lasting, yes in itertools.product((True, False), repeat=2):
            second = level.p3 if lasting else level.p4
            chance += yes * (first if lasting else 1 - first) * second
        assert chance == pytest.approx(total, abs=1e-15)
    outcomes = [(level.p5, level.p6), (1 - level.p5, 1 - level.p6)]
    worst = max(max(a / b, b / a) for a, b in outcomes)
    assert math.exp(level.epsilon_round) == pytest.approx(worst)


@pytest.mark.parametrize(
    ("p", "ever", "once", "posterior", "asked", "kept"),
    [
        (1.0, math.inf, math.inf, 1.0, 301, 301),
        (15 / 16, 2.708050, 2.019338, 0.0707, 2574.2, 265.7),
        (7 / 8, 1.945910, 1.272966, 0.0348, 4544.3, 235.2),
        (3 / 4, 1.098612, 0.510826, 0.0166, 7575.3, 188.1),
    ],
)
def test_presets_of_the_secure_submodel_code(p, ever, once, posterior, asked, kept):
    level = Level.even(p)
    assert level.epsilon_ever == pytest.approx(ever, abs=5e-7)
    assert level.epsilon_round == pytest.approx(once, abs=5e-7)
    assert level.posterior(0.01) == pytest.approx(posterior, abs=5e-5)
    assert level.expected_rows(301, 20_000) == pytest.approx(asked, abs=0.051)
    assert 301 * level.p5 == pytest.approx(kept, abs=0.05)


def test_everything_is_said():
    level = Level(1, 1, 1, 1)
    assert (level.epsilon_ever, level.epsilon_round, level.posterior(0.01)) == (0, 0, 0.01)
    assert level.expected_rows(301, 20_000) == 20_000


def test_download_of_the_specification():
    level = Level()
    assert level.expected_rows(100, 10_000) == pytest.approx(1248.4, abs=0.05)
    assert 100 * level.p5 == pytest.approx(88.3, abs=0.05)


def test_many_rounds_tell_no_more_than_the_lasting_answer():
    level = Level.even(7 / 8)
    ratios = [level.log_ratio(rounds) for rounds in (1, 2, 3)]
    assert ratios == pytest.approx([1.272966, 1.815290, 1.926124], abs=5e-7)
    assert level.log_ratio(40) == pytest.approx(1.945910, abs=5e-7)
    assert max(ratios) < level.epsilon_ever


def test_popularity_of_the_specification():
    level = Level()
    expected = 30 * level.p5 + 970 * level.p6
    assert expected == pytest.approx(140.16, abs=0.005)
    found, deviation = level.popularity(expected, 1000)
    assert found == pytest.approx(30)
    assert deviation == pytest.approx(13.28, abs=0.005)
    with pytest.raises(ValueError, match="nothing can be told from answers that are the same for all"):
        Level(1, 1, 1, 1).popularity(3, 5)


def test_heat_by_answers():
    """A.6 of the submodel specification: one answer at 7/8 and 7/8, 50 of 1000 hold."""
    level = Level.even(7 / 8)
    ones = 50 * level.p5 + 950 * level.p6
    assert ones == pytest.approx(246.875)
    assert level.popularity(ones, 1000) == (pytest.approx(50), pytest.approx(23.24, abs=0.005))


@pytest.mark.parametrize("wrong", [(1.1, 0, 1, 0), (0.5, 0.6, 1, 0), (1, 0, 0.2, 0.3), (1, -0.1, 1, 0)])
def test_levels_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"Level\(.*chances lie in \[0, 1\], with p2 <= p1 and p4 <= p3, got"):
        Level(*wrong)


def fresh(size):
    return torch.full((size,), UNASKED, dtype=torch.uint8)


def test_frequencies():
    """20 000 rows each way; five deviations of a share of 20 000 are below 0.018."""
    size, level = 40_000, Level(0.9, 0.3, 0.8, 0.1)
    held = torch.arange(20_000)
    lasting = answered(fresh(size), range(size), held, level, SECRET, "E")
    assert float((lasting[:20_000] == YES).double().mean()) == pytest.approx(0.9, abs=0.018)
    assert float((lasting[20_000:] == YES).double().mean()) == pytest.approx(0.3, abs=0.018)
    yes = said(lasting, level, SECRET, "E|7")
    assert float((yes < 20_000).double().sum() / 20_000) == pytest.approx(level.p5, abs=0.018)
    assert float((yes >= 20_000).double().sum() / 20_000) == pytest.approx(level.p6, abs=0.018)
    again = set(said(lasting, level, SECRET, "E|8").tolist())
    both = len(again & set(yes.tolist())) / len(yes)
    assert 0.5 < both < 0.95  # drawn anew


def test_lasting_answers_last():
    level = Level()
    held = torch.tensor([3, 5])
    once = answered(fresh(50), range(10), held, level, SECRET, "E")
    assert (once[10:] == UNASKED).all()
    assert (once[:10] != UNASKED).all()
    later = answered(
        once, range(50), torch.arange(20), Level.even(0.75), bytes(32), "E"
    )  # it holds more, and answers by another level
    assert torch.equal(later[:10], once[:10])
    assert (later != UNASKED).all()


def test_presets():
    held = torch.tensor([1, 4, 7])
    for level, expected in ((Level(1, 0, 1, 0), [1, 4, 7]), (Level(1, 1, 1, 1), [1, *range(2, 9)])):
        lasting = answered(fresh(12), range(1, 9), held, level, SECRET, "E")
        assert said(lasting, level, SECRET, "E|1").tolist() == sorted(expected)
        assert set(lasting.tolist()) <= {UNASKED, NO, YES}


def test_answers_differ_by_secret_and_table():
    level, held = Level.even(0.75), torch.arange(0)
    draws = [
        answered(fresh(200), range(200), held, level, s, t).tolist()
        for s, t in ((SECRET, "E"), (bytes(32), "E"), (SECRET, "F"))
    ]
    assert draws[0] == answered(fresh(200), range(200), held, level, SECRET, "E").tolist()
    assert draws[0] != draws[1] != draws[2] != draws[0]
