"""Masks against a loop over bytes, and that rows can be had anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from partwise.channels import streams
from partwise.channels.crypto import stream
from partwise.channels.streams import Mask, add_masks_, blocks_per_row, row_masks

KEYS = [bytes([i]) * 32 for i in range(1, 4)]


def expected(key, count):
    out = bytearray(count + 16)
    stream(key).update_into(bytes(count), out)
    return bytes(out[:count])


@pytest.mark.parametrize("chunk", [64, 1 << 17])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_sum_of_streams(monkeypatch, chunk, dtype):
    monkeypatch.setattr(streams, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(streams, "_AT_ONCE", 2)
    head, body = np.arange(8, dtype=np.uint64), np.arange(37, dtype=dtype) + 3
    total = [head.copy(), body.copy()]
    add_masks_(total, [Mask(KEYS[0], 1), Mask(KEYS[1], -1), Mask(KEYS[2], 1)])
    for vector, own, start in ((total[0], head, 0), (total[1], body, 64)):
        for j, word in enumerate(vector):
            size, number = own.itemsize, int(own[j])
            for key, sign in zip(KEYS, (1, -1, 1), strict=True):
                part = expected(key, 64 + body.nbytes)[start + size * j : start + size * j + size]
                number += sign * int.from_bytes(part, "little")
            assert int(word) == number % 2 ** (8 * size)


def test_a_mask_and_its_opposite_cancel():
    total = np.arange(100_000, dtype=np.uint32)
    add_masks_([total], [Mask(KEYS[0], 1)])
    assert (total == np.arange(100_000)).mean() < 0.001
    add_masks_([total], [Mask(KEYS[0], -1)])
    assert np.array_equal(total, np.arange(100_000))
    assert "key" not in repr(Mask(KEYS[0], 1))


@pytest.mark.parametrize(("dtype", "width"), [(np.uint32, 1), (np.uint32, 4), (np.uint32, 19), (np.uint64, 3)])
def test_masks_of_rows(dtype, width):
    dtype = np.dtype(dtype)
    blocks = blocks_per_row(width, dtype)
    assert (blocks - 1) * 16 < width * dtype.itemsize <= blocks * 16
    whole = np.frombuffer(expected(KEYS[0], 60 * blocks * 16), dtype).reshape(60, -1)
    rows = np.array([3, 59, 4, 0])
    assert np.array_equal(row_masks(KEYS[0], rows, width, dtype), whole[rows, :width])
    assert row_masks(KEYS[0], rows[:0], width, dtype).shape == (0, width)


def test_masked_words_are_uniform():
    """Chi-square over the low and the high byte of 2^16 words: 255 degrees of freedom, 99.9 % below 330.5."""
    words = np.full(1 << 16, 7, np.uint32)
    add_masks_([words], [Mask(KEYS[0], 1), Mask(KEYS[1], -1)])
    for shift in (0, 24):
        counts = np.bincount((words >> shift) & 255, minlength=256)
        assert ((counts - 256) ** 2 / 256).sum() < 330.5
