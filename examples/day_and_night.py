"""Clients of the day and clients of the night, whose data disagree: one model each, at the cost of one and a bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import partwise as pw
from partwise.core.model import Values
from partwise.populations.availability import Availability


@dataclass(frozen=True)
class DayAndNight(Availability):
    """Even clients for an hour, then odd ones, and so on."""

    def block(self, client: int) -> int:
        return client % 2

    def next_available(self, client: int, now: float) -> float:
        since = (now - 3600.0 * self.block(client)) % 7200.0
        return now if since < 3600.0 else now + 7200.0 - since

    def available_until(self, client: int, now: float) -> float:
        return now + max(0.0, 3600.0 - (now - 3600.0 * self.block(client)) % 7200.0)


rng = torch.Generator().manual_seed(1)
x = torch.randn(8, 200, 5, generator=rng)  # (clients, examples, features)
slope = torch.stack([torch.tensor([1.0, 2.0, 0, 0, 1]), torch.tensor([1.0, -2.0, 0, 1, 0])] * 4)
y = (torch.einsum("cnf,cf->cn", x, slope) > 0).long()
columns = {"x": x[:, :150].reshape(-1, 5), "y": y[:, :150].reshape(-1)}
population = pw.ArrayPopulation(
    columns, torch.arange(0, 1201, 150), profiles=pw.Constant(seconds_per_step=20.0), availability=DayAndNight()
)
model = pw.Model(lambda: nn.Linear(5, 2), pw.CrossEntropy())
workload = pw.Workload(model, population, (pw.Accuracy(),))
tests = [{"x": x[m::2, 150:].reshape(-1, 5), "y": y[m::2, 150:].reshape(-1)} for m in (0, 1)]


def accuracies(of_day: Values, of_night: Values) -> str:
    """Of one model on the tests of the day and of another on those of the night."""
    pairs = zip((of_day, of_night), tests, strict=True)
    shares = [(model.outputs(params, test).argmax(1) == test["y"]).float().mean() for params, test in pairs]
    return f"day {shares[0]:.3f}, night {shares[1]:.3f}"


def streams(algorithm: pw.Algorithm, rounds: int) -> dict[str, Values]:
    """What the server ends with."""
    experiment = pw.Experiment(
        workload, algorithm, pw.Synchronous(cohort=3, rounds=rounds), evaluation=pw.Evaluation(every=1000)
    )
    return dict(experiment.run().streams)


local = pw.LocalTraining(pw.SGD(lr=0.3), steps=10, batch_size=30)  # 200 seconds, so that an hour has 18 rounds
mixed = pw.MMPSGD(num_blocks=2, local=local)
found = streams(mixed, rounds=180)
print("one model:         ", accuracies(found["model"], found["model"]))
print("MM-PSGD:           ", accuracies(mixed.predictor(found, 0), mixed.predictor(found, 1)))
both = pw.MCPSGD(num_blocks=2, local=local)
found = streams(both, rounds=360)  # every other one compares
print("MC-PSGD:           ", accuracies(both.predictor(found, 0), both.predictor(found, 1)))
print("one model per block:", accuracies(both.separate(found, 0), both.separate(found, 1)))
