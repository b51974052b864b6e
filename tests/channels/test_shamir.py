"""Shares against polynomials in Python's whole numbers."""

from __future__ import annotations

import itertools
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partwise.channels import shamir
from partwise.channels.shamir import PRIME, SHARE_BYTES, combine, element, split, weights_at_zero
from partwise.core.errors import ProtocolError


def test_shares_of_the_specification():
    """Modulo 97, secret 42 and slope 17."""
    shares = {x: (42 + 17 * x) % 97 for x in (1, 2, 3)}
    assert shares == {1: 59, 2: 76, 3: 93}
    for pair in itertools.combinations(shares, 2):
        weights = weights_at_zero(pair, 97)
        assert sum(w * shares[x] for w, x in zip(weights, pair, strict=True)) % 97 == 42
    # One share says nothing: for every secret there is one slope that gives it.
    assert {(59 - slope) % 97 for slope in range(97)} == set(range(97))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.data())
def test_any_t_shares_open_each_secret(count, data):
    points = data.draw(st.lists(st.integers(1, 2**32 - 1), min_size=count, max_size=count, unique=True))
    threshold = data.draw(st.integers(1, count))
    hidden = data.draw(st.lists(st.integers(0, PRIME - 1), min_size=1, max_size=3))
    for secret, shares in zip(hidden, split(hidden, threshold, points), strict=True):
        of = dict(zip(points, shares, strict=True))
        some = data.draw(st.permutations(points))[:threshold]
        assert combine({x: of[x] for x in some}, threshold) == secret
        assert combine(of, threshold) == secret
        if threshold > 1:
            with pytest.raises(ProtocolError, match=f"needs {threshold} shares, got {threshold - 1}"):
                combine({x: of[x] for x in some[1:]}, threshold)


def test_against_horner_in_whole_numbers(monkeypatch):
    drawn = [PRIME - 1, 2**520, 5, PRIME - 2, 1, PRIME - 3]
    source = iter(drawn * 2)
    monkeypatch.setattr(secrets, "randbelow", lambda limit: next(source))
    points, hidden = [1, 2, 2**32 - 1, 77], [PRIME - 1, 3]
    shares = split(hidden, 4, points)
    for number, secret in enumerate(hidden):
        coefficients = [*drawn[3 * number : 3 * number + 3], secret]
        for x, share in zip(points, shares[number], strict=True):
            value = 0
            for c in coefficients:
                value = (value * x + c) % PRIME
            assert int.from_bytes(share, "little") == value


def test_too_few_shares_are_consistent_with_another_secret():
    """With t - 1 shares, the missing one can be chosen so that any secret comes out."""
    shares = dict(zip((1, 2, 3), split([42], 3, [1, 2, 3])[0], strict=True))
    for other in (0, 7, 2**256):
        w1, w2, w3 = weights_at_zero((1, 2, 3))
        missing = (other - w1 * element(shares[1]) - w2 * element(shares[2])) * pow(w3, -1, PRIME) % PRIME
        assert combine({**shares, 3: missing.to_bytes(SHARE_BYTES, "little")}, 3) == other


def test_an_element_has_one_form():
    assert element((PRIME - 1).to_bytes(66, "little")) == PRIME - 1
    with pytest.raises(ProtocolError, match=r"must be below 2\^521 - 1, got a larger"):
        element(PRIME.to_bytes(66, "little"))
    with pytest.raises(ProtocolError, match="has 66 bytes, got 65"):
        element(bytes(65))


@pytest.mark.parametrize(("threshold", "points"), [(0, [1]), (3, [1, 2]), (2, [1, 1])])
def test_thresholds_that_cannot_be(threshold, points):
    with pytest.raises(ValueError, match=r"split\(threshold=\d\): needs between 1 and"):
        split([1], threshold, points)
    for secret, point in ((1, 0), (1, 2**32), (PRIME, 1), (-1, 1)):
        with pytest.raises(ValueError, match="points lie in 1"):
            split([secret], 1, [point])


def test_known_weights_are_used():
    shares = dict(zip((4, 9), split([11], 2, [4, 9])[0], strict=True))
    weights = dict(zip((4, 9), shamir.weights_at_zero((4, 9)), strict=True))
    assert combine(shares, 2, weights) == 11
