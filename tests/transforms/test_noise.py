"""Gaussian noise: how much, on which coordinates, and from where; weights that are capped."""

from __future__ import annotations

import math
import re

import pytest
import torch

from partwise.core.index import Rows, Whole
from partwise.core.randomness import SimulatedRandomness, SystemRandomness
from partwise.core.rng import generator
from partwise.core.update import Update
from partwise.transforms import CapWeight, Clip, GaussianNoise

PARAMS = {"b": torch.zeros(7, dtype=torch.float64), "E": torch.zeros(400, 50)}


def noised(part, update, seed=1):
    return part.apply(update, part.init(PARAMS), generator(seed, "test"))[0]


def rows(at, fill):
    return Update(Rows({"E": (400, 50)}, {"E": torch.tensor(at)}), {"E": torch.full((len(at), 50), fill)}, 12.0)


@pytest.mark.parametrize("source", [SimulatedRandomness(), SystemRandomness()])
def test_the_noise_has_the_standard_deviation_it_says(source):
    part = GaussianNoise(1.5, sensitivity=0.2, randomness=source)
    value = noised(part, rows([3, 9], 4.0)).values()["E"].flatten().double()
    value[3 * 50 : 4 * 50] -= 4.0
    value[9 * 50 : 10 * 50] -= 4.0
    n = len(value)
    assert abs(float(value.mean())) < 6 * 0.3 / math.sqrt(n)
    assert abs(float(value.std()) - 0.3) < 6 * 0.3 / math.sqrt(2 * n)
    assert abs(float((value**4).mean()) / 0.3**4 - 3) < 6 * math.sqrt(96 / n)  # the kurtosis of a normal number
    assert abs(float((value[:-1] * value[1:]).mean())) < 6 * 0.09 / math.sqrt(n)


def test_every_coordinate_gets_noise_also_those_that_nobody_held():
    value = noised(GaussianNoise(1.0, sensitivity=1.0), rows([3], 1.0)).values()
    assert all(bool((v != 0).all()) for v in value.values())
    assert {n: (v.shape, v.dtype) for n, v in value.items()} == {n: (v.shape, v.dtype) for n, v in PARAMS.items()}


def test_the_noise_depends_on_the_generator_alone_not_on_what_is_held():
    part = GaussianNoise(1.0, sensitivity=1.0)
    one, other = noised(part, rows([3], 1.0)).values(), noised(part, rows([5, 17], 2.0)).values()
    assert torch.equal(one["b"], other["b"])
    assert torch.equal(one["E"][20:], other["E"][20:])
    assert not torch.equal(noised(part, rows([3], 1.0), seed=2).values()["b"], one["b"])


def test_the_noise_of_a_parameter_does_not_depend_on_the_order_of_names():
    part, found = GaussianNoise(1.0, sensitivity=1.0), []
    for names in (["b", "E"], ["E", "b"]):
        state = part.init({name: PARAMS[name] for name in names})
        found.append(part.apply(rows([3], 1.0), state, generator(1, "test"))[0].values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in ("b", "E"))


def test_the_weight_that_comes_out_says_nothing():
    assert noised(GaussianNoise(1.0, sensitivity=1.0), rows([3], 1.0)).weight == 1.0


def test_system_randomness_does_not_repeat_and_fills_its_range():
    source, rng = SystemRandomness(), torch.Generator()
    assert not torch.equal(source.normal((4, 3), rng), source.normal((4, 3), rng))
    bits = source.bits(4000, rng)
    assert bits.dtype == torch.int64
    assert int(bits.min()) >= 0
    ever, always = 0, 2**62 - 1
    for b in bits.tolist():
        ever, always = ever | b, always & b
    assert (ever, always) == (2**62 - 1, 0)  # each of the 62 bits is sometimes set and sometimes not
    assert not source.is_simulated
    assert SimulatedRandomness().is_simulated


def test_all_simulated_bits_are_used():
    ever = 0
    for b in SimulatedRandomness().bits(4000, generator(3, "bits")).tolist():
        ever |= b
    assert ever == 2**62 - 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: GaussianNoise(-1.0, 1.0), "GaussianNoise(noise_multiplier=-1.0): must be finite and at least 0"),
        (lambda: GaussianNoise(math.inf, 1.0), "GaussianNoise(noise_multiplier=inf): must be finite and at least 0"),
        (lambda: GaussianNoise(1.0, 0.0), "GaussianNoise(sensitivity=0.0): must be finite and above 0"),
        (lambda: CapWeight(0.0), "CapWeight(max_weight=0.0): must be finite and above 0"),
    ],
)
def test_values_that_mean_nothing_are_refused(made, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        made()


# ---- the numbers of the specification ----


def test_clipping_as_published():
    def clipped(*value):
        update = Update(Whole({"w": (len(value),)}), {"w": torch.tensor(value, dtype=torch.float64)})
        return Clip(2.0).apply(update, (), torch.Generator())[0].values()["w"]

    assert torch.allclose(clipped(3.0, 4.0), torch.tensor([1.2, 1.6], dtype=torch.float64), rtol=1e-12)
    assert clipped(0.0, 0.0).tolist() == [0.0, 0.0]  # no division by its norm
    assert clipped(1.0, -1.0).tolist() == [1.0, -1.0]


def test_the_norm_runs_over_all_parameters_together():
    update = Update(Whole({"a": (1,), "b": (1,)}), {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    value = Clip(2.5).apply(update, (), torch.Generator())[0].values()
    assert (value["a"].item(), value["b"].item()) == (1.5, 2.0)


def test_weights_are_capped_also_row_by_row():
    part = CapWeight(3.0)
    assert part.apply(rows([1], 1.0), (), torch.Generator())[0].weight == 3.0
    update = Update(rows([1, 2], 1.0).index, rows([1, 2], 1.0).value, {"E": torch.tensor([2.0, 9.0])})
    assert part.apply(update, (), torch.Generator())[0].weight["E"].tolist() == [2.0, 3.0]
