"""Sums and polynomials modulo a prime, against plain integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partwise.channels.field import Field

P = 2**31 - 1
SMALL = Field(97)


def plain_product(one, other, prime):
    return [
        [sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) % prime for column in zip(*other, strict=True)]
        for row in one
    ]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([3, 97, P]), st.integers(1, 5), st.integers(1, 300), st.integers(1, 4), st.integers(0, 2**32))
def test_products(prime, n, k, m, seed):
    draw = np.random.default_rng(seed)
    one, other = draw.integers(0, prime, (n, k), np.uint64), draw.integers(0, prime, (k, m), np.uint64)
    assert Field(prime).product(one, other).tolist() == plain_product(one, other, prime)


def test_the_largest_product():
    """Where sums of 64-bit products run over from three terms on."""
    top = np.full((2, 1000), P - 1, np.uint64)
    assert Field().product(top, top.T).tolist() == [[1000] * 2] * 2  # (-1)(-1), a thousand times
    assert 3 * (P - 1) ** 2 > 2**63


def test_products_wider_than_a_chunk():
    draw = np.random.default_rng(4)
    one, other = draw.integers(0, P, (2, 3), np.uint64), draw.integers(0, P, (3, 70_000), np.uint64)
    found = Field().product(one, other)
    for column in (0, 2**15 - 1, 2**15, 69_999):
        assert found[:, [column]].tolist() == plain_product(one, other[:, [column]], P)


def test_the_matrix_of_the_specification():
    assert SMALL.lagrange(np.array([1, 2, 3]), np.array([4, 5])).tolist() == [[4, 94], [3, 95], [2, 96]]
    assert SMALL.lagrange(np.array([4]), np.array([1, 2])).tolist() == [[95, 3]]


@given(st.lists(st.integers(0, 96), min_size=2, max_size=6), st.integers(0, 40))
def test_values_between_points_of_a_polynomial(coefficients, start):
    def value(x):
        return sum(c * x**i for i, c in enumerate(coefficients)) % 97

    of, at = np.arange(len(coefficients)) + start, np.array([start + 20, start + 33])
    known = np.array([[value(int(x))] for x in of], np.uint64)
    found = SMALL.product(SMALL.lagrange(at, of), known)
    assert found[:, 0].tolist() == [value(int(x)) for x in at]


def test_random_elements_are_uniform():
    """Chi-square over 3 classes, of draws of 2 bits of which a quarter are thrown away; 99.9 % below 13.8."""
    counts = np.bincount(Field(3).random(30_000).astype(int), minlength=4)
    assert counts[3] == 0
    assert ((counts[:3] - 10_000) ** 2 / 10_000).sum() < 13.8


@pytest.mark.parametrize("prime", [2, 2**31])
def test_primes_that_do_not_fit(prime):
    with pytest.raises(ValueError, match=rf"Field\(prime={prime}\): must lie in 3\.\.2\^31 - 1"):
        Field(prime)
