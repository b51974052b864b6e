"""Unions against plain ones, whatever is lost; filters and residues by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwise.channels import unions
from partwise.channels.identities import SimulatedIdentities
from partwise.channels.ring import Ring
from partwise.channels.unions import (
    Bitmap,
    Bloom,
    FilterSize,
    MaskedUnion,
    bloom_size,
    false_negatives,
    false_positives,
)
from partwise.core.index import Rows
from partwise.core.update import Update
from toy_exchange import play

TABLES = {"E": torch.zeros(60, 3), "F": torch.zeros(7, 2)}


def holding(e, f=()):
    index = Rows({n: tuple(t.shape) for n, t in TABLES.items()}, {"E": torch.tensor(sorted(e), dtype=torch.int64),
                 "F": torch.tensor(sorted(f), dtype=torch.int64)})  # fmt: skip
    return Update(index, {})


def found(it):
    assert it.opened is not None, (it.failure, it.refusals)
    return {n: r.tolist() for n, r in it.opened.got.index.rows.items()}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 59)), st.sets(st.integers(0, 6))), min_size=5, max_size=7))
def test_union(sets):
    it = play(MaskedUnion(), {c: holding(*s) for c, s in enumerate(sets)}, params=TABLES)
    assert found(it) == {
        "E": sorted(set().union(*(e for e, _ in sets))),
        "F": sorted(set().union(*(f for _, f in sets))),
    }
    assert it.opened.got.count == len(sets)


@pytest.mark.parametrize("step", range(4))
def test_losses(step):
    channel = MaskedUnion(min_contributors=3, identities=SimulatedIdentities() if step == 3 else None)
    updates = {c: holding({c, 10 + c}) for c in range(6)}
    for gone in ([], [1], [1, 4]):
        it = play(channel, updates, params=TABLES, lost=dict.fromkeys(gone, step))
        if step == 3 and len(gone) == 2:
            assert "needs 5 clients that signed" in it.failure  # two thirds and one
            continue
        heard = [c for c in updates if step > 2 or c not in gone]
        assert found(it)["E"] == sorted([*heard, *(10 + c for c in heard)])


def test_nobody_says_what_it_holds():
    updates = {c: holding({c}) for c in range(5)}
    it = play(MaskedUnion(), updates, params=TABLES)
    assert all(message.held is None for message in it.answers[0].values())

    def tell(step, client, said):
        return said._replace(held=(1,)) if step == 0 and client == 1 else said

    told = play(MaskedUnion(), updates, params=TABLES, answer=tell)
    assert "nobody says what it holds" in told.failure


def test_another_table():
    other = {"E": torch.zeros(61, 3), "F": torch.zeros(7, 2)}
    updates = {c: holding({c}) for c in range(5)}

    def change(step, client, said):
        return said._replace(layout=type(said.layout)(32, 3)) if step == 1 else said

    it = play(MaskedUnion(), updates, params=TABLES, ask=change)
    assert "the filter has 67 places of 32 bits, got 3 of 32" in it.refusals[2]
    assert MaskedUnion()._rules(TABLES).config != MaskedUnion()._rules(other).config


def test_bloom():
    rng = np.random.default_rng(5)
    tables = {"E": torch.zeros(20_000, 1)}
    sets = [np.unique(rng.choice(20_000, 40)) for _ in range(5)]
    updates = {c: Update(Rows({"E": (20_000, 1)}, {"E": torch.from_numpy(s)}), {}) for c, s in enumerate(sets)}
    it = play(MaskedUnion(Bloom(200, 0.02)), updates, params=tables)
    union, got = set(np.concatenate(sets).tolist()), set(found(it)["E"])
    assert union <= got
    # 0.02 of 19 800 are 396 on average; the share itself varies with where the bits fall.
    assert 200 < len(got - union) < 700
    assert len(it.answers[2][0]) < 8000 < 20_000 * 4


def test_sizes_of_the_specification():
    size = bloom_size(1000, 0.01)
    assert size == FilterSize(9586, 7)
    assert false_positives(size, 1000) == pytest.approx(0.01003, abs=1e-5)
    assert false_positives(size, 5000) == pytest.approx(0.83, abs=0.005)
    assert false_positives(FilterSize(10_000, 1), 1000) == pytest.approx(0.0952, abs=5e-5)
    assert false_positives(FilterSize(10_000, 7), 1000) == pytest.approx(0.0082, abs=5e-5)


def test_places_of_a_filter_are_spread_and_the_same_everywhere():
    bloom = Bloom(1000)
    at = bloom.at(np.arange(5000), 5000)
    assert np.array_equal(at[[7, 99]], bloom.at(np.array([7, 99]), 5000))
    counts = np.bincount(at.reshape(-1), minlength=9586)
    assert counts.sum() == 35_000
    # Poisson with a mean of 3.65: empty with e^-3.65.
    assert (counts == 0).mean() == pytest.approx(math.exp(-35_000 / 9586), abs=0.004)
    assert Bitmap().at(np.array([3, 5]), 9).tolist() == [[3], [5]]


@pytest.mark.parametrize(("holders", "chance"), [(1, 0), (2, 1 / 4), (3, 3 / 16), (4, 13 / 64)])
def test_rows_that_are_missed(holders, chance):
    """By enumeration modulo 5."""
    sums = [sum(draw) % 5 == 0 for draw in itertools.product(range(1, 5), repeat=holders)]
    assert np.mean(sums) == chance == pytest.approx(false_negatives(5, holders))
    if holders == 1:  # the released code draws zero as well
        assert np.mean([draw == 0 for draw in range(5)]) == 0.2


@pytest.mark.parametrize("holders", [2, 3, 9])
def test_a_sum_does_not_tell_how_many_hold(holders):
    """Modulo 16, given that it is not zero: nearly uniform over 15 residues; 99.9 % below 36.1 with 14 degrees.

    Of two holders exactly: every residue but zero comes about in 14 of 225 ways.
    """
    total = sum(Ring(4).random(30_000).astype(np.int64) for _ in range(holders)) % 16
    counts = np.bincount(total, minlength=16)[1:]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 36.1


@pytest.mark.parametrize(
    "wrong", [{"bits": 7}, {"min_contributors": 2}, {"patience_seconds": 0.0}], ids=["bits", "contributors", "patience"]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"MaskedUnion\(.*needs 8..64 bits, at least 3 contributors"):
        MaskedUnion(**wrong)
    with pytest.raises(ValueError, match=r"Bloom\(expected=0"):
        Bloom(0)


def test_a_sum_tells_no_number_of_holders(monkeypatch):
    """All six hold row 3, and one holds row 8: what the server adds up are residues, of which neither is a count."""
    opened, of_round = [], unions.open_sum

    def kept(*args):
        opened.append((yield from of_round(*args)))
        return opened[-1]

    monkeypatch.setattr(unions, "open_sum", kept)
    it = play(MaskedUnion(), {c: holding({3, 8} if c == 2 else {3}) for c in range(6)}, params=TABLES)
    assert found(it)["E"] == [3, 8]
    words = opened[0].dense
    assert words[3] not in range(7)  # by chance once in half a billion runs
    assert words[8] not in range(7)


def test_filters_of_several_tables_lie_one_after_another():
    """A filter is as long as the union may be large, and not as its table is."""
    it = play(MaskedUnion(Bloom(1000, 1e-9)), {c: holding({c, 40}, {c}) for c in range(5)}, params=TABLES)
    assert found(it) == {"E": [0, 1, 2, 3, 4, 40], "F": [0, 1, 2, 3, 4]}
