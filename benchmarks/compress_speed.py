"""How fast compressors code and decode, beside bfloat16 and zstd, in GB/s of float32 that goes in or comes out.

One parameter of `--size` normal numbers on two threads. All are measured in turn, again and again, and the shortest
time of each counts, so that what else runs on the machine disturbs all alike. `codes` is the transform, from the
tensor to the packed one; `decodes` is `unpack`; `share` is the bytes of the encoded message over those of float32. A
copy is what the machine's memory allows. Whoever lets the allocator keep its memory measures coding instead of the
kernel's zeroing of new pages, which halves most rates:

    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

On a machine with other work, take `--threads 1`: two threads wait for each other.

    python benchmarks/compress_speed.py [--size 16777216] [--passes 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import zstandard
from machine import describe

from partwise.core.codec import encode, encoded_size
from partwise.core.index import Whole
from partwise.core.joined import Joined
from partwise.core.transform import Identity
from partwise.core.update import Update
from partwise.transforms import Eden, ErrorFeedback, FedZip, Halved, LowRank, Quantize, Sign, TopK

NEAREST = {"scale_by": "max", "rounding": "nearest"}
SEED = 1
PARTS = {
    "8 bits, block 512": Quantize(8, 512, **NEAREST),
    "4 bits, block 128": Quantize(4, 128, **NEAREST),
    "4 bits, block 128, mixed": Quantize(4, 128, smooth=5, **NEAREST),
    "sign": Sign(),
    "sign with error feedback": ErrorFeedback(Sign()),
    "top 1 %, guessed, with error feedback": ErrorFeedback(TopK(ratio=0.01, sample=16384)),
    "top 1 %, exact, with error feedback": ErrorFeedback(TopK(ratio=0.01)),
    "bfloat16": Halved(),
    "8 bits, stochastic (QSGD)": Quantize(8, 512),
    "1 bit, turned (DRIVE)": Eden(1),
    "rank 2": LowRank(2),
    "FedZip, 1 %": FedZip(0.01),
}


class Case:
    """One compressor, its state, and the best times."""

    def __init__(self, part: Any, update: Update) -> None:
        self.part, self.update = part, update
        self.state, self.sent = part.init({}), None
        self.best = {"codes": math.inf, "decodes": math.inf}

    def measure(self) -> None:
        self.sent = None  # its memory is there for the next
        began = time.perf_counter()
        sent, self.state = self.part.apply(self.update, self.state, torch.Generator().manual_seed(SEED))
        coded = time.perf_counter()
        for packed in (sent.value.packed,) if isinstance(sent.value, Joined) else sent.value.values():
            if not isinstance(packed, torch.Tensor):
                packed.unpack()
        self.note(coded - began, time.perf_counter() - coded)
        self.sent = sent

    def note(self, codes: float, decodes: float) -> None:
        self.best = {"codes": min(self.best["codes"], codes), "decodes": min(self.best["decodes"], decodes)}

    @property
    def share(self) -> float:
        return encoded_size(self.sent) / self.update.value["w"].nbytes


class Plain(Case):
    """A baseline: two functions."""

    def __init__(self, codes: Callable[[], Any], decodes: Callable[[Any], Any], update: Update) -> None:
        super().__init__(Identity(), update)
        self.functions = codes, decodes

    def measure(self) -> None:
        began = time.perf_counter()
        self.sent = self.functions[0]()
        coded = time.perf_counter()
        self.functions[1](self.sent)
        self.note(coded - began, time.perf_counter() - coded)

    @property
    def share(self) -> float:
        size = len(self.sent) if isinstance(self.sent, bytes) else self.sent.nbytes
        return size / self.update.value["w"].nbytes


def cases(value: torch.Tensor) -> dict[str, Case]:
    update = Update(Whole({"w": tuple(value.shape)}), {"w": value})
    room = torch.empty_like(value)
    press, expand = zstandard.ZstdCompressor(level=1, threads=2), zstandard.ZstdDecompressor()
    data = value.numpy().reshape(-1).view("u1").data
    return {
        **{name: Case(part, update) for name, part in PARTS.items()},
        "zstd of float32": Plain(lambda: press.compress(data), expand.decompress, update),
        "copy": Plain(lambda: room.copy_(value), room.copy_, update),
        "message of float32, encoded": Plain(lambda: encode(update), lambda _: None, update),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1 << 24)
    parser.add_argument("--passes", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names that begin so")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    value = torch.randn(args.size // 1024, 1024, generator=torch.Generator().manual_seed(SEED))
    found = {n: c for n, c in cases(value).items() if not args.only or n.startswith(tuple(args.only))}
    for _ in range(args.passes):
        for case in found.values():
            case.measure()
    keeps = "kept" if "MALLOC_TRIM_THRESHOLD_" in os.environ else "given back"
    print(
        f"{describe(SEED)}; {value.numel():,} values, threads {args.threads}, memory {keeps}, best of {args.passes}\n"
    )
    print("| | codes, GB/s | decodes, GB/s | share |\n|---|---|---|---|")
    for name, case in found.items():
        rates = [value.nbytes / case.best[k] / 1e9 for k in ("codes", "decodes")]
        decodes = f"{rates[1]:.2f}" if name != "message of float32, encoded" else ""
        print(f"| {name} | {rates[0]:.2f} | {decodes} | {case.share:.4f} |")


if __name__ == "__main__":
    main()
