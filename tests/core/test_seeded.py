import math

import pytest
import torch

from partwise.core import seeded
from partwise.core.aggregate import sum_updates
from partwise.core.codec import decode, encode, encoded_size
from partwise.core.index import Coords, Grid, Joint, Rows, Whole
from partwise.core.seeded import Seeded, by_coordinates, second_moment
from partwise.core.update import Update

SHAPES = {"E": (9, 4), "b": (3,)}
COUNTS = {"E": 5, "b": 2}
BASES = [
    Whole(SHAPES),
    Rows(SHAPES, {"E": torch.tensor([1, 4, 8]), "b": None}),
    Grid(SHAPES, {"E": (None, torch.tensor([0, 3])), "b": (torch.tensor([1]),)}),
    Coords(SHAPES, {"E": torch.tensor([0, 35]), "b": torch.tensor([2])}),
]


def params(seed=1):
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in SHAPES.items()}


def directions(law, base=None):
    """Name -> (K, d), read off by scattering ones; zero where the base does not reach."""
    index = Seeded(base or Whole(SHAPES), 11, COUNTS, law)
    found = {}
    for name, count in COUNTS.items():
        rows = []
        for k in range(count):
            target = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
            index.scatter_add_(target, {n: torch.eye(c)[min(k, c - 1)] * (n == name) for n, c in COUNTS.items()})
            rows.append(target[name].flatten())
        found[name] = torch.stack(rows)
    return found


@pytest.mark.parametrize("base", BASES, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("law", ["normal", "truncated"])
def test_it_is_a_linear_map_with_its_transpose(base, law):
    index, x = Seeded(base, 11, COUNTS, law), params()
    for found in (index, decode(bytearray(encode(index)))):
        got = found.gather(x)
        held = directions(law, base)
        for name in SHAPES:
            expected = [sum(float(a) * float(b) for a, b in zip(v, x[name].flatten(), strict=True)) for v in held[name]]
            assert got[name].tolist() == pytest.approx(expected)
            assert found.held_shape(name) == tuple(got[name].shape)


@pytest.mark.parametrize("law", ["normal", "truncated"])
@pytest.mark.parametrize("base", BASES[1:], ids=lambda b: type(b).__name__)
def test_the_directions_of_a_part_are_parts_of_the_directions(base, law):
    full, part = directions(law), directions(law, base)
    for name in SHAPES:
        at = base.coords(name)
        assert torch.equal(part[name][:, at], full[name][:, at])
        rest = torch.ones(full[name].shape[1], dtype=torch.bool)
        rest[at] = False
        assert not part[name][:, rest].any()


@pytest.mark.parametrize(("size", "expected"), [(10, 0.32891), (100, 0.332889), (10_000, 0.3333289)])
def test_second_moment(size, expected):
    """communication.md §10: d rho."""
    assert size * second_moment("truncated", size) == pytest.approx(expected, abs=1e-5)
    c = 1 / math.sqrt(size)
    phi = math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
    if size == 10:  # the closed form, which cancels for small c
        assert second_moment("truncated", size) == pytest.approx(1 - 2 * c * phi / math.erf(c / math.sqrt(2)))
    assert second_moment("normal", size) == 1.0


@pytest.mark.parametrize("law", ["normal", "truncated"])
def test_law(law):
    index = Seeded(Whole({"w": (40_000,)}), 3, {"w": 1}, law)
    target = {"w": torch.zeros(40_000, dtype=torch.float64)}
    index.scatter_add_(target, {"w": torch.ones(1)})
    v = target["w"]
    assert float((v * v).mean()) == pytest.approx(second_moment(law, 40_000), rel=0.03)
    assert float(v.mean()) == pytest.approx(0.0, abs=4 * float(v.std()) / 200)
    assert law == "normal" or float(v.abs().max()) <= 1 / 200


def test_a_part_makes_the_step_of_its_part(monkeypatch):
    """communication.md §9: A = diag(1, 3, 2), theta = (1, -1, 2), S = {0, 2}, z = (0.5, ., -1): g = -3.5."""
    z = torch.tensor([0.5, math.nan, -1.0])
    monkeypatch.setattr(seeded, "_drawn", lambda law, size, keys, at: z[at].expand(len(keys), -1))
    theta = {"w": torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)}
    index = Seeded(Coords({"w": (3,)}, {"w": torch.tensor([0, 2])}), 5, {"w": 1})
    slope = index.gather({"w": theta["w"] * torch.tensor([1.0, 3.0, 2.0])})
    assert slope["w"].tolist() == [-3.5]
    index.scatter_add_(theta, slope, -0.1)
    assert theta["w"].tolist() == pytest.approx([1.175, -1.0, 1.65], abs=1e-15)
    assert float(theta["w"][1]) == -1.0


def test_slopes_along_normal_directions_are_unbiased_with_d_plus_two_times_the_square():
    """communication.md §9: E g z = ∇L and E ‖g z‖² = (d + 2) ‖∇L‖², of 20,000 draws within five standard errors."""
    count, gradient = 20_000, torch.tensor([3.0, -1.0, 0.5, -2.0], dtype=torch.float64)
    index = Seeded(Whole({"w": (4,)}), 23, {"w": count})
    slopes = index.gather({"w": gradient})["w"]
    z = torch.stack([index.gather({"w": e})["w"] for e in torch.eye(4, dtype=torch.float64)], dim=1)
    steps = slopes[:, None] * z  # (count, 4)
    lengths = (steps**2).sum(1)
    assert float(lengths.mean()) == pytest.approx(6 * 14.25, abs=5 * float(lengths.std()) / math.sqrt(count))
    assert float(lengths.std()) / math.sqrt(count) < 0.03 * 6 * 14.25
    off = (steps.mean(0) - gradient).abs()
    assert bool((off < 5 * steps.std(0) / math.sqrt(count)).all())


@pytest.mark.parametrize(("count", "measured", "draws"), [(64, 1.015, 600), (256, 0.255, 300), (1024, 0.059, 120)])
def test_projections_are_unbiased_with_an_error_of_d_over_k(count, measured, draws):
    """communication.md §10, d = 64: relative mean squared error about d / K, as measured there in 60 draws.

    Of coordinates with fourth moment kappa rho², it is (d - 2 + kappa) / K: those here are nearly uniform, kappa 1.8.
    One draw's error has a standard deviation of about √(2 / d) of it, and so has the length of the mean's.
    """
    x, exact = params(3)["E"].flatten().repeat(2)[:64], (64 - 2 + 1.8) / count
    rho, spread = second_moment("truncated", 64), math.sqrt(2 / 64)
    got = []
    for seed in range(draws):
        index, back = Seeded(Whole({"w": (64,)}), seed, {"w": count}, "truncated"), {"w": torch.zeros(64).double()}
        index.scatter_add_(back, index.gather({"w": x}), 1 / (rho * count))
        got.append(back["w"])
    each = torch.stack(got)
    errors, length2 = ((each - x) ** 2).sum(1) / (x @ x), float(x @ x)
    assert float(errors.mean()) == pytest.approx(exact, rel=5 * spread / math.sqrt(draws))
    assert exact == pytest.approx(measured, rel=3 * spread / math.sqrt(60))
    along = each @ x / length2
    assert float(along.mean()) == pytest.approx(1.0, abs=5 * float(along.std()) / math.sqrt(draws))
    assert 5 * float(along.std()) / math.sqrt(draws) < 0.05
    off = (each.mean(0) - x).abs()
    assert bool((off < 5 * each.std(0) / math.sqrt(draws)).all())


def test_updates_over_it_are_summed_by_their_transpose():
    whole = {n: torch.zeros_like(t) for n, t in params().items()}
    index = Seeded(Whole(SHAPES), 11, COUNTS)
    values = [index.gather(params(seed)) for seed in (1, 2)]
    got = sum_updates([Update(index, v, w) for v, w in zip(values, (1.0, 3.0), strict=True)], whole)
    expected = {n: t.clone() for n, t in whole.items()}
    index.scatter_add_(expected, {n: values[0][n] + 3 * values[1][n] for n in SHAPES})
    assert all(torch.allclose(got.value[n], expected[n]) for n in SHAPES)
    assert (got.total, encoded_size(index)) == (4.0, len(encode(index)))
    assert encoded_size(index) < 200


@pytest.mark.parametrize("base", BASES, ids=lambda b: type(b).__name__)
def test_by_coordinates_it_is_the_sum_of_its_directions(base):
    each = directions("normal", base)
    values = {"E": torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5]).double(), "b": torch.tensor([2.0, -1.0]).double()}
    plain = by_coordinates(Update(Seeded(base, 11, COUNTS), values, 3.0), params())
    assert (plain.index, plain.weight) == (base, 3.0)
    for name, k in values.items():
        expected = (k @ each[name])[base.coords(name)].reshape(base.held_shape(name))
        assert torch.allclose(plain.values()[name], expected)


def test_beside_coordinates_only_directions_are_written_out():
    rows = Rows({"E": (9, 4)}, {"E": torch.tensor([2])})
    along = Seeded(Whole({"b": (3,)}), 11, {"b": 2})
    value = {"E": torch.ones(1, 4).double(), "b": torch.ones(2).double()}
    plain = by_coordinates(Update(Joint((rows, along)), value), params())
    assert torch.equal(plain.values()["E"], value["E"])
    assert torch.allclose(plain.values()["b"], directions("normal")["b"].sum(0))
    update = Update(rows, {"E": value["E"]})
    assert by_coordinates(update, params()) is update


def test_seeded_refuses():
    with pytest.raises(ValueError, match=r"Seeded\(seed=1, law='normal'\): needs an index, for each parameter of it"):
        Seeded(Whole(SHAPES), 1, {"E": 3})
    index = Seeded(Whole(SHAPES), 1, COUNTS)
    with pytest.raises(ValueError, match=r"Seeded\(\): holds no single coordinates, got a question for those of 'E'"):
        index.coords("E")
    with pytest.raises(ValueError, match=r"Seeded\(\): cannot be written to"):
        index.put_(params(), index.gather(params()))
    with pytest.raises(ValueError, match=r"Seeded\(\): has one weight for all it touches, got weights by row"):
        index.cover_(params(), {n: torch.ones(c) for n, c in COUNTS.items()})
