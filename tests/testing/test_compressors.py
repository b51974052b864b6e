import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from partwise.core.codec import decode, encode
from partwise.core.compressor import Claims, common
from partwise.core.index import Whole
from partwise.core.update import Update, map_values
from partwise.testing.compressors import check_compressor
from partwise.transforms import Eden, FedZip, Halved, LowRank, Menu, Quantize, RandomK, Sign, Threshold, TopK

NEAREST = {"scale_by": "max", "rounding": "nearest"}
COMPRESSORS = [
    TopK(k=5),
    TopK(ratio=0.1, sample=50),
    TopK(ratio=0.3, scope="layer"),
    Threshold(0.3),
    RandomK(0.3),
    RandomK(0.25, unbiased=True, block=8),
    RandomK(0.3, by_row=True),
    Sign(),
    Sign(scope="layer"),
    Sign(scaled=False),
    Quantize(),
    Quantize(bits=4, bucket=16),
    Quantize(bits=2, bucket=8),
    Quantize(bits=4, scale_by="max"),
    Quantize(bits=4, bucket=128, scale_by="max", smooth=5),
    Quantize(**NEAREST),
    Quantize(bits=2, bucket=9, **NEAREST),
    Quantize(bits=4, bucket=2048, **NEAREST),
    Quantize(bits=4, bucket=128, smooth=5, **NEAREST),
    Eden(),
    Eden(unbiased=False),
    Eden(bits=2.5, unbiased=False),
    Eden(bits=0.3, unbiased=False),
    Eden(bits=3),
    LowRank(1),
    LowRank(2),
    Halved(),
    FedZip(),
    FedZip(ratio=1.0, centres=8),
    Menu((Sign(), TopK(k=5), Halved()), at=1),
]


@pytest.mark.parametrize("part", COMPRESSORS, ids=repr)
def test_compressor_keeps_its_claims(part):
    check_compressor(part, draws=80)


def test_two_seeds_may_draw_alike():
    check_compressor(RandomK(0.05, block=16), draws=80)  # one of 13 blocks, which the first two seeds have in common


CHILD = """
import pathlib, sys
import torch
import partwise.transforms
from partwise.core.codec import decode, encode

for file in sorted(pathlib.Path(sys.argv[1]).glob("*.sent")):
    sent = decode(file.read_bytes())
    plain = {n: (v, sent.index.coords(n)) for n, v in sent.values().items()}
    file.with_suffix(".values").write_bytes(encode(plain))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """By number of a compressor: what it sent, and what another process, which knows nothing else, makes of its bytes.

    Of 37 values and a matrix, so that no size is a power of two.
    """
    folder, sent = tmp_path_factory.mktemp("sent"), []
    rng = torch.Generator().manual_seed(11)
    values = {"v": torch.randn(37, generator=rng), "w": torch.randn(12, 17, generator=rng)}
    shapes = {n: tuple(v.shape) for n, v in values.items()}
    for at, part in enumerate(COMPRESSORS):
        update, _ = common(part, 9).apply(Update(Whole(shapes), values, 3.0), part.init(values), rng)
        sent.append(update)
        (folder / f"{at:03d}.sent").write_bytes(encode(update))
    subprocess.run([sys.executable, "-c", CHILD, str(folder)], check=True, timeout=600)
    return [(one, decode((folder / f"{at:03d}.values").read_bytes())) for at, one in enumerate(sent)]


@pytest.mark.parametrize("at", range(len(COMPRESSORS)), ids=[repr(part) for part in COMPRESSORS])
def test_another_process_decodes_the_same_bits(elsewhere, at):
    sent, got = elsewhere[at]
    here = sent.values()
    assert got.keys() == here.keys()
    assert got
    for name, (value, coords) in got.items():
        assert value.dtype == here[name].dtype
        assert value.numpy().tobytes() == here[name].numpy().tobytes()
        assert torch.equal(coords, sent.index.coords(name))


LINEAR = [part for part in COMPRESSORS if part.claims(64).is_linear]


@pytest.mark.parametrize("part", LINEAR, ids=repr)
def test_what_is_linear_is_so_exactly(part):
    """C(x) + C(y) = C(x + y) to the bit, of multiples of the ratio, whose quotients and sums are whole numbers."""
    rng, unit = torch.Generator().manual_seed(2), 0.25 if part.ratio == 0.25 else 1.0
    x, y = (torch.randint(-1000, 1000, (64, 9), generator=rng).double() * unit for _ in range(2))
    found = []
    for value in (x, y, x + y):
        target = {"w": torch.zeros(64, 9, dtype=torch.float64)}
        sent = part.apply(Update(Whole({"w": (64, 9)}), {"w": value}), (), torch.Generator())[0]
        sent.index.scatter_add_(target, sent.values())
        found.append(target["w"])
    assert torch.equal(found[0] + found[1], found[2])
    assert 0.1 < float((found[2] != 0).double().mean()) < 0.5


def test_the_linear_ones_are_found():
    assert [type(part) for part in LINEAR] == [RandomK] * 3


@dataclass(frozen=True)
class Claiming:
    """Times `factor`, with noise; and some claims."""

    promised: Claims
    factor: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def claims(self, size):
        return self.promised

    def common(self, seed):
        return self

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        def change(v):
            noise = torch.randn(v.shape, generator=rng) * self.noise * v.abs().max()
            return v * self.factor + noise

        return map_values(update, change), state


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (Claiming(Claims(delta=0.9), 0.5), r"must lose at most 1 - delta = 0\.1 of the squared length .*, got 0\.25"),
        (Claiming(Claims(omega=1e-4), noise=0.1), r"must err by at most omega = 0\.0001 times"),
        (Claiming(Claims(omega=1.0), 0.9, 0.01), r"must be right on average for an update that is .*standard errors"),
        (Claiming(Claims(omega=1.0), 0.99), r"must be right on average for .* all values together, got 0\.99 of it"),
        (Claiming(Claims(is_linear=True), 1.0, 0.1), r"must make of a sum the sum of what it makes of its terms"),
        (Claiming(Claims(is_common=True)), r"must draw by the common seed alone"),
        (Claiming(Claims(delta=2.0)), r"must lose at most|delta must lie in \(0, 1\]"),
        (Claiming(None), r"must claim what is in Claims: numbers, or None .*, got a NoneType\. Return Claims"),
        (Claiming(Claims(omega="1")), r"must claim what is in Claims: .*, got Claims\(omega='1'"),
        (Claiming(Claims()), r"must refuse NaN, got an update\."),
    ],
    ids=["delta", "omega", "biased", "biased alike", "not linear", "not common", "beyond 1", "none", "text", "NaN"],
)
def test_claims_that_are_not_kept_are_found(part, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_compressor(part, draws=80)


@dataclass(frozen=True)
class Largest(TopK):
    """Keeps the largest values as they are and claims that nothing is lost on average."""

    def claims(self, size):
        return Claims(omega=1.0)


def test_what_is_never_sent_is_missed_on_average():
    with pytest.raises(AssertionError, match=r"must be right on average for an update that is random, all values"):
        check_compressor(Largest(ratio=0.5), draws=80)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5])
def test_what_is_seldom_sent_is_not_missed_on_average(ratio):
    check_compressor(RandomK(ratio, unbiased=True), draws=80)
