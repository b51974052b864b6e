"""The bytes of one message of a million values, of messages that are really encoded: communication.md §16.6."""

import math

import pytest
import torch

from partwise.algorithms import Ferret
from partwise.algorithms.one_byte import Slopes, to_bytes
from partwise.core.codec import decode, encode, encoded_size
from partwise.core.index import Whole, shapes_of
from partwise.core.sizes import header_and_blocks
from partwise.core.transform import Identity
from partwise.core.update import Update
from partwise.transforms import Eden, FedZip, Halved, LowRank, Quantize, RandomK, Sign, TopK

D = 1_000_000
NEAREST = {"scale_by": "max", "rounding": "nearest"}
HEAD = 250  # bytes of a message that are not its values: names, shapes, checksums
EXACT = [
    (Identity(), 4_000_000),
    (Sign(scaled=False), 125_004),  # 125,000 in the table: ours has a scale of 1 beside it
    (Sign(), 125_004),
    (LowRank(2), 16_000),
    (Eden(1), 131_076),
    (Eden(2), 262_148),
    (Eden(4), 524_292),
    (Halved(), 2 * D),
]
TABLE = [
    # part, bytes by the formula, how much shorter our coding may be
    *((part, formula, 1.0) for part, formula in EXACT),
    (TopK(ratio=0.001), 8_000, 0.65),  # positions in 12 bits instead of 32
    (
        Quantize(bits=4, bucket=2048, **NEAREST),
        501_956,
        0.7,
    ),  # 501,953 in the table, with part of a scale; levels are not equally frequent
    (Quantize(bits=4, bucket=128, smooth=5, **NEAREST), 531_252, 0.7),
    (FedZip(ratio=0.1), 137_500 + 12, 0.4),  # positions instead of Huffman codes, and fewer that are not 0
    (Quantize(**NEAREST), D + 4 * -(-D // 512), 0.7),
    # QSGD with as many levels as the root of a bucket: 2.8 bits a value and 32 a bucket by Elias codes at most; the
    # table has 350,004 for one bucket of all.
    (Quantize(8, 127**2), math.ceil((2.8 * D + 32 * -(-D // 127**2)) / 8), 0.7),
]


def blocks(tree):
    """Bytes of all tensors in a message, as they are coded."""
    return sum(header_and_blocks(tree)[1])


def million(dtype=torch.float32):
    value = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(3)).to(dtype)
    return Update(Whole({"w": (1000, 1000)}), {"w": value}, 5.0)


@pytest.mark.parametrize(("part", "formula"), EXACT, ids=lambda x: repr(x) if hasattr(x, "apply") else "")
def test_what_is_not_coded_by_its_entropy_has_the_bytes_of_the_formula(part, formula):
    sent, _ = part.apply(million(), part.init({}), torch.Generator().manual_seed(1))
    assert blocks(sent) == formula
    assert formula < len(encode(sent)) < formula + HEAD


def test_one_byte_and_ferret():
    """64 slopes in 64 bytes; 30 blocks of 200 numbers in 24,000."""
    slopes = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    assert blocks(Slopes(to_bytes(slopes))) == 64
    params = {f"block {i:02d}": torch.zeros(50, 8) for i in range(30)}
    index = Ferret(30 * 200)._index(params, 0)
    numbers = index.gather(
        {n: torch.randn(t.shape, generator=torch.Generator().manual_seed(2)) for n, t in params.items()}
    )
    assert blocks(Update(Whole(shapes_of(numbers)), numbers)) == 24_000


@pytest.mark.parametrize(
    ("part", "bits"),
    [
        (Quantize(bits=4, bucket=2048, **NEAREST), 4.015625),
        (Quantize(bits=4, bucket=128, **NEAREST), 4.25),
        (Quantize(bits=8, bucket=512, **NEAREST), 8.0625),
        (Quantize(bits=8, bucket=128, **NEAREST), 8.25),
    ],
    ids=lambda x: repr(x) if hasattr(x, "apply") else "",
)
def test_bits_of_a_value(part, bits):
    """communication.md §6, b + 32 / g: of levels that are equally frequent, which no entropy coder makes shorter."""
    size, top = 1 << 18, 2 ** (part.bits - 1)
    levels = torch.randint(-top + 1, top, (size,), generator=torch.Generator().manual_seed(4)).float()
    levels[:: part.bucket] = top - 1.0  # so that the largest of each bucket is its last level
    sent, _ = part.apply(Update(Whole({"w": (size,)}), {"w": levels}), (), torch.Generator())
    assert torch.equal(sent.values()["w"], levels)
    packed = sent.value["w"]
    assert 8 * (packed.codes.nbytes + packed.scales.nbytes) / size == bits
    assert 0.95 * bits < 8 * blocks(sent) / size <= bits


def test_333_times_over_mixed_precision():
    """communication.md §5: a thousandth of half-precision values, 6 bytes each where positions take 4."""
    sent, _ = TopK(ratio=0.001).apply(million(torch.float16), (), torch.Generator())
    assert sent.values()["w"].dtype == torch.float16
    assert sent.values()["w"].numel() == 1000
    assert round(2 * D / 6000, 1) == 333.3
    assert 2 * D / blocks(sent) >= 333.3
    assert blocks(sent) >= 2000 + 1000 * 11.4 / 8  # log2 of the ways to choose 1,000 of a million is 11,404


@pytest.mark.parametrize(("part", "formula", "least"), TABLE, ids=lambda x: repr(x) if hasattr(x, "apply") else "")
def test_message(part, formula, least):
    sent, _ = part.apply(million(), part.init({}), torch.Generator().manual_seed(1))
    message = encode(sent)
    assert encoded_size(sent) == len(message)
    assert least * formula <= len(message) <= formula + HEAD
    back = decode(bytearray(message))
    assert all(torch.equal(back.values()[n], v) for n, v in sent.values().items())


def test_random_k_sends_values_and_a_seed():
    sent, _ = RandomK(0.001, seed=4).apply(million(), (), torch.Generator())
    assert blocks(sent) == 4 * sent.values()["w"].numel()
    assert 0 <= encoded_size(sent) - 4 * sent.values()["w"].numel() <= HEAD
