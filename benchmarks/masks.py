"""Masked sums: how fast masks are made, and what an exchange costs client and server.

- `masks`: streams added to a vector of words, against the raw AES-256-CTR stream of the same cipher, written to a
  buffer in pieces of the best of four sizes; both in the same pass, in turns;
- `shares`: Shamir's split of two secrets, and putting one together;
- `exchange`: one client's and the server's time for a whole exchange, by cohort, dimension and share of clients lost
  after they have sent their shares, with the complete graph, with a random regular one, and with masks that a code
  shares out. All clients run in full, key agreement with all their neighbours included; the first one's steps are
  timed;
- `flower`: the same of Flower's SecAgg+ and of ours in turns, for 100 clients and 10^6 values, without a network.

    python benchmarks/masks.py [--passes 5] [--only masks shares exchange flower] [--minutes 10]

Times are those of this process's one thread on its core (`time.process_time`): other people's work does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executors import spread
from machine import describe

from partwise.channels import Coded, Masked
from partwise.channels.crypto import stream
from partwise.channels.graphs import Complete, RandomRegular
from partwise.channels.ring import Ring
from partwise.channels.shamir import combine, split
from partwise.channels.streams import Mask, add_masks_
from partwise.core.channel import Seat, fingerprint
from partwise.core.codec import encoded_size
from partwise.core.index import Whole
from partwise.core.update import Update

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
from environments import python_of  # noqa: E402  # the peers' folder is no package

SEED = 5
PIECES = (1 << 14, 1 << 16, 1 << 17, 1 << 18)
GRID = [  # clients, values, graph
    (10, 10_000, "complete"),
    (10, 1_000_000, "complete"),
    (10, 10_000_000, "complete"),
    (100, 10_000, "complete"),
    (100, 100_000, "complete"),
    (100, 1_000_000, "random"),
    (100, 1_000_000, "complete"),
    (100, 100_000, "coded"),
    (100, 1_000_000, "coded"),
    (1000, 10_000, "random"),
    (1000, 100_000, "random"),
    (300, 10_000, "complete"),
]
LOST = (0.0, 0.1, 0.3)


# Masks


def raw(key: bytes, size: int, piece: int) -> float:
    """Bytes per second of the stream alone."""
    cipher, zeros, out = stream(key), memoryview(bytes(piece)), bytearray(piece + 16)
    began = time.process_time()
    for _ in range(size // piece):
        cipher.update_into(zeros, out)
    return size / (time.process_time() - began)


def masks(words: Any, count: int) -> float:
    """Bytes of mask per second, for so many neighbours."""
    some = [Mask(bytes([i]) * 32, 1 if i % 2 else -1) for i in range(count)]
    began = time.process_time()
    add_masks_([words], some)
    return words.nbytes * count / (time.process_time() - began)


def measure_masks(passes: int) -> Iterator[str]:
    yield "| words | neighbours | mask GB/s | raw AES-CTR GB/s | mask / raw |"
    yield "|---|---|---|---|---|"
    for size, dtype, count in ((10_000, np.uint32, 99), (1_000_000, np.uint32, 99), (10_000_000, np.uint32, 9),
                               (1_000_000, np.uint64, 99)):  # fmt: skip
        words = np.zeros(size, dtype)
        masks(words, 3)
        found, limit, shares = [], [], []
        for _ in range(passes):
            best = max(raw(bytes(32), 1 << 26, piece) for piece in PIECES)
            rate = masks(words, count)
            again = max(raw(bytes(32), 1 << 26, piece) for piece in PIECES)
            found.append(rate / 1e9)
            limit.append(max(best, again) / 1e9)
            shares.append(rate / max(best, again))
        row = (f"{size:,} of {8 * words.itemsize} bits", count, spread(found, ".2f"), spread(limit, ".2f"))
        yield "| " + " | ".join([*map(str, row), spread(shares, ".2f")]) + " |"
    yield "\n| 10^6 words packed to | pack, ms | unpack, ms |"
    yield "|---|---|---|"
    for bits in (23, 32):
        words, ring = np.arange(1_000_000, dtype=np.uint32), Ring(bits)
        packed = [1e3 * timed(partial(ring.pack, words)) for _ in range(passes)]
        unpacked = [1e3 * timed(partial(ring.unpack, ring.pack(words), len(words))) for _ in range(passes)]
        yield f"| {bits} bits | {spread(packed, '.1f')} | {spread(unpacked, '.1f')} |"


def timed(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure_shares(passes: int) -> Iterator[str]:
    yield "| clients | threshold | split two secrets, ms | put one together, ms |"
    yield "|---|---|---|---|"
    for clients, threshold in ((10, 6), (43, 11), (100, 51), (1000, 501)):
        points = list(range(1, clients + 1))
        shares = split([2**255, 3], threshold, points)
        apart = [1e3 * timed(partial(split, [2**255, 3], threshold, points)) for _ in range(passes)]
        of = dict(zip(points, shares[0], strict=True))
        together = [1e3 * timed(partial(combine, of, threshold)) for _ in range(passes)]
        yield f"| {clients} | {threshold} | {spread(apart, '.1f')} | {spread(together, '.1f')} |"


# Exchanges


class Timed:
    """A generator whose steps are timed."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds, self.steps = inner, 0.0, []

    def send(self, message: Any) -> Any:
        began = time.process_time()
        try:
            return self.inner.send(message)
        finally:
            self.steps.append(time.process_time() - began)
            self.seconds += self.steps[-1]


def exchange(channel: Masked | Coded, clients: int, params: dict[str, torch.Tensor], share: float) -> dict[str, float]:
    """Seconds of a client and of the server, and a client's bytes up and down."""
    draw = torch.Generator().manual_seed(SEED)
    value = {n: (torch.rand(t.shape, generator=draw) - 0.5) / 100 for n, t in params.items()}
    update = Update(Whole({n: tuple(t.shape) for n, t in params.items()}), value)
    given = {n: fingerprint(t) for n, t in params.items()}
    sides, lost = {}, set(range(1, 1 + round(share * clients)))
    for client in range(clients):
        sides[client] = Timed(channel.client(update, params, Seat(client, 1, given=given)))
        next(sides[client].inner)
    server = Timed(channel.server(range(clients), params, 1))
    messages, up, down, step = server.send(None), 0, 0, 0
    while True:
        said = {c: sides[c].send(m) for c, m in messages.items() if step < 2 or c not in lost}
        down += encoded_size(messages[0])
        up += encoded_size(said[0])
        try:
            messages, step = server.send(said), step + 1
        except StopIteration as end:
            opened = end.value
            break
    if len(opened.clients) != clients - len(lost):
        raise RuntimeError(f"{clients - len(lost)} clients must be in the sum, got {len(opened.clients)}")
    return {"client": sides[0].seconds, "server": server.seconds, "up": up, "down": down}


def measure_exchange(minutes: float) -> Iterator[str]:
    yield "| clients | values | masks | neighbours | lost | client, s | server, s | up, kB | down, kB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    began = time.monotonic()
    for clients, size, name in GRID:
        graph = RandomRegular(0.05, 0.3 if clients > 100 else 0.1) if name == "random" else Complete()
        channel: Masked | Coded = Masked(limit=1.0, bits=16, max_weight=1, graph=graph)
        if name == "coded":
            channel = Coded(limit=1.0, bits=16, max_weight=1, corrupt=0.5, lost=0.3)
        params = {"w": torch.zeros(size)}
        for share in LOST:
            if (share > 0.1 and name == "random" and clients <= 100) or (
                share != 0.1 and clients > 100 and size > 10_000
            ):
                continue  # more than the graph is made for, or too long to run three times
            left = minutes * 60 - (time.monotonic() - began)
            if left < 0:
                yield f"| {clients} | {size:,} | {name} | | {share:.0%} | not run | | | |"
                continue
            found = exchange(channel, clients, params, share)
            neighbours = graph.degree(clients, is_active=False).neighbours
            row = (clients, f"{size:,}", name, neighbours, f"{share:.0%}", f"{found['client']:.3f}",
                   f"{found['server']:.2f}", round(found["up"] / 1e3), round(found["down"] / 1e3))  # fmt: skip
            yield "| " + " | ".join(map(str, row)) + " |"


def flower(clients: int, size: int, neighbours: int, share: float) -> dict[str, float]:
    """The same of Flower, in its own environment. neighbours: all others, or an even number."""
    shares = 1.0 if neighbours == clients - 1 else (neighbours + 1) / clients
    command = [str(python_of("flower")), str(PEERS / "flower" / "secagg.py"), "--clients", str(clients), "--values",
               str(size), "--shares", str(shares), "--lost", str(share)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure_flower(passes: int) -> Iterator[str]:
    clients, size = 100, 1_000_000
    yield "| graph | neighbours | lost | whose | client, s | server, s | up, kB |"
    yield "|---|---|---|---|---|---|---|"
    for name, share in (("complete", 0.0), ("complete", 0.1), ("random", 0.0), ("random", 0.1)):
        graph = RandomRegular(0.05, 0.1) if name == "random" else Complete()
        neighbours = graph.degree(clients, is_active=False).neighbours
        ours = Masked(limit=1.0, bits=16, max_weight=1, graph=graph)
        found: dict[str, list[dict[str, float]]] = {"Partwise": [], "Flower": []}
        for _ in range(passes):
            found["Partwise"].append(exchange(ours, clients, {"w": torch.zeros(size)}, share))
            found["Flower"].append(flower(clients, size, neighbours, share))
        for whose, runs in found.items():
            times = (spread([run[side] for run in runs], ".3f") for side in ("client", "server"))
            row = (name, neighbours, f"{share:.0%}", whose, *times, round(runs[0]["up"] / 1e3))
            yield "| " + " | ".join(map(str, row)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["masks", "shares", "exchange", "flower"])
    parser.add_argument("--minutes", type=float, default=10, help="after which no further exchange is begun")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(describe(SEED))
    parts = {
        "masks": lambda: measure_masks(args.passes),
        "shares": lambda: measure_shares(args.passes),
        "exchange": lambda: measure_exchange(args.minutes),
        "flower": lambda: measure_flower(args.passes),
    }
    for name in args.only or ("masks", "shares", "exchange"):
        print(f"\n{name}\n")
        for line in parts[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
