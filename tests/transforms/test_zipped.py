import math

import pytest
import torch

from partwise.core.codec import decode, encode, encoded_size
from partwise.core.index import Rows, Whole
from partwise.core.update import Update
from partwise.transforms import FedZip
from partwise.transforms.bits import widened
from partwise.transforms.zipped import Clustered
from toy_sent import dense, sent_by, whole

EXAMPLE = [0.9, -0.8, 0.05, 0.02, -0.01, 0.7, -0.6, 0.03, 0.0, -0.04]


def test_worked_example():
    """communication.md §11."""
    sent = sent_by(FedZip(ratio=0.4), whole(*EXAMPLE))
    assert dense(sent, {"w": (10,)})["w"] == pytest.approx([0.8, -0.7, 0, 0, 0, 0.8, -0.7, 0, 0, 0])
    assert sent.value["w"].centres.tolist() == pytest.approx([-0.7, 0.8])


def test_bits_of_the_worked_example():
    """communication.md §11: counts (2, 6, 2); Huffman's lengths (2, 1, 2) are 14 bits, not below the entropy, 13.71.

    What is not 0 is sent with its position instead: a label of one bit each, and two centres instead of three.
    """
    sent = sent_by(FedZip(ratio=0.4), whole(*EXAMPLE))
    decoded = dense(sent, {"w": (10,)})["w"]
    counts = [sum(x < 0 for x in decoded), sum(x == 0 for x in decoded), sum(x > 0 for x in decoded)]
    assert counts == [2, 6, 2]
    lengths = huffman(counts)
    assert lengths == [2, 1, 2]
    assert sum(2.0**-n for n in lengths) == 1.0
    assert sum(n * c for n, c in zip(lengths, counts, strict=True)) == 14
    assert -sum(c * math.log2(c / 10) for c in counts) == pytest.approx(13.71, abs=5e-3)
    packed = sent.value["w"]
    assert widened(packed.labels, 1).tolist() == [1, 0, 1, 0, 0, 0, 0, 0]  # four bits, and the rest of a byte
    assert len(packed.centres) == 2


def huffman(counts):
    """Lengths of the code words: the two rarest are joined until one is left."""
    lengths, groups = [0] * len(counts), [(c, [i]) for i, c in enumerate(counts)]
    while len(groups) > 1:
        (a, one), (b, other), *groups = sorted(groups)
        for i in one + other:
            lengths[i] += 1
        groups.append((a + b, one + other))
    return lengths


def test_as_many_centres_as_values_lose_nothing():
    values = [3.0, -1.0, 2.0, 0.0, -4.0, 3.0, 2.0, -1.0]
    sent = sent_by(FedZip(ratio=1.0, centres=6, iterations=9), whole(*values))
    assert dense(sent, {"w": (8,)})["w"] == values


def test_what_belongs_to_zero_is_not_sent():
    sent = sent_by(FedZip(ratio=1.0), whole(10.0, 9.0, 0.5, -0.25, 0.0))
    assert sent.index.coords("w").tolist() == [0, 1, 3]  # -0.25 is a cluster of its own
    assert sent.values()["w"].tolist() == pytest.approx([9.5, 9.5, -0.25])
    assert not sent_by(FedZip(), whole(0.0, 0.0)).index.shapes


def test_a_cluster_that_nobody_belongs_to_keeps_its_centre():
    """Centres begin at -10, -5, 0, 5 and 10: nothing is near 5, so that 1 stays nearer to 0 and is not sent."""
    sent = sent_by(FedZip(ratio=1.0, centres=4), whole(10.0, 9.0, 1.0, -10.0, -6.0))
    assert sent.index.coords("w").tolist() == [0, 1, 3, 4]
    assert sent.values()["w"].tolist() == pytest.approx([9.5, 9.5, -10.0, -6.0])


def test_a_label_beyond_the_list_from_elsewhere_is_the_last():
    centres = torch.arange(6.0)
    assert Clustered(torch.tensor([0xF1], dtype=torch.uint8), centres, 2, "float32").unpack().tolist() == [1.0, 5.0]


def test_positions_and_weights_are_those_of_the_whole_parameter():
    rows = Rows({"E": (6, 2)}, {"E": torch.tensor([1, 4])})
    weight = {"E": torch.tensor([10.0, 70.0])}
    sent = sent_by(FedZip(ratio=0.5), Update(rows, {"E": torch.tensor([[0.5, -3.0], [2.0, 0.1]])}, weight))
    assert sent.index.coords("E").tolist() == [3, 8]
    assert (sent.values()["E"].tolist(), sent.weight["E"].tolist()) == ([-3.0, 2.0], [10.0, 70.0])


@pytest.mark.parametrize("share", [0.2, 0.1, 0.02, 0.002])
def test_bytes_beat_huffman_codes_of_labels(share):
    """d (1 + z) bits of labels and 12 bytes of centres: communication.md §11; not below the entropy of the labels."""
    size = 1_000_000
    value = torch.randn(size, generator=torch.Generator().manual_seed(7))
    sent = sent_by(FedZip(ratio=share), Update(Whole({"w": (size,)}), {"w": value}))
    z = len(sent.values()["w"]) / size
    length = encoded_size(sent)
    assert length == len(encode(sent))
    entropy = -(1 - z) * math.log2(1 - z) - z * math.log2(z / 2)
    assert size * entropy / 8 < length < size * (1 + z) / 8 + 12
    assert length < 1.2 * size * entropy / 8 + 300


def test_fedzip_refuses():
    for setting, message in (
        ({"ratio": 0}, r"FedZip\(ratio=0\): must lie in \(0, 1\], got 0\."),
        ({"centres": 3}, r"FedZip\(centres=3\): must be even and in 2\.\.16, got 3\."),
        ({"iterations": 0}, r"FedZip\(iterations=0\): must be at least 1, got 0\."),
    ):
        with pytest.raises(ValueError, match=message):
            FedZip(**setting)
    with pytest.raises(ValueError, match=r"FedZip\(.*\): needs a finite update, got NaN or infinity\."):
        sent_by(FedZip(), whole(1.0, math.inf))
    with pytest.raises(ValueError, match=r"Clustered\(size=9\): needs 2 bytes of labels and at most 16 centres"):
        Clustered(torch.zeros(1, dtype=torch.uint8), torch.ones(2), 9, "float32")
    good = Clustered(torch.tensor([3], dtype=torch.uint8), torch.tensor([-1.0, 2.0]), 3, "float32")
    assert decode(bytearray(encode(good))).unpack().tolist() == [2.0, 2.0, -1.0]
