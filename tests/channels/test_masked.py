"""Masked sums against plain ones: every index, every loss, both layouts; and what is refused when it is built."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from partwise.aggregators import Mean
from partwise.channels import Coded, Masked, protocol
from partwise.channels.graphs import Degree, RandomRegular, harary
from partwise.channels.identities import SimulatedIdentities
from partwise.core.aggregate import sum_updates
from partwise.core.index import Coords, Whole
from partwise.core.update import Update
from toy_exchange import PARAMS, dense, plain, play, rows, seat_of, whole

KINDS = {
    "semi-honest": Masked(max_weight=4, min_contributors=3),
    "active": Masked(max_weight=4, min_contributors=3, identities=SimulatedIdentities(3)),
    "sparse": Masked(max_weight=4, min_contributors=3, layout="sparse"),
}
EVERYTHING = {c: whole(c, c % 3 + 1) for c in (1, 2, 5, 8, 40)}
PARTS = {c: rows(c, at, c % 3 + 1) for c, at in enumerate([{0, 3, 4}, {0, 3, 8}, {3, 0}, {0, 3, 4, 8}, {3, 4, 8}])}


def agrees(it, updates, clients, channel, but=()):
    """The sum of those clients, at most a step off for each unit of weight."""
    assert it.opened is not None, (it.failure, it.refusals)
    assert sorted(it.opened.clients) == sorted(clients)
    value, weight = dense(it.sum)
    right, heavy = plain(updates, clients)
    for name in PARAMS:
        away = (value[name] - right[name]).abs()
        for at in but:  # rows of E
            if name == "E":
                assert not value[name][at].any()
                away[at], heavy[name][at] = 0, 0
        assert torch.equal(weight[name], heavy[name])
        assert (away <= heavy[name] * channel.step + 1e-6).all()
    assert it.sum.count == len(clients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_agrees_on_a_key_for_shares_and_one_for_masks_once(kind, monkeypatch):
    agreed, agree = [], protocol.agree
    monkeypatch.setattr(protocol, "agree", lambda *keys: agreed.append(keys) or agree(*keys))
    updates = PARTS if kind == "sparse" else EVERYTHING
    assert play(KINDS[kind], updates).opened is not None
    assert len(agreed) == len(set(agreed)) == 2 * 5 * 4  # each of five with each of the others


@pytest.mark.parametrize("kind", KINDS)
def test_sum_of_everybody(kind):
    updates = PARTS if kind == "sparse" else EVERYTHING
    it = play(KINDS[kind], updates)
    agrees(it, updates, updates, KINDS[kind])
    told = it.opened.told
    examples = {c: 10 + c for c in updates}
    assert told["examples"] == sum(examples.values())
    assert told["loss"] == pytest.approx(sum(e * 0.5 * c for c, e in examples.items()) / told["examples"], abs=1e-3)
    assert it.sum.total == sum(u.weight for u in updates.values())
    assert not it.refusals
    assert not it.opened.refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", range(5))
def test_losses_at_every_step(kind, step):
    """Any of five clients lost together at one step: three are enough to open the sum of those who were heard."""
    channel, updates = KINDS[kind], PARTS if kind == "sparse" else EVERYTHING
    threshold = 4 if kind == "active" and step else 3  # before the keys are known, it goes by those who stay
    for size in range(4):
        for gone in list(itertools.combinations(updates, size))[:: 1 if size < 2 else 3]:
            it = play(channel, updates, lost=dict.fromkeys(gone, step))
            is_asked = step < (5 if kind == "active" else 4)
            if is_asked and len(updates) - size < threshold:
                assert it.opened is None
                assert "Nothing was opened" in it.failure
                continue
            heard = [c for c in updates if c not in gone] if step < 3 else list(updates)
            few = {0: {0, 1, 2, 3}, 3: set(range(5)), 4: {0, 3, 4}, 8: {1, 3, 4}}
            counted = set(updates) if step > (1 if kind == "sparse" else 0) else set(heard)
            rare = [row for row, of in few.items() if len(of & counted) < 3] if updates is PARTS else []
            agrees(it, updates, heard, channel, rare)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, 6), min_size=7, max_size=7))
def test_losses_at_any_steps(kind, steps):
    """Clients lost at different steps; 6 is never. Failing closed, or right."""
    channel = KINDS[kind]
    updates = {c: rows(c, {0, 2, c % 2 + 4}, c % 3 + 1) for c in range(7)}
    it = play(channel, updates, lost={c: step for c, step in enumerate(steps) if step < 6})
    asked = [c for c in updates if steps[c] > 0]
    threshold = 2 * len(asked) // 3 + 1 if kind == "active" else len(asked) // 2 + 1
    left = sum(step >= (5 if kind == "active" else 4) for step in steps)
    summed = [c for c in updates if steps[c] > 2]
    if len(summed) < max(3, threshold) or left < threshold:
        assert it.opened is None
        assert it.failure
        return
    assert list(it.opened.clients) == summed
    value, weight = dense(it.sum)
    right, heavy = plain(updates, summed)
    assert torch.equal(weight["w"], heavy["w"])
    assert (value["w"] - right["w"]).abs().max() <= float(heavy["w"].max()) * channel.step + 1e-6


@dataclass(frozen=True)
class Fixed:
    """The ring of 8 with 4 neighbours, of whom 3 open a secret."""

    keeps_own: bool
    is_server_drawn: bool = True

    def degree(self, clients: int, *, is_active: bool) -> Degree:
        return Degree(4, 3)

    def edges(self, clients: Sequence[int], neighbours: int) -> Mapping[int, tuple[int, ...]]:
        return harary(clients, neighbours)


@pytest.mark.parametrize(("keeps_own", "most", "passing"), [(False, 2, 9), (True, 3, 45)])
def test_losses_on_a_graph(keeps_own, most, passing):
    """Of the patterns of loss of the specification, exactly those are opened that leave 3 holders of every secret."""
    channel, found = Masked(max_weight=4, min_contributors=3, graph=Fixed(keeps_own)), 0
    updates = {c: Update(Coords({"w": (3, 2)}, {"w": torch.tensor([0, 5])}), {"w": torch.tensor([0.25, -0.1 * c])})
               for c in range(8)}  # fmt: skip
    for size in range(most + 1):
        for gone in itertools.combinations(range(8), size):
            it = play(channel, updates, lost=dict.fromkeys(gone, 2))
            if it.opened is not None:
                agrees(it, updates, [c for c in updates if c not in gone], channel)
                found += 1
    assert found == passing


def test_a_drawn_graph():
    channel = Masked(max_weight=1, graph=RandomRegular(corrupt=0.02, lost=0.05, security_bits=10, failure_bits=4))
    small = {"w": torch.zeros(3, 2)}
    updates = {c: whole(c, params=small) for c in range(40)}
    degree = channel.graph.degree(40, is_active=False)
    assert degree.neighbours < 39
    for lost in ({}, {3: 2}, {5: 1, 30: 3}):
        it = play(channel, updates, lost=lost)
        assert len(it.asked[1][0].clients) == degree.neighbours + 1
        heard = [c for c in updates if lost.get(c, 9) > 2]
        assert sorted(it.opened.clients) == heard
        expected = sum(updates[c].values()["w"].double() for c in heard)
        assert it.sum.value["w"].double() == pytest.approx(expected, abs=40 * channel.step)


def test_a_finer_layout_than_the_client_holds():
    """One holds all of a table, one rows, one single coordinates: coordinates are summed."""
    single = Update(Coords({"E": (9, 2)}, {"E": torch.tensor([0, 7, 8])}), {"E": torch.tensor([0.1, 0.2, -0.4])}, 2.0)
    updates = {0: whole(0, 3.0), 1: rows(1, {0, 3, 4}, 2.0), 2: single, 3: whole(3), 4: rows(4, {4})}
    channel = Masked(max_weight=3, min_contributors=3)
    it = play(channel, updates)
    right, heavy = plain(updates, updates)
    counts = {n: torch.zeros(t.shape) for n, t in PARAMS.items()}
    for update in updates.values():
        update.index.cover_(counts, 1.0)
    value, weight = dense(it.sum)
    for name, count in counts.items():
        enough = count >= 3
        assert torch.equal(weight[name], torch.where(enough, heavy[name], 0))
        assert (value[name] - torch.where(enough, right[name], 0)).abs().max() <= 9 * channel.step + 1e-6
    assert it.opened.told["withheld"] > 0


@pytest.mark.parametrize("kind", [Masked, Coded])
def test_a_parameter_of_no_values(kind):
    values = {"none": torch.zeros(0, 3), "w": torch.tensor([0.5, -0.25, 0.125])}
    params = {name: torch.zeros_like(t) for name, t in values.items()}
    index = Whole({name: tuple(t.shape) for name, t in values.items()})
    it = play(kind(max_weight=2, min_contributors=3), {c: Update(index, values, 2.0) for c in range(5)}, params=params)
    assert it.opened is not None, (it.failure, it.refusals)
    assert it.sum.value["none"].shape == (0, 3)
    # 5 clients of weight 2: 10 times the values, each of which is at most a step off
    assert (it.sum.value["w"] - torch.tensor([5.0, -2.5, 1.25])).abs().max() <= 10 * 2.0 / (2**16 - 1)


def test_weights_by_row():
    """A row that is sent as padding weighs nothing, and is not there for the mean."""
    at = {"E": torch.tensor([2.0, 0.0, 1.0]), "w": torch.tensor(1.0), "b": torch.tensor(1.0)}
    updates = {c: rows(c, {1, 5, 6}, at) for c in range(3)}
    channel = Masked(max_weight=2, min_contributors=3)
    for layout in ("union", "sparse"):
        it = play(Masked(max_weight=2, min_contributors=3, layout=layout), updates)
        agrees(it, updates, updates, channel)
        assert it.sum.index.rows["E"].tolist() == [1, 6]
        assert it.sum.total == 6.0


@settings(max_examples=20, deadline=None)
@given(st.lists(strategies.updates(), min_size=3, max_size=5))
def test_any_indices(drawn):
    """Whole values in -3..3 are levels of their own, so the sum is the plain one to the last bit."""
    params = strategies.params(0.0)
    updates = {c: Update(d[0].index, d[0].value, d[0].weight) for c, d in enumerate(drawn)}
    channel = Masked(limit=2047, bits=12, max_weight=64, min_contributors=3)  # a step is 1
    seats = {c: seat_of(c, params=params) for c in updates}
    it = play(channel, updates, params=params, seats=seats)
    counts = {n: torch.zeros_like(t) for n, t in params.items()}
    for update in updates.values():
        update.index.cover_(counts, 1.0)
    expected = sum_updates(updates.values(), params)
    value = {n: torch.zeros_like(t) for n, t in params.items()}
    other = {n: torch.zeros_like(t) for n, t in params.items()}
    it.sum.index.scatter_add_(value, it.sum.value)
    expected.index.scatter_add_(other, expected.value)
    for name, count in counts.items():
        assert torch.equal(value[name], torch.where(count >= 3, other[name], 0.0))


def test_the_mean_is_the_plain_one():
    """With `count`, each averaged entry is less than a step off, and on average not at all."""
    updates = {c: rows(c, {0, 3, 4}, 1.0) for c in range(5)}
    channel = Masked(bits=8, max_weight=1, min_contributors=3)
    right = Mean("holders").reduce(sum_updates(updates.values(), PARAMS), (), PARAMS)[0].values()["E"]
    errors = []
    for seed in range(30):
        seats = {c: seat_of(c, rng=torch.Generator().manual_seed(seed * 5 + c)) for c in updates}
        found = Mean("holders").reduce(play(channel, updates, seats=seats).sum, (), PARAMS)[0].values()["E"]
        errors.append(found - right)
        assert errors[-1].abs().max() < channel.step
    # The error of a mean of 5 has at most half a step / sqrt(5) as its deviation; 4 deviations of the mean of 30.
    assert torch.stack(errors).mean(0).abs().max() < 4 * channel.step / 2 / 5**0.5 / 30**0.5


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_values_of_the_largest_cohort_do_not_run_over(sign):
    """Where others' sums of ten clients and more wrapped around: all at the limit, with the largest weight."""
    small = {"w": torch.zeros(2, 2)}
    updates = {c: Update(Whole({"w": (2, 2)}), {"w": torch.full((2, 2), 0.3 * sign)}, 511.0) for c in range(13)}
    channel = Masked(limit=0.3, max_weight=511)
    it = play(channel, updates, params=small)
    assert it.sum.value["w"].double() == pytest.approx(torch.full((2, 2), 13 * 511 * 0.3 * sign).double(), rel=1e-6)
    assert float(it.sum.weight["w"]) == 13 * 511


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Masked, Coded])
def test_half_precision_is_summed_as_it_is(kind, dtype):
    """Five times k / 8 for k = 0..5, at most five steps of 2 / 65534 off, and rounded to eight bits at the end."""
    small = {"w": torch.zeros(3, 2, dtype=dtype)}
    value = {"w": (torch.arange(6).reshape(3, 2) / 8).to(dtype)}
    updates = {c: Update(Whole({"w": (3, 2)}), value) for c in range(5)}
    it = play(kind(max_weight=1, min_contributors=3), updates, params=small)
    assert it.opened is not None, (it.failure, it.refusals)
    assert it.sum.value["w"].dtype == dtype
    assert it.sum.value["w"].double() == pytest.approx(5 * value["w"].double(), rel=2.0**-8, abs=1e-3)


@pytest.mark.parametrize("kind", [Masked, Coded])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_before_anything_is_sent(kind, bad):
    """NaN would be the code of -limit, and infinity that of the limit: the others' mean would hold it as a value."""
    update = Update(Whole({"w": (2,)}), {"w": torch.tensor([0.5, bad])})
    fine = Update(Whole({"w": (2,)}), {"w": torch.zeros(2)})
    params = {"w": torch.zeros(2)}
    for sent, loss in ((update, 0.0), (fine, bad)):
        side = kind().client(sent, params, seat_of(0, params=params, loss=loss))
        with pytest.raises(ValueError, match=r"needs a finite update and a finite loss, got NaN or infinity"):
            next(side)
    next(kind().client(fine, params, seat_of(0, params=params)))


def test_zero_stays_zero():
    nothing = {c: Update(Whole({"w": (3, 2)}), {"w": torch.zeros(3, 2)}, 3.0) for c in range(5)}
    assert not play(Masked(limit=0.3), nothing).sum.value["w"].any()


def test_numbers_of_clients_change_the_masks_and_not_the_sum():
    one = {c: whole(c) for c in range(5)}
    other = {90 - 7 * c: update for c, update in one.items()}
    seats = {90 - 7 * c: seat_of(90 - 7 * c, rng=torch.Generator().manual_seed(c)) for c in one}
    channel = Masked(min_contributors=3)
    here, there = play(channel, one), play(channel, other, seats=seats)
    assert all(torch.equal(here.sum.value[n], there.sum.value[n]) for n in PARAMS)


def test_masked_words_say_nothing():
    """The words of one client that sends zeros: chi-square over their low bytes; 99.9 % below 330.5."""
    params = {"w": torch.zeros(1 << 15)}
    updates = {c: Update(Whole({"w": (1 << 15,)}), {"w": torch.zeros(1 << 15)}) for c in range(5)}
    channel = Masked(bits=20, max_weight=2**9)  # a ring of 32 bits, whose words are not packed
    sent = play(channel, updates, params=params).answers[2][3]
    words = np.frombuffer(sent[-4 * (1 << 15) :], "<u4")
    for shift in (0, 23):
        counts = np.bincount((words >> shift) & 255, minlength=256)
        assert ((counts - 128) ** 2 / 128).sum() < 330.5


def test_two_rounds_have_nothing_in_common():
    updates = {c: whole(c) for c in range(5)}
    one, other = (play(Masked(), updates, session=s) for s in (1, 2))
    for step in range(3):
        for client in updates:
            a, b = one.answers[step][client], other.answers[step][client]
            assert a != b if step else a.keys != b.keys


@pytest.mark.parametrize("size", [1, 2])
def test_a_sum_of_one_or_two_is_refused(size):
    it = play(Masked(min_contributors=3), {c: whole(c) for c in range(size)})
    assert it.failure.startswith(f"masked sum 7: needs 3 clients that asked, got {size}. Nothing was opened")
    assert not it.asked


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"limit": 0}, r"needs a finite limit above 0"),
        ({"limit": math.inf}, r"limit=inf.*needs a finite limit above 0"),
        ({"bits": 33}, r"2\.\.32 bits"),
        ({"max_weight": 2**40}, r"the sum must fit into 64 bits, got 70"),
        ({"layout": "dense"}, r"must be 'union' or 'sparse'"),
        ({"min_contributors": 2}, r"must be at least 3, got 2: of two"),
        ({"patience_seconds": 0}, r"must be above 0"),
        ({"identities": SimulatedIdentities(), "layout": "sparse"}, r"got a layout that the server makes"),
        ({"identities": SimulatedIdentities(), "graph": RandomRegular()}, r"got a graph that the server makes"),
        ({"layout": "sparse", "graph": RandomRegular()}, r"rows are masked among all who hold them"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Masked(**settings)


@pytest.mark.parametrize("weight", [2.5, 6.0])
def test_weights_are_whole_and_small_enough(weight):
    with pytest.raises(
        ValueError, match=r"Masked\(max_weight=5\): weights are whole numbers in 0..5, got another\. Raise"
    ):
        play(Masked(max_weight=5), {c: whole(c, weight) for c in range(5)})


def test_sparse_sums_no_single_coordinates():
    single = Update(Coords({"E": (9, 2)}, {"E": torch.tensor([0, 7])}), {"E": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"sums whole parameters and rows, got single coordinates of \['E'\]"):
        play(Masked(layout="sparse"), dict.fromkeys(range(5), single))
    it = play(Masked(layout="sparse"), {c: rows(c, {1}) if c else whole(c) for c in range(5)})
    assert "all hold 'E' in the same units, got 'whole', of most others 'rows'" in it.failure
