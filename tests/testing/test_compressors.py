from dataclasses import dataclass

import pytest
import torch

from partwise.core.compressor import Claims
from partwise.core.update import map_values
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
        (Claiming(Claims(is_linear=True), 1.0, 0.1), r"must make of a sum the sum of what it makes of its terms"),
        (Claiming(Claims(is_common=True)), r"must draw by the common seed alone"),
        (Claiming(Claims(delta=2.0)), r"must lose at most|delta must lie in \(0, 1\]"),
        (Claiming(Claims()), r"must refuse NaN, got an update\."),
    ],
    ids=["delta", "omega", "biased", "not linear", "not common", "beyond 1", "NaN"],
)
def test_claims_that_are_not_kept_are_found(part, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_compressor(part, draws=80)
