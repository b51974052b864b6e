import math
import struct
import zlib

import numpy as np
import pytest
import torch

from partwise.core.blocks import BITMAP, ELIAS, block_of, checksum
from partwise.core.codec import decode, encode, encoded_size
from wire import same


class TestPacking:
    def test_ascending_ids_cost_about_a_byte_each(self):
        ids = torch.arange(0, 20_000, 100)
        assert len(encode(ids)) < 200 + 80
        assert len(encode(ids)) < len(encode(ids.float()))

    def test_scattered_ids_are_narrowed(self):
        ids = torch.arange(1000) * 7919 % 60_000 + 2**40
        assert len(encode(ids)) < 2 * 1000 + 80
        assert torch.equal(decode(encode(ids)), ids)

    @pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64])
    def test_extremes(self, dtype):
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        for row in ([low] * 50 + [high], [high] + [low] * 50, [low, high] * 50, [high] * 60, [high - 3, high] * 70):
            values = torch.tensor(np.array(row, str(dtype).removeprefix("torch.")))
            assert same(decode(encode(values)), values)

    def test_large_noise_stays_a_view_and_large_pattern_is_packed(self):
        noise = torch.from_numpy(np.random.default_rng(3).integers(0, 256, 400_000, dtype=np.uint8))
        assert len(encode(noise)) - 400_000 < 64
        assert len(encode(torch.zeros(400_000, dtype=torch.uint8))) < 1000

    def test_floats_are_never_packed(self):
        assert len(encode(torch.zeros(5000))) >= 20_000


class TestSets:
    """Positions that ascend without repeats."""

    @staticmethod
    def drawn(count, span, seed=3):
        return torch.from_numpy(np.sort(np.random.default_rng(seed).choice(span, count, replace=False)))

    @pytest.mark.parametrize(
        ("count", "span", "method"),
        [(10_000, 1_000_000, ELIAS), (1_000, 1_000_000, ELIAS), (50_000, 100_000, BITMAP)],
    )
    def test_the_shortest_code_is_chosen(self, count, span, method):
        """Within a quarter of the bits that a set of so many has at least, log2 of the number of such sets."""
        ids = self.drawn(count, span)
        assert block_of(ids).method == method
        least = (math.lgamma(span + 1) - math.lgamma(count + 1) - math.lgamma(span - count + 1)) / math.log(2) / 8
        assert least <= len(encode(ids)) <= 1.25 * least + 60
        assert torch.equal(decode(encode(ids)), ids)
        assert encoded_size(ids) == len(encode(ids))

    def test_patterns_are_shorter_as_differences(self):
        assert len(encode(torch.arange(0, 10**7, 100))) < 200
        assert len(encode(torch.arange(10**6))) < 200

    @pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64])
    @pytest.mark.parametrize("count", [2, 40, 300])
    def test_they_come_back(self, dtype, count):
        info = torch.iinfo(dtype)
        rng = np.random.default_rng(count)
        for span in (count, 3 * count, 50 * count, 2**15):
            for base in (info.min, info.max - span, 0):
                row = [base + int(i) for i in np.sort(rng.choice(span, count, replace=False))]
                ids = torch.tensor(np.array(row, str(dtype).removeprefix("torch.")))
                assert same(decode(encode(ids)), ids)


class TestChecksum:
    """Each of the changes that are likely on disks and wires changes it."""

    DATA = np.random.default_rng(5).integers(0, 256, 3 * 8192 + 1003, dtype=np.uint8).tobytes()

    def test_it_is_crc32_below_a_row(self):
        assert checksum(memoryview(b"123456789")) == 0xCBF43926

    def test_it_is_crc32_of_sums_above(self):
        words = struct.unpack("<3072Q", self.DATA[: 3 * 8192])
        sums = b"".join(struct.pack("<Q", sum(words[i * 1024 : (i + 1) * 1024]) % 2**64) for i in range(3))
        assert checksum(memoryview(self.DATA)) == zlib.crc32(self.DATA[3 * 8192 :], zlib.crc32(sums))

    def test_it_sees_swapped_lost_and_zeroed_pages(self):
        d, page = self.DATA, 8192
        swapped = d[page : 2 * page] + d[:page] + d[2 * page :]
        shifted = d[8:] + d[:8]
        zeroed = d[:4096] + bytes(4096) + d[page:]
        assert len({checksum(memoryview(x)) for x in (d, swapped, shifted, zeroed)}) == 4
