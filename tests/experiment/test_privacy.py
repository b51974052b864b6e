"""A guarantee for every client: what it puts into a run, what it refuses, and an epsilon that survives a restart."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from partwise.aggregators import FixedMean, Mean
from partwise.algorithms import AdaptiveClip, CrossTier, FedAvg, FedSubAvg, LocalOnly, Scaffold
from partwise.channels import Masked
from partwise.cli import app
from partwise.core.errors import CheckpointError, CompositionError
from partwise.core.metrics import Accuracy
from partwise.core.randomness import SystemRandomness
from partwise.core.workload import Workload
from partwise.experiment.accounting import gaussian_epsilon, poisson_epsilon, without_replacement_epsilon, zcdp_epsilon
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.experiment import Experiment
from partwise.experiment.log import LOG
from partwise.experiment.mechanisms import Adaptive, Distributed, Tree, multiplier_beside_count
from partwise.experiment.privacy import ClientDP
from partwise.experiment.recorder import Checkpointing, Silent
from partwise.experiment.report import write_report
from partwise.experiment.spec import dump, loads
from partwise.experiment.store import RECORD, RunStore
from partwise.local import SGD, LocalTraining
from partwise.schedulers import ByLink, FedAsync, FedBuff, FedCompass, FedFix, Overlapped, Synchronous
from partwise.schedulers.choices import Oort, Poisson, Stalest, Uniform, Weighted
from partwise.schedulers.staleness import Constant, Polynomial
from partwise.transforms import Adam, CapWeight, Clip, GaussianNoise, TopK
from partwise.transforms.distributed import rounded_norm
from toy_experiments import People
from toy_federation import LOCAL, model

pytest.importorskip("dp_accounting")
DELTA = 1e-3


def made(privacy=None, *, choice=None, cohort=3, rounds=6, population=None, **more):
    workload = Workload(model(), population or Many(), (Accuracy(),))
    scheduler = more.pop("scheduler", Synchronous(cohort=cohort, rounds=rounds, choice=choice or Poisson()))
    parts = {
        "algorithm": FedAvg(LOCAL),
        "privacy": privacy or ClientDP(0.5, noise_multiplier=1.2, delta=DELTA),
        "evaluation": Evaluation(every=3),
        "checkpointing": Checkpointing(every_seconds=0),
        "seed": 5,
    }
    return Experiment(workload, scheduler=scheduler, **{**parts, **more})


class Many(People):
    """Forty clients."""

    clients = range(40)

    def profile(self, client, now=0.0):
        return super().profile(client)._replace(seconds_per_step=0.0, uplink=math.inf, downlink=math.inf)


class Fickle(Many):
    """Some of them are away for a while."""

    def next_available(self, client, now):
        return now if client % 7 or now > 5 else 5.0


def epsilons(folder):
    with RunStore(folder, "read") as store:
        return [(row["version"], row["value"]) for row in store.metrics("epsilon", "privacy")]


def test_what_a_channel_rounds_is_hidden_as_well():
    """Two bits: a step is as long as the limit, and a client can move the sum by C + step sqrt(d)."""
    pytest.importorskip("cryptography")
    channel = Masked(limit=0.5, bits=2, max_weight=1)
    star, _ = made(channel=channel, cohort=20, choice=Uniform()).build()
    (noise,) = star.server_chain["model"].stages
    assert noise.sensitivity == pytest.approx((0.5 + 0.5 * math.sqrt(318)) / 20)
    parts = {"client": [CapWeight(1.0), Clip(0.5)], "aggregator": FixedMean(20.0)}
    by_hand = replace(made(server=[GaussianNoise(1.0, sensitivity=0.5 / 20)], cohort=20, **parts), privacy=None)
    by_hand.build()
    with pytest.raises(CompositionError, match=r"must be made for as far as one client can move stream 'model'"):
        replace(by_hand, channel=channel).build()


# ---- a run --------------------------------------------------------------------------------------------------------


def test_epsilon_is_recorded_after_every_commit(tmp_path):
    made().run(tmp_path / "run")
    expected = {t: poisson_epsilon(1.2, 3 / 40, t, DELTA) for t in range(1, 7)}
    assert dict(epsilons(tmp_path / "run")) == pytest.approx(expected)


def test_what_is_put_into_the_run():
    star, _ = made(server=[Adam(lr=0.1)], client=[TopK(ratio=0.5)]).build()
    assert star.client_chain["model"].stages == (TopK(ratio=0.5), CapWeight(1.0), Clip(0.5))
    assert star.server_chain["model"].stages == (GaussianNoise(1.2, sensitivity=0.5 / 3), Adam(lr=0.1))
    assert repr(star.all_aggregators()["model"]) == "FixedMean(cohort=3.0, max_weight=1.0)"


def test_the_noise_has_the_size_that_epsilon_is_computed_for(tmp_path):
    """Clients that change nothing leave the noise alone: z C / (q N) on each coordinate."""
    still = LocalTraining(SGD(1e-30), batch_size=4, steps=1)
    privacy = ClientDP(0.5, noise_multiplier=1.2, delta=DELTA)
    result = made(privacy, algorithm=FedAvg(still), rounds=1).run(tmp_path / "run")
    start = model().init(5)
    moved = torch.cat([(result.params[n] - start[n]).flatten() for n in start]).double()
    assert len(moved) == 318
    assert float(moved.std()) == pytest.approx(1.2 * 0.5 / 3, rel=4 / math.sqrt(2 * 318))


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_target_is_met_by_the_last_version_and_not_by_far(tmp_path, accountant):
    made(ClientDP(0.5, epsilon=4.0, delta=DELTA, accountant=accountant)).run(tmp_path / "run")
    version, last = epsilons(tmp_path / "run")[-1]
    assert version == 6
    assert 4.0 * (1 - 1e-3) < last <= 4.0


class Killed(Silent):
    """Ends the process's run in the middle of a version."""

    def __init__(self, at):
        self.at = at

    def committed(self, version, loss, world, scores):
        if version == self.at:
            raise OSError("killed")


@pytest.mark.parametrize(
    "privacy",
    [
        ClientDP(0.5, noise_multiplier=1.2, delta=DELTA),
        ClientDP(0.5, noise_multiplier=1.2, delta=DELTA, amplification="none"),
        ClientDP(0.5, noise_multiplier=3.0, delta=DELTA, mechanism=Tree(restart_every=4)),
        ClientDP(0.5, noise_multiplier=1.2, delta=DELTA, mechanism=Adaptive(count_noise=2.0)),
    ],
    ids=["sampled", "counted", "tree", "adaptive"],
)
def test_killed_and_resumed_a_run_has_the_epsilon_and_the_bits_of_an_undisturbed_one(tmp_path, privacy):
    experiment = made(privacy)
    experiment.run(tmp_path / "whole")
    for at in (2, 5):
        with pytest.raises(OSError, match="killed"):
            experiment.run(tmp_path / "killed", resume=at > 2, progress=Killed(at))
    experiment.run(tmp_path / "killed", resume=True)
    assert epsilons(tmp_path / "killed") == epsilons(tmp_path / "whole")
    assert len(epsilons(tmp_path / "whole")) == 6
    one, other = ((tmp_path / f / "model.safetensors").read_bytes() for f in ("killed", "whole"))
    assert one == other


@pytest.mark.parametrize("amplification", ["sampling", "none"])
def test_versions_that_are_made_again_with_new_noise_are_charged_again(tmp_path, amplification):
    """The only checkpoint is of version 0: 2 versions, then 5, were given away before the 6 that stay."""
    privacy = ClientDP(
        0.5, noise_multiplier=1.2, delta=DELTA, amplification=amplification, randomness=SystemRandomness()
    )
    parts = {} if amplification == "sampling" else {"choice": Stalest(), "cohort": 40}
    experiment = replace(made(privacy, **parts), checkpointing=Checkpointing(every_seconds=1e9))
    for at in (2, 5):
        with pytest.raises(OSError, match="killed"):
            experiment.run(tmp_path / "killed", resume=at > 2, progress=Killed(at))
    experiment.run(tmp_path / "killed", resume=True)
    found = epsilons(tmp_path / "killed")
    assert [v for v, _ in found] == [1, 2, 3, 4, 5, 6]
    if amplification == "none":  # all forty are in every commit
        right = [gaussian_epsilon(math.sqrt(7 + v) / 1.2, DELTA) for v in range(1, 7)]
    else:
        # A draw that is used again hides nobody once more: versions 1 and 2 are made three times, 3 to 5 twice.
        times = [[2, 2, 1, 1, 1][v] + 1 if v < 5 else 1 for v in range(6)]
        made_by = [times[:v] + [t - 1 for t in times[v:5]] for v in range(1, 7)]
        right = [poisson_epsilon(1.2, 3 / 40, Counter(made), DELTA) for made in made_by]
        assert right[-1] > 1.3 * poisson_epsilon(1.2, 3 / 40, 13, DELTA)
    assert [e for _, e in found] == pytest.approx(right)


@pytest.mark.parametrize("how", ["log is away", "disk is full", "killed"])
def test_versions_that_are_made_again_are_charged_once_however_often_a_resume_comes_to_nothing(tmp_path, how):
    new = ClientDP(0.5, noise_multiplier=1.2, delta=DELTA, randomness=SystemRandomness())
    experiment = replace(made(new), checkpointing=Checkpointing(every_seconds=1e9))
    with pytest.raises(OSError, match="killed"):
        experiment.run(tmp_path / "once", progress=Killed(4))
    shutil.copytree(tmp_path / "once", tmp_path / "often")
    experiment.run(tmp_path / "once", resume=True)
    for _ in range(2):
        comes_to_nothing(how, experiment, tmp_path / "often")
    experiment.run(tmp_path / "often", resume=True)
    assert epsilons(tmp_path / "often") == epsilons(tmp_path / "once")


def comes_to_nothing(how, experiment, folder):
    if how == "log is away":
        log = (folder / LOG).rename(folder.with_name(LOG))
        with pytest.raises(CheckpointError, match="must have the 1 messages of the checkpoint, got 0"):
            experiment.run(folder, resume=True)
        log.rename(folder / LOG)
    elif how == "disk is full":
        full = "CREATE TRIGGER full BEFORE DELETE ON metrics BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        changed(folder, full)
        with pytest.raises(CheckpointError, match="truncating the record needs room on the disk"):
            experiment.run(folder, resume=True)
        changed(folder, "DROP TRIGGER full")
    else:
        process = multiprocessing.get_context("fork").Process(target=cut_short, args=(experiment, folder))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL


def changed(folder, statement):
    with closing(sqlite3.connect(folder / RECORD)) as record:
        record.execute(statement)
        record.commit()


def cut_short(experiment, folder):
    RunStore.truncate_after = lambda self, **after: os.kill(os.getpid(), signal.SIGKILL)
    experiment.run(folder, resume=True)


def test_rounds_without_anybody_are_commits_of_noise(tmp_path):
    result = made(cohort=1, rounds=12).run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        sizes = [e["body"]["replies"] for e in store.events() if e["kind"] == "commit"]
        losses = [row["value"] for row in store.metrics("train_loss")]
    assert 0 in sizes
    assert len(sizes) == 12
    assert all(math.isnan(loss) == (n == 0) for loss, n in zip(losses, sizes, strict=True))
    assert [v for v, _ in epsilons(tmp_path / "run")] == list(range(1, 13))
    assert all(torch.isfinite(t).all() for t in result.params.values())
    write_report([tmp_path / "run"], tmp_path / "report.html")


def test_without_amplification_each_commit_is_charged_to_those_who_are_in_it(tmp_path):
    privacy = ClientDP(0.5, noise_multiplier=1.2, delta=DELTA, amplification="none")
    made(privacy, choice=Stalest(), cohort=20).run(tmp_path / "run")
    expected = [gaussian_epsilon(math.sqrt(k) / 1.2, DELTA) for k in (1, 1, 2, 2, 3, 3)]
    assert [e for _, e in epsilons(tmp_path / "run")] == pytest.approx(expected)


def test_fixed_cohorts_are_accounted_for_replacing_a_client(tmp_path):
    made(choice=Uniform()).run(tmp_path / "run")
    last = epsilons(tmp_path / "run")[-1][1]
    assert last == pytest.approx(without_replacement_epsilon(0.6, 3, 40, 6, delta=DELTA))


SEVERAL = [FedBuff(2, 4, versions=5), FedFix(2.0, versions=5), FedCompass(versions=5), FedAsync(alpha=1.5, versions=5)]


@pytest.mark.parametrize("scheduler", [*SEVERAL, ByLink(SEVERAL[0], (9, 5), 3)])
def test_a_target_counts_on_one_reply_of_a_client_in_each_commit(scheduler):
    with pytest.raises(CompositionError, match="chooses the noise for one reply of a client in each commit, got"):
        made(AIMED, scheduler=scheduler).build()


def test_an_asynchronous_run_without_amplification(tmp_path):
    privacy = ClientDP(0.5, noise_multiplier=1.2, delta=DELTA, amplification="none")
    made(privacy, population=People(), scheduler=FedBuff(2, 4, versions=6)).run(tmp_path / "run")
    found = [e for _, e in epsilons(tmp_path / "run")]
    assert found == sorted(found)
    assert found[-1] > gaussian_epsilon(1 / 1.2, DELTA)


def test_the_report_says_what_is_guaranteed_and_what_not(tmp_path):
    made().run(tmp_path / "run")
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    spent = poisson_epsilon(1.2, 3 / 40, 6, DELTA)
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "run")])
    assert f"privacy    ε = {spent:.3f} after 6 rounds" in shown.output
    for words in (
        f"ε = {spent:.3f} after 6 rounds",
        "Differential privacy of one client&#39;s whole participation at delta 0.001",
        "Gaussian noise of multiplier 1.2",
        "each is drawn with probability 0.075, in secret",
        "It does not cover training losses",
        "The noise was simulated",
    ):
        assert words in page, words


# ---- a specification ----------------------------------------------------------------------------------------------

SPEC = """
[workload]
name = "LeafSynthetic"
num_clients = 50
[algorithm]
name = "FedAvg"
[scheduler]
name = "Synchronous"
cohort = 5
rounds = 10
choice = { name = "Poisson" }
[privacy]
clip_norm = 1.0
epsilon = 8.0
"""


def test_one_table_of_a_specification():
    experiment = loads(SPEC)
    assert experiment.privacy == ClientDP(1.0, epsilon=8.0)
    assert loads(dump(experiment)).privacy == experiment.privacy
    changed = loads(SPEC, ["privacy.randomness=SystemRandomness", "privacy.amplification=none"]).privacy
    assert not changed.randomness.is_simulated
    assert changed.amplification == "none"


# ---- what voids a guarantee ---------------------------------------------------------------------------------------

PLAIN = ClientDP(0.5, noise_multiplier=1.2, delta=DELTA)
AIMED = ClientDP(0.5, epsilon=2.0, delta=DELTA, amplification="none", cohort=3.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"choice": Oort()}, "must know that clients are drawn without a look at their data, got Synchronous("),
        ({"choice": Weighted()}, "must know that clients are drawn without a look at their data"),
        ({"choice": Stalest()}, "counts on clients being drawn at random, got Synchronous, of which it is not known"),
        ({"scheduler": FedBuff(2, 4)}, "drawn at random, got FedBuff, of which it is not known how often"),
        ({"scheduler": FedAsync()}, "or set amplification='none' to charge each commit to those who are in it."),
        ({"choice": Uniform(), "population": Fickle()}, "while all are available, got clients that come and go"),
        ({"privacy": ClientDP(0.5, epsilon=2.0, delta=DELTA), "choice": Uniform(), "cohort": 41}, "41 of 40 clients"),
        ({"algorithm": Scaffold(LOCAL)}, "got an algorithm with the streams ['control', 'model']"),
        ({"algorithm": CrossTier(FedAvg(LOCAL))}, "got CrossTier, which has a `commit` of its own"),
        ({"aggregator": Mean("cohort")}, "brings its own, got Mean(by='cohort', at_least=0.0). Leave"),
        ({"privacy": replace(PLAIN, delta=0.03)}, "must be below one over the population of 40, got delta=0.03"),
        (
            {"privacy": replace(PLAIN, amplification="none"), "scheduler": FedCompass()},
            "must know how many clients a commit has in expectation, got none from FedCompass, whose commits vary",
        ),
        (
            {
                "privacy": ClientDP(0.5, epsilon=2.0, delta=DELTA, amplification="none"),
                "scheduler": FedBuff(2, 4, versions=0, seconds=5.0),
            },
            "chooses the noise for all commits together, got FedBuff without a number of versions",
        ),
    ],
)
def test_parts_that_void_the_guarantee_are_refused_when_built(more, message):
    with pytest.raises(CompositionError, match=re.escape(message)):
        made(**{"privacy": PLAIN, **more}).build()


@pytest.mark.parametrize(
    "more",
    [
        {"population": Fickle()},  # under Poisson sampling those who are away are not drawn, and that is all
        {"algorithm": FedSubAvg("count", LOCAL)},
        {"algorithm": LocalOnly(FedAvg(LOCAL), names=("out.bias",))},
        {"privacy": replace(PLAIN, amplification="none", cohort=4.0), "scheduler": FedCompass()},
        {"privacy": replace(PLAIN, max_weight=50.0)},
        {"privacy": AIMED, "scheduler": Overlapped(5)},
        {"privacy": AIMED, "scheduler": FedAsync(concurrency=4, versions=5)},
    ],
)
def test_parts_that_do_not_are_taken(more):
    made(**{"privacy": PLAIN, **more}).build()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_norm": 0.0}, "ClientDP(clip_norm=0.0): must be finite and above 0, got 0.0"),
        ({"noise_multiplier": None}, "needs one of the two, got neither. epsilon=8.0 chooses the noise."),
        ({"epsilon": 2.0}, "ClientDP(epsilon=2.0, noise_multiplier=1.0): needs one of the two, got both"),
        ({"epsilon": -1.0, "noise_multiplier": None}, "ClientDP(epsilon=-1.0): must be finite and above 0"),
        ({"noise_multiplier": 0.0}, "ClientDP(noise_multiplier=0.0): must be finite and above 0"),
        ({"delta": 1.0}, "ClientDP(delta=1.0): must lie in (0, 1), got 1.0"),
        ({"amplification": "shuffle"}, "ClientDP(amplification='shuffle'): must be 'sampling' or 'none'"),
        ({"accountant": "moments"}, "ClientDP(accountant='moments'): must be 'pld' or 'rdp'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ClientDP(**{"clip_norm": 1.0, "noise_multiplier": 1.0, **fields})


# ---- other mechanisms ---------------------------------------------------------------------------------------------


def test_adaptive_clipping_divides_the_noise_among_update_and_count():
    assert multiplier_beside_count(1.0, 5.0) == pytest.approx(1.005038, abs=1e-6)
    star, _ = made(replace(PLAIN, noise_multiplier=1.0, mechanism=Adaptive()), cohort=20).build()
    model_noise, count_noise = (star.server_chain[s].stages[0] for s in ("model", "clip"))
    assert star.algorithm == AdaptiveClip(FedAvg(LOCAL), 0.5)
    assert count_noise == GaussianNoise(2.0, 0.5 / 20)
    assert count_noise.noise_multiplier * count_noise.sensitivity * 20 == 1.0  # a twentieth of the cohort
    assert model_noise.noise_multiplier**-2 + count_noise.noise_multiplier**-2 == pytest.approx(1.0)
    assert model_noise.sensitivity == 1 / 20
    with pytest.raises(CompositionError, match=r"Adaptive\(count_noise=0.5\): must be above half the noise multiplier"):
        made(replace(PLAIN, mechanism=Adaptive(count_noise=0.5))).build()


def test_adaptive_clipping_has_the_epsilon_of_its_noise_in_all(tmp_path):
    privacy = replace(PLAIN, mechanism=Adaptive(count_noise=2.0))
    result = made(privacy).run(tmp_path / "run")
    expected = {t: poisson_epsilon(1.2, 3 / 40, t, DELTA) for t in range(1, 7)}
    assert dict(epsilons(tmp_path / "run")) == pytest.approx(expected)
    assert float(result.streams["clip"]["norm"]) != 0.5


def test_a_tree_cannot_choose_its_noise():
    with pytest.raises(CompositionError, match="cannot choose the noise for a target"):
        made(ClientDP(0.5, epsilon=2.0, delta=DELTA, mechanism=Tree())).build()


def test_a_tree_needs_nothing_of_how_clients_are_drawn(tmp_path):
    privacy = ClientDP(0.5, noise_multiplier=3.0, delta=DELTA, mechanism=Tree())
    made(privacy, choice=Stalest(), cohort=20).run(tmp_path / "run")
    expected = [gaussian_epsilon(math.sqrt(s) / 3.0, DELTA) for s in (1, 2, 3, 8, 9, 10)]
    assert [e for _, e in epsilons(tmp_path / "run")] == pytest.approx(expected)


def distributed(**more):
    return ClientDP(0.5, delta=DELTA, mechanism=Distributed(256.0), **more)


def test_shares_of_noise_that_suffice_for_the_fewest_who_answer(tmp_path):
    scheduler = Synchronous(cohort=10, rounds=3, choice=Stalest(), min_replies=8)
    made(distributed(noise_multiplier=1.2), scheduler=scheduler).run(tmp_path / "run")
    star, _ = made(distributed(noise_multiplier=1.2), scheduler=scheduler).build()
    noise, back = star.client_chain["model"].stages[-1], star.server_chain["model"].stages[0]
    longest = rounded_norm(256.0, 318)
    assert 8 * noise.variance == pytest.approx((1.2 * longest) ** 2, rel=1e-4)
    assert (noise.granularity, noise.rotation_seed) == (back.granularity, back.rotation_seed) == (0.5 / 256, 5)
    # once each in three rounds of ten of forty; the noise of eight, that of ten is not counted on
    found = [e for _, e in epsilons(tmp_path / "run")]
    assert found == pytest.approx([zcdp_epsilon(0.5 / 1.2**2, DELTA)] * 3, rel=1e-3)


def test_shares_of_noise_give_what_noise_of_the_server_gives(tmp_path):
    still = LocalTraining(SGD(1e-30), batch_size=4, steps=1)
    scheduler = Synchronous(cohort=10, rounds=1, choice=Stalest(), min_replies=10)
    experiment = made(distributed(noise_multiplier=1.2), scheduler=scheduler, algorithm=FedAvg(still))
    result, start = experiment.run(tmp_path / "run"), model().init(5)
    moved = torch.cat([(result.params[n] - start[n]).flatten() for n in start]).double()
    longest = rounded_norm(256.0, 318) / 256  # a little more than the clip norm, for the rounding
    assert float(moved.std()) == pytest.approx(1.2 * 0.5 * longest / 10, rel=4 / math.sqrt(2 * 318))


def test_a_target_chooses_the_shares(tmp_path):
    scheduler = Synchronous(cohort=10, rounds=4, choice=Uniform(), min_replies=10)
    experiment = made(distributed(epsilon=6.0), scheduler=scheduler)
    experiment.run(tmp_path / "run")
    found = [e for _, e in epsilons(tmp_path / "run")]
    assert found == sorted(found)
    assert found[-1] <= 6.0


@pytest.mark.parametrize(
    ("privacy", "choice", "message"),
    [
        (distributed(noise_multiplier=1.0), Poisson(), "got a scheduler that commits 0. Set min_replies"),
        (distributed(noise_multiplier=1.0), Uniform(), "got a scheduler that commits 1. Set min_replies"),
    ],
)
def test_shares_need_to_know_how_many_there_are(privacy, choice, message):
    with pytest.raises(CompositionError, match=re.escape(message)):
        made(privacy, choice=choice).build()


def test_shares_are_not_taken_away():
    """Two replies, one of them scaled by 1/2: of two shares of noise, 1 + 1/4 are there, and not 2."""
    privacy, buffer = distributed(noise_multiplier=1.0), FedBuff(4, 8, staleness=Constant(), versions=6)
    made(privacy, scheduler=buffer).build()
    with pytest.raises(CompositionError, match="counts on the whole share of noise of each client in a sum, got FedB"):
        made(privacy, scheduler=replace(buffer, staleness=Polynomial())).build()
    with pytest.raises(CompositionError, match="must know how many clients' noise is in a sum at least"):
        made(privacy, scheduler=replace(buffer, flush=True)).build()


def test_whole_numbers_have_no_weights():
    scheduler = Synchronous(cohort=10, min_replies=8)
    with pytest.raises(CompositionError, match="adds whole numbers, so that all clients count alike"):
        made(distributed(noise_multiplier=1.0, max_weight=5.0), scheduler=scheduler).build()
    with pytest.raises(CompositionError, match="numbers of a client must fit their bits, got up to"):
        made(replace(distributed(noise_multiplier=1.0), mechanism=Distributed(bits=8)), scheduler=scheduler).build()
    with pytest.raises(ValueError, match=r"Distributed\(steps=0.5\): must be finite and at least 1"):
        Distributed(0.5)
