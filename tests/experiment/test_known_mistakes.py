"""Mistakes that real systems made with differential privacy, each with the test that would have found it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.metrics import Accuracy
from partwise.core.population import Fate
from partwise.core.workload import Workload
from partwise.experiment.accounting import gaussian_epsilon, multiplier_for, poisson_epsilon
from partwise.experiment.experiment import Experiment
from partwise.experiment.privacy import ClientDP
from partwise.experiment.store import RunStore
from partwise.local import SGD, LocalTraining
from partwise.schedulers import Synchronous
from partwise.schedulers.choices import Poisson
from toy_experiments import People
from toy_federation import LOCAL, model

pytest.importorskip("dp_accounting")
DELTA, C, Z, K = 1e-3, 0.5, 1.2, 20
STILL = LocalTraining(SGD(1e-30), batch_size=4, steps=1)


class Many(People):
    """Sixty clients, of which as many are lost as `lost` says."""

    clients = range(60)

    def __init__(self, lost=0.0):
        self.lost = lost

    def profile(self, client, now=0.0):
        return super().profile(client)._replace(seconds_per_step=0.0, uplink=math.inf, downlink=math.inf)

    def fate(self, client, task):
        return Fate("upload") if (client * 37 + task * 11) % 100 < 100 * self.lost else Fate()


def moved(tmp_path, population, *, local=STILL, rounds=1, weights="samples"):
    """How far the model went, as one vector, and how many replies there were."""
    experiment = Experiment(
        Workload(model(), population, (Accuracy(),)),
        FedAvg(local, weights),
        Synchronous(cohort=K, rounds=rounds, choice=Poisson()),
        privacy=ClientDP(C, noise_multiplier=Z, delta=DELTA),
        seed=8,
    )
    result, start = experiment.run(tmp_path), model().init(8)
    with RunStore(tmp_path, "read") as store:
        replies = [e["body"]["replies"] for e in store.events() if e["kind"] == "commit"]
        spent = store.metrics("epsilon", "privacy")[-1]["value"]
    return torch.cat([(result.params[n] - start[n]).flatten() for n in start]).double(), replies, spent


def test_fewer_replies_than_expected_leave_noise_and_divisor_as_they_are(tmp_path):
    """Noise for the mean of those who were expected is too little for the mean of those who came (a Flower wrapper)."""
    whole, (many,), _ = moved(tmp_path / "all", Many())
    half, (few,), _ = moved(tmp_path / "half", Many(0.5))
    assert few < 0.75 * many
    assert torch.allclose(half, whole)  # the same noise: clients that change nothing leave it alone
    assert float(half.std()) == pytest.approx(Z * C / K, rel=4 / math.sqrt(2 * len(half)))


def test_no_client_moves_the_model_by_more_than_its_share_whatever_its_examples(tmp_path):
    """Weights by reported numbers of examples make one client's share as large as it says (a Flower wrapper)."""
    wild = LocalTraining(SGD(50.0), batch_size=4, steps=5)  # every update is far longer than the clip norm
    found, (replies,), _ = moved(tmp_path / "run", Many(), local=wild)
    noise, _, _ = moved(tmp_path / "noise", Many())
    share = torch.linalg.vector_norm(found - noise)
    assert share <= replies * C / K * (1 + 1e-5)
    assert replies > 1
    assert gaussian_epsilon(9.0 / 1.0, 1e-5) > 17 * gaussian_epsilon(1.0, 1e-5)  # what 90 % of the weight would mean


@pytest.mark.parametrize("local", [LOCAL, LocalTraining(SGD(0.1), batch_size=2, epochs=7)])
def test_epsilon_counts_commits_whatever_is_done_locally(tmp_path, local):
    """Steps counted as one an epoch made epsilon far too small where each step was a release (FL-bench)."""
    _, replies, spent = moved(tmp_path / "run", Many(), local=local, rounds=3)
    assert len(replies) == 3
    assert spent == pytest.approx(poisson_epsilon(Z, K / 60, 3, DELTA))


def test_an_update_of_nothing_is_no_division_by_its_norm(tmp_path):
    found, _, _ = moved(tmp_path / "run", Many(), local=LocalTraining(SGD(1e-300), batch_size=4, steps=1))
    assert bool(torch.isfinite(found).all())


# ---- a mechanism that is none ----


def wishart(matrix, epsilon, n, rng):
    """matrix + W, W ~ Wishart(d + 1, 3/(2 n epsilon) I): published as epsilon-private, and not private at all."""
    d = len(matrix)
    g = rng.normal(size=(d + 1, d)) * math.sqrt(3 / (2 * n * epsilon))
    return matrix + g.T @ g


def analyze_gauss(matrix, epsilon, n, rng):
    """Symmetric Gaussian noise for one row more or less, at delta = 1e-5."""
    z = multiplier_for(epsilon, lambda z: gaussian_epsilon(1 / z, 1e-5))
    g = np.triu(rng.normal(size=matrix.shape)) * z / n
    return matrix + g + np.triu(g, 1).T


def impossible(mechanism, d, draws=4000, n=100, epsilon=1.0):
    """The share of outputs under one neighbour that the other could never have given, were noise never negative."""
    rng, nothing, one = np.random.default_rng(3), np.zeros((d, d)), np.zeros((d, d))
    one[0, 0] = 1 / n
    outputs = (mechanism(nothing, epsilon, n, rng) for _ in range(draws))
    return sum(np.linalg.eigvalsh(out - one)[0] < -1e-12 for out in outputs) / draws


def test_the_audit_finds_a_mechanism_whose_noise_is_never_negative():
    """diffprivlib removed it: of an empty matrix's outputs, more than a quarter are impossible with one row more."""
    exact = 1 - math.exp(-1 / 3)
    assert exact == pytest.approx(0.283469, abs=1e-6)
    for d in (1, 3):
        found = impossible(wishart, d)
        assert found == pytest.approx(exact, abs=0.03)
        assert found > 0.01  # fails the audit
        rng = np.random.default_rng(1)
        smallest = min(np.linalg.eigvalsh(wishart(np.zeros((d, d)), 1.0, 100, rng))[0] for _ in range(300))
        assert smallest > 0  # the support ends here, and begins elsewhere for the neighbour


def test_gaussian_noise_passes_it():
    rng = np.random.default_rng(1)
    outputs = [analyze_gauss(np.zeros((3, 3)), 1.0, 100, rng) for _ in range(300)]
    assert min(np.linalg.eigvalsh(out)[0] for out in outputs) < 0  # nothing ends anywhere
    assert all(np.array_equal(out, out.T) for out in outputs)
    assert outputs[0][0, 1] != 0
