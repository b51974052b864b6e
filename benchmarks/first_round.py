"""Seconds from data that are ready to the end of the first round, and to import: what a newcomer waits for.

A small perceptron, 100 clients with 20,000 examples, 10 a round; through the whole experiment, with its record and
evaluation. Every repetition is a process of its own, which has imported torch and made the data before the clock runs.

    python benchmarks/first_round.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from machine import describe

ROUND = """
import tempfile, time, torch
x, y = torch.randn(20_000, 64), torch.randint(10, (20_000,))
began = time.perf_counter()
import partwise as pw
from partwise.experiment.recorder import Silent

class Clock(Silent):
    def committed(self, version, loss, world, scores):
        if version == 1:
            print(time.perf_counter() - began)

def net():
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

population = pw.from_partition({"x": x, "y": y}, pw.Dirichlet(100, alpha=0.3), test_share=0.2)
workload = pw.Workload(pw.Model(net, pw.CrossEntropy()), population, (pw.Accuracy(),))
experiment = pw.Experiment(workload, pw.FedAvg(pw.LocalTraining(pw.SGD(0.1))), pw.Synchronous(cohort=10, rounds=2))
experiment.run(tempfile.mkdtemp(), progress=Clock())
"""
IMPORT = "import time; began = time.perf_counter(); import partwise; print(time.perf_counter() - began)"


def seconds(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(describe(1))
    for what, code in (("import partwise", IMPORT), ("from data to the end of the first round", ROUND)):
        found = [seconds(code) for _ in range(args.repeats)]
        print(f"{what}: {statistics.median(found):.3f} s ({min(found):.3f}-{max(found):.3f})")


if __name__ == "__main__":
    main()
