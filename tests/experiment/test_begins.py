"""Algorithms around others that an experiment refuses when it is built, for what the server would keep or add."""

import pytest

from partwise.algorithms import CO2, LANS, AdaAlter, Deniable, FedAvg, FedHyper, FedSubAvg, HeteroFL, SignMomentum
from partwise.core.errors import CompositionError
from partwise.core.metrics import Accuracy
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.schedulers import Synchronous
from toy_experiments import People
from toy_federation import LOCAL, model


def built(algorithm):
    return Experiment(Workload(model(), People(), (Accuracy(),)), algorithm, Synchronous(cohort=3, rounds=2)).build()


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (
            SignMomentum(CO2(FedAvg(LOCAL), 0.2), 0.2),
            r"has the streams \['momentum'\] of its own, got an algorithm that",
        ),
        (
            CO2(LANS(FedAvg(LOCAL)), 0.2),
            r"has the streams \[.*'momentum'.*\] of its own, got an algorithm that has them",
        ),
        (LANS(AdaAlter(LOCAL)), r"has the streams \['momentum', 'squares'\] of its own"),
        (FedHyper(FedHyper(FedAvg(LOCAL))), r"needs the streams \['direction', 'rate'\] for itself"),
        (Deniable(FedSubAvg("heat", LOCAL)), r"does not say who holds what, got a part that divides by how many"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_server_cannot_begin_with_is_refused_when_built(algorithm, said):
    with pytest.raises(CompositionError, match=said):
        built(algorithm)


@pytest.mark.parametrize(
    "inside", [FedSubAvg("count", LOCAL), HeteroFL(LOCAL), AdaAlter(LOCAL, submodel=True)], ids=repr
)
def test_lengths_of_whole_parameters_are_not_taken_of_parts(inside):
    with pytest.raises(
        CompositionError, match=r"LANS\(\w+\): takes lengths of whole parameters, got an algorithm whose"
    ):
        LANS(inside)


def test_what_goes_together_is_built():
    for algorithm in (
        FedHyper(SignMomentum(FedAvg(LOCAL), 0.2)),
        LANS(FedHyper(FedAvg(LOCAL))),
        Deniable(FedSubAvg("count")),
    ):
        built(algorithm)
