"""A run with hostile clients and an observer: what is recorded and shown, and that it is resumed to the last bit."""

import pytest
import torch

from partwise.aggregators import FoolsGold, Zeno
from partwise.attacks import (
    ALittleIsEnough,
    CoverageAttack,
    Hostile,
    InnerProduct,
    Mixture,
    NegatedCrowd,
    SignFlip,
    Sybils,
)
from partwise.core.errors import CompositionError
from partwise.experiment.privacy import ClientDP
from partwise.experiment.report import write_report
from partwise.experiment.runs import read_run
from partwise.experiment.store import RunStore
from partwise.experiment.trusted import Trusted
from toy_cli import call
from toy_hostile import Stops, experiment, images


def test_record_and_report_name_whom_the_server_suspected(tmp_path):
    experiment().run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        told = [event["body"] for event in store.events("told")]
        assert store.meta()["hostile_clients"] == [2, 6]
    assert [body["version"] for body in told] == [2, 3, 4]  # from the third round on
    assert all({s["client"] for s in body["suspects"] if s["kind"] == "sign flip"} == {2, 6} for body in told)
    assert {2, 6} <= set(told[-1]["excluded"])
    run = read_run(tmp_path / "run")
    assert {t.client for t in run.troubles if (t.kind, t.stage) == ("suspected", "sign flip")} == {2, 6}
    shown = call("show", tmp_path / "run")[0]
    assert "clients suspected: " in shown
    assert "client 2: sign flip, 3 rounds from version 2 on: cosine -" in shown
    write_report([tmp_path / "run"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert " clients suspected" in page
    assert "suspected in sign flip" in page


def test_resumed_run_ends_in_the_same_bits(tmp_path):
    whole = experiment().run(tmp_path / "whole")
    experiment().run(tmp_path / "part", progress=Stops())
    assert read_run(tmp_path / "part").meta["status"] == "interrupted"
    resumed = experiment().run(tmp_path / "part", resume=True)
    assert all(torch.equal(whole.params[name], v) for name, v in resumed.params.items())
    told = []
    for run in (whole, resumed):
        with RunStore(run.folder, "read") as store:
            told.append([event["body"] for event in store.events("told")])
    assert told[0] == told[1]
    assert len(told[0]) == 3


def test_privacy_is_attacked_too_and_promises_the_honest_the_same(tmp_path):
    """Who attacks meets the mean with the fixed divisor; noise and epsilon are those without it, the model is not."""
    parts = {"aggregator": None, "privacy": ClientDP(clip_norm=1.0, noise_multiplier=0.4, delta=1e-3)}
    found = {}
    for name, hostile in (("quiet", None), ("attacked", Hostile(SignFlip(5.0), clients=(2, 6)))):
        result = experiment(rounds=3, hostile=hostile, **parts).run(tmp_path / name)
        epsilon = [row["value"] for row in result.table() if row["name"] == "epsilon"]
        found[name] = epsilon, result.params
    assert len(found["quiet"][0]) == 3
    assert found["quiet"][0] == found["attacked"][0]
    assert not any(torch.equal(found["quiet"][1][name], v) for name, v in found["attacked"][1].items())


@pytest.mark.parametrize(
    ("attack", "holds"),
    [
        (SignFlip(), True),
        (InnerProduct(10.0, is_omniscient=False), True),
        (ALittleIsEnough(), True),
        (Mixture((SignFlip(), Sybils(SignFlip())), ((2,), (6,))), True),
        (InnerProduct(10.0), False),
        (ALittleIsEnough(is_omniscient=True), False),
        (CoverageAttack(SignFlip()), False),
        (Sybils(InnerProduct(10.0)), False),
        (Mixture((SignFlip(), InnerProduct(10.0)), ((2,), (6,))), False),
    ],
    ids=repr,
)
def test_what_an_attack_that_sees_the_honest_makes_of_a_guarantee_is_said(tmp_path, attack, holds):
    """-10 times the mean of the honest, twice: one of them would move the sum by more than its own clip."""
    privacy = ClientDP(clip_norm=1.0, noise_multiplier=0.4, delta=1e-3)
    hostile = Hostile(attack, clients=(2, 6))
    run = experiment(rounds=1, hostile=hostile, aggregator=None, privacy=privacy).run(tmp_path / "run")
    said = read_run(run.folder).meta["guarantee"]
    assert ("does not hold beside this run's attack" in said) is not holds


def test_trusted_examples_are_not_tested_on():
    star, workload = experiment(aggregator=Zeno(f=2), trusted=Trusted(30)).build()
    assert len(workload.population.central_test()) == 50
    assert len(star.trusted) == 30
    every = torch.cat([star.trusted.columns()["x"], workload.population.central_test().columns()["x"]]).flatten(1)
    true = images(80, 2)["x"].flatten(1)
    assert torch.equal(every.sort(0).values, true.sort(0).values)
    with pytest.raises(
        CompositionError, match=r"Trusted\(examples=80\): takes examples from a larger central test set"
    ):
        experiment(trusted=Trusted(80)).build()
    with pytest.raises(ValueError, match=r"Trusted\(examples=0\): must be at least 1, got 0\."):
        Trusted(0)


def test_record_says_where_all_were_alike(tmp_path):
    """Everybody is of one crowd: `FoolsGold` cannot tell them apart, and says so in every commit."""
    experiment(aggregator=FoolsGold(), hostile=Hostile(NegatedCrowd(), share=1.0), rounds=2).run(tmp_path / "alike")
    experiment(aggregator=FoolsGold(), hostile=None, rounds=2).run(tmp_path / "honest")
    found = []
    for name in ("alike", "honest"):
        with RunStore(tmp_path / name, "read") as store:
            found.append([event["body"].get("all_alike") for event in store.events("told")])
    assert found[0] == [True, True]
    assert not any(found[1])
