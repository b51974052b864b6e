"""Noise in shares behind a channel that shows sums alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.channels import LowRankSum, Masked, Plain
from partwise.core.errors import CompositionError
from partwise.core.metrics import Accuracy
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.experiment.mechanisms import Adaptive, Central, Distributed
from partwise.experiment.privacy import ClientDP
from partwise.schedulers import Synchronous
from partwise.schedulers.choices import Stalest
from toy_experiments import People
from toy_federation import LOCAL, model

pytest.importorskip("dp_accounting")
pytest.importorskip("cryptography")


def made(channel):
    return Experiment(
        Workload(model(), People(), (Accuracy(),)),
        FedAvg(LOCAL),
        Synchronous(cohort=6, rounds=2, choice=Stalest(), min_replies=5),
        privacy=ClientDP(0.5, delta=1e-3, noise_multiplier=1.2, mechanism=Distributed(256.0)),
        channel=channel,
        seed=5,
    )


def test_shares_of_noise_under_masks_are_those_in_the_clear(tmp_path):
    """Whole numbers up to what the masked words hold: not a bit is lost, and nobody sees a term of the sum."""
    clear, masked = made(Plain()), made(Masked(limit=2**15 - 1, bits=16, max_weight=1, min_contributors=5))
    one, other = clear.run(tmp_path / "clear"), masked.run(tmp_path / "masked")
    assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())
    assert one.value("epsilon", "privacy") == other.value("epsilon", "privacy") < math.inf


def test_a_sum_of_fewer_shares_than_are_counted_on_is_refused():
    channel = Masked(limit=2**15 - 1, bits=16, max_weight=1, min_contributors=4)
    with pytest.raises(CompositionError, match=r"Distributed\(.*min_replies=5 .* Set its min_contributors to 5\."):
        made(channel).build()


@pytest.mark.parametrize("mechanism", [Central(), Distributed(256.0)])
def test_a_channel_that_sends_later_what_it_left_out_is_refused(mechanism):
    """What a client adds to a sum grows beyond its clip by what it still owes: to 2.7 times that in eight rounds."""
    channel = LowRankSum(Masked(limit=2**15 - 1, bits=16, max_weight=1, min_contributors=5))
    privacy = ClientDP(0.5, delta=1e-3, noise_multiplier=1.2, mechanism=mechanism, amplification="none")
    with pytest.raises(CompositionError, match=r"needs a channel that keeps to the bound of an update, got LowRankSum"):
        replace(made(channel), privacy=privacy).build()


def test_noise_is_made_for_what_a_channel_adds_by_rounding():
    """A step of 2 · 0.5 / 14 in each of the model's d values: the clip's 0.5 and √d steps, over the cohort of 6."""
    masked = Masked(limit=0.5, bits=4, max_weight=1, min_contributors=5)
    privacy = ClientDP(0.5, delta=1e-3, noise_multiplier=1.2, amplification="none")
    star, _ = replace(made(masked), privacy=privacy).build()
    size = sum(t.numel() for t in model().init(0).values())
    expected = (0.5 + 1 / 14 * math.sqrt(size)) / 6
    assert star.server_chain["model"].stages[0].sensitivity == pytest.approx(expected)
    with pytest.raises(CompositionError, match=r"Adaptive\(.* as they are sent, got Masked\(.* which rounds both\."):
        replace(made(masked), privacy=replace(privacy, mechanism=Adaptive(count_noise=2.0))).build()
