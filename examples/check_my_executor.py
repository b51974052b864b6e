"""An executor of one's own on jobs of every kind, and others on the jobs of one's own model and experiment."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from my_executor import Checked

import partwise as pw
from partwise.core.plan import Job, ModelLoss
from partwise.runtimes.executors import Stacked
from partwise.testing import check_executor, check_jobs

NEAR = {torch.float32: 1e-4, torch.float64: 1e-9}

check_executor(Checked(Stacked()), near=NEAR)

rng = torch.Generator().manual_seed(1)
x, client = torch.randn(500, 8, generator=rng), torch.randint(12, (500,), generator=rng)
population = pw.from_arrays({"x": x, "y": (x.sum(1) > 0).long()}, client=client.tolist(), test_share=0.2)
model = pw.Model(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), pw.CrossEntropy())

plan = pw.LocalPlan(ModelLoss(model), pw.SGD(0.1), batch_size=16, steps=5, buffers=model.buffers())
jobs = [Job(plan, model.init(1), population.data(c), seed=c) for c in population.clients]
print(*Stacked().explain(jobs), sep="\n")
check_jobs(Stacked(), jobs, near=NEAR)

workload = pw.Workload(model, population, metrics=(pw.Accuracy(),))
algorithm = pw.FedProx(0.1, pw.LocalTraining(pw.SGD(0.1), steps=5))
runtime = pw.Simulate(Checked(Stacked()))
experiment = pw.Experiment(workload, algorithm, pw.Synchronous(cohort=6, rounds=3), runtime=runtime)
with tempfile.TemporaryDirectory() as folder:
    experiment.run(Path(folder) / "run")
print("Checked and Stacked keep the contract")
