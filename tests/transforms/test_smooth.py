"""Smoothing before quantising, and two levels of it: within a cluster, and between clusters."""

import math

import pytest
import torch

from partwise.core.aggregate import sum_updates
from partwise.core.index import Coords, Grid, Rows, Whole
from partwise.core.mean import Mean
from partwise.core.program import SERVER
from partwise.core.transform import chain
from partwise.core.update import Update, norm
from partwise.runtimes import Simulate
from partwise.transforms import Quantize, Smooth
from toy_federation import star
from toy_sent import RNG
from toy_star import Log

NEAREST = {"scale_by": "max", "rounding": "nearest"}


def of(value, index=None, weight=1.0):
    return Update(index or Whole({"w": tuple(value.shape)}), {"w": value}, weight)


def spread(update, order):
    return Smooth(order).apply(update, (), RNG)[0]


def hadamard(size):
    """Rows of ones and minus ones: the sign is that of the common bits of row and column."""
    return [[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(size)] for i in range(size)]


def by_hand(row, order):
    """One row, in runs that are powers of two, largest first."""
    out, at = [], 0
    while at < len(row):
        size = 2**order
        while at + size > len(row):
            size //= 2
        run = row[at : at + size]
        out += [math.fsum(h * x for h, x in zip(line, run, strict=True)) / math.sqrt(size) for line in hadamard(size)]
        at += size
    return out


@pytest.mark.parametrize(("width", "order"), [(8, 3), (13, 2), (13, 5), (64, 5), (71, 5), (1, 5), (6, 0)])
def test_rows_are_spread_as_by_hand(width, order):
    value = torch.randn(3, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64) ** 3
    sent = spread(of(value), order)
    assert sent.values()["w"].tolist() == [pytest.approx(by_hand(row, order)) for row in value.tolist()]
    assert norm(sent) == pytest.approx(norm(of(value)))
    assert torch.allclose(spread(sent, order).values()["w"], value, rtol=0, atol=1e-12)
    assert order or torch.equal(sent.values()["w"], value)


def test_worked_example():
    """communication.md §6: (7, 0.4, 0.4, 0.4) at 4 bits; a spike is spread evenly."""
    spike = of(torch.tensor([[8.0, 0.0, 0.0, 0.0]]))
    assert spread(spike, 2).values()["w"].tolist() == [[4.0] * 4]
    value = of(torch.tensor([[7.0, 0.4, 0.4, 0.4]], dtype=torch.float64))
    plain, _ = Quantize(4, **NEAREST).apply(value, (), RNG)
    assert plain.values()["w"].tolist() == [[7.0, 0.0, 0.0, 0.0]]
    sent, _ = Quantize(4, **NEAREST).apply(spread(value, 2), (), RNG)
    found = spread(sent.unpacked(), 2).values()["w"].flatten().tolist()
    assert found == pytest.approx([7.321429, 0.292857, 0.292857, 0.292857], abs=1e-6)


def test_what_is_spread_of_rows_is_the_rows_of_what_is_spread():
    value = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([0, 4, 7])
    part = spread(of(value[rows], Rows({"w": (9, 12)}, {"w": rows})), 5)
    assert torch.allclose(part.values()["w"], spread(of(value), 5).values()["w"][rows])
    assert part.index.rows["w"] is rows
    bias = Update(Whole({"b": (40,)}), {"b": torch.arange(40.0)})
    assert spread(bias, 5).value["b"] is bias.value["b"]


@pytest.mark.parametrize(
    "index",
    [
        Coords({"w": (9, 12), "s": ()}, {"w": torch.tensor([3, 14, 15, 100]), "s": torch.tensor([0])}),
        Grid({"w": (9, 12), "s": ()}, {"w": (torch.tensor([1, 8]), torch.tensor([0, 5])), "s": ()}),
    ],
    ids=["coords", "grid"],
)
def test_the_rest_of_a_row_counts_as_no_change(index):
    params = {"w": torch.randn(9, 12, generator=torch.Generator().manual_seed(2)), "s": torch.tensor(3.0)}
    dense = {name: torch.zeros_like(t) for name, t in params.items()}
    index.scatter_add_(dense, index.gather(params))
    sent = spread(Update(index, index.gather(params)), 3)
    back = {name: torch.zeros_like(t) for name, t in params.items()}
    again = spread(sent, 3)
    again.index.scatter_add_(back, again.values())
    assert all(torch.allclose(back[name], dense[name], atol=1e-6) for name in params)
    assert sent.index.rows["w"].tolist() == sorted({int(at) // 12 for at in index.coords("w")})


def q_by_hand(values, bits, bucket):
    """To the nearest level, halves up."""
    top, found = 2 ** (bits - 1) - 1, []
    for start in range(0, len(values), bucket):
        mine = values[start : start + bucket]
        scale = max(map(abs, mine))
        found += [math.floor(x * top / scale + 0.5) * scale / top if scale else 0.0 for x in mine]
    return found


def two_levels(clusters, order, inner, outer):
    """Clusters of updates of one row each -> what the server adds, by the library's parts."""
    params = {"w": torch.zeros(clusters[0][0].shape, dtype=torch.float64)}
    above = []
    for members in clusters:
        sent = [chain(Smooth(order), inner).apply(of(m), ((), ()), RNG)[0] for m in members]
        total = sum_updates(sent, params)
        mean, _ = Mean().reduce(total, (), params)
        above.append(outer.apply(Update(mean.index, mean.values(), float(len(members))), (), RNG)[0])
    mean, _ = Mean().reduce(sum_updates(above, params), (), params)
    return spread(mean.unpacked(), order).values()["w"]


def test_a_parameter_whose_rows_have_no_values_is_taken():
    """Of (1, 0) by runs of two: (1, 1) / √2."""
    at = {"w": torch.empty(0, dtype=torch.int64), "v": torch.tensor([0])}
    update = Update(Coords({"w": (3, 0), "v": (2, 2)}, at), {"w": torch.empty(0), "v": torch.ones(1)})
    sent, _ = Smooth(1).apply(update, (), torch.Generator())
    assert sent.values()["v"].flatten().tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert not sent.values()["w"].numel()


def test_a_table_of_which_no_row_is_held_is_taken():
    rows = Rows({"E": (5, 4)}, {"E": torch.empty(0, dtype=torch.int64)})
    sent, _ = Smooth(1).apply(Update(rows, {"E": torch.empty(0, 4)}), (), RNG)
    assert sent.values()["E"].shape == (0, 4)


@pytest.fixture
def clusters():
    """Three clusters of 2, 3 and 1 members; heavy tails."""
    rng = torch.Generator().manual_seed(4)
    return [[torch.randn(1, 96, generator=rng, dtype=torch.float64) ** 3 for _ in range(n)] for n in (2, 3, 1)]


def test_two_levels_as_by_hand(clusters):
    """communication.md §6 (b), (c): 8 bits to the cluster, 4 from it, turned back once at the end."""
    found = two_levels(clusters, 5, Quantize(8, 48, **NEAREST), Quantize(4, 32, **NEAREST))
    total, count = [0.0] * 96, 0
    for members in clusters:
        decoded = [q_by_hand(by_hand(m.flatten().tolist(), 5), 8, 48) for m in members]
        mean = [math.fsum(column) / len(members) for column in zip(*decoded, strict=True)]
        total = [t + len(members) * x for t, x in zip(total, q_by_hand(mean, 4, 32), strict=True)]
        count += len(members)
    expected = by_hand([t / count for t in total], 5)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_the_error_is_that_of_two_levels(clusters):
    """At most half a step of each, in the spread values: a / 254 of the members', a / 14 of the cluster's mean."""
    exact = sum(torch.stack([m for c in clusters for m in c])) / 6
    found = two_levels(clusters, 5, Quantize(8, 96, **NEAREST), Quantize(4, 96, **NEAREST))
    bound = 0.0
    for members in clusters:
        tops = [float(spread(of(m), 5).values()["w"].abs().max()) for m in members]
        mean = spread(of(sum(members) / len(members)), 5).values()["w"]
        half8 = sum(tops) / len(tops) / 254
        bound += len(members) / 6 * (half8 + (float(mean.abs().max()) + half8) / 14)
    apart = spread(of(found - exact), 5).values()["w"]
    assert 0 < float(apart.abs().max()) <= bound
    plain = two_levels(clusters, 0, Quantize(8, 96, **NEAREST), Quantize(4, 96, **NEAREST))
    assert float((found - exact).norm()) < 0.8 * float((plain - exact).norm())


@pytest.mark.parametrize(
    ("part", "bits"),
    [(Quantize(8, 512, **NEAREST), 8.0625), (Quantize(8, 128, **NEAREST), 8.25), (Quantize(4, 128, **NEAREST), 4.25)],
)
def test_bits_of_each_level(part, bits):
    """communication.md §6 (3), with scales of 4 bytes."""
    sent, _ = part.apply(spread(of(torch.randn(512, 1024, generator=RNG)), 5), (), RNG)
    packed = sent.value["w"]
    assert 8 * (packed.codes.nbytes + packed.scales.nbytes) / (512 * 1024) == bits


def test_in_the_star_nothing_is_lost_between_the_two():
    found = []
    for both in ({}, {"model": chain(Smooth(5))}):
        of_, log = star("fedsubavg capped", client_chain=both, server_chain=both, rounds=3), Log()
        states, reason = Simulate().run(of_.programs(), of_.population, log)
        assert (reason, log.of("lost")) == ("done", [])
        found.append(states[SERVER].streams["model"])
    start = star("fedsubavg capped").initial()
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-5) for n in start)
    assert any(not torch.allclose(found[0][n], start[n], atol=1e-3) for n in start)


def test_smooth_refuses():
    with pytest.raises(ValueError, match=r"Smooth\(order=11\): must lie in 0\.\.10, got 11\. 5 is usual\."):
        Smooth(11)
    uneven = of(torch.ones(2, 4), weight={"w": torch.tensor([[1.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])})
    with pytest.raises(ValueError, match=r"Smooth\(order=5\): needs weights that are the same all over a row, got"):
        spread(uneven, 5)
    few = Coords({"w": (2, 4)}, {"w": torch.tensor([0, 5])})
    with pytest.raises(ValueError, match=r"needs weights that are the same all over a row"):
        spread(of(torch.ones(2), few, {"w": torch.tensor([1.0, 2.0])}), 5)
