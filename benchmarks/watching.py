"""What the first look at a long run takes, a later one, and what they leave in memory.

A record is written without training: `--replies` of `--clients` clients, ten to a version, each version with a commit
and two metrics. Times are those of the processor, so that others on the machine matter less; the first look is taken
once, of the others the least of five. Memory is the growth of the process's peak over what its imports took.

    python benchmarks/watching.py
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe

from partwise.experiment.store import RunStore

SEED = 3
CHUNK = 10_000  # replies written at once
LOOK = """
import json, resource, sys, time
from partwise.monitor import Follower, snapshot
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1000
before, began = peak(), time.process_time()
follower = Follower(sys.argv[1])
first = time.process_time() - began
later, shown = [], []
for _ in range(5):
    began = time.process_time()
    follower.refresh()
    later.append(time.process_time() - began)
    began = time.process_time()
    found = snapshot(follower)
    shown.append(time.process_time() - began)
size = len(json.dumps(found))
print(json.dumps([first, min(later), min(shown), size, peak() - before, follower.standing().replies]))
"""


def write(folder: Path, replies: int, clients: int) -> None:
    rng = random.Random(SEED)
    with RunStore(folder) as store:
        store.set_meta(name="long", scheduler="FedBuff()", metric="auc", status="done", num_clients=clients)
        for start in range(0, replies, CHUNK):
            at = range(start, min(start + CHUNK, replies))
            store.append_events([(float(i), "reply", {"client": i * 7919 % clients, "id": i}) for i in at])
            store.append_replies(
                [(i // 10 + 1, i * 7919 % clients, i, 5, 9, 100, 200, 0, 0, 0, float(i), 0.5, i % 4) for i in at]
            )
            for i in at[::10]:
                version = i // 10 + 1
                body = {"version": version, "clients": [1] * 10, "staleness": [i % 5] * 10}
                store.append_events([(float(i), "commit", body)])
                row = (version, float(i), 1000 * version, 2000 * version)
                store.append_metrics(
                    [(*row, "train_loss", "cohort", rng.random()), (*row, "auc", "pooled", rng.random())]
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--clients", type=int, default=1000)
    options = parser.parse_args()
    print(describe(SEED))
    print(f"{'replies':>10}  {'first look':>10}  {'later':>9}  {'snapshot':>9}  {'as JSON':>8}  {'memory':>8}")
    for replies in options.replies:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "run"
            write(folder, replies, options.clients)
            ran = subprocess.run([sys.executable, "-c", LOOK, str(folder)], capture_output=True, text=True, check=True)
            first, later, shown, size, memory, read = json.loads(ran.stdout)
            assert read == replies
            print(
                f"{replies:10,}  {first:8.2f} s  {later * 1e3:6.2f} ms  {shown * 1e3:6.1f} ms  {size / 1e3:5.0f} kB  "
                f"{memory / 1e6:5.0f} MB"
            )


if __name__ == "__main__":
    main()
