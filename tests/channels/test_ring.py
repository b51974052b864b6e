"""Packing against Python's whole numbers; the specification's sizes and codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partwise.channels.ring import FixedPoint, Ring, fitting_ring
from partwise.core.errors import ProtocolError


@given(st.integers(1, 64), st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_packing(bits, numbers):
    ring = Ring(bits)
    words = (np.array(numbers, np.uint64) & np.uint64(2 ** (8 * ring.dtype.itemsize) - 1)).astype(ring.dtype)
    packed = ring.pack(words)
    whole = sum((int(w) % ring.modulus) << (bits * i) for i, w in enumerate(words))
    assert packed == whole.to_bytes((len(words) * bits + 7) // 8, "little")
    assert np.array_equal(ring.unpack(packed, len(words)), ring.reduced(words))
    assert len(packed) == ring.packed_bytes(len(words))


@given(st.integers(1, 64), st.integers(0, 20), st.binary(max_size=180))
def test_whatever_is_unpacked_is_packed_the_same_or_refused(bits, count, data):
    try:
        words = Ring(bits).unpack(data, count)
    except ProtocolError:
        return
    assert Ring(bits).pack(words) == data


def test_packed_words_of_another_length_are_refused():
    with pytest.raises(ProtocolError, match=r"Ring\(5\): 3 words have 2 bytes, got 3\. Both sides"):
        Ring(5).unpack(b"123", 3)
    with pytest.raises(ProtocolError, match="bits behind the last word must be zero"):
        Ring(5).unpack(b"\x00\xff", 3)


def test_sizes_of_the_specification():
    assert fitting_ring(2**16 - 1, 1, 1000).bits == 26
    assert fitting_ring(2**20 - 1, 1, 100).bits == 27
    assert 100 * (2**15 - 1) == 3_276_700 < fitting_ring(2**15 - 1, 1, 100).modulus <= 2**32
    # SFSL's sizes: so large may all weights together be in a ring of 32 bits.
    assert fitting_ring(2**15 - 1, 1, 131_072).bits == 32
    assert fitting_ring(2**15 - 1, 1, 131_077).bits == 33
    assert fitting_ring(2, 1, 4).modulus == 16  # above 8, which words of three bits do not tell from 0


def test_traffic_of_bonawitz():
    """Expansion over 16-bit values in the clear: d k + 256 (7n - 4) bits for n = 2^10 and 2^14."""
    for n, d, bits, times in ((2**10, 2**20, 26, 1.73), (2**14, 2**24, 30, 1.98)):
        ring = fitting_ring(2**16 - 1, 1, n)
        assert ring.bits == bits
        assert (8 * ring.packed_bytes(d) + 256 * (7 * n - 4)) / (16 * d) == pytest.approx(times, abs=0.005)


def test_what_does_not_fit_is_refused_early():
    with pytest.raises(ValueError, match=r"the sum must fit into 64 bits, got 65\. Use fewer bits per value"):
        fitting_ring(2**24 - 1, 2**20, 2**21)
    with pytest.raises(ValueError, match=r"Ring\(bits=65\): must lie in 1..64, got 65\."):
        Ring(65)


def test_codes_of_the_specification():
    point = FixedPoint(1.0, 255)
    codes = point.encode(np.array([-1.2, -1, 0, 0.5, 1]))
    assert codes.tolist() == [0, 0, 128, 191, 255]
    assert point.decode(codes, 1) == pytest.approx([-1, -1, 0.003922, 0.498039, 1], abs=5e-7)


def test_an_even_number_of_steps_has_a_level_at_zero():
    even, odd = FixedPoint(0.7, 254), FixedPoint(0.7, 255)
    uniform = np.linspace(0, 1, 101)[:-1]
    assert set(even.encode(np.zeros(100), uniform).tolist()) == {127}
    assert set(odd.encode(np.zeros(100), uniform).tolist()) == {127, 128}


def test_rounding_by_chance_is_right_on_average():
    """E[sround(2.3)] = 2.3: exactly three of ten evenly spread draws round up."""
    point = FixedPoint(1.0, 10)  # (x + 1) * 5 = 2.3
    uniform = (np.arange(1000) + 0.5) / 1000
    codes = point.encode(np.full(1000, 2.3 / 5 - 1), uniform)
    assert sorted(set(codes.tolist())) == [2, 3]
    assert codes.mean() == pytest.approx(2.3, abs=1e-12)


def test_a_level_itself_stays_whatever_is_drawn():
    """Though 0.3 and the steps between are no binary fractions, so that some levels come out a little low or high."""
    point, levels = FixedPoint(0.3, 254), np.arange(255)
    values = levels * (0.6 / 254) - 0.3
    for uniform in (0.0, 0.5, 1 - 2.0**-24):
        assert point.encode(values, np.full(255, uniform)).tolist() == levels.tolist()


def test_absence_is_nothing_and_not_the_code_of_zero():
    """Three clients, of whom two hold a coordinate with weights 3 and 5."""
    point = FixedPoint(2.0, 1000)
    values, weights = np.array([0.5, -1.0]), np.array([3, 5])
    total = (point.encode(values) * weights.astype(np.uint64)).sum()
    assert point.decode(total, 8.0) == pytest.approx(0.5 * 3 - 1.0 * 5, abs=8 * 0.002)
    assert point.decode(np.uint64(0), 0.0) == 0
    assert point.decode(total, 8.0) != pytest.approx(float(point.decode(total + point.encode(np.zeros(1))[0], 9.0)) + 1)


def test_random_words_are_never_zero_and_otherwise_uniform():
    """The released code draws zero as well, and Flower never the largest: 15 values, 14 degrees, 99.9 % below 36.1."""
    words = Ring(4).random(30_000)
    counts = np.bincount(words, minlength=16)
    assert counts[0] == 0
    assert ((counts[1:] - 2000) ** 2 / 2000).sum() < 36.1


def test_a_point_needs_a_limit():
    with pytest.raises(ValueError, match=r"FixedPoint\(limit=0, levels=3\): needs a limit above 0"):
        FixedPoint(0, 3)
