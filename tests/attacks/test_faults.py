"""Flipped bits and a gambling shard, by hand; and the rules that stand or fall where every client has a bad value."""

import math
import struct
from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from partwise.aggregators import GeometricMedian, Krum, Mean, MeanAroundMedian, Median, Phocas, TrimmedMean
from partwise.attacks import BitFlip, Gambler, Hostile
from partwise.core.aggregate import sum_updates
from partwise.core.attack import Attack, Scene
from partwise.core.errors import DivergedError
from partwise.core.index import Whole
from partwise.core.program import SERVER
from partwise.core.update import Update, map_values
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from toy_federation import star
from toy_star import Log
from toy_updates import aggregate, moved, partial, whole


def scene(own, seed=1, params=None):
    params = params or {"w": torch.zeros(own[0].index.shapes["w"], dtype=own[0].values()["w"].dtype)}
    return Scene(own, [], params, 0, torch.Generator().manual_seed(seed))


def table(updates):
    return torch.stack([u.values()["w"] for u in updates])


def inverted(value, bits=(22, 30, 31, 32)):
    """By the bytes of a float32, most significant first."""
    digits = list(f"{int.from_bytes(struct.pack('>f', value), 'big'):032b}")
    for bit in bits:
        digits[32 - bit] = "10"[int(digits[32 - bit])]
    return struct.unpack(">f", int("".join(digits), 2).to_bytes(4, "big"))[0]


# ---- bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [(22, 30, 31, 32), (1,), (32,), (23, 24)])
def test_bits_by_hand(bits, dtype):
    values = [1.0, -0.75, 0.0, 3.5e-3, -2.0e-7, 12.5]
    got = BitFlip(bits=bits).forge(scene(whole([values], dtype)))[0].values()["w"]
    assert got.dtype == dtype
    assert got.tolist() == [inverted(struct.unpack(">f", struct.pack(">f", v))[0], bits) for v in values]


def test_the_papers_bits():
    """Of 1 = 0x3f800000 they make 0xdfa00000; of 0, 0xe0200000; of 2 ** -64, no number."""
    got = BitFlip().forge(scene(whole([[1.0, 0.0, 2.0**-64, 2.0**-63, 2.0**-65]], torch.float32)))[0].values()["w"]
    assert got[:2].tolist() == [-1.25 * 2.0**64, -1.25 * 2.0**65]
    assert got.isfinite().tolist() == [True, True, False, True, True]


def test_one_client_in_each_of_the_first_coordinates():
    own = whole(torch.ones(4, 600).tolist())
    bad = table(BitFlip(coordinates=400).forge(scene(own))) != 1
    assert bad[:, :400].sum(0).tolist() == [1] * 400
    assert not bad[:, 400:].any()
    assert all(70 < int(row.sum()) < 130 for row in bad)  # 100 each, by chance
    assert torch.equal(bad, table(BitFlip(coordinates=400).forge(scene(own))) != 1)
    assert not torch.equal(bad, table(BitFlip(coordinates=400).forge(scene(own, seed=2))) != 1)


def test_flipped_twice_is_as_before():
    own = whole(torch.randn(3, 50, generator=torch.Generator().manual_seed(1)).tolist(), torch.float32)
    once = BitFlip(coordinates=30).forge(scene(own))
    twice = BitFlip(coordinates=30).forge(scene(once))
    assert not torch.equal(table(once), table(own))
    assert torch.equal(table(twice), table(own))


def test_coordinates_run_on_through_the_parameters_in_order():
    params = {"b": torch.zeros(3), "a": torch.zeros(2, 2)}
    ones = Update(Whole({n: tuple(t.shape) for n, t in params.items()}), {n: t + 1 for n, t in params.items()})
    got = BitFlip(coordinates=5, bits=(32,)).forge(scene([ones], params=params))[0].values()
    assert got["b"].tolist() == [-1.0] * 3
    assert got["a"].tolist() == [[-1.0, -1.0], [1.0, 1.0]]


def test_only_holders_are_hit():
    own = partial([{0: 1.0, 2: 1.0, 4: 1.0}, {1: 1.0, 2: 1.0}, {2: 1.0}], size=6)
    hits = Counter()
    for seed in range(30):
        sent = [moved(u) for u in BitFlip(coordinates=4, bits=(32,)).forge(scene(own, seed))]
        assert [set(s) for s in sent] == [{0, 2, 4}, {1, 2}, {2}]
        assert [sent[0][0], sent[1][1], sent[0][4]] == [
            -1.0,
            -1.0,
            1.0,
        ]  # one holder; one holder; beyond the first four
        (who,) = [i for i, s in enumerate(sent) if s[2] < 0]
        hits[who] += 1
    assert set(hits) == {0, 1, 2}


# ---- the gambler ----------------------------------------------------------------------------------------------------


def test_shards_are_stretches_that_cover_the_model():
    params = {"b": torch.zeros(3), "a": torch.zeros(2, 2)}
    ones = Update(Whole({n: tuple(t.shape) for n, t in params.items()}), {n: t + 1 for n, t in params.items()})
    found = []
    for shard in range(3):
        part = Gambler(probability=1.0, factor=-7.0, shards=3, shard=shard)
        one, two = part.forge(scene([ones, ones], params=params))
        flat = torch.cat([v.reshape(-1) for v in one.values().values()])
        assert torch.equal(flat, torch.cat([v.reshape(-1) for v in two.values().values()]))
        found.append((flat == -7.0).nonzero().reshape(-1).tolist())
    assert found == [[0, 1], [2, 3], [4, 5, 6]]
    alone = Gambler(probability=1.0, shards=20, shard=0).forge(scene([ones], params=params))[0]
    assert all(torch.equal(alone.values()[n], t + 1) for n, t in params.items())  # a shard without coordinates


def test_gambler_hits_as_often_as_it_should():
    """20 clients, 5,000 coordinates of a shard, .05 %: 50 hits, deviation 7; none elsewhere, not the same for all."""
    own = whole(torch.full((20, 10_000), 2.0).tolist(), torch.float32)
    sent = table(Gambler(shards=2, shard=1).forge(scene(own)))
    hit = sent != 2.0
    assert not hit[:, :5000].any()
    assert 20 < int(hit.sum()) < 80
    assert torch.allclose(sent[hit], torch.tensor(-2e20))
    assert int(hit.any(0).sum()) > 0.9 * int(hit.sum())


def test_gambler_over_submodels():
    own = partial([{0: 1.0, 3: 2.0}, {2: 5.0}], size=4)
    sent = Gambler(probability=1.0, factor=-1.0, shards=2, shard=1).forge(scene(own))
    assert [moved(u) for u in sent] == [{0: 1.0, 3: -2.0}, {2: -5.0}]


# ---- what stands ----------------------------------------------------------------------------------------------------

BY_COORDINATE = [Median(), TrimmedMean(trim_count=2), MeanAroundMedian(f=2), Phocas(f=2)]
BY_CLIENT = [Krum(f=2), Krum(f=2, num_selected=5), GeometricMedian()]


@pytest.mark.parametrize("attack", [BitFlip(), Gambler(probability=0.05, shards=1)])
@pytest.mark.parametrize("rule", [*BY_COORDINATE, *BY_CLIENT], ids=repr)
def test_rules_by_coordinate_stand_where_every_client_has_a_bad_value(rule, attack):
    """Nine honest clients around 1; one of each coordinate's nine values is bad, or of some two."""
    rows = 1 + 0.1 * torch.randn(9, 200, generator=torch.Generator().manual_seed(5))
    sent = attack.forge(scene(whole(rows.tolist(), torch.float32)))
    assert bool((table(sent) != rows).any(1).all())
    assert int((table(sent) != rows).sum(0).max()) <= 2
    farthest = float((aggregate(rule, sent).values()["w"] - 1).abs().max())
    assert (farthest < 0.5) == (rule in BY_COORDINATE)
    assert rule in BY_COORDINATE or farthest > 1e15


def test_bit_flips_of_few_clients_are_no_worse_than_other_attacks_of_them():
    """Two of nine clients have all bad values: then rules that judge clients stand too."""
    rows = 1 + 0.1 * torch.randn(9, 200, generator=torch.Generator().manual_seed(5))
    honest = whole(rows[2:].tolist(), torch.float32)
    sent = BitFlip().forge(scene(whole(rows[:2].tolist(), torch.float32)))
    for rule in (*BY_COORDINATE, *BY_CLIENT):
        assert float((aggregate(rule, [*sent, *honest]).values()["w"] - 1).abs().max()) < 0.5


def test_rules_leave_out_whom_a_flip_made_infinite_and_the_mean_cannot():
    rows = torch.tensor([[1.0, 2.0], [2.0, 1.0], [2.5, 2.0], [2.0, 4.0], [3.0, 3.0], [1.5, 0.5]])
    weak = torch.full((1, 2), 1.3 * 2.0**-64)
    bad = BitFlip().forge(scene(whole(weak.tolist(), torch.float32)))
    assert not table(bad).isfinite().any()
    honest = whole(rows.tolist(), torch.float32)
    for rule, told in (
        (Median(), Median()),
        (TrimmedMean(trim_count=2), TrimmedMean(trim_count=1)),
        (MeanAroundMedian(f=2), MeanAroundMedian(f=1)),
        (Phocas(f=2), Phocas(f=1)),
        (Krum(f=1), Krum(f=0)),
        (GeometricMedian(), GeometricMedian()),
    ):
        assert torch.equal(aggregate(rule, [*bad, *honest]).values()["w"], aggregate(told, honest).values()["w"]), rule
    params = {"w": torch.zeros(2)}
    mean, _ = Mean("holders").reduce(sum_updates([*bad, *honest], params), (), params)
    assert not mean.values()["w"].isfinite().any()


@dataclass(frozen=True)
class Weak(Attack):
    """Bits are flipped of values that become infinite."""

    def forge(self, scene):
        weak = [map_values(update, lambda v: torch.full_like(v, 2.0**-64)) for update in scene.own]
        return BitFlip(bits=(30, 31)).forge(scene._replace(own=weak))


def test_runs_end_with_the_mean_and_go_on_with_the_median():
    """One client of seven has values that are not finite: it is left out of medians; an infinite mean is an end."""

    def run(rule):
        of = star(
            "fedavg",
            2,
            scheduler=Synchronous(cohort=7, rounds=2),
            hostile=Hostile(Weak(), clients=(1,)),
            aggregators={"model": rule},
        )
        states, _ = Simulate().run(of.programs(), of.population, Log())
        return of.initial(), states[SERVER].streams["model"]

    start, after = run(Median())
    assert all(bool(t.isfinite().all()) for t in after.values())
    assert any(not torch.equal(after[n], start[n]) for n in after)
    with pytest.raises(DivergedError, match=r"the aggregate of stream 'model' is no longer finite"):
        run(Mean("holders"))


def test_refusals():
    for make, says in (
        (lambda: BitFlip(coordinates=0), r"BitFlip\(coordinates=0\): must be at least 1, got 0\."),
        (
            lambda: BitFlip(bits=(0, 3)),
            r"BitFlip\(bits=\(0, 3\)\): must be different numbers from 1 to 32, got \(0, 3\)",
        ),
        (lambda: BitFlip(bits=()), r"BitFlip\(bits=\(\)\): must be different numbers from 1 to 32, got \(\)\."),
        (lambda: BitFlip(bits=(3, 3)), r"BitFlip\(bits=\(3, 3\)\): must be different numbers"),
        (lambda: Gambler(probability=1.5), r"Gambler\(probability=1\.5\): must lie in \[0, 1\], got 1\.5\."),
        (lambda: Gambler(factor=math.inf), r"Gambler\(factor=inf\): must be finite, got inf\."),
        (lambda: Gambler(shards=0), r"Gambler\(shards=0\): must be at least 1, got 0\."),
        (
            lambda: Gambler(shards=3, shard=3),
            r"Gambler\(shards=3, shard=3\): must name one of the shards, from 0 to 2, got 3\.",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            make()
