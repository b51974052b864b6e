"""The bytes of one message of a million values by every compressor, encoded, beside the formula of its paper.

    python benchmarks/compress_bytes.py

Normal numbers, one parameter of 1000 x 1000; headers of about 200 bytes are counted in the message and not in the
formula. Where the message is shorter than the formula, positions are coded in fewer bits, or levels, which are not
equally frequent, are packed by zstd. `lost` is the squared error over the squared length of what goes in.
"""

from __future__ import annotations

import torch
from machine import describe

from partwise.algorithms.one_byte import Slopes, to_bytes
from partwise.core.codec import encode
from partwise.core.index import Whole
from partwise.core.update import Update, to_dense
from partwise.transforms import Eden, FedZip, Halved, LowRank, Quantize, RandomK, Sign, TopK

D, SEED = 1_000_000, 1
NEAREST = {"scale_by": "max", "rounding": "nearest"}
ROWS = {
    "top-k 0.1 %": (TopK(ratio=0.001), 8_000),
    "top-k 1 %": (TopK(ratio=0.01), 80_000),
    "random-k 1 %, a seed instead of positions": (RandomK(0.01), 40_000),
    "sign": (Sign(scaled=False), 125_000),
    "scaled sign": (Sign(), 125_004),
    "PowerSGD rank 2": (LowRank(2), 16_000),
    "DRIVE, EDEN at 1 bit": (Eden(1), 131_076),
    "EDEN at 4 bits": (Eden(4), 524_292),
    "SDP4Bit weight differences": (Quantize(4, 2048, **NEAREST), 501_953),
    "SDP4Bit gradients": (Quantize(4, 128, smooth=5, **NEAREST), 531_250),
    "FedZip, z = 0.1": (FedZip(0.1), 137_512),
    "8 bits, block 512": (Quantize(8, 512, **NEAREST), 1_007_812),
    "QSGD, 4 bits, bucket 512": (Quantize(4, 512), 507_812),
    "QSGD, 127 levels, bucket 127 x 127 (bound of Elias codes)": (Quantize(8, 127**2), 350_252),
    "bfloat16": (Halved(), 2_000_000),
}


def main() -> None:
    print(describe(SEED) + "\n")
    value = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(SEED))
    update = Update(Whole({"w": (1000, 1000)}), {"w": value})
    print("| compressor | formula | message | times less than float32 | lost |\n|---|---|---|---|---|")
    full = len(encode(update))
    for name, (part, formula) in ROWS.items():
        sent, _ = part.apply(update, part.init({}), torch.Generator().manual_seed(SEED))
        length = len(encode(sent))
        lost = float(((to_dense(sent, {"w": value})["w"] - value) ** 2).sum() / (value**2).sum())
        print(f"| {name} | {formula:,} | {length:,} | {full / length:.1f} | {lost:.4f} |")
    slopes = Slopes(to_bytes(torch.randn(64, generator=torch.Generator().manual_seed(SEED))))
    print(f"| one byte for a slope, 64 samples | 64 | {len(encode(slopes)):,} | {full / len(encode(slopes)):.1f} | |")


if __name__ == "__main__":
    main()
