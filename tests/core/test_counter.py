import math

import pytest
import torch

from partwise.core.counter import is_drawn, key_of, normal, uniform, words

M = 2**64


def splitmix(key, i):
    """SplitMix64 in plain whole numbers."""
    z = (i * 0x9E3779B97F4A7C15 + key) % M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % M
    return z ^ (z >> 31)


def test_words_are_those_of_splitmix():
    key, at = key_of(7, "w"), [0, 1, 2, 1000, 2**40 + 3]
    assert [w % M for w in words(key, torch.tensor(at)).tolist()] == [splitmix(key, i) for i in at]
    assert splitmix(0, 1) == 0xE220A8397B1DCDAF  # the first number of the published generator with seed 0


@pytest.mark.parametrize("draw", [words, uniform, normal])
def test_the_draw_of_a_part_is_a_part_of_the_draw(draw):
    at = torch.tensor([3, 999, 17, 500])
    assert torch.equal(draw(5, torch.arange(1000))[at], draw(5, at))
    assert torch.equal(draw(5, torch.arange(1000).reshape(10, 100)).reshape(-1), draw(5, torch.arange(1000)))
    assert not torch.equal(draw(5, at), draw(6, at))


def test_moments():
    """A million draws: means within four standard errors."""
    n, at = 1_000_000, torch.arange(1_000_000)
    u, z = uniform(11, at), normal(11, at).double()
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / n))
    assert float(u.var()) == pytest.approx(1 / 12, rel=4 * math.sqrt(0.8 / n))
    assert float(z.mean()) == pytest.approx(0.0, abs=4 / math.sqrt(n))
    assert float(z.var()) == pytest.approx(1.0, rel=4 * math.sqrt(2 / n))
    assert float((z**4).mean()) == pytest.approx(3.0, abs=4 * math.sqrt(96 / n))
    below = float((z < 1.0).double().mean())
    assert below == pytest.approx(0.8413447, abs=4 * math.sqrt(0.84 * 0.16 / n) + 1e-4)  # 1e-4: a table of quantiles
    pairs = float((z[1:] * z[:-1]).mean())
    assert pairs == pytest.approx(0.0, abs=4 / math.sqrt(n))
    share = float(is_drawn(11, at, 0.03).double().mean())
    assert share == pytest.approx(0.03, abs=4 * math.sqrt(0.03 * 0.97 / n))


@pytest.mark.gpu
def test_draws_are_the_same_on_an_accelerator():
    at = torch.arange(100_000)
    for draw in (words, uniform, normal):
        assert torch.equal(draw(3, at), draw(3, at.cuda()).cpu())
