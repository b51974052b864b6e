"""The bytes of one message of a million values, of messages that are really encoded: communication.md §16.6."""

import pytest
import torch

from partwise.core.codec import decode, encode, encoded_size
from partwise.core.index import Whole
from partwise.core.update import Update
from partwise.transforms import Eden, FedZip, Halved, LowRank, Quantize, RandomK, Sign, TopK

D = 1_000_000
NEAREST = {"scale_by": "max", "rounding": "nearest"}
HEAD = 250  # bytes of a message that are not its values: names, shapes, checksums
TABLE = [
    # part, bytes by the formula, how much shorter our coding may be
    (TopK(ratio=0.001), 8_000, 0.65),  # positions in 12 bits instead of 32
    (Sign(scaled=False), 125_000, 1.0),
    (Sign(), 125_004, 1.0),
    (LowRank(2), 16_000, 1.0),
    (Eden(1), 131_076, 1.0),
    (Eden(4), 524_292, 1.0),
    (
        Quantize(bits=4, bucket=2048, **NEAREST),
        501_956,
        0.7,
    ),  # 501,953 in the table, with part of a scale; levels are not equally frequent
    (Quantize(bits=4, bucket=128, smooth=5, **NEAREST), 531_252, 0.7),
    (FedZip(ratio=0.1), 137_500 + 12, 0.4),  # positions instead of Huffman codes, and fewer that are not 0
    (Quantize(**NEAREST), D + 4 * -(-D // 512), 0.7),
    (Halved(), 2 * D, 1.0),
]


@pytest.mark.parametrize(("part", "formula", "least"), TABLE, ids=lambda x: repr(x) if hasattr(x, "apply") else "")
def test_message(part, formula, least):
    value = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(3))
    update = Update(Whole({"w": (1000, 1000)}), {"w": value}, 5.0)
    sent, _ = part.apply(update, part.init({}), torch.Generator().manual_seed(1))
    message = encode(sent)
    assert encoded_size(sent) == len(message)
    assert least * formula <= len(message) <= formula + HEAD
    back = decode(bytearray(message))
    assert all(torch.equal(back.values()[n], v) for n, v in sent.values().items())


def test_random_k_sends_values_and_a_seed():
    value = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(3))
    sent, _ = RandomK(0.001, seed=4).apply(Update(Whole({"w": (1000, 1000)}), {"w": value}), (), torch.Generator())
    assert 0 <= encoded_size(sent) - 4 * sent.values()["w"].numel() <= HEAD
