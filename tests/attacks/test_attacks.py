"""Attacks by hand, and what they do to rules: the tables of robustness.md §7 to §9."""

import itertools
import math

import pytest
import torch

from partwise.aggregators import Krum, Mean, Median, TrimmedMean
from partwise.attacks import (
    AdditiveNoise,
    AfterRounds,
    ALittleIsEnough,
    Backdoor,
    CoverageAttack,
    EveryRound,
    GaussianReplace,
    Hostile,
    InnerProduct,
    LabelFlip,
    LabelSwap,
    Mixture,
    MultiLabelFlip,
    NegatedCrowd,
    PoorData,
    ReversedVote,
    SignFlip,
    SomeRounds,
    Sybils,
    VulnerableEdges,
)
from partwise.attacks.updates import little_enough
from partwise.core.aggregate import sum_updates
from partwise.core.attack import Scene, mean_and_std
from partwise.core.errors import DataError
from partwise.core.population import Examples
from partwise.core.update import Update
from toy_updates import aggregate, moved, partial, whole

HONEST = [-0.5, -0.2, 0.4, 0.8, 1.2, 1.5, 1.9]  # mean 0.728571


def scene(own, honest=(), seed=1):
    rows = own if isinstance(own[0], Update) else whole(own)
    others = list(honest) if not honest or isinstance(honest[0], Update) else whole(honest)
    params = {"w": torch.zeros(rows[0].index.shapes["w"], dtype=torch.float64)}
    return Scene(rows, others, params, 0, torch.Generator().manual_seed(seed))


def sent(attack, own, honest=()):
    return [u.values()["w"].tolist() for u in attack.forge(scene(own, honest))]


# ---- inner product --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "mean", "median"),
    [(0.1, 0.394643, -0.072857), (0.5, 0.273214, -0.282143), (2.0, -0.182143, -0.35)],
)
def test_inner_product_turns_the_median_before_the_mean(epsilon, mean, median):
    honest = whole([[x] for x in HONEST])
    bad = InnerProduct(epsilon).forge(scene([[0.0]] * 5, honest))
    params = {"w": torch.zeros(1, dtype=torch.float64)}
    everything = [u.unpacked() for u in [*honest, *bad]]
    ones = [type(u)(u.index, u.value) for u in everything]
    got, _ = Mean().reduce(sum_updates(ones, params), (), params)
    assert float(got.values()["w"]) == pytest.approx(mean, abs=1e-6)
    assert float(aggregate(Median(), everything).values()["w"]) == pytest.approx(median, abs=1e-6)


@pytest.mark.parametrize("hostile", range(1, 7))
@pytest.mark.parametrize("side", [0.999, 1.001])
def test_inner_product_turns_the_mean_beyond_the_honest_over_the_hostile(hostile, side):
    """ε > (m - q) / q, of seven honest scalars; for the table's five hostile that is 1.4."""
    limit = 7 / hostile
    assert hostile != 5 or limit == 1.4
    honest = whole([[x] for x in HONEST])
    bad = InnerProduct(side * limit).forge(scene([[0.0]] * hostile, honest))
    params = {"w": torch.zeros(1, dtype=torch.float64)}
    ones = [Update(u.index, u.value) for u in (u.unpacked() for u in [*honest, *bad])]
    got, _ = Mean().reduce(sum_updates(ones, params), (), params)
    assert (float(got.values()["w"]) < 0) == (side > 1)


@pytest.mark.parametrize(("epsilon", "is_taken"), [(0.1, True), (0.5, True), (10.0, False)])
def test_inner_product_against_krum(epsilon, is_taken):
    rng = torch.Generator().manual_seed(3)
    honest = (0.3 + 0.5 * torch.randn(7, 50, generator=rng)).double()
    bad = InnerProduct(epsilon).forge(scene([[0.0] * 50] * 4, honest.tolist()))
    got = aggregate(Krum(f=4), [*whole(honest.tolist()), *bad]).values()["w"]
    assert torch.allclose(got, -epsilon * honest.mean(0)) == is_taken


def test_attackers_that_see_nobody_use_what_they_have():
    assert sent(InnerProduct(2.0, is_omniscient=False), [[1.0], [3.0]], [[100.0]]) == [[-4.0], [-4.0]]
    assert sent(InnerProduct(2.0), [[1.0], [3.0]], [[100.0]]) == [[-200.0], [-200.0]]
    assert sent(InnerProduct(2.0), [[1.0], [3.0]]) == [[-4.0], [-4.0]]


# ---- a little is enough ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "q", "z"), [(50, 24, 1.426077), (51, 12, 0.361202), (25, 5, 0.253347), (10, 2, 0.0), (10, 4, 0.430727)]
)
def test_how_little_is_enough(n, q, z):
    assert little_enough(n, q) == pytest.approx(z, abs=1e-6)


def test_a_little_by_hand():
    got = sent(ALittleIsEnough(z=1.5), [[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])
    assert got == [pytest.approx([0.775255, 0.878680], abs=1e-6)] * 3  # population deviations, not sample ones
    assert sent(ALittleIsEnough(z=1.0, is_omniscient=True), [[0.0]], [[1.0], [3.0]]) == [[1.0]]
    assert sent(ALittleIsEnough(), [[1.0], [3.0]], [[0.0]]) == [[2.0 - 10 * 1.0]] * 2  # the majority: no more than ten


def test_a_little_moves_robust_rules_farther_than_the_mean():
    """n = 50, q = 24, d = 2000, honest N(0.1, 1)."""
    honest = 0.1 + torch.randn(26, 2000, generator=torch.Generator().manual_seed(0)).double()
    bad = ALittleIsEnough(is_omniscient=True).forge(scene([[0.0] * 2000] * 24, honest.tolist()))
    rows = torch.cat([honest, torch.stack([u.values()["w"] for u in bad])])
    updates = whole(rows.tolist())
    assert float(honest.mean()) == pytest.approx(0.099, abs=0.01)
    assert float(rows.mean()) == pytest.approx(-0.566, abs=0.03)
    assert float(aggregate(Median(), updates).values()["w"].mean()) == pytest.approx(-1.269, abs=0.04)
    assert float(aggregate(TrimmedMean(trim_count=24), updates).values()["w"].mean()) == pytest.approx(-1.269, abs=0.04)
    # With f = 24 of 50 Krum's own condition m >= 2f + 3 is not met; with 23 it still takes what is hostile.
    assert torch.equal(aggregate(Krum(f=23), updates).values()["w"], bad[0].values()["w"])


# ---- simple ones ----------------------------------------------------------------------------------------------------


def test_identities():
    own = [[1.5, -2.0], [0.25, 4.0]]
    once = SignFlip().forge(scene(own))
    assert [u.values()["w"].tolist() for u in SignFlip().forge(scene(once))] == own
    assert sent(AdditiveNoise(std=0.0), own) == own
    assert sent(AdditiveNoise(std=0.0, mean=1.0), own) == [[2.5, -1.0], [1.25, 5.0]]
    for row, flipped in zip(own, sent(SignFlip(10.0), own), strict=True):
        cosine = sum(a * b for a, b in zip(row, flipped, strict=True)) / (math.hypot(*row) * math.hypot(*flipped))
        assert cosine == pytest.approx(-1.0, abs=1e-12)
    data = Examples({"x": torch.zeros(10), "y": torch.arange(10)})
    twice = LabelFlip(10).poison(LabelFlip(10).poison(data, 0, 0), 0, 0)
    assert twice.columns()["y"].tolist() == list(range(10))
    twice = LabelSwap(2, 5).poison(LabelSwap(2, 5).poison(data, 0, 0), 0, 0)
    assert twice.columns()["y"].tolist() == list(range(10))


def test_labels():
    data = Examples({"y": torch.arange(10)})
    assert LabelFlip(10).poison(data, 0, 0).columns()["y"].tolist() == list(range(9, -1, -1))
    flipped = MultiLabelFlip().poison(data, 0, 0).columns()["y"].tolist()
    assert flipped == [0, 7, 7, 7, 4, 5, 6, 7, 8, 9]
    assert LabelSwap(0, 1).poison(data, 0, 0).columns()["y"].tolist() == [1, 0, *range(2, 10)]
    with pytest.raises(DataError, match=r"LabelFlip\(.*\): needs a column 'label', got \['y'\]\. Name the column"):
        LabelFlip(10, target="label").poison(data, 0, 0)


def test_noise_has_the_size_it_is_given():
    zeros = [[0.0] * 20000]
    for attack, std in ((AdditiveNoise(0.5), 0.5), (GaussianReplace(200.0), 200.0)):
        drawn = torch.tensor(sent(attack, zeros)[0])
        assert float(drawn.std()) == pytest.approx(std, rel=0.03)
        assert abs(float(drawn.mean())) < 0.05 * std
    assert sent(GaussianReplace(), [[1.0], [1.0]])[0] != sent(GaussianReplace(), [[1.0], [1.0]])[1]


def test_crowds():
    assert sent(NegatedCrowd(), [[1.0, 2.0], [5.0, 5.0]]) == [[-1.0, -2.0]] * 2
    assert sent(Sybils(SignFlip(2.0)), [[1.0, 2.0], [5.0, 5.0], [0.0, 1.0]]) == [[-2.0, -4.0]] * 3
    noisy = torch.tensor(sent(Sybils(SignFlip(), noise=0.1), [[3.0] * 500] * 4))
    assert float((noisy + 3.0).std()) == pytest.approx(0.3, rel=0.1)
    assert len({tuple(row) for row in noisy.tolist()}) == 4


def test_reversed_vote():
    """robustness.md §14: three honest rankings of the attackers; they send the reverse of their order 2, 0, 3, 1."""
    places = torch.tensor([[1, 3, 0, 2], [2, 3, 0, 1], [0, 3, 1, 2]])
    start = torch.arange(4).double()
    own = whole((places - start).tolist())
    bad = ReversedVote().forge(Scene(own, [], {"w": start}, 0, torch.Generator()))
    assert [(start + u.values()["w"]).argsort().tolist() for u in bad] == [[1, 3, 0, 2]] * 3


def used_after(totals, places, attackers, used):
    after = [t + attackers * p for t, p in zip(totals, places, strict=True)]
    return set(sorted(range(len(after)), key=lambda e: (after[e], e))[len(after) - used :])


@pytest.mark.parametrize(("used", "attackers"), [(2, 1), (3, 1), (3, 2), (4, 2)])
def test_no_vote_changes_more_edges_than_that_on_vulnerable_ones(used, attackers):
    """Of six edges and three honest orders, against all 720 orders that the attackers might send."""
    rng, start = torch.Generator().manual_seed(10 * used + attackers), torch.arange(6).double()
    for _ in range(5):
        honest = torch.stack([torch.randperm(6, generator=rng) for _ in range(3)]).double()
        totals = honest.sum(0).tolist()
        scene = Scene(whole([[0.0] * 6] * attackers), whole((honest - start).tolist()), {"w": start}, 0, rng)
        sent = [(start + u.values()["w"]).tolist() for u in VulnerableEdges(used / 6).forge(scene)]
        assert len(sent) == attackers
        assert all(vote == sent[0] for vote in sent)
        before = used_after(totals, [0.0] * 6, 0, used)
        each = [before - used_after(totals, p, attackers, used) for p in itertools.permutations(range(6))]
        assert len(before - used_after(totals, sent[0], attackers, used)) == max(map(len, each))


def test_vulnerable_edges_as_the_attackers_guess_them():
    """Their own two votes, for three honest: totals 3, 4.5, 9 and 1.5. Edge 0 comes for 1; for 2 nobody can."""
    start = torch.arange(4).double()
    own = whole((torch.tensor([[0, 2, 3, 1], [2, 1, 3, 0]]) - start).tolist())
    honest = whole([[0.0] * 4] * 3)
    bad = VulnerableEdges(is_omniscient=False).forge(Scene(own, honest, {"w": start}, 0, torch.Generator()))
    assert [(start + u.values()["w"]).tolist() for u in bad] == [[3.0, 0.0, 2.0, 1.0]] * 2
    with pytest.raises(ValueError, match=r"VulnerableEdges\(keep=1\.0\): must lie in \(0, 1\), got 1\.0"):
        VulnerableEdges(1.0)


def test_backdoor_marks_and_labels_some():
    data = Examples({"x": torch.zeros(400, 1, 5, 5), "y": torch.full((400,), 8)})
    attack = Backdoor(into=1, size=2, share=0.3, value=9.0, scale=4.0)
    poisoned = attack.poison(data, 3, 1).columns()
    marked = poisoned["x"][:, 0, -1, -1] == 9.0
    assert torch.equal(marked, poisoned["y"] == 1)
    assert 80 < int(marked.sum()) < 160
    assert float(poisoned["x"].sum()) == pytest.approx(9.0 * 4 * int(marked.sum()))
    assert torch.equal(attack.stamped(data).columns()["y"], data.columns()["y"])
    assert sent(attack, [[1.0, 2.0]]) == [[4.0, 8.0]]


def test_unreliable_clients_have_few_and_blurred_examples():
    data = Examples({"x": torch.randn(200, 3), "y": torch.arange(200)})
    got = PoorData(std=5.0, share=0.5, kept=0.3).poison(data, 1, 2).columns()
    assert len(got["y"]) == 60
    same = (got["x"] == data.columns()["x"][got["y"]]).all(1)
    assert 15 < int(same.sum()) < 45


# ---- submodels ------------------------------------------------------------------------------------------------------


def test_mean_and_deviation_are_over_holders():
    updates = partial([{0: 1.0, 1: 2.0}, {1: 4.0}, {1: 9.0, 3: -1.0}], size=4)
    mean, std = mean_and_std(updates, {"w": torch.zeros(4).double()})
    assert mean["w"].tolist() == [1.0, 5.0, 0.0, -1.0]
    assert std["w"].tolist() == pytest.approx([0.0, math.sqrt((9 + 1 + 16) / 3), 0.0, 0.0])


def test_attackers_keep_to_what_they_hold():
    own = partial([{0: 7.0, 2: 7.0}], size=4)
    honest = partial([{0: 1.0, 1: 2.0}, {0: 3.0, 2: 4.0}], size=4)
    assert moved(InnerProduct(1.0).forge(scene(own, honest))[0]) == {0: -2.0, 2: -4.0}


def test_coverage_attack_goes_where_fewest_are():
    honest = partial([dict.fromkeys(range(8), 1.0)] * 5 + [dict.fromkeys(range(9), 1.0)], size=10)
    own = partial([{0: 5.0, 1: 5.0}] * 3, size=10)
    bad = CoverageAttack(InnerProduct(10.0), size=0.2).forge(scene(own, honest))
    assert [set(moved(u)) for u in bad] == [{8, 9}] * 3
    assert moved(bad[0])[8] == pytest.approx(-10.0)
    got = moved(aggregate(Median(), [*honest, *bad]))
    assert 8 in got and got[8] < 0  # noqa: PT018 - they are three of four there: three holders are not enough of a rule
    assert all(got[j] == 1.0 for j in range(8))
    own = partial([{0: 5.0, 9: 4.0}] * 3, size=10)  # of 9 there is no honest mean: what they computed is negated
    assert moved(CoverageAttack(InnerProduct(10.0), size=0.2).forge(scene(own, honest))[0]) == {8: -10.0, 9: -4.0}


def test_groups_with_attacks_of_their_own():
    part = Mixture((SignFlip(2.0), LabelFlip(10), Sybils(SignFlip())), ((3, 5), (4,), (7, 8)))
    own = whole([[1.0], [2.0], [3.0], [4.0], [5.0]])
    seen = Scene(own, [], {"w": torch.zeros(1).double()}, 0, torch.Generator(), [7, 3, 4, 8, 5])
    assert [float(u.values()["w"]) for u in part.forge(seen)] == [-1.0, -4.0, 3.0, -1.0, -10.0]
    data = Examples({"y": torch.tensor([1])})
    assert [int(part.poison(data, c, 0).columns()["y"]) for c in (3, 4, 9)] == [1, 8, 1]
    with pytest.raises(ValueError, match=r"Mixture\(\): a client belongs to one group, got 1 in two\."):
        Mixture((SignFlip(), LabelFlip()), ((1, 2), (2,)))
    with pytest.raises(ValueError, match=r"Mixture\(\): needs one group of clients per attack, got 2 attacks and 1"):
        Mixture((SignFlip(), LabelFlip()), ((1, 2),))


# ---- who and when ---------------------------------------------------------------------------------------------------


def test_who_is_hostile():
    clients = range(40)
    members = Hostile(SignFlip(), share=0.25).members(clients, seed=3)
    assert len(members) == 10
    assert members == Hostile(LabelFlip(), share=0.25).members(clients, seed=3)  # so that attacks can be compared
    assert members != Hostile(SignFlip(), share=0.25).members(clients, seed=4)
    assert Hostile(SignFlip(), clients=(3, 5)).members(clients, 0) == {3, 5}
    with pytest.raises(ValueError, match=r"Hostile\(clients=\.\.\.\): must be clients of the population, got \[77\]"):
        Hostile(SignFlip(), clients=(3, 77)).members(clients, 0)
    with pytest.raises(ValueError, match=r"Hostile\(share=1\.5\): must lie in \[0, 1\], got 1\.5\."):
        Hostile(SignFlip(), share=1.5)


def test_when():
    assert [AfterRounds(3).is_active(v, 0) for v in range(5)] == [False] * 3 + [True] * 2
    assert all(EveryRound().is_active(v, 0) for v in range(5))
    active = [SomeRounds(0.3).is_active(v, 7) for v in range(400)]
    assert 90 < sum(active) < 150
    assert active == [SomeRounds(0.3).is_active(v, 7) for v in range(400)]


def test_refusals():
    for make, says in (
        (lambda: InnerProduct(0.0), r"InnerProduct\(epsilon=0\.0\): must be finite and above 0, got 0\.0\."),
        (lambda: SignFlip(math.nan), r"SignFlip\(scale=nan\): must be finite, got nan\."),
        (lambda: LabelFlip(1), r"LabelFlip\(num_classes=1\): must be at least 2, got 1\."),
        (lambda: Backdoor(share=0.0), r"Backdoor\(share=0\.0\): must lie in \(0, 1\], got 0\.0\."),
        (lambda: CoverageAttack(size=0.0), r"CoverageAttack\(size=0\.0\): must lie in \(0, 1\], got 0\.0\."),
        (lambda: AfterRounds(-1), r"AfterRounds\(rounds=-1\): must be at least 0, got -1\."),
        (lambda: SomeRounds(2.0), r"SomeRounds\(share=2\.0\): must lie in \[0, 1\], got 2\.0\."),
    ):
        with pytest.raises(ValueError, match=says):
            make()
